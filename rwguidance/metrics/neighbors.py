r"""Precision and recall of two sets by their nearest neighbors, and the curve of the two.

For a target law p and the law q of a method, the trade-off :math:`\lambda > 0` of precision and
recall is

.. math:: \alpha_\lambda = \int \min(\lambda p, q), \qquad \beta_\lambda = \alpha_\lambda / \lambda,

:math:`\alpha_\infty` is the share of q where p has mass, :math:`\beta_0` that of p where q has.
What is lost, :math:`D_\lambda = \min(1, \lambda) - \alpha_\lambda`, is the f-divergence with
:math:`f(u) = \max(\lambda u, 1) - \max(\lambda, 1)`, and every f-divergence is a mixture of these.

References:
    | Improved Precision and Recall Metric for Assessing Generative Models
      (Kynkaanniemi et al., 2019), arXiv:1904.06991
    | Assessing Generative Models via Precision and Recall (Sajjadi et al., 2018), arXiv:1806.00035
    | Precision-Recall Divergence Optimization for Generative Modeling with GANs and Normalizing
      Flows (Verine et al., 2023), arXiv:2305.18910
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..statistics import jackknife_error
from ..support import checks
from .blocks import in_blocks, unit_blocks, units_of
from .kernels import euclidean
from .samples import (
    Figure,
    Sample,
    SampleLike,
    as_sample,
    check_same_dimension,
    check_same_groups,
    poorer_ess,
)

__all__ = ["PrecisionRecall", "PrecisionRecallCurve", "precision_recall", "precision_recall_curve"]


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1], with their errors.

    Arguments:
        precision: The share of the method's rows that lie among the target's.
        recall: The share of the target's rows that lie among the method's.
    """

    precision: Figure
    recall: Figure


@dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """Precision and recall for each trade-off, all float64 with shape (L,).

    Arguments:
        trade_offs: The trade-offs lambda: small ones ask for recall, large ones for precision.
        precision: The precisions alpha, on average not too small.
        recall: The recalls beta = alpha / lambda.
        divergence: The divergences min(1, lambda) - alpha, zero for equal laws and at most
            min(1, lambda); on average not too large, negative ones stand for zero.
        error: Standard errors of precision and divergence; those of recall are error / lambda.
        units: Number of the sampled units: prompts, or rows of both sets without prompts.
        ess: Effective number of draws, see :class:`rwguidance.metrics.Figure`.
    """

    trade_offs: Tensor
    precision: Tensor
    recall: Tensor
    divergence: Tensor
    error: Tensor
    units: int
    ess: float


def precision_recall(x: SampleLike, y: SampleLike, k: int = 3, blocks: int = 20) -> PrecisionRecall:
    """Returns the share of a method's rows among a target's, and that of the target's among its.

    A row lies among a set if it is at most as far from one of its members as that member is from
    its k-th nearest neighbor in the set. The denser the set, the smaller these balls: the sets
    should be equally large. All groups are taken together, and count alike.

    Arguments:
        x: The set of the method.
        y: The set of the target. Balls have no weights: of a weighted set, take
            :meth:`rwguidance.metrics.Sample.resampled`.
        k: Number of the neighbor, less than the size of both sets.
        blocks: Number of blocks of groups, or of rows without groups, that the jackknife leaves
            out in turn.

    Returns:
        Both shares, with their errors by the jackknife, which are NaN if a set without a block
        has no k-th neighbor. Memory is that of one block of 1024 x 1024 pairs times a few, and
        that of k N numbers for each block of units.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If a set is weighted or k out of range, or the sets differ in dimension.
    """

    x, y = as_sample("x", x), as_sample("y", y)
    check_same_dimension("x", x, "y", y)
    for name, sample in (("x", x), ("y", y)):
        if sample.log_weights is not None:
            raise ValueError(
                f"{name} must have no log_weights; take {name}.resampled(n, generator)"
            )
    least = min(len(x), len(y))
    if not 1 <= checks.integer("k", k) < least:
        raise ValueError(
            f"k must be at least 1 and less than the size of both sets, {len(x)} and {len(y)}, "
            f"got {k}"
        )
    checks.integer("blocks", blocks, 2)
    units = (units_of(x), units_of(y))
    place = unit_blocks([*units[0], *units[1]], blocks)
    a, b = (
        _Blocked(z.features, z.shares, torch.tensor([place[unit] for unit in keys]))
        for z, keys in zip((x, y), units, strict=True)
    )
    count = max(place.values()) + 1
    n = len(set(units[0]) | set(units[1])) if x.groups is not None else len(x) + len(y)
    return PrecisionRecall(_share_among(a, b, k, count, n), _share_among(b, a, k, count, n))


