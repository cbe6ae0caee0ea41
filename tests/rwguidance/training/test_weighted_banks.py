"""Objectives on draws of another law, with log-importances: the law of the model is what counts."""

import math

import pytest
import torch
from torch import nn

from common import SCHEDULES, assert_within
from rwguidance import Bank, Tilt
from rwguidance.losses import contrastive
from rwguidance.toy import Gaussian, Linear
from rwguidance.training import ExpectationObjective, NoisedBatch, ShiftObjective, objectives
from training_problems import rng

SCHEDULE = SCHEDULES["cosine"]
LAW = Gaussian([0.3, -0.2], [[1.0, 0.3], [0.3, 0.6]])
OTHER = Gaussian([1.0, -0.5], [[1.2, 0.2], [0.2, 0.9]])
TILT = Tilt(Linear([0.9, -0.6]), 1.3)
TIME = 0.45
F64 = torch.float64
MEAN, COVARIANCE = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[1.0, 0.3], [0.3, 0.6]])
SLOPE = torch.tensor([0.9, -0.6], dtype=F64) / 1.3


def log_mgf(v):
    return v @ MEAN + v @ COVARIANCE.double() @ v / 2


def centered_log_h(*given):
    """The exact log h, of weights with mean one."""

    return LAW.log_h(*given) - log_mgf(SLOPE)


def bank_of(seed, weighted=True, n=1500):
    x_0 = OTHER.sample(n, rng(seed))
    return Bank(x_0, log_importance=LAW.log_prob(x_0) - OTHER.log_prob(x_0) if weighted else None)


class NearExact(nn.Module):
    """The exact log h, or the exact shift, plus directions that training at the optimum leaves."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact
        self.off = nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, x_t, t, condition=None):
        exact = self.exact(TILT, x_t.detach(), t, SCHEDULE)
        return exact + (x_t @ self.off if exact.ndim == 1 else self.off * x_t)


def slopes(make, exact, **bank):
    """Gradients of the loss at the exact optimum, one row per bank."""

    rows = []
    for seed in range(40):
        network = NearExact(exact)
        make(bank_of(seed, **bank))(network, rng(1000 + seed))["loss"].backward()
        rows.append(network.off.grad)
    return torch.stack(rows)


def objective_of(kind, **options):
    times = lambda n, generator: torch.full((n,), TIME, dtype=F64)
    return lambda bank: kind(
        LAW.model(SCHEDULE), bank, TILT, batch_size=1500, times=times, **options
    )


CASES = {
    "log h": (objective_of(ExpectationObjective), centered_log_h),
    "groups": (objective_of(ExpectationObjective, loss=contrastive, group_size=5), centered_log_h),
    "shift": (objective_of(ShiftObjective), LAW.shift),
}


@pytest.mark.parametrize(("make", "exact"), CASES.values(), ids=CASES)
def test_the_exact_optimum_stays_where_it_is(make, exact):
    # the mean gradient vanishes there over draws of the law, and not over those of the other one
    found = slopes(make, exact)
    error = found.std(0) / math.sqrt(len(found))
    assert_within(found.mean(0), torch.zeros(2).double(), error)
    ignored = slopes(make, exact, weighted=False)
    error = ignored.std(0) / math.sqrt(len(ignored))
    assert bool((ignored.mean(0).abs() > 8 * error).any())


def test_the_loss_is_that_of_the_law():
    # f = a . x_t: E[w exp(-f)] / Z is that of a Gaussian, as is E[f]
    class Slope(nn.Module):
        def forward(self, x_t, t, condition=None):
            return x_t @ a

    a = torch.tensor([0.3, 0.1], dtype=F64)
    alpha, sigma = math.cos(math.pi / 2 * TIME), math.sin(math.pi / 2 * TIME)
    log_w = log_mgf(SLOPE - alpha * a) - log_mgf(SLOPE) + sigma**2 * a @ a / 2
    expected = log_w.exp() + alpha * a @ MEAN
    make = objective_of(ExpectationObjective)
    values = torch.stack([make(bank_of(seed))(Slope(), rng(seed))["loss"] for seed in range(60)])
    assert_within(values.mean(), expected, values.std() / math.sqrt(60))


def test_weights_and_importances_are_centered_per_condition():
    condition = ["cat"] * 500 + ["dog"] * 1000
    plain = bank_of(0)
    log_b = plain.log_importance + torch.tensor([5.0] * 500 + [-70.0] * 1000)
    bank = Bank(plain.x_0, condition, log_importance=log_b)
    objective = ExpectationObjective(LAW.model(SCHEDULE), bank, TILT)
    for rows in bank.rows.values():
        log_b = objective.log_importance[rows]
        assert abs(log_b.exp().mean() - 1) < 1e-12
        assert abs((objective.log_w[rows] + log_b).exp().mean() - 1) < 1e-12
        assert (log_b - plain.log_importance[rows]).std() < 1e-12


def test_preferred_samples_count_by_their_importance(monkeypatch):
    points = torch.tensor([[0.7, -1.1], [0.2, 0.4]], dtype=F64)
    preferred = Bank(points, log_importance=torch.tensor([3.0, 1.0], dtype=F64).log() + 9)
    objective = objective_of(ExpectationObjective, eta=0.5, preferred=preferred)(bank_of(0))
    seen, original = [], objectives.consistency

    def spy(guided, noise):
        seen.append((guided, noise, original(guided, noise)))
        return seen[-1][2]

    monkeypatch.setattr(objectives, "consistency", spy)
    found = objective(NearExact(centered_log_h), rng())["consistency"]
    ((guided, noise, values),) = seen
    alpha, sigma = math.cos(math.pi / 2 * TIME), math.sin(math.pi / 2 * TIME)
    clean = (guided.scales.alpha * guided.mean + guided.scales.sigma * guided.noise) - sigma * noise
    first = (clean / alpha - points[0]).norm(dim=1) < 1e-6
    assert 0.4 < first.double().mean() < 0.6  # drawn alike
    expected = torch.where(first, 1.5, 0.5).double() @ values / len(values)
    torch.testing.assert_close(found, 0.5 * expected, rtol=1e-10, atol=0)


def test_a_loss_of_whole_batches_cannot_be_weighted():
    summed = lambda log_h, log_w: (log_h - log_w).square().sum()
    objective = objective_of(ExpectationObjective, loss=summed)(bank_of(0))
    with pytest.raises(ValueError, match=r"one value per draw, \(1500,\), .* got \(\)"):
        objective(NearExact(centered_log_h), rng())


def test_an_average_has_the_dtype_of_its_values():
    x, log_importance = torch.zeros(2, 2), torch.tensor([0.5, 3.0], dtype=F64).log()
    batch = NoisedBatch(x, x, x, torch.ones(2, dtype=F64), None, torch.zeros(2), log_importance)
    found = batch.mean(torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor(4.0))  # (0.5 * 4 + 3 * 2) / 2, float32
