"""The methods that `methods.py` compares: estimators that guide, and choices among samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rwguidance as rw
from rwguidance.networks import LatentShift
from rwguidance.weights import ess, pareto_k

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SOME = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Material:
    """The bank and the tilt that an estimator is made of, for a block of prompts and one strength.

    Arguments:
        bank: Draws of all prompts, their rewards in nats.
        tilt: Tilt by the reward in nats, its beta that of each prompt.
        variance: Variance of the latents of a prompt, per dimension.
    """

    bank: rw.Bank
    tilt: rw.Tilt
    variance: float


Make = Callable[[Material], rw.ConditionalExpectation]


@dataclass(frozen=True)
class Guided:
    """A method that guides.

    Arguments:
        name: Name of the method.
        make: Function that makes the estimator.
        strengths: Strengths in nats; (None,) if it has one of its own.
        bank: Draws of each prompt that it uses.
        first: Number of first steps that it guides; None is all.
        every: Number of blocks of prompts on one of which it runs.
    """

    name: str
    make: Make
    strengths: tuple[float | None, ...] = STRENGTHS
    bank: int = 64
    first: int | None = None
    every: int = 1

    def window(self, model: rw.Model, times: Tensor) -> tuple[float, float]:
        """Returns the last and the first time at which it guides."""

        last = len(times) - 2 if self.first is None else self.first - 1
        start = 0
        if self.name.startswith("plug-in, Jacobian") and float(model.schedule.alpha(times[0])) == 0:
            start = 1  # where a state says nothing, its gradient does not determine the shift
        return float(times[last]), float(times[start])


@dataclass(frozen=True)
class Picked:
    """A method that chooses among `n` samples, the base sample the first of them."""

    name: str
    n: int
    soft: bool = False
    strengths: tuple[float | None, ...] = (None,)
    every: int = 1

    @property
    def bank(self) -> int:
        return 0


Method = Guided | Picked


class Pooled(rw.ConditionalExpectation):
    r"""Importance sampling with a kernel that looks at means over `size` x `size` positions only.

    The means, times the size, are :math:`\alpha_t` times those of the clean state plus noise of
    variance :math:`\sigma_t^2`, in `size`:sup:`2` times fewer dimensions. So this is the exact
    estimate given less than the state, and its effective draws last longer.

    Arguments:
        bank: Bank with as many draws of each condition.
        tilt: Tilt of the bank's rewards.
        size: Side of the squares over which means are taken.
    """

    def __init__(self, bank: rw.Bank, tilt: rw.Tilt, size: int) -> None:
        super().__init__()
        assert bank.rewards is not None
        self.bank, self.log_w, self.size = bank, tilt.weigh(bank.rewards), size
        self.small = self._pool(bank.x_0)

    def _pool(self, x: Tensor) -> Tensor:
        return self.size * nn.functional.avg_pool2d(x.float(), self.size).flatten(1)

    def forward(
        self, model: rw.Model, x_t: Tensor, t: float | Tensor, condition: Any = None
    ) -> rw.Estimate:
        scales = model.schedule.at(t, like=x_t)
        alpha, sigma = (value.flatten(1) for value in (scales.alpha, scales.sigma))
        rows = [self.bank.rows[key] for key in condition]
        draws, small, log_w = (
            torch.stack([values[part] for part in rows])
            for values in (self.bank.x_0.flatten(1), self.small, self.log_w)
        )
        distance = (self._pool(x_t)[:, None] - alpha[..., None] * small).square().sum(-1)
        log_kernel = -distance / (2 * sigma**2)
        log_w = log_w.to(log_kernel)
        weight, tilted = log_kernel.softmax(1), (log_kernel + log_w).softmax(1)
        shift = torch.einsum("bn,bnd->bd", tilted - weight, draws).reshape(x_t.shape)
        diagnostics = {
            "ess": ess(log_kernel),
            "ess_tilted": ess(log_kernel + log_w),
            "pareto_k": pareto_k(log_kernel + log_w),
        }
        log_h = (log_kernel + log_w).logsumexp(1) - log_kernel.logsumexp(1)
        return rw.Estimate(model(x_t, t, condition), log_h, shift, diagnostics)


def importance(kernel: Any = None) -> Make:
    """Returns a function that makes importance sampling with a kernel."""

    return lambda material: rw.ImportanceSampling(
        material.bank, material.tilt, kernel, pareto_k=True
    )


def pooled(side: int) -> Make:
    """Returns a function that makes the kernel on so many means a side."""

    return lambda material: Pooled(
        material.bank, material.tilt, material.bank.x_0.shape[-1] // side
    )


def plug_in(jacobian: bool) -> Make:
    """Returns a function that makes the plug-in estimator, with or without the Jacobian."""

    return lambda material: rw.PlugIn(
        material.tilt, jacobian=jacobian, prior_variance=material.variance
    )


def methods_of(
    steps: int,
    small: int = 16,
    bank: int = 64,
    large: int = 256,
    every: int = 4,
    network: nn.Module | None = None,
) -> list[Method]:
    """Returns the methods that differ on a model of so many steps; windows need more than one."""

    exact, flat = importance(), importance(rw.TargetESS(0.15))
    methods: list[Method] = [
        Guided("importance", exact, STRENGTHS, bank),
        Guided(f"importance, bank of {small}", exact, SOME, small),
        Guided(f"importance, bank of {large}", exact, SOME, large, every=every),
        Guided("importance, first step", exact, STRENGTHS, bank, 1),
        Guided("importance, first two steps", exact, STRENGTHS, bank, 2),
        Guided("15 % ESS", flat, STRENGTHS, bank),
        Guided("15 % ESS, first two steps", flat, SOME, bank, 2),
        Guided("5 % ESS", importance(rw.TargetESS(0.05)), SOME, bank),
        Guided("tempered by 0.25", importance(rw.Tempered(0.25)), SOME, bank),
        Guided("pooled to 2 x 2", pooled(2), SOME, bank),
        Guided("pooled to 1 x 1", pooled(1), STRENGTHS, bank),
        Guided("pooled to 1 x 1, first two steps", pooled(1), SOME, bank, 2),
        Guided("plug-in", plug_in(False), STRENGTHS, bank, every=every),
        Guided("plug-in, Jacobian", plug_in(True), STRENGTHS, bank, every=every),
    ]
    methods = [m for m in methods if not (isinstance(m, Guided) and m.first and m.first >= steps)]
    if network is not None:
        kind = rw.LearnedShift if isinstance(network, LatentShift) else rw.LearnedExpectation
        methods.append(Guided("network", lambda material: kind(network), (None,), 0))
    methods += [Picked(f"best of {n}", n) for n in (2, 4, 8, 16)]
    return methods + [Picked(f"soft best of {n}", n, True, STRENGTHS) for n in (4, 16, 64)]
