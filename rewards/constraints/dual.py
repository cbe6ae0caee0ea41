"""The concave dual of a tilt under levels, and its maximum by projected Newton steps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rwguidance.weights import log_mean_exp

__all__ = ["Problem", "Solution", "is_flat", "solve", "standardize"]


class Problem(NamedTuple):
    """Rewards and levels in standard deviations from the mean, so that all are of one size."""

    groups: list[Tensor]
    """Per condition, with shape (n, R) and mean 0; zero where a reward is constant."""
    targets: Tensor
    center: Tensor
    scale: Tensor
    varies: list[int]
    """Rewards that are not constant given the condition, which a tilt can move."""


class Solution(NamedTuple):
    theta: Tensor
    iterations: int


def standardize(groups: list[Tensor], levels: list[float]) -> Problem:
    means = torch.stack([group.mean(0) for group in groups])
    constant = torch.stack([group.amin(0) == group.amax(0) for group in groups])
    centered = [
        torch.where(fixed, 0.0, group - mean)
        for group, mean, fixed in zip(groups, means, constant, strict=True)
    ]
    scale = torch.stack([group.square().mean(0) for group in centered]).mean(0).sqrt()
    varies = (scale > 0).nonzero().flatten().tolist()
    scale = torch.where(scale > 0, scale, 1.0)
    center = means.mean(0)
    targets = (torch.tensor(levels, dtype=torch.float64) - center) / scale
    return Problem([group / scale for group in centered], targets, center, scale, varies)


def _dual(problem: Problem, theta: Tensor) -> tuple[float, Tensor, Tensor]:
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


def solve(problem: Problem, limit: int = 200) -> Solution | None:
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
    return Solution(cleared, steps)


def _error(problem: Problem, theta: Tensor, gradient: Tensor) -> float:
    """Largest violation of the optimality conditions, in standard deviations of a reward.

    A level must be reached (gradient >= 0), and exactly if its multiplier is positive.
    """

    violation = torch.where(theta > 0, gradient.abs(), (-gradient).clamp(min=0))
    return float(violation[problem.varies].max()) if problem.varies else 0.0


def _newton_point(problem: Problem, theta: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:
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


def is_flat(problem: Problem, theta: Tensor) -> bool:
    """True if the dual has hardly any curvature, as where the multipliers run away to infinity."""

    active = (theta > 0).nonzero().flatten()
    if not len(active):
        return False
    hessian = _dual(problem, theta)[2][active][:, active]
    return bool(torch.linalg.eigvalsh(hessian)[0] < 1e-6)
