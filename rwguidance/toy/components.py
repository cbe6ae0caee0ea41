r"""Gaussian components and their tilts, in closed form.

With a prior component :math:`N(\mu, C)` and :math:`x_t = \alpha x_0 + \sigma \epsilon`, the
posterior of :math:`x_0` is Gaussian with

.. math:: S = \alpha^2 C + \sigma^2 I, \qquad D = \mu + \alpha C S^{-1} (x_t - \alpha \mu), \qquad
    P = \sigma^2 C S^{-1},

and a weight :math:`\exp(c + b^\top x - \tfrac12 x^\top H x)` gives, with :math:`g = b - H D`,

.. math:: M = (P^{-1} + H)^{-1}, \qquad
    \log E[w] = c + b^\top D - \tfrac12 D^\top H D + \tfrac12 g^\top M g - \tfrac12 \log|I + P H|,
    \\ \tilde D = D + M g.

Everything is computed in float64 in the eigenbasis of C and with square roots of P, so that both
ends of every path are exact. Results come back in the dtype of the states, float32 or wider.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..tilt import Tilt
from .rewards import Exponents, Step, exponents_of


class Components(NamedTuple):
    """Gaussian components: log-weights (B, K), means (B, K, D), square roots (T, C, D, D).

    T is 1 or B, C is 1 or K, and the covariance of a component is root @ root.T.
    """

    log_weights: Tensor
    means: Tensor
    roots: Tensor


def moments(
    posterior: Components, log_e: Tensor, means: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """log h and shift from tilted components: log E[w], (B, K, J), and means, (B, K, J, D)."""

    log_tilted = posterior.log_weights[..., None] + log_e
    tilted = log_tilted.flatten(1).softmax(1).reshape(log_tilted.shape)
    # Sum of moves within components and of re-weighted components, each small where the shift is.
    within = torch.einsum("bkj,bkjd->bd", tilted, means - posterior.means[:, :, None])
    between = tilted.sum(-1) - posterior.log_weights.exp()
    shift = within + torch.einsum("bk,bkd->bd", between, posterior.means)
    return log_tilted.flatten(1).logsumexp(1).to(dtype), shift.to(dtype)


def step_of(tilt: Tilt, d: int) -> tuple[float, float] | None:
    """Threshold and log-height if the tilt is one step in one dimension."""

    if len(tilt.rewards) != 1 or tilt.decode is not None or d != 1:
        return None
    (reward,), (beta,) = tilt.rewards, tilt.betas
    return (reward.threshold, reward.height / beta) if isinstance(reward, Step) else None


def tilt_components(tilt: Tilt, components: Components) -> tuple[Tensor, Tensor]:
    """log E[w] and tilted means of every component, (B, K, J) and (B, K, J, D)."""

    d = components.means.shape[-1]
    step = step_of(tilt, d)
    if step is not None:
        return _tilt_step(*step, components)
    log_e, means, _ = tilt_quadratic(exponents_of(tilt, d), components)
    return log_e, means


def tilt_quadratic(exponents: Exponents, components: Components) -> tuple[Tensor, Tensor, Tensor]:
    """log E[w], (B, K, J), tilted means, (B, K, J, D), and covariances M, (T, C, J, D, D)."""

    c, b, precision = exponents
    means, roots = components.means[:, :, None], components.roots[:, :, None]
    inner = roots.mT @ precision @ roots
    inner = inner + torch.eye(inner.shape[-1], dtype=inner.dtype)
    factor, failed = torch.linalg.cholesky_ex(inner)
    if bool((failed > 0).any()):
        raise ValueError(
            "the tilted law does not exist: its weight grows faster than the law decays"
        )
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # of I + P H, (T, C, J)
    half = torch.linalg.solve_triangular(factor, roots.mT, upper=False)
    covariances = half.mT @ half  # M = roots (I + roots' H roots)^-1 roots'

    pull = torch.einsum("jde,bke->bkjd", precision, components.means)
    gradient = b - pull
    move = _apply(covariances, gradient)
    log_e = c + (means * (b - 0.5 * pull)).sum(-1) + 0.5 * (gradient * move).sum(-1) - 0.5 * log_det
    return log_e, means + move, covariances


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Products of (T, C, J, D, D) with (B, K, J, D), without expanding shared matrices."""

    letters = ("b" if matrices.shape[0] > 1 else "") + ("k" if matrices.shape[1] > 1 else "")
    shape = [size for size in matrices.shape[:2] if size > 1]
    matrices = matrices.reshape(*shape, *matrices.shape[2:])
    return torch.einsum(f"{letters}jde,bkje->bkjd", matrices, vectors)


def _tilt_step(
    threshold: float, log_height: float, components: Components
) -> tuple[Tensor, Tensor]:
    (mean,), (root,) = components.means.unbind(-1), components.roots.flatten(-2).unbind(-1)
    std = root.abs().expand_as(mean)
    side = torch.where(mean >= threshold, torch.inf, -torch.inf)
    z = torch.where(std > 0, (mean - threshold) / std, side)
    above = torch.special.log_ndtr(z) + log_height
    log_e = torch.logaddexp(torch.special.log_ndtr(-z), above)
    log_density = -0.5 * (z**2 + torch.log(torch.tensor(2 * torch.pi, dtype=z.dtype)))
    move = std * (torch.exp(log_density + log_height - log_e) - torch.exp(log_density - log_e))
    return log_e[..., None], (mean + move)[..., None, None]
