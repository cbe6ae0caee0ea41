r"""Choosing beta by what it does to a bank: how far the law moves, how many draws are left.

Tilting draws with rewards :math:`r_1, \dots, r_N` by the strength :math:`s = 1 / \beta` gives them
the weights :math:`p = \mathrm{softmax}(s r)`, hence

.. math:: \mathrm{KL} = s \, p^\top r - \log \tfrac1N \sum_i e^{s r_i}, \qquad
    \frac{\mathrm{ESS}}{N} = \frac{1}{N \sum_i p_i^2}, \qquad \tilde E[r] = p^\top r.

All three are monotone in s, so that every value on the way from no tilt to the best draws alone has
one beta. With several conditions, each quantity is its mean over conditions.

Draws of another law have a log-importance, :math:`\log q_i`, which is added to :math:`s r`; the
mean over i is then that with weights :math:`q_i`. The effective sample size need not be monotone.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .support import checks
from .weights import ess

__all__ = ["beta_for_ess", "beta_for_kl", "beta_for_reward"]


def beta_for_kl(
    rewards: Sequence[Tensor], nats: float, log_importance: Sequence[Tensor] | None = None
) -> float:
    r"""Temperature at which :math:`\mathrm{KL}(\tilde p \,\|\, p)` is `nats`, in reward units.

    Arguments:
        rewards: Rewards of the draws of every condition, each with shape (N,); -inf is a zero
            weight.
        nats: The divergence, in nats.
        log_importance: Log-importances of the draws of every condition, in nats, each with shape
            (N,), as those of a :class:`rwguidance.Bank`; None if they are draws of the model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the draws cannot reach the target; states the range that they can.
    """

    return 1 / _strength(rewards, log_importance, "nats", nats, lambda tilted: tilted.kl)


def beta_for_ess(
    rewards: Sequence[Tensor], fraction: float, log_importance: Sequence[Tensor] | None = None
) -> float:
    """Temperature at which a `fraction` of the draws remains effective, in reward units.

    Arguments:
        rewards: Rewards of the draws of every condition, each with shape (N,); -inf is a zero
            weight.
        fraction: The effective sample size over N.
        log_importance: Log-importances of the draws of every condition, in nats, each with shape
            (N,), as those of a :class:`rwguidance.Bank`; None if they are draws of the model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the draws cannot reach the target; states the range that they can.
    """

    return 1 / _strength(rewards, log_importance, "fraction", fraction, lambda tilted: tilted.ess)


def beta_for_reward(
    rewards: Sequence[Tensor], level: float, log_importance: Sequence[Tensor] | None = None
) -> float:
    """Temperature at which the mean reward of the tilted draws is `level`, in reward units.

    Arguments:
        rewards: Rewards of the draws of every condition, each with shape (N,); -inf is a zero
            weight.
        level: The mean reward, in reward units.
        log_importance: Log-importances of the draws of every condition, in nats, each with shape
            (N,), as those of a :class:`rwguidance.Bank`; None if they are draws of the model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the draws cannot reach the target; states the range that they can.
    """

    return 1 / _strength(rewards, log_importance, "level", level, lambda tilted: tilted.reward)


class _Tilted(NamedTuple):
    """Draws under a tilt of some strength: means over conditions of KL, ESS / N and reward."""

    kl: float
    ess: float
    reward: float


class _Draws(NamedTuple):
    """Rewards of the draws of one condition, and their log-importance, with shape (N,)."""

    rewards: Tensor
    log_importance: Tensor


def _tilted(groups: Sequence[_Draws], strength: float) -> _Tilted:
    rows = []
    for rewards, log_q in groups:
        finite = rewards[rewards.isfinite()]
        log_w = strength * finite + log_q[rewards.isfinite()]
        reward = (log_w.softmax(0) * finite).sum()
        kl = strength * reward - log_w.logsumexp(0) + log_q.logsumexp(0)
        rows.append(torch.stack((kl, ess(log_w) / len(rewards), reward)))
    return _Tilted(*torch.stack(rows).mean(0).tolist())


def _tilted_to_the_end(groups: Sequence[_Draws]) -> _Tilted:
    """The limit of infinite strength: all the weight is on the best draws."""

    rows = []
    for rewards, log_q in groups:
        best = log_q[rewards == rewards.max()]
        kl = log_q.logsumexp(0) - best.logsumexp(0)
        rows.append(torch.stack((kl, ess(best) / len(rewards), rewards.max())))
    return _Tilted(*torch.stack(rows).mean(0).tolist())


def _strength(
    rewards: Sequence[Tensor],
    log_importance: Sequence[Tensor] | None,
    name: str,
    target: float,
    quantity: Callable[[_Tilted], float],
) -> float:
    """The strength 1 / beta at which a monotone quantity of the tilted draws hits its target."""

    target = checks.number(name, target)
    checks.instance("rewards", rewards, Sequence, "a list with the rewards of every condition")
    groups = _groups(rewards, log_importance)
    if not groups:
        raise ValueError("rewards must hold those of one condition at least, got none")
    if any(not bool(group.rewards.isfinite().any()) for group in groups):
        raise ValueError("choosing beta needs a finite reward for every condition of the bank")
    start, end = quantity(_tilted(groups, 0.0)), quantity(_tilted_to_the_end(groups))
    reach = f"({min(start, end):.6g}, {max(start, end):.6g})"
    if start == end:
        raise ValueError("choosing beta needs rewards that vary, but they are constant on the bank")
    if not min(start, end) < target < max(start, end):
        raise ValueError(
            f"{name} must lie in the range that this bank reaches, {reach}, got {target}"
        )

    sign = 1 if end > start else -1
    excess = lambda log_strength: (
        sign * (quantity(_tilted(groups, math.exp(log_strength))) - target)
    )
    # The search begins where the log-weights range over one nat.
    center = -math.log(max(_spread(group.rewards) for group in groups))
    log_strength = _root(excess, center)
    if log_strength is None:
        raise ValueError(
            f"{name}={target} is too close to an end of the range that this bank reaches, {reach}"
        )
    return math.exp(log_strength)


def _groups(rewards: Sequence[Tensor], log_importance: Sequence[Tensor] | None) -> list[_Draws]:
    groups = [_checked(values) for values in rewards]
    if log_importance is None:
        return [_Draws(values, torch.zeros_like(values)) for values in groups]
    checks.instance("log_importance", log_importance, Sequence, "a list of tensors, or None")
    shapes = [tuple(values.shape) for values in groups]
    if [tuple(values.shape) for values in log_importance] != shapes:
        raise ValueError(f"log_importance must have the shapes of the rewards, {shapes}")
    return [_Draws(*pair) for pair in zip(groups, map(_checked, log_importance), strict=True)]


def _checked(values: Tensor) -> Tensor:
    """Rewards of one condition, float64, on the CPU."""

    good = isinstance(values, Tensor) and values.is_floating_point() and values.ndim == 1
    if not good:
        raise TypeError(
            "rewards must hold one floating-point tensor of shape (N,) per condition, "
            f"got {checks.described(values)}"
        )
    return values.double().cpu()


def _spread(rewards: Tensor) -> float:
    low, high = rewards[rewards.isfinite()].aminmax()
    return float(high - low)


def _root(function: Callable[[float], float], center: float, reach: float = 100.0) -> float | None:
    """The zero of an increasing function, or None if it lies beyond `reach` around the center."""

    from scipy.optimize import brentq

    low = high = center
    while function(low) > 0 and low > center - reach:
        low -= 2.0
    while function(high) < 0 and high < center + reach:
        high += 2.0
    if function(low) > 0 or function(high) < 0:
        return None
    return float(brentq(function, low, high, xtol=1e-13))
