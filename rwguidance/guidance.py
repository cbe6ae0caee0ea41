"""Guidance: a base model and an estimator make a model of the tilted law."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from .estimators.base import ConditionalExpectation
from .models import Model
from .prediction import Prediction
from .schedules import as_times

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
    """

    depends_on = ("schedule", "scale", "window")

    def __init__(
        self,
        base: Model,
        estimator: ConditionalExpectation,
        scale: float | Callable[[Tensor], Tensor] = 1.0,
        window: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if not isinstance(base, Model):
            raise TypeError(f"base must be a Model, got {type(base).__name__}")
        if not isinstance(estimator, ConditionalExpectation):
            raise TypeError(
                f"estimator must be a ConditionalExpectation, got {type(estimator).__name__}"
            )
        check_strength(scale, window)
        super().__init__(base.schedule)
        self.base = base
        self.estimator = estimator
        self.scale = scale
        self.window = (float(window[0]), float(window[1]))

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        times = as_times(t, batch=len(x_t))
        low, high = self.window
        inside = (times >= low) & (times <= high)
        scale = torch.where(inside, self._scale(times), 0.0)
        if not bool(scale.isfinite().all()):
            raise ValueError(f"scale must be finite, got {scale.tolist()} at t = {times.tolist()}")
        if not bool(scale.any()):
            prediction: Prediction = self.base(x_t, t, condition)
            return prediction
        estimate = self.estimator(self.base, x_t, t, condition)
        shift = estimate.shift
        scale = scale.reshape(-1, *(1,) * (x_t.ndim - 1)).to(shift)
        # A sample that is not guided takes no part in 0 * shift, which could be NaN.
        shift = torch.where(scale == 0, torch.zeros_like(shift), scale * shift)
        return replace(estimate.prediction.shifted(shift), diagnostics=estimate.diagnostics)

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
        if not isinstance(scale, SupportsFloat):
            raise TypeError(
                f"scale must be a number or a function of the time, got {type(scale).__name__}"
            )
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}")
    if not isinstance(window, Sequence) or len(window) != 2:
        raise TypeError(f"window must be two times (low, high), got {window!r}")
    low, high = window
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"window must be times (low, high) with 0 <= low <= high <= 1, got {window}"
        )
