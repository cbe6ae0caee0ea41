r"""Arithmetic of log-weights, as pure functions. Everything is in nats; weights may be zero (-inf).

None of these functions exponentiates a weight before the largest one has been divided out.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .support import checks
from .support.randomness import Generators, normal

__all__ = ["ess", "gumbel", "log_mean_exp", "log_uniform", "pareto_k", "residual", "systematic"]


def log_mean_exp(log_w: Tensor, dim: int = -1) -> Tensor:
    r"""Logarithm of the mean weight, :math:`\log \frac1N \sum_i w_i`, in nats.

    Arguments:
        log_w: Log-weights, in nats.
        dim: The axis of size N >= 1 that is averaged away.
    """

    checks.tensor("log_w", log_w)
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def ess(log_w: Tensor, dim: int = -1) -> Tensor:
    r"""Effective sample size.

    .. math:: \mathrm{ESS} = \big( \sum_i w_i \big)^2 \big/ \sum_i w_i^2 \in [1, N]

    Arguments:
        log_w: Unnormalized log-weights, in nats. May hold -inf, but not only.
        dim: The axis of size N that is reduced.

    References:
        | Sequential Imputations and Bayesian Missing Data Problems (Kong et al., 1994)
    """

    checks.tensor("log_w", log_w)
    return torch.exp(-(2 * log_w.log_softmax(dim)).logsumexp(dim))


def log_uniform(shape: Sequence[int], generator: Generators = None) -> Tensor:
    r"""Logarithms of numbers uniform in (0, 1), float64, on the CPU.

    All are finite and negative: they come from the distribution function of normal numbers, which
    has no value 0 or 1 within the range that is drawn.

    Arguments:
        shape: The shape (B, \*event) of the result.
        generator: Source of randomness, one or one per row, as
            :func:`rwguidance.support.randomness.normal` takes it.
    """

    return torch.special.log_ndtr(normal(shape, generator, "cpu", torch.float64))


def gumbel(shape: Sequence[int], generator: Generators = None) -> Tensor:
    r"""Standard Gumbel noise :math:`-\log(-\log u)`, float64, on the CPU.

    The index of the largest of :math:`\log w_i` + noise is a draw from
    :math:`\mathrm{softmax}(\log w)`, which needs no normalization and looks at every weight once.

    Arguments:
        shape: The shape (B, \*event) of the result.
        generator: Source of randomness, one or one per row, as
            :func:`rwguidance.support.randomness.normal` takes it.
    """

    return -torch.log(-log_uniform(shape, generator))


def systematic(log_w: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Draws `n` indices with equal expected counts :math:`n \omega_i`, by one uniform number.

    Index i comes :math:`\lfloor n \omega_i \rfloor` or :math:`\lceil n \omega_i \rceil` times,
    where :math:`\omega` is the softmax of `log_w`: the counts vary less than those of independent
    draws, and no copy is made that the weights do not ask for. The indices come in random order.

    Arguments:
        log_w: Log-weights, in nats, with shape (N,). May hold -inf, but not only.
        n: Number of indices, at least 1.
        generator: Source of randomness.

    Returns:
        Indices, int64, with shape (n,), on the device of `log_w`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If all weights are zero, one is NaN or infinite, or `n` is less than 1.

    References:
        | Comparison of Resampling Schemes for Particle Filtering (Douc et al., 2005),
          arXiv:cs/0507025
    """

    n = checks.integer("n", n, 1)
    share = _shares(log_w)
    # Without the rounding of the last sum no number falls beyond an index of some weight.
    edges = share.cumsum(0)
    edges = edges / edges[-1].clone()
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    places = (torch.arange(n, dtype=torch.float64) + offset) / n
    picks = torch.searchsorted(edges, places, right=True).clamp(max=int(share.nonzero().max()))
    return picks[torch.randperm(n, generator=generator)].to(log_w.device)


