"""Trained networks against the oracle of a toy law."""

import pytest
import torch

from common import SCHEDULES, randn
from rwguidance import Bank, Tilt
from rwguidance.estimators import LearnedExpectation, LearnedShift
from rwguidance.networks import ExpectationMLP, ShiftMLP
from rwguidance.toy import GaussianMixture, Linear
from rwguidance.training import ExpectationObjective, ShiftObjective, train
from training_problems import rng

SCHEDULE = SCHEDULES["cosine"]
TWO = GaussianMixture(
    [0.0, 0.4], [[1.2, 0.4], [-0.9, -0.7]], [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]
)
TWO_TILT = Tilt(Linear([1.0, -0.5]), 0.8)


def between(n, generator):
    return 0.2 + 0.7 * torch.rand(n, generator=generator, dtype=torch.float64)


def relative_error(estimator):
    """Root mean square error of the shift over states of the path, where no guidance has 1."""

    x_0 = TWO.sample(2000, rng(100))
    t = between(2000, rng(101))
    x_t = SCHEDULE.perturb(x_0, t, randn(102, 2000, 2))
    exact = TWO.shift(TWO_TILT, x_t, t, SCHEDULE)
    found = estimator(TWO.model(SCHEDULE), x_t, t).shift.detach()
    return ((found - exact).square().sum() / exact.square().sum()).sqrt().item()


@pytest.fixture(scope="module")
def trained():
    """A network for log h and the objectives' common options."""

    bank = Bank(TWO.sample(20_000, rng(1)))
    options = {"model": TWO.model(SCHEDULE), "bank": bank, "tilt": TWO_TILT, "times": between}
    network = ExpectationMLP((2,), width=48, depth=2).double()
    train(network, ExpectationObjective(**options), 400, learning_rate=1e-2)
    return network, options


def test_a_trained_expectation_is_near_the_oracle(trained):
    untrained = ExpectationMLP((2,), width=48, depth=2).double()
    assert relative_error(LearnedExpectation(untrained)) == 1
    assert relative_error(LearnedExpectation(trained[0])) < 0.25


@pytest.mark.parametrize("centered", [False, True])
def test_a_trained_shift_is_near_the_oracle(trained, centered):
    expectation, options = trained
    network = ShiftMLP((2,), SCHEDULE, width=48, depth=2).double()
    assert relative_error(LearnedShift(network)) == 1
    objective = ShiftObjective(**options, expectation=expectation if centered else None)
    train(network, objective, 300, learning_rate=1e-2)
    assert relative_error(LearnedShift(network)) < 0.25
