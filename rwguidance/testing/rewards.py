"""The conformance check of rewards."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..support.conditions import take
from ..tilt import RewardFunction
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

__all__ = ["check_reward"]


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
        x: Items to score (images in [0, 1], states), at least two and not constant, with shape
            (N, \*event).
        condition: What the reward is conditioned on, one item per sample, or None.
        differentiable: Whether to compare the gradient with finite differences, in float64, on a
            copy of the reward if it is a module. None asks `reward.spec.differentiable`, if there
            is one, and does not look otherwise. Of a reward with `straight_through` set, whose
            gradient is that of a stand-in, only the existence of the gradient is checked.
        select: A function from (condition, indices) to the condition of those items.

    Raises:
        AssertionError: If the reward breaks the contract of rewards.
    """

    name = getattr(reward, "__name__", type(reward).__name__)
    require(callable(reward), f"a reward must be callable, got {name}")
    require(x.ndim >= 2 and len(x) >= 2, few("x", x))
    tolerance = tolerance_for(x)
    values = _score(name, reward, x, condition)
    compare = lambda other, why: require_same(
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
        together = run(f"{name} of a list of images of two sizes", reward, mixed, condition)
    require_tensor(f"the result of {name} for a list", together, (len(x),))
    first = _score(name, reward, x[:1], select(condition, [0]))
    require_same(
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
    with torch.no_grad(), untouched(what, x=x, condition=condition):
        values = run(what, reward, x, condition)
    require_tensor(f"the result of {name}", values, (len(x),))
    require_wide(f"the result of {name}", values)
    require(
        not bool((values.isnan() | (values == math.inf)).any()),
        f"{name} must not return NaN or +inf (-inf is a zero weight), got {extremes(values)}",
    )
    return values


def _check_gradient(name: str, reward: RewardFunction, x: Tensor, condition: Any) -> None:
    if isinstance(reward, nn.Module):
        reward = copy.deepcopy(reward).double()
    x = x.double()
    low, high = x.aminmax()
    require(bool(high > low), f"x must not be constant, to differentiate {name} along a direction")
    uniform = torch.rand(
        x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(x.device)
    # Towards a random point of the range of x, starting inside: images stay within [0, 1].
    direction = low + (high - low) * uniform - x
    at = lambda step: x + (0.1 + step) * direction
    with torch.enable_grad():
        start = at(0.0).requires_grad_()
        values = run(f"{name} in float64", reward, start, condition)
        require(
            values.requires_grad,
            f"{name} must be differentiable, but its result carries no gradient; is there a detach,"
            " no_grad, item or numpy on the way?",
        )
        (gradient,) = torch.autograd.grad(values.sum(), start, allow_unused=True)
    require(gradient is not None, f"{name} must be differentiable, but no gradient reaches x")
    if getattr(reward, "straight_through", False):
        require(bool((gradient != 0).any()), f"the gradient of {name} must not vanish, but is 0")
        return
    slope = (gradient * direction).flatten(1).sum(1)

    eps = torch.finfo(values.dtype).eps
    step = eps ** (1 / 3)
    with torch.no_grad():
        difference = lambda h: (reward(at(h), condition) - reward(at(-h), condition)) / (2 * h)
        central, double = difference(step), difference(2 * step)
    # Truncation is at most a third of the gap for a smooth reward; rounding grows as 1 / step.
    allowed = (central - double).abs() + 64 * eps * (values.abs().max() + 1) / step
    wrong = ~((slope - central).abs() <= allowed)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise AssertionError(
            f"the gradient of {name} is wrong: along a random direction item {i} changes at the "
            f"rate {central[i]:.6g} by finite differences, but {slope[i]:.6g} by its gradient"
        )
