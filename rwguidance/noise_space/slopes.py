"""Gradients of a log-weight in the noise, through the reward, the decoder and the generator."""

import math

import torch
from torch import Tensor

from ..support.conditions import describe_keys, take
from ..tilt import Tilt
from .generators import Generate
from .tasks import Task, check_batch


def slope(
    task: Task, generate: Generate, z: Tensor, rows: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """States of the outputs `rows`, their log-weights, and the gradient of these in the noise.

    The noise is float32 or wider, and so is the gradient; the generator sees the noise in `dtype`.
    A state of zero weight has the gradient 0.
    """

    condition = take(task.condition, rows)
    with torch.inference_mode(False), torch.enable_grad():
        noise = z.clone().requires_grad_()
        x_0 = generate(noise.to(dtype), condition)
        check_batch(x_0, len(rows), "generate must return states")
        if not x_0.requires_grad:
            raise ValueError(
                "generate must carry gradients from the noise to its states, but they carry none; "
                "make it with flow_map(model, sampler, times, gradient=True)"
            )
        log_w = task.tilt(x_0, condition)
        gradient = None
        if log_w.requires_grad:  # if only in parameters, the gradient in the noise is still None
            (gradient,) = torch.autograd.grad(log_w.sum(), noise, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "tilt must be differentiable in the states, but no gradient reaches them; use pcn or "
            "soft_best_of_n, which need none"
        )
    zero = (log_w == -math.inf).reshape(-1, *[1] * (z.ndim - 1))
    gradient = torch.where(zero.to(gradient.device), 0.0, gradient)
    bad = [row for row, g in zip(rows, gradient, strict=True) if not bool(g.isfinite().all())]
    if bad:
        raise FloatingPointError(
            f"the gradient of the tilt must be finite, got NaN or inf for outputs "
            f"{describe_keys(bad)} in {dtype}"
        )
    return x_0.detach(), log_w.detach(), gradient


def check_differentiable(tilt: Tilt) -> None:
    """Raises ValueError if a reward says of itself that it has no gradient; names it."""

    for reward in tilt.rewards:
        spec = getattr(reward, "spec", None)
        if not getattr(spec, "differentiable", True):
            raise ValueError(
                f"tilt must have differentiable rewards, but {type(reward).__name__} has no "
                "gradient; use pcn or soft_best_of_n, which need none"
            )


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows, with shape (B,)."""

    return (a * b).flatten(1).sum(1)
