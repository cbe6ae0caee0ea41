r"""Conformance checks for plug-ins: one line of a test proves that a class keeps the contract.

    check_schedule(MySchedule())
    check_model(MyModel(), x_0, condition=prompts)
    check_estimator(MyEstimator(), model, x_t)
    check_reward(MyReward(), images, condition=prompts, differentiable=True)

Each returns nothing, or raises AssertionError saying what is wrong and what was expected. They
check the contract, not the quality: shapes, dtypes, times, independence of the samples in a batch,
randomness, mutation, and the identities that hold exactly.

Results that should agree are compared up to :math:`\sqrt{\varepsilon}` of the dtype of the states,
relative to the largest entry. That leaves room for kernels that round differently for another
batch size; a broken contract is off by orders of magnitude more.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .estimators import ConditionalExpectation, Estimate
from .guidance import GuidedModel
from .models import Model
from .prediction import Prediction
from .schedules import Schedule
from .support.conditions import take
from .tilt import RewardFunction

__all__ = ["check_estimator", "check_model", "check_reward", "check_schedule"]

Select = Callable[[Any, list[int]], Any]
"""Takes (condition, indices) to the condition of those samples."""

T = TypeVar("T")

_SINGLES = 4
"""Samples of a batch that are looked at one by one."""


def check_schedule(schedule: Schedule, n: int = 64) -> None:
    r"""Checks that a schedule is a path from data to noise, with correct inverse and rates.

    Arguments:
        schedule: The schedule.
        n: Number of times at which to look.

    Raises:
        AssertionError: If it does not keep the contract of :class:`rwguidance.Schedule`.
    """

    name = type(schedule).__name__
    _require(isinstance(schedule, Schedule), f"expected a Schedule, got {name}")
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    values = {}
    for part in ("alpha", "sigma"):
        function = getattr(schedule, part)
        with _untouched(f"{name}.{part}", t=t):
            value = _run(f"{name}.{part} of float64 times of shape ({n + 1},)", function, t)
        _require_tensor(f"{name}.{part}", value, t.shape, torch.float64)
        _require(
            bool((value.isfinite() & (value >= 0)).all()),
            f"{name}.{part} must be finite and at least 0 on [0, 1], got {_extremes(value)}",
        )
        single = torch.stack([_run(f"{name}.{part} of a scalar", function, time) for time in t])
        _require(
            torch.allclose(single, value, rtol=1e-12, atol=1e-300),
            f"{name}.{part} must treat every time by itself, but a batch of times gives other "
            "values than its times one by one",
        )
        values[part] = value
    _require(
        values["alpha"][0] > 0 and values["sigma"][-1] > 0,
        f"{name} must run from data (t = 0, alpha > 0) to noise (t = 1, sigma > 0), got alpha_0 = "
        f"{values['alpha'][0]:.4g} and sigma_1 = {values['sigma'][-1]:.4g}",
    )
    ratio = values["sigma"] / values["alpha"]  # inf at a noise end without signal
    _require(
        bool((ratio[1:] > ratio[:-1]).all()),
        f"{name} must have a strictly decreasing log-SNR, so more noise at larger t (0 is data, "
        "1 is noise); the ratio sigma / alpha does not increase everywhere",
    )

    inner = t[1:-1] + 0.3 / n * torch.rand(n - 1, generator=_generator(0), dtype=torch.float64)
    log_snr = schedule.log_snr(inner)
    back = _run(f"{name}.time of log-SNRs of shape ({n - 1},)", schedule.time, log_snr)
    _require_tensor(f"{name}.time", back, inner.shape, torch.float64)
    error = float((back - inner).abs().max())
    _require(
        error <= 1e-8,
        f"{name}.time must invert log_snr, in nats of (alpha / sigma)^2: time(log_snr(t)) differs "
        f"from t by up to {error:.2g}, expected at most 1e-8",
    )
    _check_rates(name, schedule, inner)


def _check_rates(name: str, schedule: Schedule, t: Tensor) -> None:
    step = 1e-6
    scales = _run(f"{name}.at", schedule.at, t, torch.zeros(len(t), 1, dtype=torch.float64))
    for part in ("alpha", "sigma"):
        function, rate = getattr(schedule, part), getattr(scales, f"{part}_rate").squeeze(1)
        before, here, after = function(t - step), function(t), function(t + step)
        forward, backward = (after - here) / step, (here - before) / step
        # Their gap bounds the error of their mean, for smooth functions and at kinks alike.
        rounding = 8 * torch.finfo(torch.float64).eps * (1 + here.abs()) / step
        wrong = (
            (rate - (forward + backward) / 2).abs() > (forward - backward).abs() + rounding
        ) | (~rate.isfinite())
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise AssertionError(
                f"the rate of {name}.{part} at t = {t[i]:.4g} is {rate[i]:.6g} by automatic "
                f"differentiation, but {(forward + backward)[i] / 2:.6g} by finite differences; "
                "write it with differentiable torch operations, without detach, item or numpy"
            )


def check_model(
    model: Model,
    x_0: Tensor | Sequence[int],
    condition: Any = None,
    times: Sequence[float] = (0.1, 0.5, 0.9),
    select: Select = take,
    seed: int = 0,
) -> None:
    r"""Checks that a model predicts consistently, sample by sample, on the library's clock.

    Arguments:
        model: The model, in eval mode.
        x_0: Clean states from the law that the model has learned, at least two, with shape
            (B, \*event). With them the check also sees whether the model denoises, which a flipped
            sign or clock spoils. For a model that is not trained give their shape only.
        condition: What the model is conditioned on, one item per sample, not all the same. None for
            an unconditional model.
        times: Inner times at which to look.
        select: Takes (condition, indices) to the condition of those samples.
        seed: For the noise.

    Raises:
        AssertionError: If it does not keep the contract of :class:`rwguidance.Model`.
    """

    name = type(model).__name__
    _require(isinstance(model, Model), f"expected a Model, got {name}")
    trained = isinstance(x_0, Tensor)
    generator = _generator(seed)
    if not isinstance(x_0, Tensor):
        x_0 = _normal(tuple(x_0), generator, like=_parameter(model))
    _require(x_0.ndim >= 2 and len(x_0) >= 2, _few("x_0", x_0))
    noise = _normal(tuple(x_0.shape), generator, like=x_0)
    tolerance = _tolerance(x_0)

    differs = condition is None
    for t in times:
        x_t = model.schedule.perturb(x_0, t, noise)
        prediction = _predict(name, model, x_t, t, condition)
        compare = lambda other, why, this=prediction, t=t: _require_same(
            _pair(this), _pair(other), tolerance, f"{name} at t = {t}: {why}"
        )
        compare(
            _predict(name, model, x_t, t, condition),
            "two equal calls must agree; call .eval(), and draw no random numbers",
        )
        for shape in ((), (len(x_t),)):
            form = torch.full(shape, t, dtype=torch.float64)
            compare(
                _predict(name, model, x_t, form, condition),
                f"times of shape {shape} must give what the number {t} gives",
            )
        with torch.inference_mode():
            compare(
                _predict(name, model, x_t, t, condition), "inference_mode must change no result"
            )
        _require_same(
            _pair(prediction, _SINGLES),
            _pair(_predict_singly(name, model, x_t, [t] * len(x_t), condition, select)),
            tolerance,
            f"{name} at t = {t}: a sample must not depend on the others of its batch",
        )
        if condition is not None:
            rolled = [*range(1, len(x_t)), 0]
            other = _predict(name, model, x_t, t, select(condition, rolled))
            differs = differs or not torch.equal(other.mean, prediction.mean)
        if trained:
            _check_denoises(name, prediction, x_0, t)
    _require(
        differs,
        f"{name} must depend on its condition, but permuting the condition changes nothing; give "
        "conditions that differ, or condition=None if the model is unconditional",
    )

    cycle = [times[i % len(times)] for i in range(len(x_0))]
    mixed = torch.tensor(cycle, dtype=torch.float64)
    x_t = model.schedule.perturb(x_0, mixed, noise)
    _require_same(
        _pair(_predict(name, model, x_t, mixed, condition), _SINGLES),
        _pair(_predict_singly(name, model, x_t, cycle, condition, select)),
        tolerance,
        f"{name}: every sample must be treated at its own time when the times of a batch differ",
    )
    for end in (0.0, 1.0):
        x_t = model.schedule.perturb(x_0, end, noise)
        try:
            _predict(name, model, x_t, end, condition)
        except AssertionError as error:
            # A ValueError is a refusal with a reason: no information about x_0, no finite rate.
            if not isinstance(error.__cause__, ValueError):
                raise


def _predict(name: str, model: Model, x_t: Tensor, t: float | Tensor, condition: Any) -> Prediction:
    """Calls a model and checks everything that can be seen in one prediction."""

    shape = tuple(t.shape) if isinstance(t, Tensor) else "a number"
    what = f"{name} for states {tuple(x_t.shape)} and times {shape}"
    with _untouched(what, x_t=x_t, t=t, condition=condition):
        prediction = _run(what, model, x_t, t, condition)
    _require(
        isinstance(prediction, Prediction),
        f"{name} must return a Prediction, got {type(prediction).__name__}",
    )
    for part in ("mean", "noise"):
        value = getattr(prediction, part)
        _require_tensor(f"the {part} predicted by {name}", value, x_t.shape)
        _require_wide(f"the {part} predicted by {name}", value)
        _require(
            bool(value.isfinite().all()),
            f"the {part} predicted by {name} at t = {t} must be finite, got {_extremes(value)}",
        )
    scales = model.schedule.at(t, like=x_t)
    for part in ("alpha", "sigma"):
        _require(
            torch.equal(getattr(prediction.scales, part), getattr(scales, part)),
            f"the scales of a prediction of {name} must be schedule.at(t, like=x_t), but its "
            f"{part} differs",
        )
    signal, noise = scales.alpha * prediction.mean, scales.sigma * prediction.noise
    error = float((signal + noise - x_t).abs().max())
    size = float(signal.abs().max() + noise.abs().max() + x_t.abs().max())
    _require(
        error <= 64 * torch.finfo(signal.dtype).eps * size,
        f"a prediction of {name} must satisfy alpha * mean + sigma * noise = x_t, but at t = {t} "
        f"it is off by {error:.3g}; build it with Prediction.from_mean, from_noise, from_score or "
        "from_velocity",
    )
    return prediction


def _predict_singly(
    name: str, model: Model, x_t: Tensor, times: list[float], condition: Any, select: Select
) -> Prediction:
    """The predictions of the first few samples, each in a batch of its own."""

    parts = [
        _predict(name, model, x_t[i : i + 1], times[i], select(condition, [i]))
        for i in range(min(_SINGLES, len(x_t)))
    ]
    mean, noise = (torch.cat([getattr(p, key) for p in parts]) for key in ("mean", "noise"))
    return Prediction(mean, noise, parts[0].scales)


def _check_denoises(name: str, prediction: Prediction, x_0: Tensor, t: float) -> None:
    """A posterior mean is at least as close to x_0 as the best linear guess; twice is forgiven."""

    alpha, sigma = prediction.scales.alpha, prediction.scales.sigma
    power = x_0.double().square().mean()
    linear = float(power * sigma**2 / (sigma**2 + alpha**2 * power))
    error = float((prediction.mean - x_0).double().square().mean())
    _require(
        error <= 2 * linear,
        f"{name} does not denoise at t = {t}: the mean squared error of its mean is {error:.4g}, "
        f"while a linear guess reaches {linear:.4g}. Is the sign or the clock flipped (t = 0 is "
        "data, 1 is noise), or a timestep not converted? Is x_0 from the model's law? For a model "
        "that is not trained, pass the shape of x_0 instead",
    )


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
        model: A model that it can work with.
        x_t: Noisy states, at least two, with shape (B, \*event).
        condition: What model, bank and reward are conditioned on, one item per sample, or None.
        times: Inner times at which to look.
        calls: Model calls that one estimate may make.
        select: Takes (condition, indices) to the condition of those samples.

    Raises:
        AssertionError: If it does not keep the contract of
            :class:`rwguidance.ConditionalExpectation`.
    """

    name = type(estimator).__name__
    _require(
        isinstance(estimator, ConditionalExpectation),
        f"expected a ConditionalExpectation, got {name}",
    )
    _require(x_t.ndim >= 2 and len(x_t) >= 2, _few("x_t", x_t))
    tolerance = _tolerance(x_t)
    estimate = lambda x, t, c: _estimate(name, estimator, model, x, t, c, calls)

    def singly(times: list[float]) -> dict[str, Tensor]:
        answers = [
            _answer(estimate(x_t[i : i + 1], times[i], select(condition, [i])))
            for i in range(min(_SINGLES, len(x_t)))
        ]
        return {key: torch.cat([answer[key] for answer in answers]) for key in answers[0]}

    for t in times:
        result = estimate(x_t, t, condition)
        compare = lambda other, why, this=result, t=t: _require_same(
            _answer(this), _answer(other), tolerance, f"{name} at t = {t}: {why}"
        )
        compare(
            estimate(x_t, t, condition),
            "two equal calls must agree; call .eval(), and draw no random numbers",
        )
        times_of_batch = torch.full((len(x_t),), t, dtype=torch.float64)
        compare(
            estimate(x_t, times_of_batch, condition),
            f"times of shape ({len(x_t)},) must give what the number {t} gives",
        )
        with torch.inference_mode():
            compare(estimate(x_t, t, condition), "inference_mode must change no result")
        _require_same(
            _answer(result, _SINGLES),
            singly([t] * len(x_t)),
            tolerance,
            f"{name} at t = {t}: a sample must not depend on the others of its batch",
        )
        _check_guided(name, estimator, model, x_t, t, condition, result, tolerance)

    cycle = [times[i % len(times)] for i in range(len(x_t))]
    _require_same(
        _answer(estimate(x_t, torch.tensor(cycle, dtype=torch.float64), condition), _SINGLES),
        singly(cycle),
        tolerance,
        f"{name}: every sample must be treated at its own time when the times of a batch differ",
    )


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
    with _untouched(what, x_t=x_t, t=t, condition=condition):
        estimate = _run(what, estimator, counted, x_t, t, condition)
    _require(
        isinstance(estimate, Estimate),
        f"{name} must return an Estimate, got {type(estimate).__name__}",
    )
    _require(
        1 <= counted.calls <= calls,
        f"{name} must call the model {'once' if calls == 1 else f'1 to {calls} times'} per "
        f"estimate, got {counted.calls} calls",
    )
    _require_same(
        _pair(model(x_t, t, condition)),
        _pair(estimate.prediction),
        _tolerance(x_t),
        f"the prediction in an estimate of {name} must be the base model's own, without the shift",
    )
    b = len(x_t)
    _require_tensor(f"log_h of {name}", estimate.log_h, (b,))
    _require_wide(f"log_h of {name}", estimate.log_h)
    _require(
        not bool(estimate.log_h.isinf().any()),
        f"log_h of {name} must be finite, or NaN where it has no value, "
        f"got {_extremes(estimate.log_h)}",
    )
    _require_tensor(f"the shift of {name}", estimate.shift, x_t.shape)
    _require_wide(f"the shift of {name}", estimate.shift)
    _require(
        bool(estimate.shift.isfinite().all()),
        f"the shift of {name} must be finite, got {_extremes(estimate.shift)}",
    )
    for key, value in estimate.diagnostics.items():
        _require_tensor(f"the diagnostic {key!r} of {name}", value, (b,), floating=False)
    return estimate


