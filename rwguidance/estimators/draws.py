r"""Draws of one condition, and the two products that importance sampling takes with them.

No second bank is ever held: draws in half precision are widened block by block.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..schedules import working_dtype

__all__ = ["Draws"]

_CAST_BYTES = 2**22
"""Bound on one block of draws that is widened to the working dtype (but 16 draws at least)."""


@dataclass(frozen=True, eq=False)
class Draws:
    r"""Draws of one condition, with their weights, in a frame where products stay small.

    Arguments:
        x_0: The draws, with shape (N, D), in any floating dtype.
        center: Mean of the draws, with shape (D,).
        half_norm: Half the squared distance of every draw to it, with shape (N,).
        log_w: Log-weights of the tilt, in nats, with shape (N,); may hold -inf, not only.
        log_importance: Log-importances, in nats, with shape (N,); None if the draws are of the law.
        kept: What kernels found out about these draws, by keys of theirs.
    """

    x_0: Tensor
    center: Tensor
    half_norm: Tensor
    log_w: Tensor
    log_importance: Tensor | None
    kept: dict[Hashable, float] = field(default_factory=dict)

    def of_positive_weight(self) -> "Draws":
        """Returns the draws whose weight is not zero."""

        some = self.log_w > -torch.inf
        if bool(some.all()):
            return self
        log_importance = None if self.log_importance is None else self.log_importance[some]
        return Draws(
            self.x_0[some], self.center, self.half_norm[some], self.log_w[some], log_importance
        )

    def log_kernel(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, without: Tensor | None = None
    ) -> Tensor:
        r"""Returns :math:`-\|x_t - \alpha_t x^i\|^2 / 2 \sigma_t^2` less its maximum over i.

        Arguments:
            x_t: States in the working dtype, with shape (B, D).
            alpha: :math:`\alpha_t`, with shape (B, 1) or (1, 1).
            sigma: :math:`\sigma_t`, with the same shape.
            without: Number of the draw that each state must not see, with shape (B,), whose entry
                is -inf; None if it may see all.

        Returns:
            The log-kernel in nats, at most 0, with shape (B, N).
        """

        # Up to what is constant in the draw; centering keeps the products small.
        center, half_norm = self.center.to(x_t.dtype), self.half_norm.to(x_t.dtype)
        log_kernel = dot(torch.addcmul(x_t, alpha, center, value=-1), self.x_0)
        log_kernel = log_kernel.addcmul_(alpha, half_norm, value=-1)
        if without is not None:
            log_kernel = log_kernel.scatter_(1, without[:, None], -torch.inf)
        log_kernel = log_kernel.sub_(log_kernel.detach().amax(1, keepdim=True))
        # In two steps: sigma_t = 0 then leaves the nearest draw at 0 and sends others to -inf.
        sigma = sigma.clamp_min(torch.finfo(x_t.dtype).tiny)
        return log_kernel.mul_(alpha / sigma).div_(sigma)


def centered(draws: Tensor, groups: list[slice]) -> tuple[Tensor, Tensor]:
    """Returns the mean of every group, (G, D), and half the squared distances to it, (N,)."""

    dtype = working_dtype(draws.dtype)
    centers, half_norms = [], []
    for rows in groups:
        total = sum(block.sum(0) for block in _blocks(draws[rows], dtype))
        center = total / (rows.stop - rows.start)
        for block in _blocks(draws[rows], dtype):
            half_norms.append(0.5 * (block - center).square().sum(1))
        centers.append(center)
    return torch.stack(centers), torch.cat(half_norms)


def dot(states: Tensor, draws: Tensor) -> Tensor:
    """Returns the products of states (B, D) and draws (N, D), with shape (B, N)."""

    if draws.dtype == states.dtype:
        return states @ draws.T
    products = states.new_empty(len(states), len(draws))
    start = 0
    for block in _blocks(draws, states.dtype):
        products[:, start : start + len(block)] = states @ block.T
        start += len(block)
    return products


def weighted_sum(weights: Tensor, draws: Tensor) -> Tensor:
    """Returns the sums of draws (N, D) with weights (B, N), with shape (B, D)."""

    if draws.dtype == weights.dtype:
        return weights @ draws
    total = weights.new_zeros(len(weights), draws.shape[1])
    start = 0
    for block in _blocks(draws, weights.dtype):
        total.addmm_(weights[:, start : start + len(block)], block)
        start += len(block)
    return total


def _blocks(draws: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The draws in `dtype`, in blocks small enough that no second bank is ever held."""

    # Blocks that fit the cache of a CPU are fastest there; elsewhere every launch costs.
    most = _CAST_BYTES if draws.device.type == "cpu" else 16 * _CAST_BYTES
    size = max(16, most // (draws.shape[1] * dtype.itemsize))
    return (block.to(dtype) for block in draws.split(size))