def residual(log_w: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Draws `n` indices with equal expected counts :math:`n \omega_i`, mostly without chance.

    Index i comes :math:`\lfloor n \omega_i \rfloor` times, where :math:`\omega` is the softmax of
    `log_w`; the rest are independent draws by what is left of the expected counts. The indices come
    in random order.

    Arguments:
        log_w: Log-weights, in nats, with shape (N,). May hold -inf, but not only.
        n: Number of indices, at least 1.
        generator: Source of randomness.

    Returns:
        Indices, int64, with shape (n,), on the device of `log_w`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If all weights are zero, one is NaN or infinite, or `n` is less than 1.

    References:
        | Comparison of Resampling Schemes for Particle Filtering (Douc et al., 2005),
          arXiv:cs/0507025
    """

    n = checks.integer("n", n, 1)
    expected = n * _shares(log_w)
    counts = (expected * (1 + 1e-12)).floor()  # 1 stays 1 where n (1 / n) is rounded down
    picks = torch.arange(len(expected)).repeat_interleave(counts.long())
    left = n - len(picks)
    if left:
        rest = (expected - counts).clamp(min=0)
        more = torch.multinomial(rest, left, replacement=True, generator=generator)
        picks = torch.cat((picks, more))
    return picks[torch.randperm(n, generator=generator)].to(log_w.device)


def _shares(log_w: Tensor) -> Tensor:
    """Softmax of a row of log-weights, float64, on the CPU; raises if there is none."""

    checks.tensor("log_w", log_w)
    if log_w.ndim != 1 or not bool(log_w.max().isfinite()):  # the largest of NaN is NaN
        raise ValueError(
            "log_w must be a row (N,) of log-weights that are not NaN or +inf, and not all -inf, "
            f"got {checks.described(log_w)} with largest value {float(log_w.max())}"
        )
    return log_w.double().cpu().softmax(0)


def pareto_k(log_w: Tensor) -> Tensor:
    r"""Shape :math:`\hat k` of a generalized Pareto law fitted to the largest weights.

    Below 0.5 the estimate behaves as if the weights had finite variance, above 0.7 more draws
    hardly help, above 1 not even the mean exists. The fit uses the
    :math:`M = \min(\lceil N / 5 \rceil, \lceil 3 \sqrt N \rceil)` largest weights and a weak prior
    towards 0.5, as the reference does.

    Arguments:
        log_w: Log-weights, in nats, with shape (\*B, N). May hold -inf.

    Returns:
        The shape, dimensionless, with shape (\*B,): 0 if the largest weights are all equal (there
        is no tail), inf if one weight outgrows the others beyond the range of floating point, and
        NaN if fewer than five weights form the tail (N <= 20), which is too few to tell.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024), arXiv:1507.02646
        | A New and Efficient Estimation Method for the Generalized Pareto Distribution
          (Zhang & Stephens, 2009)
    """

    checks.tensor("log_w", log_w)
    n = log_w.shape[-1]
    m = min(math.ceil(n / 5), math.ceil(3 * math.sqrt(n)))
    if m < 5:
        return log_w.new_full(log_w.shape[:-1], math.nan)

    top = log_w.topk(m + 1, dim=-1).values.flip(-1)  # ascending; the first one is the threshold
    w = torch.exp(top - top[..., -1:])
    x = w[..., 1:] - w[..., :1]  # exceedances over the threshold
    tiny = 1e3 * torch.finfo(x.dtype).tiny  # below it, the inverse overflows
    middle = (m + 2) // 4  # of w; at middle - 1 of x
    flat = x[..., -1] == 0
    spike = ~flat & (w[..., middle] < tiny)
    # Weights that tie with the threshold (rewards that are counts) leave no exceedance there.
    smallest = torch.where(x > tiny, x, math.inf).amin(-1)
    quartile = torch.maximum(x[..., middle - 1], smallest)
    masked = flat | spike  # any value will do there
    x = torch.where(masked[..., None], torch.ones_like(x), x)
    quartile = torch.where(masked, torch.ones_like(quartile), quartile)

    theta = _zhang_stephens(x, quartile)
    k = torch.log1p(-theta[..., None] * x).mean(-1)
    k = (m * k + 5) / (m + 10)
    k = torch.where(spike, torch.full_like(k, math.inf), k)
    return torch.where(flat, torch.zeros_like(k), k)


def _zhang_stephens(x: Tensor, quartile: Tensor) -> Tensor:
    """Posterior mean of theta = -k / scale under Zhang and Stephens' prior; `x` is ascending."""

    m = x.shape[-1]
    quartile, largest = quartile[..., None], x[..., -1:]
    grid = torch.arange(1, 31 + int(math.sqrt(m)), dtype=x.dtype, device=x.device)
    theta = 1 / largest + (1 - torch.sqrt(len(grid) / (grid - 0.5))) / (3 * quartile)
    # 16 points at a time: the (points, m) block may outgrow the weights themselves.
    mean_log = lambda points: (-points[..., None] * x[..., None, :]).log1p_().mean(-1)
    k = torch.cat([mean_log(points) for points in theta.split(16, dim=-1)], dim=-1)
    log_likelihood = m * (torch.log(-theta / k) - k - 1)
    return (log_likelihood.softmax(-1) * theta).sum(-1)
