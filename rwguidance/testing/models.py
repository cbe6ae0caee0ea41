"""The conformance check of models."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Model
from ..prediction import Prediction
from ..schedules import Schedule
from ..support.conditions import take
from .batches import check_calls, check_mixed_times, mixed_times
from .requirements import (
    Select,
    extremes,
    few,
    require,
    require_tensor,
    require_wide,
    run,
    untouched,
)

__all__ = ["check_model"]


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
        select: A function from (condition, indices) to the condition of those samples.
        seed: Seed of the noise.

    Raises:
        AssertionError: If the model breaks the contract of :class:`rwguidance.Model`.
    """

    name = type(model).__name__
    require(isinstance(model, Model), f"expected a Model, got {name}")
    trained = isinstance(x_0, Tensor)
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(x_0, Tensor):
        x_0 = _normal(tuple(x_0), generator, like=_parameter(model))
    require(x_0.ndim >= 2 and len(x_0) >= 2, few("x_0", x_0))
    noise = _normal(tuple(x_0.shape), generator, like=x_0)
    answer = lambda x_t, t, condition: pair(_predict(name, model, x_t, t, condition))

    differs = condition is None
    for t in times:
        x_t = model.schedule.perturb(x_0, t, noise)
        predicted = check_calls(name, answer, x_t, t, condition, select)
        if condition is not None:
            rolled = answer(x_t, t, select(condition, [*range(1, len(x_t)), 0]))
            differs = differs or not torch.equal(rolled["mean"], predicted["mean"])
        if trained:
            _check_denoises(name, predicted["mean"], x_0, t, model.schedule)
    require(
        differs,
        f"{name} must depend on its condition, but permuting the condition changes nothing; give "
        "conditions that differ, or condition=None if the model is unconditional",
    )
    t_mixed = mixed_times(times, len(x_0))
    x_t = model.schedule.perturb(x_0, t_mixed, noise)
    check_mixed_times(name, answer, x_t, t_mixed, condition, select)
    for end in (0.0, 1.0):
        x_t = model.schedule.perturb(x_0, end, noise)
        try:
            answer(x_t, end, condition)
        except AssertionError as error:
            # A ValueError is a refusal with a reason: no information about x_0, no finite rate.
            if not isinstance(error.__cause__, ValueError):
                raise


def _predict(name: str, model: Model, x_t: Tensor, t: float | Tensor, condition: Any) -> Prediction:
    """Calls a model and checks everything that can be seen in one prediction."""

    shape = tuple(t.shape) if isinstance(t, Tensor) else "a number"
    what = f"{name} for states {tuple(x_t.shape)} and times {shape}"
    with untouched(what, x_t=x_t, t=t, condition=condition):
        prediction = run(what, model, x_t, t, condition)
    require(
        isinstance(prediction, Prediction),
        f"{name} must return a Prediction, got {type(prediction).__name__}",
    )
    for part in ("mean", "noise"):
        value = getattr(prediction, part)
        require_tensor(f"the {part} predicted by {name}", value, x_t.shape)
        require_wide(f"the {part} predicted by {name}", value)
        require(
            bool(value.isfinite().all()),
            f"the {part} predicted by {name} at t = {t} must be finite, got {extremes(value)}",
        )
    prediction = prediction.detach()
    scales = model.schedule.at(t, like=x_t)
    for part in ("alpha", "sigma"):
        require(
            torch.equal(getattr(prediction.scales, part), getattr(scales, part)),
            f"the scales of a prediction of {name} must be schedule.at(t, like=x_t), but its "
            f"{part} differs",
        )
    signal, noise = scales.alpha * prediction.mean, scales.sigma * prediction.noise
    error = float((signal + noise - x_t).abs().max())
    size = float(signal.abs().max() + noise.abs().max() + x_t.abs().max())
    require(
        error <= 64 * torch.finfo(signal.dtype).eps * size,
        f"a prediction of {name} must satisfy alpha * mean + sigma * noise = x_t, but at t = {t} "
        f"it is off by {error:.3g}; build it with Prediction.from_mean, from_noise, from_score or "
        "from_velocity",
    )
    return prediction


def _check_denoises(name: str, mean: Tensor, x_0: Tensor, t: float, schedule: Schedule) -> None:
    """A posterior mean is at least as close to x_0 as the best linear guess; twice is forgiven."""

    scales = schedule.at(t, like=x_0)
    alpha, sigma = scales.alpha, scales.sigma
    power = x_0.double().square().mean()
    linear = float(power * sigma**2 / (sigma**2 + alpha**2 * power))
    error = float((mean - x_0).square().mean())
    require(
        error <= 2 * linear,
        f"{name} does not denoise at t = {t}: the mean squared error of its mean is {error:.4g}, "
        f"while a linear guess reaches {linear:.4g}. Is the sign or the clock flipped (t = 0 is "
        "data, 1 is noise), or a timestep not converted? Is x_0 from the model's law? For a model "
        "that is not trained, pass the shape of x_0 instead",
    )


def pair(prediction: Prediction) -> dict[str, Tensor]:
    """The two tensors of a prediction, by name."""

    return {"mean": prediction.mean, "noise": prediction.noise}


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _parameter(module: nn.Module) -> Tensor:
    """The first floating-point parameter or buffer, which says where and in what a network runs."""

    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor
    return torch.zeros(())
