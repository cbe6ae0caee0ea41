r"""The length of a trained shift, set on validation prompts by the gain that it makes.

Squared error shrinks what it cannot predict, so that a trained shift points the right way and is
too short; a least-squares fit of a factor would shrink it further. The factor that counts is that
with which guided samples gain what the tilted law does,

.. math:: E_{\mathrm{guided}}[\log w] - E[\log w]
    = \tilde E[\log w] - E[\log w],

on prompts that no training has seen. It repairs the mean of the reward, not the law: what points
the wrong way becomes longer, too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bank import Bank
from ..estimators import ConditionalExpectation
from ..guidance import GuidedModel
from ..models import Model, check_is_model
from ..noise_space import GainOutOfReach
from ..samplers import Sampler, check_times, sample
from ..support import checks
from ..tilt import Tilt

__all__ = ["Calibration", "calibrate", "guided_gain", "tilted_gain"]

_DOUBLINGS, _HALVINGS = 6, 7
_FIRST = 0.25


@dataclass(frozen=True)
class Calibration:
    """A factor of a shift, and what it was found from.

    Arguments:
        scale: The factor.
        gain: Mean gain of the log-weight with it, in nats.
        target: Mean gain of the tilted law, in nats.
        error: Standard error of the factor over what the gains are of, such as prompts; NaN of one.
    """

    scale: float
    gain: float
    target: float
    error: float


def tilted_gain(bank: Bank, tilt: Tilt) -> Tensor:
    """Returns the gain of the mean log-weight that the tilted law has on a bank.

    Draws of zero weight do not count. The bank should be one that no training has seen; few
    effective draws make the gain too small.

    Arguments:
        bank: Draws for the validation prompts, scored here if they are not yet.
        tilt: The tilt.

    Returns:
        The gain for each condition, in the order of `bank.rows`, in nats, float64.

    Raises:
        ValueError: If every draw of a condition has zero weight.
    """

    checks.instance("bank", bank, Bank, "a Bank")
    checks.instance("tilt", tilt, Tilt, "a Tilt")
    bank = bank if bank.rewards is not None else bank.scored(tilt)
    assert bank.rewards is not None
    log_w, log_b = tilt.weigh(bank.rewards).double(), bank.log_importance
    log_b = torch.zeros_like(log_w) if log_b is None else log_b.to(log_w)
    gains = []
    for key, rows in bank.rows.items():
        some = log_w[rows].isfinite()
        own, plain = log_w[rows][some], log_b[rows][some]
        if len(own) == 0:
            raise ValueError(f"every draw of condition {key!r} has zero weight (reward -inf)")
        gains.append((own + plain).softmax(0) @ own - plain.softmax(0) @ own)
    return torch.stack(gains)


def guided_gain(
    model: Model,
    estimator: ConditionalExpectation,
    tilt: Tilt,
    sampler: Sampler,
    times: Tensor | Sequence[float],
    noise: Tensor,
    condition: Any = None,
) -> Callable[[float], Tensor]:
    r"""Makes the function from the scale of guidance to its gains, for :func:`calibrate`.

    All scales guide the same noise, and the model's own samples of it are made once.

    Arguments:
        model: The base model.
        estimator: The trained estimator, such as ``LearnedShift(network.at(1.0))``.
        tilt: The tilt.
        sampler: A sampler without randomness.
        times: Times of a run, as :func:`rwguidance.sample` takes them.
        noise: Noise at the first of the times, with shape (n, \*event).
        condition: Conditions of the n samples.

    Returns:
        A function from scales to the gains of the log-weight, in nats, float64, with shape (n,).
    """

    check_is_model("model", model)
    checks.instance("estimator", estimator, ConditionalExpectation, "a ConditionalExpectation")
    checks.instance("tilt", tilt, Tilt, "a Tilt")
    checks.states("noise", noise)
    times = check_times(times)
    start = float(times[0])

    @torch.no_grad()
    def log_w(guided: Model) -> Tensor:
        x_0 = sample(guided.starting(start), sampler, noise, times, condition)
        return tilt(x_0, condition).double()

    base = log_w(model)
    return lambda scale: log_w(GuidedModel(model, estimator, scale)) - base


def calibrate(gain: Callable[[float], Tensor], target: float | Tensor) -> Calibration:
    """Finds the scale of a shift whose mean gain is that of the tilted law.

    It doubles the scale until the gain is reached, and bisects: some ten calls of `gain`.

    Arguments:
        gain: A function from the scale to gains of the log-weight, in nats, as
            :func:`guided_gain` makes one: one value per validation sample, with shape (n,).
        target: Gain of the tilted law, in nats, as from :func:`tilted_gain`: one number, or one per
            prompt, whose mean is reached.

    Returns:
        The scale, within 1 % of one that reaches the target on these samples, with its error.

    Raises:
        GainOutOfReach: If no scale up to 16 reaches the target, a ValueError: says which gain was
            reached. The network then points the wrong way, or too little of it is trained.
        ValueError: If the target is not positive.
    """

    checks.function("gain", gain)
    if isinstance(target, Tensor):
        checks.tensor("target", target)
        target = float(target.double().mean())
    goal = checks.number("target", target, above=0)
    found: dict[float, Tensor] = {}

    def reached(scale: float) -> float:
        found[scale] = torch.as_tensor(gain(scale)).double()
        return float(found[scale].mean())

    low, high = 0.0, _FIRST
    while reached(high) < goal:
        if high >= _FIRST * 2**_DOUBLINGS:
            best = max(found, key=lambda scale: float(found[scale].mean()))
            most = float(found[best].mean())
            raise GainOutOfReach(
                f"target must be a gain that the shift reaches, at most {most:.3g} nats at a scale "
                f"of {best:g}, got {goal:.3g}",
                best,
                most,
            )
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= goal else (middle, high)
    end = reached((low + high) / 2)
    return Calibration((low + high) / 2, end, goal, _error(found, low, high))


def _error(found: dict[float, Tensor], low: float, high: float) -> float:
    """Error of the scale: that of the mean gain over the slope of the gain, near the end."""

    scale = (low + high) / 2
    values = found[scale]
    if values.numel() < 2:
        return math.nan
    # A slope over a step that is not small, where rounding of pictures does not show.
    far = min((s for s in found if abs(s - scale) > 0.1 * scale), key=lambda s: abs(s - scale))
    slope = float(values.mean() - found[far].mean()) / (scale - far)
    error = float(values.std()) / math.sqrt(values.numel())
    return error / abs(slope) if slope else math.inf
