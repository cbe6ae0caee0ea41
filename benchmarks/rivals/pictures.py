"""The rules as methods, which `rwguidance evaluate` reads from this file at the tree's root."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import rwguidance as rw
from benchmarks.rivals import rules
from rwguidance.generation import Importance, PlugInMean
from rwguidance.generation.base import Aligned, Method
from rwguidance.generation.run import Run
from rwguidance.generation.strength import OfStrength, tilt_of
from rwguidance.generation.work import Streams
from rwguidance.support.randomness import generator_for

Names = Sequence[tuple[str | int, ...]]


@dataclass(frozen=True, kw_only=True)
class Rule(OfStrength, Method):
    """A rule on the pictures of a batch.

    Arguments:
        beta: Temperature, in reward units.
        kl: Divergence from which it follows, in nats.
        bank: Number of draws per prompt on which it is found.
    """

    beta: float | None = None
    kl: float | None = None
    bank: int = 32

    def streams(self, images: int) -> list[Streams]:
        return [] if self.kl is None else [Streams("bank", 1, self.bank)]

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        make = lambda: tilt_of(run, prompt, self.beta, self.kl, self.bank)
        tilt = run.keep("tilt", (self, prompt), make)
        names = [("image", prompt, i) for i in numbers]
        source = generator_for(run.seed, self.name, prompt, numbers[0])
        return Aligned(self.states(run, prompt, tilt, names, source), {"beta": tilt.betas[0]})

    @abstractmethod
    def states(
        self, run: Run, prompt: str, tilt: rw.Tilt, names: Names, source: torch.Generator
    ) -> Tensor:
        """Returns the clean states of the pictures of these names."""


def _path(
    run: Run, prompt: str, names: Names, tilt: rw.Tilt
) -> tuple[tuple[rw.Model, rw.Tilt, Tensor, Tensor], Any]:
    """The model, the tilt, the first states and the times, and the conditions of pictures."""

    model = run.model.starting(float(run.times[0]))
    return (model, tilt, run.noise(names), run.times), run.condition(prompt, len(names))


@dataclass(frozen=True, kw_only=True)
class DPS(Rule):
    """Arguments:
    rate: Multiple of the gradient.
    """

    name: ClassVar[str] = "DPS"

    rate: float = 0.1

    def states(
        self, run: Run, prompt: str, tilt: rw.Tilt, names: Names, source: torch.Generator
    ) -> Tensor:
        given, condition = _path(run, prompt, names, tilt)
        return rules.dps(*given, self.rate, condition, source)


@dataclass(frozen=True, kw_only=True)
class Universal(Rule):
    """Arguments:
    weight: Factor of the gradient.
    """

    name: ClassVar[str] = "universal guidance"

    weight: float = 1.0

    def states(
        self, run: Run, prompt: str, tilt: rw.Tilt, names: Names, source: torch.Generator
    ) -> Tensor:
        given, condition = _path(run, prompt, names, tilt)
        return rules.universal_guidance(*given, self.weight, 1, condition, source)


@dataclass(frozen=True, kw_only=True)
class Ascent(Rule):
    """Arguments:
    rate: Length of a move.
    width: Standard deviation of a state at t = 1.
    """

    name: ClassVar[str] = "MAP ascent"

    rate: float = 1.0
    width: float = 1.0

    def states(
        self, run: Run, prompt: str, tilt: rw.Tilt, names: Names, source: torch.Generator
    ) -> Tensor:
        given, condition = _path(run, prompt, names, tilt)
        return rules.map_ascent(*given, self.rate, self.width, 1, condition, source)


@dataclass(frozen=True, kw_only=True)
class SVDD(Rule):
    """Arguments:
    n: Number of candidates of a step.
    sharpness: Power of the weights by which one is picked.
    """

    name: ClassVar[str] = "SVDD"

    n: int = 2
    sharpness: float = math.inf

    def states(
        self, run: Run, prompt: str, tilt: rw.Tilt, names: Names, source: torch.Generator
    ) -> Tensor:
        given, condition = _path(run, prompt, names, tilt)
        return rules.svdd(*given, self.n, self.sharpness, condition, source)


@dataclass(frozen=True, kw_only=True)
class FK(Rule):
    """Arguments:
    per_picture: Number of particles over that of pictures, which are one group.
    potential: "max" or "difference".
    every: Number of steps between resamplings.
    """

    name: ClassVar[str] = "FK steering"

    per_picture: int = 2
    potential: str = "difference"
    every: int = 1

    def states(
        self, run: Run, prompt: str, tilt: rw.Tilt, names: Names, source: torch.Generator
    ) -> Tensor:
        more = [(*name, k) for name in names for k in range(self.per_picture)]
        (model, tilt, noise, times), condition = _path(run, prompt, more, tilt)
        kind = torch.maximum if self.potential == "max" else None
        sizes = len(more), len(names)
        return rules.fk_steering(
            model, tilt, noise, times, *sizes, self.every, kind, condition, source
        )


@dataclass(frozen=True, kw_only=True)
class ReNO(Rule):
    """Arguments:
    iterations: Number of states that are tried.
    rate: Rate of the ascent.
    """

    name: ClassVar[str] = "ReNO"

    iterations: int = 2
    rate: float = 5.0

    def states(
        self, run: Run, prompt: str, tilt: rw.Tilt, names: Names, source: torch.Generator
    ) -> Tensor:
        generate = run.generator(prompt, gradient=True)
        condition, noise = [prompt] * len(names), run.noise(names)
        settings = self.iterations, self.rate, 0.01
        return rules.reno(generate, tilt, noise, *settings, condition=condition)


@dataclass(frozen=True, kw_only=True)
class LiDAR(Importance):
    """Arguments:
    strength: Factor of the strength of the tilt.
    """

    name: ClassVar[str] = "LiDAR"

    strength: float = 1.0

    def estimator(self, run: Run, prompt: str) -> tuple[rw.ConditionalExpectation, dict[str, Any]]:
        _, facts = super().estimator(run, prompt)
        tilt = rw.Tilt(run.reward, facts["beta"] / self.strength, run.backbone.decode)
        return rw.ImportanceSampling(run.bank(prompt, self.bank, "bank"), tilt), facts


@dataclass(frozen=True, kw_only=True)
class Damped(PlugInMean):
    """Arguments:
    damping: Curvature of the log-weight.
    """

    name: ClassVar[str] = "damped plug-in"

    damping: float = 1.0

    def estimator(self, run: Run, prompt: str) -> tuple[rw.ConditionalExpectation, dict[str, Any]]:
        plain, facts = super().estimator(run, prompt)
        assert isinstance(plain, rw.PlugIn)
        variance = plain.prior_variance
        return rw.PlugIn(plain.tilt, damping=self.damping, prior_variance=variance), facts
