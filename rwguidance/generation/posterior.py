"""Guidance by draws of the posterior, as a method."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..estimators import ConditionalExpectation, InnerFlow, PosteriorSampling
from ..support import checks
from .base import Guided, set_checked
from .run import Run
from .strength import OfTilt
from .work import Work

__all__ = ["Posterior"]


@dataclass(frozen=True)
class Posterior(OfTilt, Guided):
    r"""Guidance by draws of what a picture may become, weighed by their rewards, at every step.

    The estimator is :class:`~rwguidance.PosteriorSampling` with draws of
    :class:`~rwguidance.estimators.InnerFlow`. Exact as both numbers grow; all draws of a batch go
    through the network at once.

    Arguments:
        draws: Number of draws for each picture and step.
        inner_steps: Number of steps of a draw, the first of which they share.
        first_order: Whether to take the gradient of a differentiable reward through the draws.
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        bank: Number of draws per prompt from which `beta` follows, if `kl` is given.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "posterior"

    draws: int = 8
    inner_steps: int = 2
    first_order: bool = False
    beta: float | None = None
    kl: float | None = None
    bank: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.flag("first_order", self.first_order)
        set_checked(
            self,
            draws=checks.integer("draws", self.draws, 2),
            inner_steps=checks.integer("inner_steps", self.inner_steps, 2),
        )
        self.check_tilt()

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        # As if the draws were made in batches; the first states share no step with their draws.
        draws, inner = images * self.draws, (self.inner_steps - 1) * steps + 1
        calls = Work.of_samples(draws, inner, batch_size).calls
        looks = Work(calls, decoded=draws * steps, scored=draws * steps)
        if self.first_order:  # and back, through the call that the draws share as well
            looks = looks * 3 + Work(2 * Work.of_samples(images, steps, batch_size).calls)
        return super().work(images, steps, batch_size) + looks

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        tilt = self.tilt(run, prompt)
        draws = InnerFlow(self.inner_steps)
        estimator = PosteriorSampling(tilt, draws, self.draws, self.first_order, seed=run.seed)
        return estimator, {"beta": tilt.betas[0]}