def precision_recall_curve(
    x: SampleLike,
    y: SampleLike,
    trade_offs: Sequence[float] | Tensor | None = None,
    k: int | None = None,
) -> PrecisionRecallCurve:
    r"""Returns the curve of precision and recall of a method against a target.

    Any set A gives a bound, :math:`\alpha_\lambda \le \lambda p(A) + q(A^c)`, and the best one is
    where :math:`\lambda p < q`. That set is guessed from the k nearest neighbors in one half of the
    units, by how much of the mass of p and q they carry, and measured on the other half, and the
    other way round. So the precision found is the value of a bound, without bias: a better
    guess, of more rows, can only lower it on average.

    Arguments:
        x: The set of the method, law q.
        y: The set of the target, law p; both may be weighted.
        trade_offs: Positive numbers lambda; None is 33 of them, whose angles
            :math:`\arctan \lambda` are evenly spread over (0, pi/2).
        k: Number of neighbors, of both sets together; None is the root of the number of rows that
            are searched.

    Returns:
        The curve; errors are by the jackknife over units, given the guess. Memory is that of one
        block of 1024 x 1024 pairs times a few, and of N numbers for each trade-off.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the sets differ in dimension or groups, there are less than four units in
            one of them, or k or a trade-off is out of range.
    """

    x, y = as_sample("x", x), as_sample("y", y)
    check_same_groups("x", x, "y", y)
    ratios = _trade_offs(trade_offs)
    place = unit_blocks([*units_of(x), *units_of(y)], 2)
    folds = [torch.tensor([place[unit] for unit in units_of(z)]) for z in (x, y)]
    smallest = min(int((fold == i).sum()) for fold in folds for i in (0, 1))
    if smallest < 2:
        raise ValueError(
            f"x and y must have two rows at least in each half of the units, got {smallest}"
        )
    fold = torch.cat(folds)
    searched = int(torch.bincount(fold).min())
    k = math.isqrt(searched) if k is None else checks.integer("k", k, 1, searched)
    features, n = torch.cat((x.features, y.features)), len(x)
    masses = torch.block_diag(x.shares[:, None], y.shares[:, None])
    near = torch.empty_like(masses)
    for i in (0, 1):
        near[fold == i] = _mass_nearby(
            features[fold == i], features[fold != i], masses[fold != i], k
        )
    # The halves differ in mass by chance; what counts is the share of a half.
    totals = torch.stack([masses[fold != i].sum(0) for i in (0, 1)])
    near = near / totals[fold]
    inside = ratios[:, None] * near[:, 1] < near[:, 0]
    return _curve(ratios, inside[:, :n], inside[:, n:], x, y)


class _Blocked(NamedTuple):
    """Features (N, D), the share of each row, and the block of units that it belongs to."""

    features: Tensor
    shares: Tensor
    block: Tensor


def _share_among(x: _Blocked, y: _Blocked, k: int, blocks: int, units: int) -> Figure:
    """Returns the share of `x` in a ball around a member of `y` that holds k others of `y`."""

    radii = _radii(y, k, blocks)
    inside = torch.zeros(blocks + 1, len(x.features), dtype=torch.bool)
    for rows, columns, distances in in_blocks(x.features, y.features, euclidean):
        for i in range(blocks + 1):
            inside[i, rows] |= (distances <= radii[i, columns]).any(1)
    kept = torch.stack([x.shares * (x.block != i - 1) for i in range(blocks + 1)])
    found = (kept * inside).sum(1) / kept.sum(1)
    left = len(y.features) - torch.bincount(y.block, minlength=blocks)
    error = jackknife_error(found[1:]) if int(left.min()) > k else math.nan
    return Figure(float(found[0]), error, units, math.nan)


