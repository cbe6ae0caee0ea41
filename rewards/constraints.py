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
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from rwguidance.bank import Bank
from rwguidance.tilt import RewardFunction, Tilt
from rwguidance.weights import ess, log_mean_exp

__all__ = ["ConstrainedTilt", "constrained_tilt"]

_EDGE = 1e-7
"""A level that could be this share further from the bank's mean is not at the edge of its reach."""


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
        kl: Of the law from the bank, in nats.
        ess: Effective share of the bank, in (0, 1]. If it leaves few draws, the multipliers are
            those of this bank only, and another bank would give others.
        iterations: Newton steps that were taken.

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
    every = Tilt(functions, [1.0] * len(functions), decode)
    bank = bank.scored(every) if bank.rewards is None else bank
    scores = _scores(bank, len(functions))
    problem = _standardize([scores[rows] for rows in bank.rows.values()], numbers)
    names = _names(functions)

    _refuse_single(problem, names, numbers)
    solution = _solve(problem)
    if solution is None or _is_flat(problem, solution.theta):
        _refuse_joint(problem, names, numbers)
    if solution is None:
        raise ValueError(
            f"the levels of {', '.join(names)} are so close to the edge of what this bank reaches "
            "that no multipliers were found; lower one of them"
        )

    multipliers = (solution.theta / problem.scale).tolist()
    betas = tuple(1 / value if value else math.inf for value in multipliers)
    active = [k for k, value in enumerate(multipliers) if value]
    tilt = None
    if active:
        tilt = Tilt([functions[k] for k in active], [betas[k] for k in active], decode)
        assert bank.rewards is not None
        columns = bank.rewards.reshape(scores.shape)[:, active]
        bank = replace(bank, rewards=columns[:, 0] if len(active) == 1 else columns)
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


class _Problem(NamedTuple):
    """Rewards and levels in standard deviations from the mean, so that all are of one size."""

    groups: list[Tensor]
    """Per condition, with shape (n, R) and mean 0; zero where a reward is constant."""
    targets: Tensor
    center: Tensor
    scale: Tensor
    varies: list[int]
    """Rewards that are not constant given the condition, which a tilt can move."""


class _Solution(NamedTuple):
    theta: Tensor
    iterations: int


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
    """From the specs; the position if there is no name, and beside it if it is not unique."""

    names = [getattr(getattr(function, "spec", None), "name", None) for function in functions]
    return [
        f"reward {k}" if name is None else f"{name} (reward {k})" if names.count(name) > 1 else name
        for k, name in enumerate(names)
    ]


def _standardize(groups: list[Tensor], levels: list[float]) -> _Problem:
    means = torch.stack([group.mean(0) for group in groups])
    constant = torch.stack([(group == group[0]).all(0) for group in groups])
    centered = [
        torch.where(fixed, 0.0, group - mean)
        for group, mean, fixed in zip(groups, means, constant, strict=True)
    ]
    scale = torch.stack([group.square().mean(0) for group in centered]).mean(0).sqrt()
    varies = (scale > 0).nonzero().flatten().tolist()
    scale = torch.where(scale > 0, scale, 1.0)
    center = means.mean(0)
    targets = (torch.tensor(levels, dtype=torch.float64) - center) / scale
    return _Problem([group / scale for group in centered], targets, center, scale, varies)


def _dual(problem: _Problem, theta: Tensor) -> tuple[float, Tensor, Tensor]:
    """Minus the dual, its gradient (R,) and Hessian (R, R): mean of rewards, and covariance."""

    values, means, covariances = [], [], []
    for group in problem.groups:
        log_w = group @ theta
        p = log_w.softmax(0)
        mean = p @ group
        off = group - mean
        values.append(log_mean_exp(log_w, 0))
        means.append(mean)
        covariances.append((p[:, None] * off).T @ off)
    value = torch.stack(values).mean() - theta @ problem.targets
    gradient = torch.stack(means).mean(0) - problem.targets
    return float(value), gradient, torch.stack(covariances).mean(0)


