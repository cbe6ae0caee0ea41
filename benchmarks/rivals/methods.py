"""Every method on a toy within so many calls of the network for each state, and its trials."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

import rwguidance as rw
from rwguidance.estimators import (
    InnerFlow,
    LeaveOneOut,
    PosteriorSampling,
    SecondOrderPlugIn,
)
from rwguidance.noise_space import (
    best_of_n,
    flow_map,
    noise_gradient,
    soft_best_of_n,
)
from rwguidance.weights import systematic

from . import rules

__all__ = ["METHODS", "OURS", "Case"]


@dataclass(frozen=True)
class Case:
    """What a method has: a model and a tilt that count, and how many calls a state may take.

    Arguments:
        model: The model.
        tilt: The tilt.
        dimension: Number of dimensions of a state.
        outputs: Number of states that are made.
        calls: Number of calls of the network for each of them.
        generator: Source of randomness.
    """

    model: rw.Model
    tilt: rw.Tilt
    dimension: int
    outputs: int
    calls: int
    generator: Generator

    def noise(self, n: int | None = None) -> Tensor:
        shape = (self.outputs if n is None else n, self.dimension)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def drawn(self, n: int, steps: int) -> Tensor:
        return rw.sample(self.model, rw.DDIM(), self.noise(n), self.times(steps))

    def bank(self, n: int, steps: int) -> rw.Bank:
        return rw.Bank(self.drawn(n, steps)).scored(self.tilt)

    def guided(
        self,
        estimator: rw.ConditionalExpectation,
        steps: int,
        scale: float = 1.0,
        window: tuple[float, float] = (0.0, 1.0),
        eta: float = 0.0,
    ) -> Tensor:
        model = rw.GuidedModel(self.model, estimator, scale, window)
        return rw.sample(
            model, rw.DDIM(eta), self.noise(), self.times(steps), generator=self.generator
        )

    def left(self, steps: int) -> int:
        """Calls of all states together that guided runs of so many steps leave to a bank."""

        return self.outputs * (self.calls - steps)


def base(case: Case, steps: int) -> Tensor:
    return case.drawn(case.outputs, steps)


def of_n(case: Case, steps: int, select: Callable[..., Any]) -> Tensor:
    generate = flow_map(case.model, rw.DDIM(), case.times(steps))
    draw = lambda n, generator: case.noise(n)
    return select(
        generate, case.tilt, draw, case.outputs, case.calls // steps, generator=case.generator
    ).x_0


def resample(case: Case, steps: int) -> Tensor:
    x = case.drawn(case.outputs * case.calls // steps, steps)
    return x[systematic(case.tilt(x), case.outputs, case.generator)]


def importance(case: Case, steps: int, kernel: str = "exact") -> Tensor:
    bank = case.bank(case.left(steps) // steps, steps)
    chosen = LeaveOneOut() if kernel == "leave one out" else None
    return case.guided(rw.ImportanceSampling(bank, case.tilt, chosen), steps)


def annealed(case: Case, steps: int, fraction: float) -> Tensor:
    stages = 4
    draws = case.left(steps) // steps // (stages + 1)
    bank = case.bank(draws, steps).anneal(
        case.model,
        case.tilt,
        lambda n, generator: case.noise(n),
        case.times(steps),
        fraction=fraction,
        stages=stages,
        generator=case.generator,
    )
    return case.guided(rw.ImportanceSampling(bank, case.tilt), steps)


def pool(case: Case, steps: int, kernel: str = "exact") -> Tensor:
    bank = case.bank(case.left(steps) // steps, steps)
    chosen = LeaveOneOut() if kernel == "leave one out" else None
    guided = case.guided(rw.ImportanceSampling(bank, case.tilt, chosen), steps)
    assert bank.rewards is not None
    pooled = rw.pool(bank.rewards, case.tilt.score(guided), case.tilt.betas[0])
    return torch.cat((bank.x_0, guided))[pooled.draw(case.outputs, case.generator)]


def smc(case: Case, steps: int, threshold: float) -> Tensor:
    n = case.outputs * case.calls // steps
    made = rw.TwistedSMC(case.tilt, rw.LookAhead(case.tilt), threshold=threshold).sample(
        case.model, rw.DDIM(1.0), case.noise(n), case.times(steps), generator=case.generator
    )
    return made.x_0[made.draw(case.outputs, case.generator)[0]]


def posterior(case: Case, steps: int, inner_steps: int, first_order: bool = False) -> Tensor:
    least, each = (1, 3) if first_order else (2, 1)
    left = case.calls // steps - each
    n = max(least, left // (each * (inner_steps - 1)))  # draws share the first of their steps
    estimator = PosteriorSampling(case.tilt, InnerFlow(inner_steps), n, first_order)
    return case.guided(estimator, steps)


def moved_noise(case: Case, moves: int, size: float) -> Tensor:
    steps = case.calls // 16  # a move takes four passes over them
    generate = flow_map(case.model, rw.DDIM(), case.times(steps), gradient=True)
    draw = lambda n, generator: case.noise(n)
    return noise_gradient(generate, case.tilt, draw, case.outputs, size, moves, keep_norm=False).x_0


def plug_in(case: Case, scale: float) -> Tensor:
    steps = min(case.calls // 3, 64)
    return case.guided(rw.PlugIn(case.tilt), steps, scale, (0.0, 0.999))


def damped(case: Case, curvature: float) -> Tensor:
    few = 16  # steps of 64 draws, for the variance of the law
    variance = float(case.drawn(64, few).var(0).mean())
    steps = min(case.calls - -(-64 * few // case.outputs), 64)
    estimator = rw.PlugIn(case.tilt, damping=curvature, prior_variance=variance)
    return case.guided(estimator, max(steps, 1))


def second_order(case: Case, iterations: int, scale: float = 1.0) -> Tensor:
    estimator = SecondOrderPlugIn(case.tilt, iterations=iterations)
    steps = min(case.calls // (2 * iterations + 3), 64)
    return case.guided(estimator, steps, scale, (0.0, 0.999))


def fmps(case: Case, rate: float) -> Tensor:
    times = case.times(min(case.calls, 64))
    return rules.fmps(case.model, case.tilt, case.noise(), times, rate)


def dps(case: Case, rate: float) -> Tensor:
    times = case.times(min(case.calls // 3, 64))
    return rules.dps(case.model, case.tilt, case.noise(), times, rate, generator=case.generator)


def universal_guidance(case: Case, weight: float, recurrences: int = 1) -> Tensor:
    times = case.times(min(case.calls // 3 // recurrences, 64))
    return rules.universal_guidance(
        case.model, case.tilt, case.noise(), times, weight, recurrences, generator=case.generator
    )


def map_ascent(case: Case, rate: float, width: float) -> Tensor:
    times = case.times(min(case.calls // 4, 64))
    return rules.map_ascent(case.model, case.tilt, case.noise(), times, rate, width)


def lidar(case: Case, strength: float, scale: float) -> Tensor:
    """Importance sampling from draws of four steps, at another strength, too long, with noise."""

    steps, look = 16, 4
    bank = case.bank(case.left(steps) // look, look)
    tilt = rw.Tilt(case.tilt.rewards[0], case.tilt.betas[0] / strength)
    return case.guided(rw.ImportanceSampling(bank, tilt), steps, scale, (0.2, 1.0), eta=1.0)


def fk_steering(case: Case, particles: int, potential: str, every: int = 1) -> Tensor:
    steps = 16
    keep = max(1, particles * steps // case.calls)
    groups = -(-case.outputs // keep)
    kind = torch.maximum if potential == "max" else None
    noise, times = case.noise(groups * particles), case.times(steps)
    x = rules.fk_steering(
        case.model, case.tilt, noise, times, particles, keep, every, kind, None, case.generator
    )
    return x[: case.outputs]


def svdd(case: Case, steps: int, sharpness: float) -> Tensor:
    n = case.calls // steps
    return rules.svdd(
        case.model, case.tilt, case.noise(), case.times(steps), n, sharpness, None, case.generator
    )


def reno(case: Case, rate: float, weight: float) -> Tensor:
    steps = 4
    generate = flow_map(case.model, rw.DDIM(), case.times(steps), gradient=True)
    iterations = case.calls // (4 * steps)
    return rules.reno(generate, case.tilt, case.noise(), iterations, rate, weight)


Trials = list[dict[str, Any]]


def _grid(**values: list[Any]) -> Trials:
    """All combinations of settings, of which each method has six."""

    found: Trials = [{}]
    for name, options in values.items():
        found = [{**one, name: option} for one in found for option in options]
    assert len(found) == 6
    return found


KERNELS = ["exact", "leave one out"]

METHODS: dict[str, tuple[Callable[..., Tensor], Trials]] = {
    "base": (base, _grid(steps=[8, 12, 16, 24, 32, 64])),
    "best of n": (partial(of_n, select=best_of_n), _grid(steps=[4, 6, 8, 12, 16, 32])),
    "soft best of n": (partial(of_n, select=soft_best_of_n), _grid(steps=[4, 6, 8, 12, 16, 32])),
    "plug-in": (plug_in, _grid(scale=[0.1, 0.25, 0.5, 0.75, 1.0, 1.5])),
    "DPS": (dps, _grid(rate=[0.003, 0.01, 0.03, 0.1, 0.3, 1.0])),
    "universal guidance": (
        universal_guidance,
        _grid(weight=[0.25, 0.5, 1.0], recurrences=[1, 2]),
    ),
    "damped plug-in": (damped, _grid(curvature=[0.1, 0.5, 1.0, 2.0, 6.0, 20.0])),
    "second-order plug-in": (second_order, _grid(iterations=[1, 2, 4], scale=[0.75, 1.0])),
    "FMPS": (fmps, _grid(rate=[0.01, 0.03, 0.1, 0.2, 0.5, 1.0])),
    "LiDAR": (lidar, _grid(strength=[1.0, 2.0, 5.0], scale=[1.0, 2.0])),
    "FK steering": (fk_steering, _grid(particles=[4, 16, 64], potential=["max", "difference"])),
    "SVDD": (svdd, _grid(steps=[8, 16, 32], sharpness=[1.0, float("inf")])),
    "ReNO": (reno, _grid(rate=[0.3, 1.0, 5.0], weight=[0.01, 1.0])),
    "MAP ascent": (map_ascent, _grid(rate=[0.01, 0.03, 0.1], width=[0.3, 1.0])),
    "resample": (resample, _grid(steps=[4, 6, 8, 12, 16, 32])),
    "importance": (importance, _grid(steps=[8, 16, 32], kernel=KERNELS)),
    "annealed bank": (annealed, _grid(steps=[8, 16, 32], fraction=[0.2, 0.5])),
    "pool": (pool, _grid(steps=[8, 16, 32], kernel=KERNELS)),
    "SMC": (smc, _grid(steps=[8, 16, 32], threshold=[0.5, 0.9])),
    "posterior": (posterior, _grid(steps=[8, 16], inner_steps=[2, 3, 4])),
    "noise gradient": (moved_noise, _grid(moves=[1, 2, 3], size=[0.5, 1.0])),
}
"""Methods with their trials. What is tried is all that is tuned."""

OURS = ("resample", "importance", "annealed bank", "pool", "SMC", "posterior", "noise gradient")
"""Methods of the library that others do not have, or that it does another way."""
