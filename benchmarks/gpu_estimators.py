"""Every estimator on a device beside the CPU, on a Gaussian law of small pictures, in float32."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rwguidance as rw
from rwguidance import estimators, networks

__all__ = ["differences"]

SHAPE, BATCH, DRAWS, STD = (4, 8, 8), 4, 512, 0.5
SCHEDULE = rw.RectifiedSchedule()
TIME = 0.6


class Denoiser(rw.DenoiserModel):
    """The posterior mean of independent Gaussian pixels around a picture."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__(SCHEDULE)
        self.register_buffer("center", torch.linspace(-1, 1, 256).reshape(SHAPE))

    def denoise(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        scales = self.schedule.at(t, like=x_t)
        known = scales.alpha * STD**2 / (scales.alpha.square() * STD**2 + scales.sigma.square())
        mean: Tensor = self.center + known * (x_t - scales.alpha * self.center)
        return mean


def reward(x: Tensor, condition: Any = None) -> Tensor:
    return x.flatten(1).sin().sum(1) / 4


def all_estimators() -> dict[str, rw.ConditionalExpectation]:
    """Estimators by the names of their rows, on the CPU."""

    tilt = rw.Tilt(reward, 1.0)
    generator = torch.Generator().manual_seed(0)
    bank = rw.Bank(STD * torch.randn(DRAWS, *SHAPE, generator=generator) + Denoiser().center)
    bank = bank.scored(tilt)
    shift = networks.GuidanceNetwork.preset("tiny", SHAPE[0], SCHEDULE)
    log_h = networks.GuidanceNetwork.preset("tiny", SHAPE[0], SCHEDULE, output="log_h")
    for network in (shift, log_h):  # whose last layers are zero
        torch.nn.init.normal_(network.last.weight, std=0.1, generator=generator)
    kernels = {
        "exact": None,
        "Tempered(0.25)": rw.Tempered(0.25),
        "TargetESS(0.05)": rw.TargetESS(0.05),
        "LeaveOneOut()": rw.LeaveOneOut(),
    }
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    draws = {
        "InnerFlow(4)": estimators.InnerFlow(4),
        "Renoising": estimators.Renoising(times, rw.DDIM(eta=1.0)),
        "FlowMap": estimators.FlowMap(times),
    }
    return {
        **{
            f"importance, {name}": rw.ImportanceSampling(bank, tilt, k)
            for name, k in kernels.items()
        },
        "PlugIn": rw.PlugIn(tilt),
        "PlugIn, no Jacobian": rw.PlugIn(tilt, jacobian=False),
        "PlugIn, damped": rw.PlugIn(tilt, damping=1.0),
        "SecondOrderPlugIn": estimators.SecondOrderPlugIn(tilt),
        "FMPS": estimators.FMPS(tilt),
        "LookAhead": rw.LookAhead(tilt),
        **{
            f"posterior, {name}": estimators.PosteriorSampling(tilt, kind, n=4)
            for name, kind in draws.items()
        },
        "LearnedShift": rw.LearnedShift(shift),
        "LearnedExpectation": rw.LearnedExpectation(log_h),
    }


def differences(device: torch.device) -> dict[str, Callable[[], tuple[float, float]]]:
    """Functions by estimator that return the largest differences of shift and log h.

    That of the shift is relative to its largest entry, that of log h in nats, 0 without one.

    Arguments:
        device: The device that is compared with the CPU.
    """

    x_0 = Denoiser().center.expand(BATCH, *SHAPE)
    noise = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1))
    x_t = SCHEDULE.perturb(x_0, TIME, noise)

    def compared(estimator: rw.ConditionalExpectation) -> tuple[float, float]:
        here = estimator(Denoiser(), x_t, torch.tensor(TIME))
        there = estimator.to(device)(Denoiser().to(device), x_t.to(device), torch.tensor(TIME))
        estimator.cpu()
        largest = here.shift.abs().max().clamp_min(1e-9)
        shift = (there.shift.cpu() - here.shift).abs().max() / largest
        log_h = (there.log_h.cpu() - here.log_h).abs().nan_to_num().max()
        return float(shift), float(log_h)

    return {
        f"{device.type} beside CPU: {name}": partial(compared, estimator)
        for name, estimator in all_estimators().items()
    }
