"""What the test bed registers: rewards and embeddings take pictures of any floating dtype."""

import pytest
import torch
from torch.testing import assert_close

import rewards
from common import randn
from rewards import registry
from rwguidance.evaluation import embeddings

PROMPTS = ["red apple", "a key on a blue background"]
PICTURES = (0.5 + 0.2 * randn(0, 2, 3, 64, 64, dtype=torch.float32)).clamp(0, 1)


@pytest.mark.parametrize("name", ["emoji-pick", "emoji-hps", "emoji-match", "emoji-gold"])
def test_rewards_are_of_prompts_and_free_for_all(name):
    spec = registry.spec(name)
    assert (spec.name, spec.needs_prompt, spec.commercial_use) == (name, True, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["emoji-match", "emoji-gold"])
def test_utilities_take_pictures_of_any_dtype(name, dtype):
    reward = rewards.load(name)
    pictures = PICTURES.to(dtype)
    expected = reward(pictures.float(), PROMPTS)
    assert_close(reward(pictures, PROMPTS).float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_judges_embedding_takes_pictures_of_any_dtype(dtype):
    embedding = embeddings.load("emoji-judge")
    pictures = PICTURES.to(dtype)
    expected = embedding(pictures.float())
    assert_close(embedding(pictures).float(), expected, rtol=1e-5, atol=1e-5)
