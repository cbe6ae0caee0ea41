"""The check of schedules: it passes what conforms, and says what is wrong with what does not."""

import pytest
import torch
from torch import nn

from rwguidance import Schedule
from rwguidance.testing import check_schedule


class Rectified(Schedule):
    """A good schedule, to be broken one formula at a time."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def time(self, log_snr):
        return torch.sigmoid(-0.5 * log_snr)


class Slanted(Rectified):
    """Straight lines, of slopes that single precision does not hold."""

    def alpha(self, t):
        return 1 - 0.9 * t

    def sigma(self, t):
        return 0.7 * t

    def time(self, log_snr):
        ratio = torch.exp(-0.5 * log_snr)
        return ratio / (0.7 + 0.9 * ratio)


class Backwards(Rectified):
    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - t

    def time(self, log_snr):
        return torch.sigmoid(0.5 * log_snr)


class HalfLogSNR(Rectified):
    def time(self, log_snr):
        return torch.sigmoid(-log_snr)


class Detached(Rectified):
    def sigma(self, t):
        return t.detach() + 0 * t


class DetachedLate(Rectified):
    def sigma(self, t):
        return torch.where(t > 0.9, t.detach(), t)


class ForgetsTheEnd(Rectified):
    def time(self, log_snr):
        return super().time(log_snr).clamp(max=0.9)


class Single(Rectified):
    def sigma(self, t):
        return t.float()


class Numbers(Rectified):
    def alpha(self, t):
        return 1 - float(t)


class Negative(Rectified):
    def alpha(self, t):
        return 1 - 1.01 * t


class Flat(Rectified):
    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t.clamp(max=0.5) + 0.1


class Normalized(Rectified):
    def sigma(self, t):
        return t / t.max().clamp_min(0.7)


class NoNoise(Rectified):
    def sigma(self, t):
        return t * (1 - t)


class NoData(Rectified):
    def alpha(self, t):
        return t * (1 - t)


class InPlace(Rectified):
    def alpha(self, t):
        return t.neg_().add_(1) if not t.requires_grad else 1 - t


def test_schedules_conform(schedule):
    check_schedule(schedule)
    check_schedule(Rectified())
    check_schedule(Slanted())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Backwards(), "must run from data"),
        (HalfLogSNR(), "time must invert log_snr"),
        (
            Detached(),
            r"rate of Detached.sigma at t = 0\.02\d+ is 0 by automatic differentiation, but 1 by",
        ),
        (DetachedLate(), r"of DetachedLate.sigma at t = 0\.9[01]\d* is 0 by .*, but 1 by"),
        (ForgetsTheEnd(), r"differs from t by up to 0\.08\d*, expected at most 1e-8"),
        (Single(), "Single.sigma must have dtype torch.float64, got torch.float32"),
        (Numbers(), "Numbers.alpha of float64 times of shape .* fails with"),
        (Negative(), "alpha must be finite and at least 0 .* got values from -0.01"),
        (Flat(), "strictly decreasing log-SNR"),
        (Normalized(), "must treat every time by itself"),
        (NoNoise(), "must run from data .* got alpha_0 = 1 and sigma_1 = 0"),
        (NoData(), "must run from data .* got alpha_0 = 0 and sigma_1 = 1"),
        (InPlace(), "must not change its argument t"),
        (nn.Identity(), "expected a Schedule, got Identity"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_schedules_are_caught(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_schedule(broken)
