r"""Energy and kernel distances of two laws, by U-statistics, weighted.

For a kernel k and independent :math:`X, X' \sim p` and :math:`Y, Y' \sim q`, the squared maximum
mean discrepancy is

.. math:: \mathrm{MMD}^2 = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y),

and with :math:`k(a, b) = -\|a - b\|` it is the energy distance. A mean over pairs of a weighted set
is :math:`\sum_{i \neq j} w_i w_j k_{ij} / \sum_{i \neq j} w_i w_j`: a row makes no pair with
itself, which would bias the mean by the order of 1 / ESS. For sets that are not weighted the
estimate is unbiased, zero on average for equal laws, and so may be negative. Self-normalized
weights leave the bias of a ratio of two unbiased estimates, which falls like 1 / ESS, too: look at
the effective number of draws.

References:
    | A Kernel Two-Sample Test (Gretton et al., 2012)
    | Demystifying MMD GANs (Binkowski et al., 2018), arXiv:1801.01401
    | Energy Statistics: A Class of Statistics Based on Distances (Szekely and Rizzo, 2013)
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from ..statistics import jackknife_error, mean_and_error
from ..support import checks
from .blocks import in_blocks
from .samples import Figure, Sample, SampleLike, as_sample, check_same_groups, poorer_ess

__all__ = [
    "Kernel",
    "energy_distance",
    "euclidean",
    "gaussian_kernel",
    "kernel_distance",
    "pairwise_distance",
    "polynomial_kernel",
]

Kernel = Callable[[Tensor, Tensor], Tensor]
"""A function of float64 features (n, D) and (m, D) that returns one number per pair, (n, m)."""


def polynomial_kernel(degree: int = 3) -> Kernel:
    r"""Returns the kernel :math:`(a \cdot b / D + 1)^n`; the kernel of KID has degree n = 3.

    Arguments:
        degree: The exponent n, at least 1.
    """

    checks.integer("degree", degree, 1)
    return lambda a, b: (a @ b.T / a.shape[1] + 1) ** degree


def gaussian_kernel(bandwidth: float) -> Kernel:
    r"""Returns the kernel :math:`\exp(-\|a - b\|^2 / (2 s^2))`.

    Arguments:
        bandwidth: The width s, in the units of the features.
    """

    checks.number("bandwidth", bandwidth, above=0)
    return lambda a, b: torch.exp(-euclidean(a, b).square() / (2 * bandwidth**2))


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Returns Euclidean distances with shape (n, m); those of equal rows are exactly zero."""

    # Not by products, whose rounding lets equal rows differ.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def energy_distance(x: SampleLike, y: SampleLike, *, pooled: bool = False) -> Figure:
    r"""Returns the energy distance :math:`2 E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|` of two sets.

    It is zero for equal laws only, and in the unit of the features. Arguments, units, errors and
    exceptions are those of :func:`kernel_distance`.
    """

    return kernel_distance(x, y, negative_distance, pooled=pooled)


def kernel_distance(
    x: SampleLike, y: SampleLike, kernel: Kernel | None = None, *, pooled: bool = False
) -> Figure:
    """Returns the squared maximum mean discrepancy of two sets.

    With groups it is the mean over groups of the distances of their laws, which sees whether every
    prompt has the right pictures. The two sets must be independent of each other, given the group.

    Arguments:
        x: The one set, either may be weighted.
        y: The other set, with the same groups.
        kernel: The kernel; None is :func:`polynomial_kernel`.
        pooled: Whether to compare the laws that are averaged over groups instead. Pairs within a
            group do not count then, in whichever sets they are, as they are not independent.

    Returns:
        The distance; its error is over groups, by the jackknife if they are pooled. Without groups
        it is the distance of two laws, with the jackknife over rows, whose square is about twice
        too large for equal laws and not too small on average.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the sets differ in dimension or groups, or have less than two rows of
            positive weight in a group; less than three rows or groups where they are the units.
    """

    x, y = as_sample("x", x), as_sample("y", y)
    return Reference(y, kernel, pooled=pooled).distance(x)


class Reference:
    """A set to which others are compared, whose pairs with itself are computed once and kept.

    Arguments:
        y: The set; it and what follows are as for :func:`kernel_distance`.
        kernel: The kernel.
        pooled: Whether to compare the laws that are averaged over groups.
    """

    def __init__(self, y: Sample, kernel: Kernel | None = None, *, pooled: bool = False) -> None:
        self.y = y
        self.kernel = polynomial_kernel() if kernel is None else kernel
        self.pooled = pooled
        self._own: dict[Hashable, tuple[Tensor, Tensor]] = {}
        checks.function("kernel", self.kernel, "a function of two sets of features", classes=False)
        checks.flag("pooled", pooled)

    def distance(self, x: Sample) -> Figure:
        """Returns what :func:`kernel_distance` does, and raises what it raises."""

        y = self.y
        check_same_groups("x", x, "y", y)
        ess = poorer_ess(x, y)
        if self.pooled or y.groups is None:
            value, without = self._discrepancy(*_pooled(x, y), None)
            return Figure(float(value), jackknife_error(without), len(without), ess)
        _check_pairs("x", x)
        _check_pairs("y", y)
        values = {}
        for group in x.names:
            parts = _as_units(x, x.rows[group], y, y.rows[group])
            values[group] = float(self._discrepancy(*parts, group)[0])
        mean, error = mean_and_error(list(values.values()))
        return Figure(mean, error, len(values), ess, values)

    def _discrepancy(self, a: "_Part", b: "_Part", group: Hashable) -> tuple[Tensor, Tensor]:
        """Returns the squared discrepancy, of shape (), and that without each unit, (units,)."""

        if group not in self._own:
            self._own[group] = _mean_over_pairs(b, b, self.kernel)
        bb, bb_without = self._own[group]
        aa, aa_without = _mean_over_pairs(a, a, self.kernel)
        ab, ab_without = _mean_over_pairs(a, b, self.kernel)
        others = len(ab_without) - len(bb_without)  # units of `a` alone, which b goes without
        bb_without = torch.cat((bb_without, bb.expand(others)))
        return aa + bb - 2 * ab, aa_without + bb_without - 2 * ab_without


