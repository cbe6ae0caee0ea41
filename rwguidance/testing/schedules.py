"""The conformance check of schedules."""

import torch
from torch import Tensor

from ..schedules import Schedule
from .requirements import extremes, require, require_tensor, run, untouched

__all__ = ["check_schedule"]


def check_schedule(schedule: Schedule, n: int = 64) -> None:
    r"""Checks that a schedule is a path from data to noise, with correct inverse and rates.

    Arguments:
        schedule: The schedule.
        n: Number of times at which to look.

    Raises:
        AssertionError: If the schedule breaks the contract of :class:`rwguidance.Schedule`.
    """

    name = type(schedule).__name__
    require(isinstance(schedule, Schedule), f"expected a Schedule, got {name}")
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    values = {}
    for part in ("alpha", "sigma"):
        function = getattr(schedule, part)
        with untouched(f"{name}.{part}", t=t):
            value = run(f"{name}.{part} of float64 times of shape ({n + 1},)", function, t)
        require_tensor(f"{name}.{part}", value, t.shape, torch.float64)
        require(
            bool((value.isfinite() & (value >= 0)).all()),
            f"{name}.{part} must be finite and at least 0 on [0, 1], got {extremes(value)}",
        )
        single = torch.stack([run(f"{name}.{part} of a scalar", function, time) for time in t])
        require(
            torch.allclose(single, value, rtol=1e-12, atol=1e-300),
            f"{name}.{part} must treat every time by itself, but a batch of times gives other "
            "values than its times one by one",
        )
        values[part] = value
    require(
        values["alpha"][0] > 0 and values["sigma"][-1] > 0,
        f"{name} must run from data (t = 0, alpha > 0) to noise (t = 1, sigma > 0), got alpha_0 = "
        f"{values['alpha'][0]:.4g} and sigma_1 = {values['sigma'][-1]:.4g}",
    )
    ratio = values["sigma"] / values["alpha"]  # inf at a noise end without signal
    require(
        bool((ratio[1:] > ratio[:-1]).all()),
        f"{name} must have a strictly decreasing log-SNR, so more noise at larger t (0 is data, "
        "1 is noise); the ratio sigma / alpha does not increase everywhere",
    )

    generator = torch.Generator().manual_seed(0)
    inner = t[1:-1] + 0.3 / n * torch.rand(n - 1, generator=generator, dtype=torch.float64)
    log_snr = schedule.log_snr(inner)
    back = run(f"{name}.time of log-SNRs of shape ({n - 1},)", schedule.time, log_snr)
    require_tensor(f"{name}.time", back, inner.shape, torch.float64)
    error = float((back - inner).abs().max())
    require(
        error <= 1e-8,
        f"{name}.time must invert log_snr, in nats of (alpha / sigma)^2: time(log_snr(t)) differs "
        f"from t by up to {error:.2g}, expected at most 1e-8",
    )
    _check_rates(name, schedule, inner)


def _check_rates(name: str, schedule: Schedule, t: Tensor) -> None:
    step = 1e-6
    scales = run(f"{name}.at", schedule.at, t, torch.zeros(len(t), 1, dtype=torch.float64))
    for part in ("alpha", "sigma"):
        function, rate = getattr(schedule, part), getattr(scales, f"{part}_rate").squeeze(1)
        before, here, after = function(t - step), function(t), function(t + step)
        forward, backward = (after - here) / step, (here - before) / step
        # Their gap bounds the error of their mean, for smooth functions and at kinks alike.
        rounding = 8 * torch.finfo(torch.float64).eps * (1 + here.abs()) / step
        wrong = (
            (rate - (forward + backward) / 2).abs() > (forward - backward).abs() + rounding
        ) | (~rate.isfinite())
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise AssertionError(
                f"the rate of {name}.{part} at t = {t[i]:.4g} is {rate[i]:.6g} by automatic "
                f"differentiation, but {(forward + backward)[i] / 2:.6g} by finite differences; "
                "write it with differentiable torch operations, without detach, item or numpy"
            )
