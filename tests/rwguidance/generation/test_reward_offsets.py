"""A constant that is added to a reward changes no picture, however large: weights are relative."""

from dataclasses import replace

import pytest
import torch

from pixel_law import QUIET, Brightness, assert_same_pictures, run
from rwguidance.generation import (
    SMC,
    BestOfN,
    Importance,
    NoiseChain,
    NoiseGradient,
    PlugInMean,
    Pool,
    Posterior,
    Resample,
    SecondOrder,
    StraightFlow,
)
from rwguidance.generation.scores import score, score_pairs

pytestmark = QUIET

OFFSET = 2.0**26
"""Double precision has steps of 1.5e-8 here, single precision of 8: more than most differences."""


class Moved(Brightness):
    """The brightness and a constant."""

    depends_on = ("factor", "offset")

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, images, prompts):
        return super().forward(images, prompts) + self.offset


METHODS = {
    "best of n": BestOfN(4),
    "soft best of n": BestOfN(4, kl=1.0, draws=32),
    "importance": Importance(bank=32, kl=1.0),
    "leave one out": Importance(bank=32, kl=1.0, leave_one_out=True),
    "effective": Importance(bank=32, beta=5.0, ess=0.3),
    "resample": Resample(bank=32, kl=1.0),
    "pool": Pool(bank=32, kl=1.0),
    "smc": SMC(particles=16, bank=32, kl=1.0),
    "posterior": Posterior(bank=32, kl=1.0, draws=4),
    "plug-in": PlugInMean(kl=1.0, bank=32),
    "second order": SecondOrder(kl=1.0, bank=32),
    "fmps": StraightFlow(kl=1.0, bank=32),
    "noise gradient": NoiseGradient(bank=32, kl=1.0, moves=1),
    "pcn": NoiseChain(bank=32, kl=1.0, burn_in=2, moves=2),
}


@pytest.mark.parametrize("method", [pytest.param(one, id=name) for name, one in METHODS.items()])
def test_a_constant_of_the_reward_changes_no_picture(tmp_path, method):
    near, far = (
        run(tmp_path / f"{offset:g}", method, ["ab"], reward=Moved(offset), images=4, steps=4)
        for offset in (0.0, OFFSET)
    )
    for one, other in zip(near.rows, far.rows, strict=True):
        rewards = tuple(reward - OFFSET for reward in other.rewards)
        assert rewards == pytest.approx(one.rewards, abs=1e-5)
        assert_same_pictures(one, replace(other, rewards=one.rewards))
        for name, value in one.facts.items():
            if type(value) in (int, float) and name != "log z":
                moved = OFFSET if name == "tilted mean" else 0.0
                assert other.facts[name] - moved == pytest.approx(value, abs=1e-5), name
        if "log z" in one.facts:  # which grows by what the constant is over beta
            moved = one.facts["log z"] + OFFSET / other.facts["beta"]
            assert other.facts["log z"] == pytest.approx(moved, rel=1e-9)


def test_rewards_keep_the_precision_in_which_they_come():
    images = torch.linspace(0.1, 0.9, 6, dtype=torch.float64).reshape(2, 3, 1, 1)
    found = score(lambda images, prompts: images.flatten(1).sum(1) / 3, images, "a")
    assert found.values.dtype == torch.float64
    assert found.values.tolist() == (images.flatten(1).sum(1) / 3).tolist()


def test_pictures_are_scored_for_their_own_prompts_and_alone_where_one_fails():
    seen = []

    def reward(images, prompts):
        seen.append(list(prompts))
        if "bad" in prompts:
            raise ValueError("no")
        return images.flatten(1).sum(1) + torch.tensor([float(len(p)) for p in prompts])

    images = torch.arange(4.0)[:, None, None, None].requires_grad_()
    prompts = ("a", "bb", "bad", "dddd")
    found = score_pairs(reward, images, prompts)
    assert found.values[[0, 1, 3]].tolist() == [1.0, 3.0, 7.0]
    assert bool(found.values[2].isnan())
    assert not found.values.requires_grad
    assert found.errors == {2: "no"}
    assert seen == [list(prompts), *([prompt] for prompt in prompts)]