def _radii(y: _Blocked, k: int, blocks: int) -> Tensor:
    """Returns the distance of each row from its k-th neighbor, of all rows and without each block.

    The shape is (1 + blocks, N). A row of the block that is left out has no ball: -1.
    """

    # The k nearest of every block of units are all that can matter.
    nearest = torch.full((len(y.features), blocks, k), math.inf, dtype=torch.float64)
    for i in range(blocks):
        members = (y.block == i).nonzero().flatten()
        for rows, columns, distances in in_blocks(y.features, y.features[members], euclidean):
            itself = torch.arange(rows.start, rows.stop)[:, None] == members[columns]
            both = torch.cat((nearest[rows, i], distances.masked_fill(itself, math.inf)), 1)
            nearest[rows, i] = both.topk(k, largest=False).values
    kth = lambda distances: distances.flatten(1).topk(k, largest=False).values[:, -1]
    without = [
        kth(nearest.index_fill(1, torch.tensor(i), math.inf)).masked_fill(y.block == i, -1)
        for i in range(blocks)
    ]
    return torch.stack([kth(nearest), *without])


def _mass_nearby(x: Tensor, y: Tensor, masses: Tensor, k: int) -> Tensor:
    """Returns the sum of masses (M, 2) over the k nearest rows of `y`, with shape (N, 2)."""

    nearest = torch.full((len(x), k), math.inf, dtype=torch.float64)
    who = torch.zeros(len(x), k, dtype=torch.int64)
    for rows, columns, distances in in_blocks(x, y, euclidean):
        both = torch.cat((nearest[rows], distances), 1)
        numbers = torch.arange(columns.start, columns.stop).expand_as(distances)
        candidates = torch.cat((who[rows], numbers), 1)
        nearest[rows], order = both.topk(k, largest=False)
        who[rows] = candidates.gather(1, order)
    return masses[who].sum(1)


def _trade_offs(trade_offs: Sequence[float] | Tensor | None) -> Tensor:
    if trade_offs is None:
        return torch.tan(torch.arange(1, 34, dtype=torch.float64) * math.pi / 68)
    ratios = checks.real_tensor("trade_offs", trade_offs, "positive numbers")
    if ratios.ndim != 1 or not len(ratios) or not bool(((ratios > 0) & ratios.isfinite()).all()):
        raise ValueError("trade_offs must be positive and finite numbers, with shape (L,)")
    return ratios


def _curve(
    ratios: Tensor, x_inside: Tensor, y_inside: Tensor, x: Sample, y: Sample
) -> PrecisionRecallCurve:
    r"""Returns lambda p(A) + q(A^c), for sets A (L, N) that hold rows or not."""

    if x.groups is None:
        units, x_unit, y_unit = len(x) + len(y), torch.arange(len(x)), len(x) + torch.arange(len(y))
    else:
        place = {name: i for i, name in enumerate(x.names)}
        units, x_unit = len(place), x.index
        y_unit = torch.tensor([place[name] for name in y.names])[y.index]
    by_unit = lambda values, unit: values.new_zeros(len(values), units).index_add_(1, unit, values)
    p, q = by_unit(y_inside * y.shares, y_unit), by_unit(~x_inside * x.shares, x_unit)
    p_mass, q_mass = by_unit(y.shares[None], y_unit), by_unit(x.shares[None], x_unit)
    alpha = ratios * p.sum(1) + q.sum(1)
    without = lambda part, mass: (part.sum(1, keepdim=True) - part) / (1 - mass)
    left = ratios[:, None] * without(p, p_mass) + without(q, q_mass)
    error = torch.tensor([jackknife_error(row) for row in left], dtype=torch.float64)
    bound = ratios.clamp(max=1)
    return PrecisionRecallCurve(
        ratios, alpha, alpha / ratios, bound - alpha, error, units, poorer_ess(x, y)
    )
