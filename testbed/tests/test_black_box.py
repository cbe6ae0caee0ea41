"""A score that is learned from draws, and prompts to train on."""

import torch

from rwguidance.support.conditions import take
from rwguidance_testbed.black_box import LatentScore, learn_score
from rwguidance_testbed.data import load_names
from rwguidance_testbed.prompt_sets import DEVELOPMENT, REPORT, training_prompts


class Told:
    """Prompts of which one number is known, as their pooled embedding and as that of a token."""

    def __init__(self, values):
        self.values = values
        self.embeddings = {"pooled": values[:, None], "text": values[:, None, None]}

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        return Told(self.values[rows])


def test_a_score_tells_rewards_of_draws_that_it_has_not_seen():
    generator = torch.Generator().manual_seed(0)
    prompts = Told(torch.tensor([-1.0, 1.0]).repeat(64))
    x_0 = torch.randn(512, 2, 8, 8, generator=generator)
    rows = torch.arange(512) % 128
    rewards = 5 + 3 * x_0[:, 0].mean((1, 2)) * prompts.values[rows]  # a sign that the prompt has
    score = learn_score(x_0[:384], rewards[:384], prompts, steps=60, seed=0, batch=64)
    told = score(x_0[384:], take(prompts, rows[384:].tolist()))
    assert torch.corrcoef(torch.stack((told, rewards[384:])))[0, 1] > 0.5
    assert isinstance(score, LatentScore)
    assert not any(parameter.requires_grad for parameter in score.parameters())


def test_prompts_to_train_on_are_neither_reported_nor_developed_on():
    prompts = training_prompts(300)
    assert len(set(prompts)) == 300
    assert not {*prompts} & {*REPORT.prompts, *DEVELOPMENT.prompts}
    learned = load_names()["train"]
    assert all(any(prompt.startswith(name) for name in learned) for prompt in prompts)
    assert training_prompts(100) == prompts[:100]
    assert sum(" style" in prompt for prompt in prompts) > 100
