"""A small problem to train on: a bank, an objective, networks."""

import torch
from torch import nn

from common import SCHEDULES, randn
from problems import mixture
from rwguidance import Bank, Tilt
from rwguidance.networks import ExpectationMLP
from rwguidance.toy import Linear
from rwguidance.training import ExpectationObjective

LAW = mixture(3, 2)
TILT = Tilt(Linear([0.9, -0.6]), 1.5)
SCHEDULE = SCHEDULES["cosine"]
MODEL = LAW.model(SCHEDULE)
LABELS = ["cat", "dog", "owl"]


def make_bank(n=24, condition=None, rewards=None):
    x_0 = LAW.sample(n, torch.Generator().manual_seed(5))
    return Bank(x_0, condition, TILT.score(x_0) if rewards is None else rewards)


def make_network(seed=0, labels=None):
    return ExpectationMLP((2,), labels, width=8, depth=2, seed=seed).double()


def make_objective(**options):
    return ExpectationObjective(MODEL, make_bank(), TILT, batch_size=8, **options)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Ramp(nn.Module):
    """log h = v . x + u t, with a known gradient; remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(randn(1, 2))
        self.calls, self.recorded = [], []

    def forward(self, x_t, t, condition=None):
        self.calls.append((x_t.detach(), t, condition))
        self.recorded.append(torch.is_grad_enabled())
        return x_t @ self.v + 0.3 * t


def parameters(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach()
