"""One network for many strengths."""

import pytest
import torch

from common import SCHEDULES, assert_within
from rwguidance import Bank, DenoiserModel, LearnedShift, Tilt, toy
from rwguidance.networks import GuidanceNetwork
from rwguidance.training import EstimatedShiftObjective, StrengthsObjective, train
from training_problems import rng

SCHEDULE = SCHEDULES["cosine"]
SHAPE = (1, 2, 2)
WHITE = toy.Gaussian(torch.zeros(4), torch.eye(4))
SLOPE = torch.tensor([0.6, -0.3, 0.3, 0.6])


class White(DenoiserModel):
    """The exact model of N(0, I), for states of any shape."""

    def denoise(self, x_t, t, condition=None):
        scales = self.schedule.at(t, like=x_t)
        return scales.alpha / (scales.alpha**2 + scales.sigma**2) * x_t


def test_every_strength_is_drawn_alike_and_reaches_network_and_objective():
    class Network(torch.nn.Module):
        def at(self, strength):
            return f"at {strength}"

    seen = []
    make = lambda strength: lambda network, generator: seen.append((strength, network)) or {}
    objective = StrengthsObjective({s: make(s) for s in (0.5, 1.0, 4.0)})
    generator = rng()
    for _ in range(3000):
        objective(Network(), generator)
    assert {network for _, network in seen} == {"at 0.5", "at 1.0", "at 4.0"}
    assert all(network == f"at {strength}" for strength, network in seen)
    counts = torch.tensor([sum(s == strength for s, _ in seen) for strength in (0.5, 1.0, 4.0)])
    assert_within(counts / 3000, torch.full((3,), 1 / 3), (2 / 9 / 3000) ** 0.5)


def test_one_network_serves_strengths_in_between():
    model = White(SCHEDULE)
    bank = Bank(torch.randn(512, *SHAPE, generator=rng(1)))
    linear = lambda x, condition: x.flatten(1) @ SLOPE.to(x)
    tilts = {strength: Tilt(linear, 1 / strength) for strength in (0.25, 0.5, 1.0, 2.0)}
    objective = StrengthsObjective(
        {s: EstimatedShiftObjective(model, bank, tilt, batch_size=32) for s, tilt in tilts.items()}
    )
    network = GuidanceNetwork(1, SCHEDULE, strength=True, widths=(16,), depth=1)
    train(network, objective, 250, learning_rate=1e-2)
    x_t = torch.randn(64, *SHAPE, generator=rng(2))  # the law at every time
    lengths = []
    for strength in (0.25, 0.7, 1.4, 2.0):
        tilt = Tilt(toy.Linear(SLOPE), 1 / strength)
        exact = WHITE.shift(tilt, x_t.flatten(1), 0.7, SCHEDULE).reshape(x_t.shape)
        with torch.no_grad():
            found = LearnedShift(network.at(strength))(model, x_t, 0.7).shift
        assert (found - exact).norm() < 0.35 * exact.norm()
        lengths.append(float(found.norm()))
    assert lengths == sorted(lengths)
    assert lengths[-1] > 4 * lengths[0]


def test_wrong_strengths_are_refused():
    with pytest.raises(ValueError, match="one objective at least"):
        StrengthsObjective({})
    with pytest.raises(ValueError, match="objectives must be positive"):
        StrengthsObjective({0.0: print})
    with pytest.raises(TypeError, match="objectives"):
        StrengthsObjective({1.0: "loss"})
