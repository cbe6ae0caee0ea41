"""Every term of every objective trains its network: by its slope, against finite differences.

A detach() too many changes no value of a term, only what is learned from it.
"""

import pytest
import torch
from torch import nn

from common import randn
from rwguidance import Bank, Tilt, toy
from rwguidance.losses import contrastive
from rwguidance.training import (
    EstimatedShiftObjective,
    ExpectationObjective,
    GradientObjective,
    NoiseObjective,
    OutputObjective,
    ShiftObjective,
)
from training_problems import MODEL, TILT, Ramp, make_bank, rng

ROUND = Tilt(toy.Quadratic([1.5, 0.5], 1.2 * torch.eye(2)), 0.9)


class Given(nn.Module):
    """A bent map of states, or the sum of its parts, whose weights are given: no parameters."""

    def __init__(self, weights, scalar):
        super().__init__()
        self.weights, self.scalar = weights, scalar

    def forward(self, x, t, condition=None):
        out = (x @ self.weights[:2] + self.weights[2]).sin() + t.to(x)[:, None] * self.weights[3]
        return out.sum(1) if self.scalar else out


def weighted_bank():
    plain = make_bank()
    return Bank(plain.x_0, rewards=plain.rewards, log_importance=0.8 * randn(2, len(plain)))


def draw(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def generate(noise, condition):
    return 0.5 + 0.7 * noise


def banked(kind, bank=make_bank, **options):
    return lambda: kind(MODEL, bank(), TILT, batch_size=6, **options)


def one_step(kind, **options):
    return lambda: kind(generate, ROUND, draw, batch_size=6, **options)


EXTRAS = {
    "eta": 0.5,
    "penalty": 0.3,
    "cycle_weight": 0.4,
    "classifier": lambda x_t, t, condition: x_t.square().sum(1) - t,
}
OBJECTIVES = {
    "log h": banked(ExpectationObjective, **EXTRAS),
    "log h, weighted": banked(ExpectationObjective, weighted_bank, **EXTRAS),
    "log h, preferred": banked(
        ExpectationObjective, eta=0.5, preferred=Bank(randn(1, 4, 2)), penalty=0.3
    ),
    "log h in groups": banked(ExpectationObjective, loss=contrastive, group_size=3),
    "shift": banked(ShiftObjective),
    "shift, weighted": banked(ShiftObjective, weighted_bank),
    "shift, centered": banked(ShiftObjective, expectation=Ramp()),
    "shift, estimated": banked(EstimatedShiftObjective),
    "output": one_step(OutputObjective, variance=0.49),
    "output in chunks": one_step(OutputObjective, decode_batch=4),
    "noise": one_step(NoiseObjective, std=1.5),
    "noise, prior": one_step(NoiseObjective, prior=lambda x, *_: x.pow(4).sum(1)),
    "noise and output": one_step(GradientObjective, std=1.5, variance=0.3, pictures=9),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_term_has_its_slope(name):
    objective = OBJECTIVES[name]()

    def terms(weights):
        network = Given(weights, scalar=name.startswith("log h"))
        return tuple(objective(network, rng(3)).values())

    weights = (0.5 * randn(5, 4, 2)).requires_grad_()
    assert all(term.requires_grad for term in terms(weights))  # gradcheck leaves others out
    assert torch.autograd.gradcheck(terms, (weights,))


@pytest.mark.parametrize("kind", [ExpectationObjective, ShiftObjective])
def test_importances_keep_the_precision_of_the_network(kind):
    bank = weighted_bank()
    rewards = bank.rewards.float()
    narrow = Bank(bank.x_0.float(), rewards=rewards, log_importance=bank.log_importance)
    objective = kind(MODEL, narrow, TILT, batch_size=6)
    network = Given(randn(5, 4, 2).float(), scalar=kind is ExpectationObjective)
    assert objective(network, rng(3))["loss"].dtype == torch.float32


class Learning(nn.Module):
    """What a loss is computed with, though it could learn; says how it was called."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.recorded = []

    def forward(self, x, *_):
        self.recorded.append(torch.is_grad_enabled())
        return self.gain * x.sum(1)


def test_the_classifier_is_not_trained():
    classifier = Learning()
    objective = banked(ExpectationObjective, cycle_weight=0.4, classifier=classifier)()
    network = Ramp()
    objective(network, rng())["cycle"].backward()
    assert network.v.grad.abs().max() > 0
    assert classifier.gain.grad is None
    assert classifier.recorded == [False]


def test_pictures_are_kept_without_graphs():
    noise = randn(1, 9, 2)
    objective = GradientObjective(generate, ROUND, lambda n, _: noise, pictures=9, batch_size=9)
    sides = objective.sides.values()
    assert len(sides) == 2
    for side in sides:
        assert not any(part.requires_grad for part in (side.states, side.changes, side.size))
    assert not noise.requires_grad  # nor is what was drawn marked
