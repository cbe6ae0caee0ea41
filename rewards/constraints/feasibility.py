"""Levels that a bank can reach, one by one and together, by linear programs over its weights."""

from typing import Any

import torch
from torch import Tensor

from .dual import Problem

__all__ = ["refuse_joint", "refuse_single"]


_EDGE = 1e-7
"""A level that could be this share further from the bank's mean is not at the edge of its reach."""


def refuse_single(problem: Problem, names: list[str], levels: list[float]) -> None:
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


def refuse_joint(problem: Problem, names: list[str], levels: list[float]) -> None:
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


def _stretch(problem: Problem, subset: list[int]) -> float:
    """The factor, at most 2, by which the levels' distances from the bank's means can grow.

    Below 1 no law on the bank reaches the levels of `subset`. Above 1 they are reached by a law
    that gives weight to all draws, so that there are finite multipliers: the stretched law mixed
    with the bank's own. That also holds for two levels that fix a mean from above and from below.
    """

    return -_program(problem, subset, objective=None, stretch=(0.0, 2.0)) if subset else 2.0


def _largest(problem: Problem, k: int, subset: list[int]) -> float:
    """The largest mean of reward k while those of `subset` reach their levels, standardized."""

    return -_program(problem, subset, objective=k, stretch=(1.0, 1.0))


def _program(
    problem: Problem, subset: list[int], objective: int | None, stretch: tuple[float, float]
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
    costs = (numpy.zeros(n), [-1.0]) if objective is None else (-means[:, objective], [0.0])
    levels = numpy.hstack([-means[:, subset].T, problem.targets[subset].numpy()[:, None]])
    condition = numpy.repeat(numpy.arange(len(sizes)), sizes)
    ones = (numpy.ones(n), (condition, numpy.arange(n)))
    sums: Any = csr_array(ones, shape=(len(sizes), n + 1))  # the stretch is in none of them
    result: Any = linprog(
        numpy.concatenate(costs),
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
