"""Calibration: the scale at which guided samples gain what the tilted law does."""

import math

import pytest
import torch
from torch import nn

from common import SCHEDULES, assert_within, randn
from rwguidance import Bank, Heun, LearnedShift, Tilt, toy
from rwguidance.noise_space import GainOutOfReach
from rwguidance.training import calibrate, guided_gain, tilted_gain
from training_problems import rng

SCHEDULE = SCHEDULES["rectified"]
LAW = toy.Gaussian(torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.6, 0.2], [0.2, 0.4]]))
TILT = Tilt(toy.Linear([1.0, -0.5]), 0.5)
TIMES = torch.linspace(1, 0, 21, dtype=torch.float64)


class Part(nn.Module):
    """A share of the exact shift, as shrinkage leaves it."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x_t, t, condition=None):
        return self.share * LAW.shift(TILT, x_t, t, SCHEDULE)


def gains(share, n=64, tilt=TILT):
    model, noise = LAW.model(SCHEDULE), randn(1, n, 2)
    return guided_gain(model, LearnedShift(Part(share)), tilt, Heun(), TIMES, noise)


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0, 1.6])
def test_a_shrunken_shift_gets_its_length_back(share):
    # The tilted law of a Gaussian moves by Sigma b / beta: log w gains its variance.
    slope = torch.tensor([1.0, -0.5]).double() / 0.5
    target = float(slope @ LAW.covariance @ slope)
    found = calibrate(gains(share), target)
    assert found.scale == pytest.approx(1 / share, rel=0.02)
    assert found.gain == pytest.approx(target, rel=0.02)
    assert found.target == target
    assert found.error < 1e-6 * found.scale  # here every sample moves by as much


def test_the_error_of_the_scale_is_that_of_the_gains():
    noise = torch.randn(400, generator=rng(2), dtype=torch.float64)
    found = calibrate(lambda scale: scale * (2 + noise), 3.0)
    exact = 3 / float(2 + noise.mean())
    assert found.scale == pytest.approx(exact, rel=0.01)
    assert found.error == pytest.approx(exact / 2 / 20, rel=0.2)
    assert math.isnan(calibrate(lambda scale: torch.tensor([scale]), 1.0).error)


@pytest.mark.parametrize(
    ("curve", "slope"),
    [(math.expm1, math.exp), (math.sqrt, lambda scale: 0.5 / math.sqrt(scale))],
)
def test_the_error_is_by_the_slope_near_the_scale(curve, slope):
    noise = torch.randn(400, generator=rng(2), dtype=torch.float64)
    found = calibrate(lambda scale: curve(scale) * (2 + noise), 5.0)
    gain = curve(found.scale) * (2 + noise)
    expected = float(gain.std()) / 20 / (slope(found.scale) * float(2 + noise.mean()))
    assert found.error == pytest.approx(expected, rel=0.1)


def test_a_constant_of_the_reward_is_no_gain():
    rewards = randn(4, 200)
    found = [
        tilted_gain(Bank(rewards[:, None], None, rewards + offset), TILT) for offset in (0.0, 1e9)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_gains_are_told_in_double_precision():
    far = Tilt(toy.Linear([1.0, -0.5], c=1e6), 0.5)
    torch.testing.assert_close(gains(0.37, 4, far)(1.0), gains(0.37, 4)(1.0), rtol=0, atol=1e-8)
    single = Bank(randn(4, 9, 1).float(), log_importance=randn(5, 9).float())
    assert tilted_gain(single, Tilt(toy.Linear([1.0]), 0.5)).dtype == torch.float64
    target = torch.tensor([0.1, 0.2, 0.6], dtype=torch.float64)
    found = calibrate(lambda scale: torch.tensor([0.1, 0.1], dtype=torch.float64) * scale, target)
    assert found.target == pytest.approx(0.3, rel=1e-12)
    assert found.gain == pytest.approx(0.1 * found.scale, rel=1e-12)


def test_runs_start_at_the_first_time():
    model, noise = LAW.model(SCHEDULE), randn(1, 8, 2)
    starts = []
    starting = model.starting
    model.starting = lambda t: starts.append(float(t)) or starting(t)
    guided_gain(model, LearnedShift(Part(1.0)), TILT, Heun(), TIMES, noise)(0.5)
    assert set(starts) == {1.0}


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gain_of_the_tilted_law_is_its_mean_less_the_laws(weighted):
    x_0 = LAW.sample(40_000, rng(3)).double()
    log_importance = None
    if weighted:  # draws of another Gaussian
        other = toy.Gaussian(LAW.mean + 0.2, 1.5 * LAW.covariance)
        x_0 = other.sample(40_000, rng(3)).double()
        log_importance = LAW.log_prob(x_0) - other.log_prob(x_0)
    slope = torch.tensor([1.0, -0.5]).double() / 0.5
    variance = float(slope @ LAW.covariance @ slope)
    bank = Bank(x_0, ["a", "b"] * 20_000, log_importance=log_importance)
    found = tilted_gain(bank, TILT)
    assert found.shape == (2,)
    # Of a log-normal weight, ESS / N is exp(-variance).
    error = (variance * (1 + variance) * math.exp(variance) / 20_000) ** 0.5
    assert_within(found, torch.full((2,), variance).double(), 2 * error)


def test_draws_of_zero_weight_gain_nothing():
    x_0, rewards = LAW.sample(200, rng(4)).double(), torch.randn(200, generator=rng(5))
    rewards[::2] = -math.inf
    found = tilted_gain(Bank(x_0, rewards=rewards), TILT)
    some = tilted_gain(Bank(x_0[1::2], rewards=rewards[1::2]), TILT)
    torch.testing.assert_close(found, some)
    with pytest.raises(ValueError, match="every draw of condition None has zero weight"):
        tilted_gain(Bank(x_0, rewards=torch.full((200,), -math.inf)), TILT)


def test_a_target_is_the_mean_over_prompts():
    linear = lambda scale: torch.full((3,), scale).double()
    assert calibrate(linear, torch.tensor([1.0, 2.0, 6.0])).scale == pytest.approx(3, rel=0.01)


def test_what_no_scale_reaches_is_said():
    flat = lambda scale: torch.tensor([min(scale, 0.7), min(scale, 0.9)])
    with pytest.raises(GainOutOfReach, match=r"at most 0\.8 nats at a scale of 1, got 2") as caught:
        calibrate(flat, 2.0)
    assert caught.value.size == 1
    with pytest.raises(ValueError, match="target"):
        calibrate(flat, 0.0)
