"""What an object says of itself: class and arguments in one line, no contents of tensors."""

import pytest
import torch
from torch import nn

from common import randn
from rwguidance import (
    DDIM,
    Bank,
    CosineSchedule,
    DiscreteSchedule,
    GuidedModel,
    Heun,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
    RectifiedSchedule,
    TargetESS,
    Tempered,
    Tilt,
    VESchedule,
    VPSchedule,
    toy,
)
from rwguidance.support.describe import named


class PickScore(nn.Module):
    """A reward with a network, whose own description takes many lines."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def forward(self, x, condition=None):
        return x.flatten(1)[:, 0]


def sharpness(x, condition=None):
    return x.flatten(1)[:, 0]


PICK = Tilt(PickScore(), 0.5)
BANK = Bank(randn(0, 64, 4, 8, 8), ["a", "b"] * 32)
LAW = toy.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
GUIDED = GuidedModel(LAW.model(RectifiedSchedule()), PlugIn(PICK), window=(0.2, 1.0))

LINES = {
    "Tilt(reward=PickScore, beta=0.5)": PICK,
    "Tilt(reward=sharpness, beta=2.0)": Tilt(sharpness, 2),
    "Tilt(reward=[PickScore, sharpness], beta=(0.5, 1.0))": Tilt(
        [PickScore(), sharpness], [0.5, 1.0]
    ),
    "Bank(64 draws of (4, 8, 8) for 2 conditions, not scored)": BANK,
    "Bank(64 draws of (4, 8, 8) for 2 conditions, scored)": BANK.scored(PICK),
    "Bank(3 draws of (2,) for every condition, scored by 2 rewards)": Bank(
        randn(0, 3, 2), rewards=randn(1, 3, 2)
    ),
    "Bank(3 draws of (2,) for 1 condition, not scored)": Bank(randn(0, 3, 2), ["a"] * 3),
    "DDIM(eta=0.5)": DDIM(0.5),
    "Heun()": Heun(),
    "VPSchedule(beta_min=0.1, beta_max=20.0)": VPSchedule(),
    "VESchedule(sigma_min=0.01, sigma_max=50.0)": VESchedule(0.01, 50),
    "CosineSchedule()": CosineSchedule(),
    "DiscreteSchedule(3 alphas_cumprod from 0.9 to 0.1)": DiscreteSchedule([0.9, 0.5, 0.1]),
    "Tempered(factor=0.5)": Tempered(0.5),
    "TargetESS(fraction=0.1)": TargetESS(0.1),
    "ImportanceSampling(bank=Bank(64 draws of (4, 8, 8) for 2 conditions, scored), "
    "tilt=Tilt(reward=PickScore, beta=0.5), kernel=TargetESS(fraction=0.1))": ImportanceSampling(
        BANK, PICK, TargetESS(0.1)
    ),
    "PlugIn(tilt=Tilt(reward=PickScore, beta=0.5), jacobian=True, damping=None, "
    "prior_variance=1.0)": PlugIn(PICK),
    "LearnedExpectation(network=PickScore)": LearnedExpectation(PickScore()),
    "LearnedShift(network=PickScore)": LearnedShift(PickScore()),
    "GuidedModel(base=Gaussian(dimension 2).model(RectifiedSchedule()), estimator=PlugIn("
    "tilt=Tilt(reward=PickScore, beta=0.5), jacobian=True, damping=None, prior_variance=1.0), "
    "scale=1.0, window=(0.2, 1.0))": GUIDED,
    "GaussianMixture(dimension 2, 2 components)": toy.GaussianMixture(
        [0.0, 0.0], randn(0, 2, 2), torch.eye(2)[None]
    ),
    "Empirical(5 points of (3,), bandwidth=0.0)": toy.Empirical(randn(0, 5, 3)),
}


@pytest.mark.parametrize("line", list(LINES))
def test_an_object_says_what_it_is_in_one_line(line):
    assert repr(LINES[line]) == line


def test_functions_among_other_values_are_named():
    assert named((randn, 1.0, nn.Identity())) == "[randn, 1.0, Identity]"
    assert named([1.0, "a"]) == "[1.0, 'a']"
