"""Statistics of a bank of rewards, to which normalizers are fitted."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwguidance.support.conditions import condition_keys

__all__ = ["Moments", "as_bank", "fit_moments", "fit_ranks"]


class Moments(NamedTuple):
    """Mean and standard deviation, in reward units, of `n` rewards."""

    mean: float
    std: float
    n: int | None = None


def as_bank(values: Tensor | Sequence[float], prompts: Any = None) -> Tensor:
    """Rewards to fit to, in float64 on the CPU, with shape (n,).

    Arguments:
        values: Rewards in reward units, with shape (n,).
        prompts: The prompt of each reward, for messages; None if they are not known.

    Raises:
        ValueError: If the values have another shape, or one is not finite; names the item.
    """

    if not isinstance(values, Tensor):
        values = torch.tensor(list(values), dtype=torch.float64)
    rewards = values.detach().double().cpu()
    if rewards.ndim != 1:
        raise ValueError(f"values must have shape (n,), got {tuple(rewards.shape)}")
    bad = (~rewards.isfinite()).nonzero().flatten().tolist()
    if bad:
        keys = condition_keys(prompts, len(rewards), "prompts")
        where = f" of prompt {keys[bad[0]]!r}" if keys else ""
        raise ValueError(
            f"values must be finite to fit statistics, got {rewards[bad[0]]} as item {bad[0]}"
            f"{where}; leave out zero weights, -inf"
        )
    return rewards


def fit_moments(rewards: Tensor, where: str = "") -> Moments:
    """Mean and unbiased (n - 1) standard deviation of rewards, with shape (n,).

    Arguments:
        rewards: The rewards, as from :func:`as_bank`.
        where: Origin of the rewards, for messages, such as " for prompt 'a cat'".

    Raises:
        ValueError: If there are fewer than two, or they do not vary.
    """

    _check_size(rewards, where)
    mean, std = rewards.mean().item(), rewards.std().item()
    if rewards.min() == rewards.max() or not 0 < std < math.inf:
        raise _constant(rewards, where)
    return Moments(mean, std, len(rewards))


def fit_ranks(rewards: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Distinct values of rewards, with shape (n,), ascending, and their mid-ranks in (0, 1).

    The mid-rank of a value is the share of rewards that are smaller plus half the share that equal
    it.

    Raises:
        ValueError: If there are not two different rewards.
    """

    _check_size(rewards)
    distinct, counts = rewards.unique(sorted=True, return_counts=True)
    if len(distinct) < 2:
        raise _constant(rewards)
    middle = counts.cumsum(0) - counts.double() / 2
    return tuple(distinct.tolist()), tuple((middle / len(rewards)).tolist())


def _check_size(rewards: Tensor, where: str = "") -> None:
    if len(rewards) < 2:
        raise ValueError(f"statistics need at least two values{where}, got {len(rewards)}")


def _constant(rewards: Tensor, where: str = "") -> ValueError:
    low, high = rewards.min().item(), rewards.max().item()
    return ValueError(
        f"statistics need values that vary{where}, got {len(rewards)} from {low:g} to {high:g}"
    )
