"""Guidance: a base model and an estimator make a model of the tilted law."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .estimators.base import ConditionalExpectation, Estimate
from .models import Model
from .prediction import Prediction
from .schedules import shared_time
from .support import checks
from .support.describe import summary

__all__ = ["GuidedModel"]


class GuidedModel(Model):
    r"""The base model with its predicted clean state moved by the estimated shift.

    .. math:: \tilde E[x_0 | x_t] = E[x_0 | x_t] + \mathrm{scale}(t) \, \hat\Delta(x_t)

    It is a :class:`~rwguidance.Model` like any other, so every sampler works on it. Its prediction
    carries the estimator's diagnostics. With scale 0, or outside the window, it returns the base
    model's prediction itself and the estimator is not called.

    Arguments:
        base: The pretrained model.
        estimator: The estimator of the shift.
        scale: Factor of the shift, 1 for the exact one: a number, or a function of the time.
        window: Closed interval of times (low, high) in which the model is guided. A batch of times
            may lie partly inside.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the scale is not finite or the window is not 0 <= low <= high <= 1.
        FloatingPointError: When it is called, if the guided mean is not finite; says whether base
            or estimator is to blame, and names time and items.
    """

    depends_on = ("schedule", "scale", "window")

    def __init__(
        self,
        base: Model,
        estimator: ConditionalExpectation,
        scale: float | Callable[[Tensor], Tensor] = 1.0,
        window: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        checks.instance("base", base, Model, "a Model")
        checks.instance("estimator", estimator, ConditionalExpectation, "a ConditionalExpectation")
        check_strength(scale, window)
        super().__init__(base.schedule)
        self.base = base
        self.estimator = estimator
        self.scale = scale
        self.window = (float(window[0]), float(window[1]))

    def __repr__(self) -> str:
        return summary(
            self, base=self.base, estimator=self.estimator, scale=self.scale, window=self.window
        )

    @property
    def start(self) -> float | None:
        return super().start if self.base.start is None else self.base.start

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        times = shared_time(t)
        low, high = self.window
        inside = (times >= low) & (times <= high)
        scale = torch.where(inside, self._scale(times), 0.0)
        if not bool(scale.isfinite().all()):
            raise ValueError(f"scale must be finite, got {scale.tolist()} at t = {times.tolist()}")
        if not bool(scale.any()):
            return self.base(x_t, t, condition)
        base = self.base if self.start is None else self.base.starting(self.start)
        estimate = self.estimator(base, x_t, t, condition)
        shift = estimate.shift
        scale = scale.reshape(-1, *(1,) * (x_t.ndim - 1)).to(shift)
        # A sample that is not guided takes no part in 0 * shift, which could be NaN.
        shift = torch.where(scale == 0, torch.zeros_like(shift), scale * shift)
        guided = estimate.prediction.shifted(shift)
        if not bool(guided.mean.isfinite().all()):
            raise FloatingPointError(self._not_finite(estimate, guided, times))
        return replace(guided, diagnostics=estimate.diagnostics)

    def _not_finite(self, estimate: Estimate, guided: Prediction, times: Tensor) -> str:
        """The message about a guided mean that is not finite: whose fault it is, and where."""

        source, mean = f"the shift of {type(self.estimator).__name__}", guided.mean
        base = estimate.prediction.mean
        if not bool(base.isfinite().all()):
            source, mean = f"the base prediction of {type(self.base).__name__}", base
        return (
            f"{source} must be finite, got NaN or inf in {checks.bad_items(mean)} "
            f"at t = {times.tolist()}"
        )

    def _scale(self, times: Tensor) -> Tensor:
        if not callable(self.scale):
            return torch.as_tensor(self.scale, dtype=torch.float64)
        scale = torch.as_tensor(self.scale(times), dtype=torch.float64, device=times.device)
        if scale.shape not in (torch.Size(), times.shape):
            raise ValueError(
                f"scale must return one number per time, shape {tuple(times.shape)}, "
                f"got {tuple(scale.shape)}"
            )
        return scale


def check_strength(scale: float | Callable[[Tensor], Tensor], window: tuple[float, float]) -> None:
    """Checks the scale and the window of a :class:`GuidedModel`.

    Raises:
        TypeError: If one of them is of the wrong kind.
        ValueError: If the scale is not finite or the window is not 0 <= low <= high <= 1.
    """

    if not callable(scale):
        checks.number("scale", scale)
    if not isinstance(window, Sequence) or isinstance(window, str) or len(window) != 2:
        raise TypeError(f"window must be two times (low, high), got {window!r}")
    low, high = (checks.number("window", time) for time in window)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"window must be times (low, high) with 0 <= low <= high <= 1, got {window}"
        )
