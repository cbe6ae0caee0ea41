"""Guidance by gradients of a reward at the predicted picture, as methods."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..estimators import FMPS, ConditionalExpectation, PlugIn, SecondOrderPlugIn
from ..support import checks
from .base import Guided, set_checked
from .run import Run
from .strength import OfTilt
from .work import Work

__all__ = ["PlugInMean", "SecondOrder", "StraightFlow"]


@dataclass(frozen=True)
class PlugInMean(OfTilt, Guided):
    r"""Guidance by the gradient of a differentiable reward at the predicted picture; overshoots.

    The estimator is :class:`~rwguidance.PlugIn` without the Jacobian of the model.

    Arguments:
        beta: Temperature, in reward units.
        prior_variance: Variance of the clean states of a prompt, per dimension. Without it, that of
            the draws from which `beta` follows, and 1 if `beta` is given.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        bank: Number of draws per prompt from which `beta` follows, if `kl` is given.

    Raises:
        TypeError: If a value is no number.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "plug-in"

    beta: float | None = None
    prior_variance: float | None = None
    kl: float | None = None
    bank: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        variance = checks.optional(checks.number, "prior_variance", self.prior_variance, above=0)
        set_checked(self, prior_variance=variance)
        self.check_tilt()

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        looks = Work(decoded=images * steps, scored=images * steps) * self._passes
        return super().work(images, steps, batch_size) + looks

    @property
    def _passes(self) -> int:
        """Passes through decoder and reward for a look at a state; a pass back counts as two."""

        return 3

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        tilt = self.tilt(run, prompt)
        variance = self._variance(run, prompt)
        estimator = PlugIn(tilt, jacobian=False, prior_variance=variance)
        return estimator, {"beta": tilt.betas[0], "prior variance": variance}

    def _variance(self, run: Run, prompt: str) -> float:
        """Returns the variance of the clean states of a prompt, which is less than that of all."""

        if self.prior_variance is not None:
            return self.prior_variance
        if self.kl is None:
            return 1.0
        draws = run.bank(prompt, self.bank, "bank").x_0.float()
        return float(draws.var(0).mean())


@dataclass(frozen=True)
class SecondOrder(PlugInMean):
    r"""Guidance by gradient and curvature of a reward at the predicted picture.

    The estimator is :class:`~rwguidance.estimators.SecondOrderPlugIn` without the Jacobian of the
    model. The reward needs two derivatives; one without curvature is guided as by `plug-in`.

    Arguments:
        iterations: Number of iterations in which the curvature is inverted.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "second-order"

    iterations: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(self, iterations=checks.integer("iterations", self.iterations, 1))

    @property
    def _passes(self) -> int:
        # A product with the curvature goes back through the picture and through its gradient.
        return 3 + 4 * self.iterations

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        plain, facts = super().estimator(run, prompt)
        assert isinstance(plain, PlugIn)
        variance = plain.prior_variance
        estimator = SecondOrderPlugIn(
            plain.tilt, jacobian=False, iterations=self.iterations, prior_variance=variance
        )
        return estimator, facts


@dataclass(frozen=True)
class StraightFlow(OfTilt, Guided):
    r"""Guidance by the gradient of a reward where a straight flow would end (FMPS); too strong.

    The estimator is :class:`~rwguidance.estimators.FMPS`, which has no shift where a state is noise
    alone, as the first of most models is: the window leaves it out. Its shift is too long, the more
    so towards the noise; `scale` below 1 or a smaller window mend it.

    Arguments:
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        bank: Number of draws per prompt from which `beta` follows, if `kl` is given.

    Raises:
        TypeError: If a value is no number.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "fmps"

    beta: float | None = None
    kl: float | None = None
    bank: int = 64
    window: tuple[float, float] = field(default=(0.0, 0.99), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_tilt()

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        looks = Work(decoded=images * steps, scored=images * steps) * 3  # a pass back counts as two
        return super().work(images, steps, batch_size) + looks

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        tilt = self.tilt(run, prompt)
        return FMPS(tilt), {"beta": tilt.betas[0]}