def pairwise_distance(x: SampleLike, distance: Kernel = euclidean) -> Figure:
    """Returns the mean distance of two different rows of a group, averaged over groups.

    It tells how diverse the pictures of a prompt are. Weights count as in :func:`kernel_distance`.

    Arguments:
        x: The set.
        distance: The distance, a function as :data:`Kernel` describes.

    Returns:
        The distance; its error is over groups, or without groups by the jackknife over rows.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If a group has less than two rows of positive weight.
    """

    x = as_sample("x", x)
    checks.function("distance", distance, "a function of two sets of features", classes=False)
    _check_pairs("x", x)
    values, without = {}, torch.empty(0)
    for group, rows in x.rows.items():
        a = _Part(x.features[rows], x.shares[rows], torch.arange(len(rows)))
        value, without = _mean_over_pairs(a, a, distance)
        values[group] = float(value)
    mean, error = mean_and_error(list(values.values()))
    if x.groups is None:
        return Figure(mean, jackknife_error(without), len(x), poorer_ess(x))
    return Figure(mean, error, len(values), poorer_ess(x), values)


class _Part(NamedTuple):
    """Features (N, D), the share of each row, and the number of the unit it belongs to."""

    features: Tensor
    shares: Tensor
    unit: Tensor


def _as_units(x: Sample, some: Tensor, y: Sample, others: Tensor) -> tuple[_Part, _Part]:
    """Returns rows of two sets, each of which is a unit of its own, those of `y` first."""

    n, m = len(some), len(others)
    a = _Part(x.features[some], x.shares[some], torch.arange(m, m + n))
    return a, _Part(y.features[others], y.shares[others], torch.arange(m))


def _pooled(x: Sample, y: Sample) -> tuple[_Part, _Part]:
    """Returns two sets with their groups as units, or their rows without groups."""

    for name, sample in (("x", x), ("y", y)):
        units = int((sample.shares > 0).sum()) if sample.groups is None else len(sample.names)
        if units < 3:
            what = "rows of positive weight" if sample.groups is None else "groups"
            raise ValueError(f"{name} must have three {what} at least, got {units}")
    if x.groups is None:
        return _as_units(x, x.rows[None], y, y.rows[None])
    place = {name: i for i, name in enumerate(y.names)}
    there = torch.tensor([place[name] for name in x.names])
    return _Part(x.features, x.shares, there[x.index]), _Part(y.features, y.shares, y.index)


def _mean_over_pairs(a: _Part, b: _Part, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Returns the mean of a kernel over pairs of different units, with and without each unit."""

    units = 1 + int(torch.cat((a.unit, b.unit)).max())
    by_row, by_column, p, q = torch.zeros(4, units, dtype=torch.float64)
    p.index_add_(0, a.unit, a.shares)
    q.index_add_(0, b.unit, b.shares)
    for rows, columns, k in in_blocks(a.features, b.features, kernel):
        k = k.double().masked_fill(a.unit[rows, None] == b.unit[columns], 0)
        by_row.index_add_(0, a.unit[rows], a.shares[rows] * (k @ b.shares[columns]))
        by_column.index_add_(0, b.unit[columns], (a.shares[rows] @ k) * b.shares[columns])
    own, others = p * (q.sum() - q), q * (p.sum() - p)
    total, pairs = by_row.sum(), own.sum()
    return total / pairs, (total - by_row - by_column) / (pairs - own - others)


def _check_pairs(name: str, x: Sample) -> None:
    for group, rows in x.rows.items():
        n = int((x.shares[rows] > 0).sum())
        if n < 2:
            where = "" if x.groups is None else f" in each of its groups, got {n} in {group!r}"
            raise ValueError(f"{name} must have two rows of positive weight at least{where}")


def negative_distance(a: Tensor, b: Tensor) -> Tensor:
    """Returns the kernel of the energy distance, with shape (n, m)."""

    # Products round less near the origin, and no distance here is compared with zero.
    center = b.mean(0)
    return -torch.cdist(a - center, b - center, compute_mode="use_mm_for_euclid_dist")
