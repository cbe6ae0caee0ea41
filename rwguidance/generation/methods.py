"""Methods of alignment, each an object that holds its settings.

A new method is one dataclass and a place in :data:`METHODS`: its options on the command line, their
help and the tables of the docs follow (:mod:`rwguidance.generation.settings`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..estimators import (
    ConditionalExpectation,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
    TargetESS,
)
from ..networks import LatentExpectation, load
from ..support import checks
from ..support.randomness import generator_for
from ..tilt import Tilt
from ..weights import gumbel
from .base import Aligned, Guided, Method, set_checked
from .run import Run
from .work import Work

__all__ = ["METHODS", "BestOfN", "Importance", "Network", "PlugInMean"]


@dataclass(frozen=True)
class Importance(Guided):
    r"""Guidance by importance sampling from a bank of draws: no gradient, no training.

    The estimator is :class:`~rwguidance.ImportanceSampling`.

    Arguments:
        bank: Number of draws per prompt.
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        ess: Share of the bank to keep effective by flattening the kernel; without it the kernel is
            exact.

    Raises:
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
        TypeError: If a value is of the wrong kind.
    """

    name: ClassVar[str] = "importance"

    bank: int = 64
    beta: float | None = None
    kl: float | None = None
    ess: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(
            self,
            bank=checks.integer("bank", self.bank, 2),
            beta=checks.optional(checks.number, "beta", self.beta, above=0),
            kl=checks.optional(checks.number, "kl", self.kl, above=0),
            ess=checks.optional(checks.number, "ess", self.ess, above=0, below=1),
        )
        if (self.beta is None) == (self.kl is None):
            raise ValueError(f"give beta or kl, one of them, got {self.beta} and {self.kl}")
        if self.kl is not None and self.kl >= math.log(self.bank):
            raise ValueError(
                f"kl must be less than log(bank) = {math.log(self.bank):.3g} nats, got {self.kl}"
            )

    @classmethod
    def from_options(cls, **settings: Any) -> "Importance":
        return cls(**settings if {"beta", "kl"} & settings.keys() else {"kl": 1.0, **settings})

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        bank = Work.of_samples(self.bank, steps, batch_size)
        return super().work(images, steps, batch_size) + bank

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        bank = run.bank(prompt, self.bank, "bank")
        assert bank.rewards is not None
        decode = run.backbone.decode
        if self.kl is None:
            assert self.beta is not None
            tilt = Tilt(run.reward, self.beta, decode)
        else:
            tilt = Tilt.for_kl(run.reward, bank, self.kl, decode)
        kernel = None if self.ess is None else TargetESS(self.ess)
        log_w = tilt.weigh(bank.rewards).double()
        target = (log_w.softmax(0) * bank.rewards.double().nan_to_num(neginf=0.0)).sum()
        facts = {
            "beta": tilt.betas[0],
            "tilted mean": float(target),
        }
        return ImportanceSampling(bank, tilt, kernel), facts


@dataclass(frozen=True)
class Network(Guided):
    """Guidance by a trained network: one small forward pass per step.

    Arguments:
        network: Trained guidance network; on the command line its name, or the file that its method
            `save` wrote.
        log_h: Whether the network gives log h, and not the shift; without it, whether it is a
            :class:`~rwguidance.networks.LatentExpectation`.

    Raises:
        TypeError: If the network is no module, or `log_h` neither None nor a boolean.
        ValueError: If the scale is not finite or the window is not 0 <= low <= high <= 1.
    """

    name: ClassVar[str] = "network"

    network: nn.Module = field(metadata={"read": load})
    log_h: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.instance("network", self.network, nn.Module, "a guidance network, an nn.Module")
        checks.optional(checks.flag, "log_h", self.log_h)

    @property
    def gives_log_h(self) -> bool:
        """True if the network gives log h, False if it gives the shift."""

        return isinstance(self.network, LatentExpectation) if self.log_h is None else self.log_h

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "log_h": self.gives_log_h}

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        kind = LearnedExpectation if self.gives_log_h else LearnedShift
        return kind(self.network.to(run.device)), {}


@dataclass(frozen=True)
class PlugInMean(Guided):
    r"""Guidance by the gradient of a differentiable reward at the predicted picture; overshoots.

    The estimator is :class:`~rwguidance.PlugIn` without the Jacobian of the model.

    Arguments:
        beta: Temperature, in reward units.
        prior_variance: Variance of the clean states, per dimension.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a value is out of its range.
    """

    name: ClassVar[str] = "plug-in"

    beta: float
    prior_variance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(
            self,
            beta=checks.number("beta", self.beta, above=0),
            prior_variance=checks.number("prior_variance", self.prior_variance, above=0),
        )

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        looks = Work(decoded=images * steps, scored=images * steps)
        return super().work(images, steps, batch_size) + looks

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        tilt = Tilt(run.reward, self.beta, run.backbone.decode)
        estimator = PlugIn(tilt, jacobian=False, prior_variance=self.prior_variance)
        return estimator, {"beta": self.beta}


@dataclass(frozen=True)
class BestOfN(Method):
    r"""The best of n samples, the base sample among them; or one drawn by its weight.

    Drawn with probabilities proportional to :math:`\exp(r / \beta)`, a picture has the tilted law
    up to a bias of order 1 / n, also where the model takes one step. The best is the limit of small
    beta.

    Arguments:
        n: Number of samples to choose from, per image.
        beta: Temperature of a draw by weight, in reward units; without it the best is taken.

    Raises:
        TypeError: If `n` is no integer, or `beta` no number.
        ValueError: If `n` is less than 2 or `beta` not positive.
    """

    name: ClassVar[str] = "best-of-n"

    n: int = field(default=16, metadata={"option": "bank"})
    beta: float | None = None

    def __post_init__(self) -> None:
        beta = checks.optional(checks.number, "beta", self.beta, above=0)
        set_checked(self, n=checks.integer("n", self.n, 2), beta=beta)

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        candidates = Work.of_samples(self.n - 1, steps, batch_size) * images
        return super().work(images, steps, batch_size) + candidates

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        chosen, each = [], []
        for x_0, reward, number in zip(base, rewards, numbers, strict=True):
            others = run.bank(prompt, self.n - 1, "candidates", number)
            assert others.rewards is not None
            values = torch.cat((reward.reshape(1), others.rewards.to(reward)))
            values = values.nan_to_num(nan=-math.inf, neginf=-math.inf)
            pick = int(self._drawn(values, run, prompt, number).argmax())
            chosen.append(x_0 if pick == 0 else others.x_0[pick - 1])
            each.append({"chosen": pick})
        return Aligned(torch.stack(chosen), {}, each)

    def _drawn(self, values: Tensor, run: Run, prompt: str, number: int) -> Tensor:
        """Returns numbers whose largest is the pick.

        With Gumbel noise added to r / beta, the largest is a draw from the softmax.
        """

        if self.beta is None:
            return values
        generator = generator_for(run.seed, "pick", prompt, number)
        return values / self.beta + gumbel(values.shape, generator)


METHODS: Mapping[str, type[Method]] = {
    method.name: method for method in (Importance, Network, PlugInMean, BestOfN)
}
"""The methods of ``rwguidance generate`` by name."""