def _solve(problem: _Problem, limit: int = 200) -> _Solution | None:
    """Minimizes minus the dual over theta >= 0 by projected Newton steps; None if it fails.

    A step minimizes the quadratic model over the orthant, and is halved until the value decreases.
    After convergence steps go on as long as the optimality conditions improve, to rounding.
    """

    theta = torch.zeros_like(problem.targets)
    value, gradient, hessian = _dual(problem, theta)
    error, best, best_error = _error(problem, theta, gradient), theta, math.inf
    for steps in range(limit + 1):
        if error < 1e-9 and not error < best_error / 2:
            break
        if error < best_error:
            best, best_error = theta, error
        if error == 0 or steps == limit:
            break

        step = _newton_point(problem, theta, gradient, hessian) - theta
        if not bool(step.any()):
            break
        slope = float(gradient @ step)
        for halving in range(60):
            trial = theta + 0.5**halving * step
            trial_value, gradient, hessian = _dual(problem, trial)
            # Near the minimum the values differ by rounding only.
            if trial_value <= value + 1e-4 * 0.5**halving * slope + 1e-13 * (1 + abs(value)):
                break
        theta, value = trial, trial_value
        if not float(theta.max()) < 1e9:  # nothing stops them: the levels exclude each other
            return None
        error = _error(problem, theta, gradient)
    if best_error > 1e-9:
        return None
    # A multiplier that rounding left above 0 without need.
    cleared = torch.where(best < 1e-10, 0.0, best)
    return _Solution(cleared, steps)


def _error(problem: _Problem, theta: Tensor, gradient: Tensor) -> float:
    """Largest violation of the optimality conditions, in standard deviations of a reward.

    A level must be reached (gradient >= 0), and exactly if its multiplier is positive.
    """

    violation = torch.where(theta > 0, gradient.abs(), (-gradient).clamp(min=0))
    return float(violation[problem.varies].max()) if problem.varies else 0.0


