"""What the test bed registers: rewards and embeddings take pictures of any floating dtype."""

import pytest
import torch
from torch.testing import assert_close

import backbones
import rewards
from common import randn
from rewards import registry
from rwguidance.evaluation import embeddings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["red apple", "a key on a blue background"]
PICTURES = (0.5 + 0.2 * randn(0, 2, 3, 64, 64, dtype=torch.float32)).clamp(0, 1)


@pytest.mark.parametrize("name", ["emoji-pick", "emoji-hps", "emoji-match", "emoji-gold"])
def test_rewards_are_of_prompts_and_free_for_all(name):
    spec = registry.spec(name)
    assert (spec.name, spec.needs_prompt, spec.commercial_use) == (name, True, True)


@pytest.fixture(scope="module")
def drawn():
    """Pictures of the model of one step, each with the prompts of all."""

    prompts = [*PROMPTS, "a yellow duck", "a green tree"]
    model = backbones.load("emoji-turbo")
    with torch.no_grad():
        noise = model.draw_noise(4, torch.Generator().manual_seed(0))
        pictures = model.decode(model(noise, 1.0, model.condition(prompts)).mean)
    return pictures.repeat(4, 1, 1, 1), [prompt for prompt in prompts for _ in range(4)]


@pytest.mark.parametrize("name", ["emoji-pick", "emoji-hps", "emoji-match", "emoji-gold"])
def test_scores_of_pictures_lie_in_the_typical_range_and_fill_much_of_it(name, drawn):
    reward = rewards.load(name)
    with torch.no_grad():
        scores = reward(*drawn)
    low, high = reward.spec.typical_range
    assert float(((scores >= low) & (scores <= high)).float().mean()) > 0.75
    assert float(scores.max() - scores.min()) > 0.4 * (high - low)


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
