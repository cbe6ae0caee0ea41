r"""Draws of one condition, and the two products that importance sampling takes with them.

No second bank is ever held: draws in half precision are widened block by block, or multiplied as
they are where the processor multiplies bfloat16. It sums in float32, but rounds states, weights and
sums to bfloat16, 8 bits. What states and sums have in common for all draws is taken out before, so
that a log-kernel is off by :math:`2^{-9}` of its distance to that of the mean draw, and by as much
as a state's own rounding to bfloat16 moves it. Where ten draws are effective, that is some
hundredths of a nat in log h and 1.5 % of the shift, which so few draws know to 30 %.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ..schedules import working_dtype

__all__ = ["Draws"]

_CAST_BYTES = 2**22
"""Bound on one block of draws that is widened to the working dtype (but 16 draws at least)."""

_NARROW_SIZE = 2**18
"""Entries of a bank from which on products in bfloat16 pay; smaller ones cost next to nothing."""


@dataclass(frozen=True, eq=False)
class Draws:
    r"""Draws of one condition, with their weights, in a frame where products stay small.

    Arguments:
        x_0: The draws, with shape (N, D), in any floating dtype.
        center: Mean of the draws, with shape (D,).
        half_norm: Half the squared distance of every draw to it, with shape (N,).
        along: Product of every draw with it, with shape (N,).
        log_w: Log-weights of the tilt, in nats, with shape (N,); may hold -inf, not only.
        log_importance: Log-importances, in nats, with shape (N,); None if the draws are of the law.
        kept: What kernels found out about these draws, by keys of theirs.
    """

    x_0: Tensor
    center: Tensor
    half_norm: Tensor
    along: Tensor
    log_w: Tensor
    log_importance: Tensor | None
    kept: dict[Hashable, float] = field(default_factory=dict)

    def of_positive_weight(self) -> "Draws":
        """Returns the draws whose weight is not zero."""

        some = self.log_w > -torch.inf
        if bool(some.all()):
            return self
        log_importance = None if self.log_importance is None else self.log_importance[some]
        rows = (self.half_norm[some], self.along[some], self.log_w[some])
        return Draws(self.x_0[some], self.center, *rows, log_importance)

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
        log_kernel = self._dot(x_t, alpha)
        log_kernel = log_kernel.addcmul_(alpha, self.half_norm, value=-1)
        if without is not None:
            log_kernel = log_kernel.scatter_(1, without[:, None], -torch.inf)
        log_kernel = log_kernel.sub_(log_kernel.detach().amax(1, keepdim=True))
        # In two steps: sigma_t = 0 then leaves the nearest draw at 0 and sends others to -inf.
        sigma = sigma.clamp_min(torch.finfo(sigma.dtype).tiny)
        return log_kernel.mul_(alpha / sigma).div_(sigma)

    def difference(self, weights: Tensor) -> Tensor:
        """Returns the sums of draws with weights (B, N) that add up to zero, with shape (B, D)."""

        if not self._narrow(weights):
            return weighted_sum(weights, self.x_0)
        rounded = weights.to(self.x_0.dtype)
        total = (rounded @ self.x_0).to(weights.dtype)
        excess = rounded.to(weights.dtype).sum(1, keepdim=True)  # rounding leaves some
        return total.addcmul_(excess, self.center, value=-1)

    def _dot(self, x_t: Tensor, alpha: Tensor) -> Tensor:
        """The products of states, less alpha times the center, and draws, with shape (B, N)."""

        if not self._narrow(x_t):
            return _dot(torch.addcmul(x_t, alpha, self.center, value=-1), self.x_0)
        square = self.center.square().sum().clamp_min(torch.finfo(x_t.dtype).tiny)
        share = (x_t @ self.center / square)[:, None]
        rest = torch.addcmul(x_t, share, self.center, value=-1).to(self.x_0.dtype)
        return (rest @ self.x_0.T).to(x_t.dtype).addcmul_(share - alpha, self.along)

    def _narrow(self, factor: Tensor) -> bool:
        """Whether to multiply in bfloat16, which carries no gradient here."""

        return (
            (self.x_0.dtype, factor.dtype) == (torch.bfloat16, torch.float32)
            and not (torch.is_grad_enabled() and factor.requires_grad)
            and self.x_0.numel() >= _NARROW_SIZE
            and self.x_0.device.type == "cpu"
            and _multiplies_bfloat16()
        )


def centered(draws: Tensor, groups: list[slice]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean of every group, (G, D), and of every draw what :class:`Draws` has of it.

    These are half the squared distances to the mean, and the products with it, both (N,).
    """

    dtype = working_dtype(draws.dtype)
    centers, half_norms, along = [], [], []
    for rows in groups:
        total = sum(block.sum(0) for block in _blocks(draws[rows], dtype))
        center = total / (rows.stop - rows.start)
        for block in _blocks(draws[rows], dtype):
            half_norms.append(0.5 * (block - center).square().sum(1))
            along.append(block @ center)
        centers.append(center)
    return torch.stack(centers), torch.cat(half_norms), torch.cat(along)


def _dot(states: Tensor, draws: Tensor) -> Tensor:
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


@lru_cache(maxsize=1)
def _multiplies_bfloat16() -> bool:
    """Whether the processor has units for products in bfloat16; older versions cannot say."""

    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and bool(supported())


def _blocks(draws: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The draws in `dtype`, in blocks small enough that no second bank is ever held."""

    # Blocks that fit the cache of a CPU are fastest there; elsewhere every launch costs.
    most = _CAST_BYTES if draws.device.type == "cpu" else 16 * _CAST_BYTES
    size = max(16, most // (draws.shape[1] * dtype.itemsize))
    return (block.to(dtype) for block in draws.split(size))