def _newton_point(problem: _Problem, theta: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:
    """Minimizes the quadratic model over theta >= 0, as a non-negative least-squares problem."""

    import numpy
    from scipy.optimize import nnls

    rows = problem.varies
    h = hessian[rows][:, rows]
    # Rewards that are copies of each other leave directions without curvature.
    h = h + (1e-13 * h.diagonal().max() + 1e-30) * torch.eye(len(rows), dtype=h.dtype)
    lower = torch.linalg.cholesky(h)
    right = torch.linalg.solve_triangular(
        lower, (h @ theta[rows] - gradient[rows])[:, None], upper=False
    )
    point, _ = nnls(numpy.ascontiguousarray(lower.T.numpy()), right[:, 0].numpy())
    result = torch.zeros_like(theta)
    result[rows] = torch.from_numpy(point)
    return result


def _is_flat(problem: _Problem, theta: Tensor) -> bool:
    """Whether the dual has hardly any curvature, as where the multipliers run away to infinity."""

    active = (theta > 0).nonzero().flatten()
    if not len(active):
        return False
    hessian = _dual(problem, theta)[2][active][:, active]
    return bool(torch.linalg.eigvalsh(hessian)[0] < 1e-6)


def _kl(log_w: list[Tensor]) -> float:
    gaps = [l.softmax(0) @ l - log_mean_exp(l, 0) for l in log_w]
    return max(0.0, float(torch.stack(gaps).mean()))


def _refuse_single(problem: _Problem, names: list[str], levels: list[float]) -> None:
    """Raises if some reward cannot reach its level, whatever the others do."""

    top = torch.stack([group.max(0).values for group in problem.groups]).mean(0)
    reach = (problem.center + problem.scale * top).tolist()
    beyond, edge = [], []
    for k, (name, target) in enumerate(zip(names, problem.targets.tolist(), strict=True)):
        text = f"{name}: level {levels[k]:g}, the most that this bank reaches is {reach[k]:g}"
        if k not in problem.varies:  # every law has the same mean, up to its rounding
            if levels[k] > reach[k] + 1e-12 * abs(reach[k]):
                beyond.append(text)
        elif target > float(top[k]) * (1 + _EDGE):
            beyond.append(text)
        elif target >= float(top[k]) * (1 - _EDGE):
            edge.append(text)
    if beyond:
        raise ValueError("a level is out of reach; " + "; ".join(beyond))
    if edge:
        raise ValueError(
            "a level lies at the edge of what is in reach, where only an infinite multiplier "
            "leads; " + "; ".join(edge)
        )


def _refuse_joint(problem: _Problem, names: list[str], levels: list[float]) -> None:
    """Raises if the levels exclude each other; finds a smallest set that does, by leaving out."""

    subset = list(problem.varies)
    if _stretch(problem, subset) > 1 + _EDGE:
        return
    for k in tuple(subset):
        rest = [j for j in subset if j != k]
        if _stretch(problem, rest) <= 1 + _EDGE:
            subset = rest

    lines = []
    for k in subset:
        top = _largest(problem, k, [j for j in subset if j != k])
        most = float(problem.center[k] + problem.scale[k] * top)
        lines.append(f"{names[k]}: level {levels[k]:g}, at most {most:g} beside the others")
    listing = "; ".join(lines)
    if _stretch(problem, subset) < 1 - _EDGE:
        raise ValueError(
            f"levels that this bank reaches one by one, but not together; {listing}. Lower one of "
            "them, or take a bank with more draws"
        )
    raise ValueError(
        "levels that lie together at the edge of what is in reach, where only infinite multipliers "
        f"lead; {listing}"
    )


def _stretch(problem: _Problem, subset: list[int]) -> float:
    """The factor, at most 2, by which the levels' distances from the bank's means can grow.

    Below 1 no law on the bank reaches the levels of `subset`. Above 1 they are reached by a law
    that gives weight to all draws, so that there are finite multipliers: the stretched law mixed
    with the bank's own. That also holds for two levels that fix a mean from above and from below.
    """

    return -_program(problem, subset, objective=None, stretch=(0.0, 2.0)) if subset else 2.0


def _largest(problem: _Problem, k: int, subset: list[int]) -> float:
    """The largest mean of reward k while those of `subset` reach their levels, standardized."""

    return -_program(problem, subset, objective=k, stretch=(1.0, 1.0))


def _program(
    problem: _Problem, subset: list[int], objective: int | None, stretch: tuple[float, float]
) -> float:
    """Minimum of minus the mean of a reward, or of minus the stretch, over the laws on the bank."""

    import numpy
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    # Unknown: the weights of the draws, which sum to 1 for each condition, and the stretch.
    rows = sorted({*subset, *([] if objective is None else [objective])})
    groups = [group[_undominated(group[:, rows])] for group in problem.groups]
    sizes = [len(group) for group in groups]
    means = torch.cat(groups).numpy() / len(sizes)
    n = len(means)
    costs = numpy.zeros(n + 1)
    costs[:n] = 0.0 if objective is None else -means[:, objective]
    costs[n] = -1.0 if objective is None else 0.0
    levels = numpy.hstack([-means[:, subset].T, problem.targets[subset].numpy()[:, None]])
    condition = numpy.repeat(numpy.arange(len(sizes)), sizes)
    ones = (numpy.ones(n), (condition, numpy.arange(n)))
    sums: Any = csr_array(ones, shape=(len(sizes), n + 1))  # the stretch is in none of them
    result: Any = linprog(
        costs,
        A_ub=levels if subset else None,
        b_ub=numpy.zeros(len(subset)) if subset else None,
        A_eq=sums,
        b_eq=numpy.ones(len(sizes)),
        bounds=[(0, None)] * n + [stretch],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.status != 0:
        raise RuntimeError(f"the linear program of the levels failed: {result.message}")
    return float(result.fun)


def _undominated(scores: Tensor, limit: int = 500) -> Tensor:
    """Positions of draws that no other one exceeds in all rewards; the others only cost time.

    It stops after `limit` of them: some dominated draws may then remain.
    """

    rest = scores.sum(1).argsort(descending=True)
    kept: list[Tensor] = []
    while len(rest) and len(kept) < limit:
        kept.append(rest[:1])
        rest = rest[(scores[rest] > scores[rest[0]]).any(1)]
    return torch.cat([*kept, rest])
