"""Log-weights of many states, a few of them at a time, with their gradients."""

from typing import Any

import torch
from torch import Tensor

from ..support.conditions import take
from ..tilt import Tilt

__all__ = ["log_w_in_chunks"]


def log_w_in_chunks(tilt: Tilt, x_0: Tensor, condition: Any, size: int) -> Tensor | None:
    r"""Returns log-weights that carry gradients, whose graph is of a few states at a time.

    The gradient of each state's log-weight in that state is found at once, a chunk after the other,
    so that what a decoder and a reward keep for it is never there for more than one chunk. The
    backward pass goes on from these gradients. Second derivatives there are none.

    Arguments:
        tilt: The tilt.
        x_0: States, with shape (B, \*event).
        condition: What the rewards are conditioned on, of B items, or None.
        size: Number of states of a chunk.

    Returns:
        The log-weights, with shape (B,), or None if they do not depend on the states.
    """

    values: list[Tensor] = []
    slopes: list[Tensor] = []
    for start in range(0, len(x_0), size):
        rows = range(start, min(start + size, len(x_0)))
        with torch.enable_grad():
            some = x_0[rows.start : rows.stop].requires_grad_()
            log_w = tilt(some, None if condition is None else take(condition, list(rows)))
            if not log_w.requires_grad:
                return None
            slopes += torch.autograd.grad(log_w.sum(), some)
        values.append(log_w.detach())
    known: Tensor = _Known.apply(x_0, torch.cat(values), torch.cat(slopes))
    return known


class _Known(torch.autograd.Function):
    """Values of states whose gradients, each in its own state, are known."""

    @staticmethod
    def forward(ctx: Any, x_0: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        (gradient,) = gradients
        shape = (len(slopes), *(1,) * (slopes.ndim - 1))
        return gradient.reshape(shape) * slopes, None, None
