r"""Frechet distance of the normal laws with the moments of two sets, and their moments, streamed.

.. math:: \|\mu_x - \mu_y\|^2 + \mathrm{tr} \big( \Sigma_x + \Sigma_y
    - 2 (\Sigma_x \Sigma_y)^{1/2} \big)

The trace of the root is the sum of the singular values of :math:`A B^\top` for any
:math:`\Sigma_x = A^\top A` and :math:`\Sigma_y = B^\top B`, so that singular covariances are no
special case. The estimate is too large for small sets, even of one law: compare equally large ones.

References:
    | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
      (Heusel et al., 2017), arXiv:1706.08500
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..statistics import jackknife_error
from ..support import checks
from .blocks import row_keys, unit_blocks
from .samples import Figure, SampleLike, as_sample, read_rows

__all__ = ["Moments", "frechet_distance"]


class _Piece(NamedTuple):
    """Moments of weighted rows: a factor (R, D) of their covariance, F^T F, and their mean (D,).

    The logarithms of the sum of their weights and of that of the squares are in nats.
    """

    log_total: Tensor
    log_squares: Tensor
    mean: Tensor
    factor: Tensor


class Moments:
    """Mean and covariance of a set that comes in parts, for :func:`frechet_distance`.

    It keeps, in float64, at most 2 D rows of D numbers for each group, and for each of `blocks`
    random blocks of rows without groups, whatever the number of rows. Parts of other processes are
    merged; the result is that of one pass over all, to rounding.

    Arguments:
        blocks: Number of blocks of rows without groups, for the jackknife.
    """

    def __init__(self, blocks: int = 20) -> None:
        self.blocks = checks.integer("blocks", blocks, 2)
        self._grouped: bool | None = None
        self._weighted = False
        self._pieces: dict[Hashable, _Piece] = {}

    def update(
        self,
        features: Tensor,
        log_weights: Tensor | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        """Adds rows. Arguments and exceptions are those of :class:`rwguidance.metrics.Sample`.

        A group may come in several parts, with log-weights up to the same constant.

        Raises:
            ValueError: If the dimension differs from that of earlier rows, or there are groups
                where there were none, or none where there were.
        """

        rows = read_rows(features, log_weights, groups)
        self._check(rows.features.shape[1], groups is not None)
        self._weighted |= log_weights is not None
        keys: Sequence[Hashable] | None = rows.groups
        if keys is None:  # a random block, the same in whichever part a row comes
            keys = [key % self.blocks for key in row_keys(rows.features)]
        members: dict[Hashable, list[int]] = {}
        for i, key in enumerate(keys):
            members.setdefault(key, []).append(i)
        for key, places in members.items():
            log_w = torch.zeros(len(places), dtype=torch.float64)
            if rows.log_weights is not None:
                log_w = rows.log_weights[places]
            self._add(key, _piece_of(rows.features[places].double(), log_w))

    def merge(self, other: "Moments") -> None:
        """Adds the rows of another process.

        Raises:
            TypeError: If the other is no Moments.
            ValueError: If the two do not fit, as :meth:`update` says, or differ in `blocks`.
        """

        checks.instance("other", other, Moments, "Moments")
        if other.blocks != self.blocks:
            raise ValueError(f"other must have {self.blocks} blocks, got {other.blocks}")
        if other._grouped is None:
            return
        self._check(len(next(iter(other._pieces.values())).mean), other._grouped)
        self._weighted |= other._weighted
        for key, piece in other._pieces.items():
            self._add(key, piece)

    def compute(self) -> tuple[Tensor, Tensor]:
        r"""Returns the mean (D,) and the covariance (D, D), float64, of the law over groups.

        The covariance is divided by :math:`1 - \sum_i w_i^2` of the normalized weights, which
        makes it unbiased for rows of one law, but for the ratio of weights.

        Raises:
            ValueError: If there are less than two rows of positive weight, or none in a group.
        """

        whole = _law("moments", list(self._parts("moments").values()))
        return whole.mean, whole.factor.T @ whole.factor

    def _check(self, dimension: int, grouped: bool) -> None:
        """Compares with earlier rows."""

        if self._grouped is None:
            self._grouped = grouped
        if grouped != self._grouped:
            raise ValueError("groups must be given with all rows or with none")
        for piece in self._pieces.values():
            known = len(piece.mean)
            if known != dimension:
                raise ValueError(f"features must have {known} dimensions, got {dimension}")
            break

    def _add(self, key: Hashable, piece: _Piece) -> None:
        known = self._pieces.get(key)
        self._pieces[key] = piece if known is None else _joined([known, piece])

    def _parts(self, name: str) -> dict[Hashable, _Piece]:
        """Returns a piece for each unit, of equal weight if they are groups."""

        if not self._grouped:
            return self._pieces
        for group, piece in self._pieces.items():
            if not piece.log_total > -math.inf:
                raise ValueError(f"log_weights of {name} must not all be -inf, as in {group!r}")
        return {
            key: _Piece(
                torch.zeros_like(p.log_total), p.log_squares - 2 * p.log_total, p.mean, p.factor
            )
            for key, p in self._pieces.items()
        }

    def _ess(self) -> float:
        if not self._weighted:
            return math.nan
        log_ess = torch.stack([2 * p.log_total - p.log_squares for p in self._parts("x").values()])
        if self._grouped:
            return float(log_ess.exp().median())
        whole = _joined(list(self._pieces.values()))
        return float((2 * whole.log_total - whole.log_squares).exp())


def frechet_distance(x: SampleLike | Moments, y: SampleLike | Moments, blocks: int = 20) -> Figure:
    """Returns the squared Frechet distance of two sets, of the laws averaged over groups.

    Arguments:
        x: The one set, which may be weighted, or its moments.
        y: The other set, or its moments.
        blocks: Number of blocks of groups, or of rows without groups, that the jackknife leaves
            out in turn: each costs one more distance, of singular values of D x D numbers.

    Returns:
        The distance, in squared units of the features. Its error is that of the jackknife.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the dimensions differ, one has groups and the other none, or a set has less
            than two rows of positive weight.
    """

    checks.integer("blocks", blocks, 2)
    sets = {"x": _as_moments("x", x, blocks), "y": _as_moments("y", y, blocks)}
    a, b = (moments._parts(name) for name, moments in sets.items())
    if sets["x"]._grouped != sets["y"]._grouped:
        raise ValueError("x and y must both have groups, or neither")
    value = _distance(_law("x", list(a.values())), _law("y", list(b.values())))
    place = unit_blocks([*a, *b], blocks)
    parts = [_by_block(pieces, place) for pieces in (a, b)]
    every = set(place.values())
    without = [
        _distance_or_nan([[piece for j, piece in part.items() if j != i] for part in parts])
        for i in every
    ]
    ess = [e for e in (moments._ess() for moments in sets.values()) if not math.isnan(e)]
    units = len(place) if sets["x"]._grouped else len(every)
    return Figure(value, jackknife_error(without), units, min(ess, default=math.nan))


def _as_moments(name: str, value: SampleLike | Moments, blocks: int) -> Moments:
    if isinstance(value, Moments):
        if value._grouped is None:
            raise ValueError(f"{name} must hold rows, got none")
        return value
    sample = as_sample(name, value)
    moments = Moments(blocks)
    moments.update(sample.features, sample.log_weights, sample.groups)
    return moments


def _piece_of(x: Tensor, log_w: Tensor) -> _Piece:
    """Returns the moments of rows (n, D), none of which need have a positive weight."""

    log_total = log_w.logsumexp(0)
    shares = (log_w - log_total).exp() if log_total > -math.inf else torch.zeros_like(log_w)
    mean = shares @ x
    factor = shares.sqrt()[:, None] * (x - mean)
    return _Piece(log_total, (2 * log_w).logsumexp(0), mean, _shorter(factor, 2))


def _joined(pieces: Sequence[_Piece]) -> _Piece:
    """Returns the moments of the rows of all pieces, from deviations of their own means."""

    alive = [piece for piece in pieces if piece.log_total > -math.inf]
    if not alive:
        return pieces[0]
    log_total = torch.stack([piece.log_total for piece in alive]).logsumexp(0)
    log_squares = torch.stack([piece.log_squares for piece in alive]).logsumexp(0)
    roots = [((piece.log_total - log_total) / 2).exp() for piece in alive]
    means = torch.stack([piece.mean for piece in alive])
    weights = torch.stack(roots)
    mean = weights.square() @ means
    within = [root * piece.factor for root, piece in zip(roots, alive, strict=True)]
    factor = torch.cat((*within, weights[:, None] * (means - mean)))
    return _Piece(log_total, log_squares, mean, _shorter(factor, 2))


def _shorter(factor: Tensor, most: int) -> Tensor:
    """Returns a factor of the same covariance with D rows if it has more than `most` D."""

    if len(factor) <= most * factor.shape[1]:
        return factor
    return torch.linalg.qr(factor, mode="r").R


def _by_block(
    pieces: Mapping[Hashable, _Piece], place: Mapping[Hashable, int]
) -> dict[int, _Piece]:
    """Returns the moments of the rows of each block of units."""

    members: dict[int, list[_Piece]] = {}
    for key, piece in pieces.items():
        members.setdefault(place[key], []).append(piece)
    return {block: _joined(some) for block, some in members.items()}


def _law(name: str, pieces: Sequence[_Piece]) -> _Piece:
    """Returns the moments of the rows of all pieces, with a factor of the unbiased covariance.

    Raises:
        ValueError: If there are less than two rows of positive weight.
    """

    whole = _joined(pieces) if pieces else None
    # One minus the sum of squares of the normalized weights.
    rest = torch.zeros(()) if whole is None else -(whole.log_squares - 2 * whole.log_total).expm1()
    if whole is None or not rest > 1e-12:
        raise ValueError(f"{name} must have two rows of positive weight at least")
    return whole._replace(factor=_shorter(whole.factor, 1) / rest.sqrt())


def _distance_or_nan(sets: Sequence[Sequence[_Piece]]) -> float:
    try:
        a, b = (_law("a set", pieces) for pieces in sets)
    except ValueError:  # too few rows are left
        return math.nan
    return _distance(a, b)


def _distance(a: _Piece, b: _Piece) -> float:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"y must have features of the dimension of x, {len(a.mean)}, got {len(b.mean)}"
        )
    spread = a.factor.square().sum() + b.factor.square().sum()
    root = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    return float((a.mean - b.mean).square().sum() + spread - 2 * root)
