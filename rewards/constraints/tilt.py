r"""Levels instead of weights: the smallest tilt under which several rewards reach their levels.

Weights of rewards say nothing about what comes out. A constraint does: each reward shall be at
least :math:`b_k` on average. Of the laws that fulfil it, take the one closest to the pretrained
law,

.. math::
    \min_q \; \mathrm{KL}(q \,\|\, p) \quad \text{subject to} \quad E_q[r_k] \ge b_k, \qquad
    q \propto p \, \exp \Big( \sum_k \lambda_k r_k \Big), \quad \lambda_k \ge 0,

which is a tilt with the temperatures :math:`\beta_k = 1 / \lambda_k`. The multipliers maximize the
concave dual

.. math::
    D(\lambda) = - \operatorname{mean}_y \log E_p \Big[ \exp \sum_k \lambda_k (r_k - b_k) \Big| y
    \Big],

whose value is the KL. A multiplier is the price of its level, in nats per reward unit; a reward
that reaches its level anyway costs nothing and has the multiplier 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from rwguidance.bank import Bank
from rwguidance.tilt import RewardFunction, Tilt
from rwguidance.weights import ess, log_mean_exp

from .dual import Problem, Solution, is_flat, solve, standardize
from .feasibility import refuse_joint, refuse_single

__all__ = ["ConstrainedTilt", "constrained_tilt"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ConstrainedTilt:
    r"""The law of least KL on a bank under which all rewards reach their levels, R rewards.

    Arguments:
        tilt: The rewards with a positive multiplier, and their betas; None if there is none, since
            the pretrained law reaches all levels.
        bank: The bank with the raw rewards of `tilt` (of all rewards if it is None), ready for
            :class:`rwguidance.ImportanceSampling`.
        multipliers: :math:`\lambda_k \ge 0` of each reward, in nats per reward unit.
        betas: :math:`1 / \lambda_k`, in reward units; inf for a slack level.
        rewards: Mean of each reward under the law, in reward units.
        kl: KL divergence of the law from the bank, in nats.
        ess: Effective share of the bank, in (0, 1]. If it leaves few draws, the multipliers are
            those of this bank only, and another bank would give others.
        iterations: Number of Newton steps that were taken.

    All of them are means over the bank's conditions, if it has several.
    """

    tilt: Tilt | None
    bank: Bank
    multipliers: tuple[float, ...]
    betas: tuple[float, ...]
    rewards: tuple[float, ...]
    kl: float
    ess: float
    iterations: int

    @property
    def active(self) -> tuple[int, ...]:
        """Positions of the rewards that are in `tilt`."""

        return tuple(k for k, multiplier in enumerate(self.multipliers) if multiplier > 0)


def constrained_tilt(
    rewards: RewardFunction | Sequence[RewardFunction],
    levels: float | Sequence[float],
    bank: Bank,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> ConstrainedTilt:
    r"""Chooses the betas such that every reward reaches its level at the least KL.

    With several conditions in the bank, the levels hold for the mean over conditions, each counting
    the same, not for every condition; there is one multiplier per reward. With one reward whose
    level is above its mean, the result is :meth:`rwguidance.Tilt.for_reward`.

    Levels are reached on the bank. On new draws they are missed by the error of a weighted mean
    over `ess` times the bank's size, and by the sampler's bias.

    Arguments:
        rewards: R callables (x, condition) -> (N,), or one. Finite on the bank.
        levels: :math:`b_k`, the least mean of each reward, in reward units. For an upper bound of r
            give -r and its negative.
        bank: Draws of the pretrained law. If it holds rewards, with shape (N, R), or (N,) for one,
            these are used; if not, it is scored.
        decode: Maps states to what the rewards look at; see :class:`rwguidance.Tilt`.

    Raises:
        TypeError: If a level is not a number, or a reward not callable.
        ValueError: If there is not one finite level per reward, the bank's rewards have another
            shape or hold -inf, or no law on the bank reaches the levels. Then the message names the
            level that is too high by itself, and the largest mean in reach, or else a smallest set
            of levels that exclude each other, and how far each of them can go beside the others.
            Levels at the edge of what is in reach, which need an infinite multiplier, are errors as
            well.

    References:
        | Composition and Alignment of Diffusion Models using Constrained Learning
          (Khalafi et al., 2025), arXiv:2508.19104
    """

    functions = tuple(rewards) if isinstance(rewards, Sequence) else (rewards,)
    numbers = _levels(levels, len(functions))
    bank.check_of_model("a constrained tilt")
    every = Tilt(functions, [1.0] * len(functions), decode)
    bank = bank.scored(every) if bank.rewards is None else bank
    scores = _scores(bank, len(functions))
    problem = standardize([scores[rows] for rows in bank.rows.values()], numbers)
    names = _names(functions)

    solution = _solution(problem, names, numbers)
    multipliers = (solution.theta / problem.scale).tolist()
    betas = tuple(1 / value if value else math.inf for value in multipliers)
    active = [k for k, value in enumerate(multipliers) if value]
    tilt = None
    if active:
        tilt = Tilt([functions[k] for k in active], [betas[k] for k in active], decode)
        bank = _with_columns(bank, active)
    log_w = [group @ solution.theta for group in problem.groups]
    means = torch.stack([l.softmax(0) @ g for l, g in zip(log_w, problem.groups, strict=True)])
    return ConstrainedTilt(
        tilt=tilt,
        bank=bank,
        multipliers=tuple(multipliers),
        betas=betas,
        rewards=tuple((problem.center + problem.scale * means.mean(0)).tolist()),
        kl=_kl(log_w),
        ess=float(torch.stack([ess(l) / len(l) for l in log_w]).mean()),
        iterations=solution.iterations,
    )


def _solution(problem: Problem, names: list[str], levels: list[float]) -> Solution:
    """The maximum of the dual. Raises if there is none, and says why."""

    refuse_single(problem, names, levels)
    solution = solve(problem)
    if solution is None or is_flat(problem, solution.theta):
        refuse_joint(problem, names, levels)
    if solution is None:
        raise ValueError(
            f"the levels of {', '.join(names)} are so close to the edge of what this bank reaches "
            "that no multipliers were found; lower one of them"
        )
    return solution


def _with_columns(bank: Bank, active: list[int]) -> Bank:
    """The bank with the rewards at these positions only; with shape (N,) if it is one."""

    assert bank.rewards is not None
    columns = bank.rewards.reshape(len(bank.rewards), -1)[:, active]
    return replace(bank, rewards=columns.squeeze(1))


def _levels(levels: Any, n: int) -> list[float]:
    values = list(levels) if isinstance(levels, Sequence) else [levels]
    if len(values) != n or not values:
        raise ValueError(f"levels must hold one number per reward, {n}, got {len(values)}")
    for value in values:
        if isinstance(value, str) or not isinstance(value, SupportsFloat):
            raise TypeError(f"levels must be numbers, got {type(value).__name__}")
        if not math.isfinite(float(value)):
            raise ValueError(f"levels must be finite, got {value}; leave out what is not bounded")
    return [float(value) for value in values]


def _scores(bank: Bank, n: int) -> Tensor:
    """The bank's rewards in float64, with shape (N, R)."""

    assert bank.rewards is not None
    scores = bank.rewards.double().cpu()
    scores = scores[:, None] if scores.ndim == 1 else scores
    if scores.shape[1] != n:
        raise ValueError(
            f"a scored bank must hold one column per reward, {n}, "
            f"got rewards of shape {tuple(bank.rewards.shape)}"
        )
    rejected = (~scores.isfinite()).any(1).nonzero().flatten().tolist()
    if rejected:
        raise ValueError(
            "levels are levels of means, so rewards must be finite on the bank, but "
            f"{len(rejected)} draws have a reward of -inf, such as {rejected[:5]}; leave them out "
            "of the bank, or give -inf as a reward of its own to the tilt"
        )
    return scores


def _names(functions: Sequence[RewardFunction]) -> list[str]:
    """Names of rewards from their specs, with the position if a name is missing or not unique."""

    names = [getattr(getattr(function, "spec", None), "name", None) for function in functions]
    return [
        f"reward {k}" if name is None else f"{name} (reward {k})" if names.count(name) > 1 else name
        for k, name in enumerate(names)
    ]


def _kl(log_w: list[Tensor]) -> float:
    gaps = [l.softmax(0) @ l - log_mean_exp(l, 0) for l in log_w]
    return max(0.0, float(torch.stack(gaps).mean()))
