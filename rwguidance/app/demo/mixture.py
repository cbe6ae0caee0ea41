r"""A mixture in the plane: base law, exact target, and the samples of every estimator.

Everything is known in closed form, so a person can see at a glance which estimators reach the
target, which go too far, and which pick the wrong modes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...bank import Bank
from ...diagnostics import sliced_wasserstein
from ...estimators import (
    ConditionalExpectation,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
)
from ...guidance import GuidedModel
from ...networks import ExpectationMLP, ShiftMLP
from ...samplers import Heun, sample
from ...schedules import VPSchedule
from ...tilt import Tilt
from ...toy import GaussianMixture, Oracle, Quadratic
from ...training import ExpectationObjective, ShiftObjective, train

__all__ = ["Panel", "align_mixture", "problem"]


@dataclass(frozen=True)
class Panel:
    """Samples of one method and their distance to the exact target."""

    title: str
    draws: Tensor
    reward: float
    distance: float
    seconds: float


def problem() -> tuple[GaussianMixture, Tilt]:
    """Six Gaussians on a circle, stretched along it, and a preference for the upper right."""

    angle = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
    outward = torch.stack((angle.cos(), angle.sin()), dim=1)
    along = torch.stack((-angle.sin(), angle.cos()), dim=1)
    covariances = 0.02 * torch.einsum("ki,kj->kij", outward, outward)
    covariances = covariances + 0.12 * torch.einsum("ki,kj->kij", along, along)
    law = GaussianMixture(torch.zeros(6), 2.0 * outward, covariances)
    return law, Tilt(Quadratic([1.2, 0.9], [[0.8, 0.0], [0.0, 0.8]]), beta=0.8)


def align_mixture(
    samples: int = 1000,
    bank_size: int = 4096,
    training_steps: int = 2000,
    steps: int = 25,
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> list[Panel]:
    """Aligns the ring with a quadratic reward by every estimator.

    Arguments:
        samples: Per method.
        bank_size: Draws of the base law, for importance sampling and training.
        training_steps: Of each guidance network.
        steps: Sampler steps.
        seed: Of everything.
        say: Told what is being done.
    """

    say("a mixture in the plane: every estimator")
    generator = torch.Generator().manual_seed(seed)
    law, tilt = problem()
    target = law.tilted(tilt)
    model = law.model(VPSchedule())
    bank = Bank(law.sample(bank_size, generator).float()).scored(tilt)

    scalar = ExpectationMLP((2,), width=128, seed=seed)
    objective = ExpectationObjective(model, bank, tilt)
    scalar_seconds = _timed(lambda: train(scalar, objective, training_steps, seed=seed))
    vector = ShiftMLP((2,), model.schedule, width=128, seed=seed)
    centered = ShiftObjective(model, bank, tilt, scalar)
    vector_seconds = _timed(lambda: train(vector, centered, training_steps, seed=seed))

    methods: list[tuple[str, ConditionalExpectation, float]] = [
        ("exact shift", Oracle(law, tilt), 0.0),
        ("importance sampling", ImportanceSampling(bank, tilt), 0.0),
        ("network for log h", LearnedExpectation(scalar), scalar_seconds),
        ("network for the shift", LearnedShift(vector), vector_seconds),
        ("plug-in", PlugIn(tilt), 0.0),
        ("plug-in, damped", PlugIn(tilt, damping=1.0, prior_variance=2.0), 0.0),
    ]
    reference = target.sample(samples, generator)
    noise = torch.randn(samples, 2, generator=generator)
    times = torch.linspace(1, 0.001, steps + 1, dtype=torch.float64)

    def panel(title: str, draws: Tensor, seconds: float = 0.0) -> Panel:
        distance = sliced_wasserstein(
            draws, reference, generator=torch.Generator().manual_seed(seed)
        )
        return Panel(title, draws, float(tilt.score(draws).mean()), distance, seconds)

    panels = [
        panel("base law", law.sample(samples, generator)),
        panel("exact target", target.sample(samples, generator)),
    ]
    for title, estimator, seconds in methods:
        guided = GuidedModel(model, estimator)
        started = time.perf_counter()
        draws = sample(guided, Heun(), noise, times)
        panels.append(panel(title, draws, seconds + time.perf_counter() - started))
    return panels


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
