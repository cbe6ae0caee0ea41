"""The conformance check of estimators."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..estimators import ConditionalExpectation, Estimate
from ..guidance import GuidedModel
from ..models import Model
from ..prediction import Prediction
from ..support.conditions import take
from .batches import check_calls, check_mixed_times, mixed_times
from .models import pair
from .requirements import (
    Select,
    extremes,
    few,
    require,
    require_same,
    require_tensor,
    require_wide,
    run,
    tolerance_for,
    untouched,
)

__all__ = ["check_estimator"]


def check_estimator(
    estimator: ConditionalExpectation,
    model: Model,
    x_t: Tensor,
    condition: Any = None,
    times: Sequence[float] = (0.3, 0.6, 0.9),
    calls: int = 1,
    select: Select = take,
) -> None:
    r"""Checks that an estimator returns a complete estimate, sample by sample, at the stated cost.

    Arguments:
        estimator: The estimator, in eval mode.
        model: A model that the estimator can work with.
        x_t: Noisy states, at least two, with shape (B, \*event).
        condition: What model, bank and reward are conditioned on, one item per sample, or None.
        times: Inner times at which to look.
        calls: Number of model calls that one estimate may make.
        select: A function from (condition, indices) to the condition of those samples.

    Raises:
        AssertionError: If the estimator breaks the contract of
            :class:`rwguidance.ConditionalExpectation`.
    """

    name = type(estimator).__name__
    require(
        isinstance(estimator, ConditionalExpectation),
        f"expected a ConditionalExpectation, got {name}",
    )
    require(x_t.ndim >= 2 and len(x_t) >= 2, few("x_t", x_t))

    def answer(x_t: Tensor, t: float | Tensor, condition: Any) -> dict[str, Tensor]:
        estimate = _estimate(name, estimator, model, x_t, t, condition, calls)
        return {"log_h": estimate.log_h, "shift": estimate.shift}

    for t in times:
        result = check_calls(name, answer, x_t, t, condition, select)
        _check_guided(name, estimator, model, x_t, t, condition, result["shift"])
    check_mixed_times(name, answer, x_t, mixed_times(times, len(x_t)), condition, select)


def _estimate(
    name: str,
    estimator: ConditionalExpectation,
    model: Model,
    x_t: Tensor,
    t: float | Tensor,
    condition: Any,
    calls: int,
) -> Estimate:
    """Calls an estimator and checks everything that can be seen in one estimate."""

    counted = _Counted(model)
    shape = tuple(t.shape) if isinstance(t, Tensor) else "a number"
    what = f"{name} for states {tuple(x_t.shape)} and times {shape}"
    with untouched(what, x_t=x_t, t=t, condition=condition):
        estimate = run(what, estimator, counted, x_t, t, condition)
    require(
        isinstance(estimate, Estimate),
        f"{name} must return an Estimate, got {type(estimate).__name__}",
    )
    require(
        1 <= counted.calls <= calls,
        f"{name} must call the model {'once' if calls == 1 else f'1 to {calls} times'} per "
        f"estimate, got {counted.calls} calls",
    )
    require_same(
        pair(model(x_t, t, condition)),
        pair(estimate.prediction),
        tolerance_for(x_t),
        f"the prediction in an estimate of {name} must be the base model's own, without the shift",
    )
    b = len(x_t)
    require_tensor(f"log_h of {name}", estimate.log_h, (b,))
    require_wide(f"log_h of {name}", estimate.log_h)
    require(
        not bool(estimate.log_h.isinf().any()),
        f"log_h of {name} must be finite, or NaN where it has no value, "
        f"got {extremes(estimate.log_h)}",
    )
    require_tensor(f"the shift of {name}", estimate.shift, x_t.shape)
    require_wide(f"the shift of {name}", estimate.shift)
    require(
        bool(estimate.shift.isfinite().all()),
        f"the shift of {name} must be finite, got {extremes(estimate.shift)}",
    )
    for key, value in estimate.diagnostics.items():
        require_tensor(f"the diagnostic {key!r} of {name}", value, (b,), floating=False)
    return estimate


def _check_guided(
    name: str,
    estimator: ConditionalExpectation,
    model: Model,
    x_t: Tensor,
    t: float,
    condition: Any,
    shift: Tensor,
) -> None:
    """Checks that a guided model moves the base prediction by its scale times the shift."""

    base = model(x_t, t, condition)
    off = GuidedModel(model, estimator, scale=0.0)(x_t, t, condition)
    require(
        torch.equal(off.mean, base.mean) and torch.equal(off.noise, base.noise),
        f"{name} with scale 0 must leave the base model as it is, bit for bit, at t = {t}",
    )
    half = run(f"{name} in a GuidedModel", GuidedModel(model, estimator, 0.5), x_t, t, condition)
    require_same(
        {"mean": base.mean + 0.5 * shift},
        {"mean": half.mean},
        tolerance_for(x_t),
        f"{name} with scale 0.5 at t = {t} must move the mean by half its shift",
    )


class _Counted(Model):
    """A model that counts how often it is called."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.schedule)
        self.model = model
        self.calls = 0

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        self.calls += 1
        return self.model(x_t, t, condition)