def _check_guided(
    name: str,
    estimator: ConditionalExpectation,
    model: Model,
    x_t: Tensor,
    t: float,
    condition: Any,
    estimate: Estimate,
    tolerance: float,
) -> None:
    base = model(x_t, t, condition)
    off = GuidedModel(model, estimator, scale=0.0)(x_t, t, condition)
    _require(
        torch.equal(off.mean, base.mean) and torch.equal(off.noise, base.noise),
        f"{name} with scale 0 must leave the base model as it is, bit for bit, at t = {t}",
    )
    half = _run(f"{name} in a GuidedModel", GuidedModel(model, estimator, 0.5), x_t, t, condition)
    _require_same(
        {"mean": base.mean + 0.5 * estimate.shift},
        {"mean": half.mean},
        tolerance,
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
        prediction: Prediction = self.model(x_t, t, condition)
        return prediction


def check_reward(
    reward: RewardFunction,
    x: Tensor,
    condition: Any = None,
    differentiable: bool | None = None,
    select: Select = take,
) -> None:
    r"""Checks that a reward gives one number per item, whatever else is in the batch.

    A reward of images (one with a `spec`, of items with 3 channels) must also take images of odd
    and different sizes, in any floating dtype. Give prompts of different lengths to see that
    padding does not matter.

    Arguments:
        reward: A callable (x, condition) -> (N,); a module in eval mode.
        x: What it looks at (images in [0, 1], states), at least two and not constant, with shape
            (N, \*event).
        condition: What it is conditioned on, one item per sample, or None.
        differentiable: Whether to compare the gradient with finite differences, in float64, on a
            copy of the reward if it is a module. None asks `reward.spec.differentiable`, if there
            is one, and does not look otherwise. Of a reward with `straight_through` set, whose
            gradient is that of a stand-in, only the existence of the gradient is checked.
        select: Takes (condition, indices) to the condition of those items.

    Raises:
        AssertionError: If it does not keep the contract of a reward.
    """

    name = getattr(reward, "__name__", type(reward).__name__)
    _require(callable(reward), f"a reward must be callable, got {name}")
    _require(x.ndim >= 2 and len(x) >= 2, _few("x", x))
    tolerance = _tolerance(x)
    values = _score(name, reward, x, condition)
    compare = lambda other, why: _require_same(
        {"value": values}, {"value": other}, tolerance, f"{name}: {why}"
    )
    compare(
        _score(name, reward, x, condition),
        "two equal calls must agree; call .eval(), and draw no random numbers",
    )
    n = len(x)
    parts = [_score(name, reward, x[i : i + 1], select(condition, [i])) for i in range(n)]
    compare(torch.cat(parts), "an item must not depend on the others of its batch")
    order = [*range(1, n), 0]
    rolled = _score(name, reward, x[order], select(condition, order))
    compare(rolled.roll(1), "permuting the items must permute their rewards")
    if hasattr(reward, "spec") and x.ndim == 4 and x.shape[1] == 3:
        _check_images(name, reward, x, condition, tolerance, select)

    if differentiable is None:
        differentiable = getattr(getattr(reward, "spec", None), "differentiable", False)
    if differentiable:
        _check_gradient(name, reward, x, condition)


def _check_images(
    name: str, reward: RewardFunction, x: Tensor, condition: Any, tolerance: float, select: Select
) -> None:
    """Images of odd sizes, of several sizes at once, and of other dtypes."""

    odd = x[..., : x.shape[-2] - 1 + x.shape[-2] % 2, : max(1, x.shape[-1] // 2 - 1)]
    alone = _score(f"{name} (odd size)", reward, odd, condition)
    mixed = [x[0], *odd[1:]]
    with torch.no_grad():
        together = _run(f"{name} of a list of images of two sizes", reward, mixed, condition)
    _require_tensor(f"the result of {name} for a list", together, (len(x),))
    first = _score(name, reward, x[:1], select(condition, [0]))
    _require_same(
        {"value": torch.cat([first, alone[1:]])},
        {"value": together},
        tolerance,
        f"{name}: images of several sizes in one list must score as they do alone",
    )
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        _score(f"{name} ({dtype})", reward, x.to(dtype), condition)


def _score(name: str, reward: RewardFunction, x: Tensor, condition: Any) -> Tensor:
    """Calls a reward and checks everything that can be seen in one result."""

    what = f"{name} for items of shape {tuple(x.shape)}"
    with torch.no_grad(), _untouched(what, x=x, condition=condition):
        values = _run(what, reward, x, condition)
    _require_tensor(f"the result of {name}", values, (len(x),))
    _require_wide(f"the result of {name}", values)
    _require(
        not bool((values.isnan() | (values == math.inf)).any()),
        f"{name} must not return NaN or +inf (-inf is a zero weight), got {_extremes(values)}",
    )
    return values


def _check_gradient(name: str, reward: RewardFunction, x: Tensor, condition: Any) -> None:
    if isinstance(reward, nn.Module):
        reward = copy.deepcopy(reward).double()
    x = x.double()
    low, high = x.aminmax()
    _require(bool(high > low), f"x must not be constant, to differentiate {name} along a direction")
    uniform = torch.rand(x.shape, generator=_generator(0), dtype=torch.float64).to(x.device)
    # Towards a random point of the range of x, starting inside: images stay within [0, 1].
    direction = low + (high - low) * uniform - x
    at = lambda step: x + (0.1 + step) * direction
    with torch.enable_grad():
        start = at(0.0).requires_grad_()
        values = _run(f"{name} in float64", reward, start, condition)
        _require(
            values.requires_grad,
            f"{name} must be differentiable, but its result carries no gradient; is there a detach,"
            " no_grad, item or numpy on the way?",
        )
        (gradient,) = torch.autograd.grad(values.sum(), start, allow_unused=True)
    _require(gradient is not None, f"{name} must be differentiable, but no gradient reaches x")
    if getattr(reward, "straight_through", False):
        _require(bool((gradient != 0).any()), f"the gradient of {name} must not vanish, but is 0")
        return
    slope = (gradient * direction).flatten(1).sum(1)

    eps = torch.finfo(values.dtype).eps
    step = eps ** (1 / 3)
    with torch.no_grad():
        difference = lambda h: (reward(at(h), condition) - reward(at(-h), condition)) / (2 * h)
        central, double = difference(step), difference(2 * step)
    # Truncation is at most a third of the gap for a smooth reward; rounding grows as 1 / step.
    allowed = (central - double).abs() + 64 * eps * (values.abs().max() + 1) / step
    wrong = ~((slope - central).abs() <= allowed.to(slope))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise AssertionError(
            f"the gradient of {name} is wrong: along a random direction item {i} changes at the "
            f"rate {central[i]:.6g} by finite differences, but {slope[i]:.6g} by its gradient"
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _require_tensor(
    what: str,
    value: Any,
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    floating: bool = True,
) -> None:
    _require(isinstance(value, Tensor), f"{what} must be a tensor, got {type(value).__name__}")
    _require(
        tuple(value.shape) == tuple(shape),
        f"{what} must have shape {tuple(shape)}, got {tuple(value.shape)}",
    )
    _require(
        value.is_floating_point() or not floating,
        f"{what} must be floating point, got {value.dtype}",
    )
    _require(
        dtype is None or value.dtype == dtype, f"{what} must have dtype {dtype}, got {value.dtype}"
    )


def _require_wide(what: str, value: Tensor) -> None:
    _require(
        torch.finfo(value.dtype).eps <= torch.finfo(torch.float32).eps,
        f"{what} must be float32 or wider, got {value.dtype}",
    )


def _require_same(
    expected: dict[str, Tensor], got: dict[str, Tensor], tolerance: float, message: str
) -> None:
    for key, a in expected.items():
        b = got[key]
        finite = a[a.isfinite()]
        size = float(finite.abs().max()) if finite.numel() else 0.0
        if not torch.allclose(a, b.to(a), rtol=0, atol=tolerance * size, equal_nan=True):
            error = float((a - b).abs().nan_to_num(math.inf).max())
            raise AssertionError(
                f"{message}; {key} differs by {error:.3g}, expected at most {tolerance * size:.3g}"
            )


@contextmanager
def _untouched(what: str, **inputs: Any) -> Iterator[None]:
    """Checks that the body changes neither these inputs nor the global random state."""

    state, before = _random_state(), {name: _copy(value) for name, value in inputs.items()}
    yield
    for name, value in inputs.items():
        _require(_equal(before[name], value), f"{what} must not change its argument {name}")
    _require(
        all(map(torch.equal, state, _random_state())),
        f"{what} must not use the global random state; randomness enters through a torch.Generator",
    )


def _random_state() -> list[Tensor]:
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.random.get_rng_state(), *gpu]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return list(value) if isinstance(value, list) else None


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_same_item, before, after))
    return True


def _same_item(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and bool(a == b))


def _run(what: str, function: Callable[..., T], *arguments: Any) -> T:
    try:
        return function(*arguments)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} fails with {type(error).__name__}: {error}") from error


def _pair(prediction: Prediction, n: int | None = None) -> dict[str, Tensor]:
    return {"mean": prediction.mean[:n], "noise": prediction.noise[:n]}


def _answer(estimate: Estimate, n: int | None = None) -> dict[str, Tensor]:
    return {"log_h": estimate.log_h[:n], "shift": estimate.shift[:n]}


def _tolerance(x: Tensor) -> float:
    return math.sqrt(torch.finfo(x.dtype).eps)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _parameter(module: nn.Module) -> Tensor:
    """The first floating-point parameter or buffer, which says where and in what a network runs."""

    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor
    return torch.zeros(())


def _few(name: str, x: Tensor) -> str:
    return (
        f"{name} must hold at least two samples, shape (B, *event) with B >= 2, "
        f"got {tuple(x.shape)}"
    )


def _extremes(value: Tensor) -> str:
    value = value.detach()
    if value.isnan().any():
        return f"{int(value.isnan().sum())} NaN of {value.numel()} values"
    return f"values from {float(value.min()):.4g} to {float(value.max()):.4g}"
