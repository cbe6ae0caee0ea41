r"""Distances of a set of pictures from real ones, and the share that shows what was asked for.

All of it rests on the embeddings of the judge. :func:`frechet` and :func:`kernel` compare the laws
of two sets; :func:`precision_recall` tells whether single pictures look real, and whether all that
is real can be made. None of them looks at the prompts; :func:`right` does.

All figures but :func:`kernel` depend on the sizes of the sets: :func:`frechet` is too large for
small ones, even of one law. So :func:`table` puts beside the figures of pictures those of as many
real ones, which are what perfect pictures would have.

References:
    | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
      (Heusel et al., 2017), arXiv:1706.08500 (Frechet distance)
    | Demystifying MMD GANs (Binkowski et al., 2018), arXiv:1801.01401 (kernel distance)
    | Improved Precision and Recall Metric for Assessing Generative Models
      (Kynkaanniemi et al., 2019), arXiv:1904.06991
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rwguidance.statistics import mean_and_error

from .data import Drawings
from .encoders import Towers
from .scenes import render, scenes_with_caption

__all__ = [
    "Quality",
    "compare",
    "embed",
    "frechet",
    "kernel",
    "precision_recall",
    "real_pictures",
    "right",
    "table",
]


@dataclass(frozen=True)
class Quality:
    """Figures of a set of pictures.

    Arguments:
        frechet: Distance by :func:`frechet`.
        kernel: Distance by :func:`kernel`.
        kernel_error: Standard error of the latter.
        precision: Precision by :func:`precision_recall`.
        recall: Recall by :func:`precision_recall`.
        right: Mean of :func:`right`.
        right_error: Standard error of that mean, over pictures.
    """

    frechet: float
    kernel: float
    kernel_error: float
    precision: float
    recall: float
    right: float
    right_error: float


def frechet(x: Tensor, y: Tensor) -> float:
    r"""Returns the squared Frechet distance of the normal laws with the moments of two sets.

    .. math:: \|\mu_x - \mu_y\|^2 + \mathrm{tr} \big( \Sigma_x + \Sigma_y
        - 2 (\Sigma_x \Sigma_y)^{1/2} \big)

    The trace of the root is the sum of the singular values of :math:`A B^\top` for any
    :math:`\Sigma_x = A^\top A` and :math:`\Sigma_y = B^\top B`, so that singular covariances are
    no special case.

    Arguments:
        x: Embeddings with shape (N, D), N at least 2.
        y: Embeddings with shape (M, D), M at least 2.

    Raises:
        ValueError: If the sets are too small, not finite, or of different dimensions.
    """

    x, y = _check(x, y, 2)
    factors = [(z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y)]
    spread = sum(float(factor.square().sum()) for factor in factors)
    a, b = (torch.linalg.qr(factor, mode="r").R for factor in factors)
    root = float(torch.linalg.svdvals(a @ b.T).sum())
    return float((x.mean(0) - y.mean(0)).square().sum()) + spread - 2 * root


def kernel(
    x: Tensor, y: Tensor, units: tuple[Sequence[int], Sequence[int]] | None = None
) -> tuple[float, float]:
    r"""Returns the squared maximum mean discrepancy for a cubic kernel, unbiased.

    The kernel is :math:`k(a, b) = (a \cdot b / D + 1)^3`.

    It is zero on average if both sets are of one law, and may be negative. Of three means of k,
    within both sets and between them, only pairs of different units count: two pictures of one
    caption are not independent, in whichever sets they are.

    Arguments:
        x: Embeddings with shape (N, D).
        y: Embeddings with shape (M, D).
        units: Number of the unit, such as the caption, that each embedding of both sets belongs to.
            Units are independent. None if all embeddings are.

    Returns:
        The distance and its standard error, the root of the sum over units u of
        :math:`(d - d_{-u})^2`, where :math:`d_{-u}` is the distance without u. On average the
        square is not too small, and at most about twice too large, the latter for sets of one law.

    Raises:
        ValueError: If the sets are not finite or of different dimensions, or one of them has less
            than three units.

    References:
        | The Jackknife Estimate of Variance (Efron and Stein, 1981)
    """

    x, y = _check(x, y, 3)
    n, m = len(x), len(y)
    first, second = units or (range(n), range(n, n + m))
    if (len(first), len(second)) != (n, m) or min(len(set(first)), len(set(second))) < 3:
        raise ValueError(
            f"units must be one for each of {n} and {m} embeddings, three different ones or more, "
            f"got {len(first)} and {len(second)}, {len(set(first))} and {len(set(second))} of them "
            "different"
        )
    place = {unit: i for i, unit in enumerate(dict.fromkeys((*first, *second)))}
    in_x, in_y = (torch.tensor([place[unit] for unit in part]) for part in (first, second))
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    parts = (
        _means(k(x, x), in_x, in_x, len(place)),
        _means(k(y, y), in_y, in_y, len(place)),
        _means(k(x, y), in_x, in_y, len(place)),
    )
    value, without = (a + b - 2 * c for a, b, c in zip(*parts, strict=True))
    return float(value), float((without - value).square().sum().sqrt())


def precision_recall(pictures: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Returns the share of pictures among real ones, and that of real ones among pictures.

    An embedding lies among a set if it is at most as far from one of its members as that member is
    from its k-th nearest neighbor in the set. The denser the set, the smaller these balls: sets
    should be equally large.

    Arguments:
        pictures: Embeddings with shape (N, D).
        real: Embeddings of real pictures, with shape (M, D).
        k: Number of the neighbor, less than N and M.

    Raises:
        ValueError: If k is out of range, or the sets are not finite or of different dimensions.
    """

    if not 1 <= k < min(len(pictures), len(real)):
        raise ValueError(
            f"k must be at least 1 and less than the size of both sets, {len(pictures)} and "
            f"{len(real)}, got {k}"
        )
    x, y = _check(pictures, real, k + 1)
    return _share_among(x, y, k), _share_among(y, x, k)


def right(
    judge: Towers,
    embeddings: Tensor,
    captions: Sequence[str],
    candidates: Sequence[str],
    count: int = 100,
) -> Tensor:
    """Returns the probability that the judge finds a picture's caption among random others.

    The mean over pictures is what :func:`rwguidance_testbed.towers.top_one_accuracy` is on average.

    Arguments:
        judge: The judge.
        embeddings: Embeddings of the pictures, with shape (N, D).
        captions: Right caption of each picture.
        candidates: Distinct captions, the right ones among them.
        count: Number of captions that are compared, the right one counted in.

    Returns:
        Probabilities in [0, 1], float64, with shape (N,). If `count` is the number of candidates,
        they are 0 or 1.

    Raises:
        ValueError: If a caption is not among the candidates, candidates repeat, or there are fewer
            than `count`.
    """

    place = {caption: i for i, caption in enumerate(candidates)}
    missing = [caption for caption in captions if caption not in place]
    if missing or len(place) < len(candidates):
        reason = f"lack {missing[0]!r}" if missing else "repeat"
        raise ValueError(f"candidates must be distinct and hold all captions, but they {reason}")
    if len(captions) != len(embeddings) or not 2 <= count <= len(candidates):
        raise ValueError(
            f"captions must be one for each of {len(embeddings)} pictures and count at least 2 and "
            f"at most {len(candidates)}, got {len(captions)} and {count}"
        )
    with torch.no_grad():
        parts = [candidates[i : i + 64] for i in range(0, len(candidates), 64)]
        texts = torch.cat([judge.embed_captions(part).double() for part in parts])
    scores = F.normalize(embeddings.double(), dim=-1) @ F.normalize(texts, dim=-1).T
    own = scores.gather(1, torch.tensor([[place[caption]] for caption in captions]))
    # Among the others, this many beat or equal the right one (which equals itself).
    beaten = (scores >= own).sum(1).double() - 1
    rest, chosen = float(len(candidates) - 1), float(count - 1)
    log_choices = lambda n: torch.lgamma(n + 1) - torch.lgamma(n - chosen + 1)
    log_all = log_choices(torch.full_like(beaten, rest))
    left = (rest - beaten).clamp(min=chosen)
    return torch.where(rest - beaten < chosen, 0.0, (log_choices(left) - log_all).exp())


def compare(pictures: Tensor, real: Tensor, found: Tensor, k: int = 3) -> Quality:
    """Returns all figures of a set of pictures.

    Arguments:
        pictures: Embeddings with shape (N, D).
        real: Embeddings of real pictures, with shape (M, D): one of each picture's caption, in
            their order, then another one of each, and so on, as :func:`real_pictures` makes them.
            For precision and recall the first N are taken.
        found: Probabilities that :func:`right` returned for the pictures, with shape (N,).
        k: Number of the neighbor, see :func:`precision_recall`.

    Raises:
        ValueError: If M is not a multiple of N, or as the parts raise it.
    """

    n = len(pictures)
    if len(real) < n or len(real) % n or len(found) != n:
        raise ValueError(
            f"real must hold a multiple of {n} items, as many for each picture, and found {n}, "
            f"got {len(real)} and {len(found)}"
        )
    distance, error = kernel(pictures, real, (range(n), [i % n for i in range(len(real))]))
    precision, recall = precision_recall(pictures, real[:n], k)
    return Quality(
        frechet(pictures, real), distance, error, precision, recall, *mean_and_error(found)
    )


@torch.no_grad()
def embed(judge: Towers, pictures: Tensor, batch: int = 64) -> Tensor:
    """Returns the judge's embeddings of pictures, float64, with shape (N, D).

    Arguments:
        judge: The judge.
        pictures: Pictures in [0, 1], with shape (N, 3, 64, 64).
        batch: Number of pictures embedded at once.
    """

    return torch.cat([judge.embed_pictures(part).double() for part in pictures.split(batch)])


def real_pictures(
    drawings: Drawings, captions: Sequence[str], copies: int, generator: Generator
) -> Tensor:
    """Returns real pictures of captions, in [0, 1], with shape (copies N, 3, 64, 64).

    First one picture of every caption, in their order, then another one of each, and so on.

    Arguments:
        drawings: Drawings of one role that the pictures show.
        captions: N captions, which may repeat.
        copies: Number of pictures of every caption.
        generator: Source of all random numbers, on the CPU.

    Raises:
        ValueError: If these drawings have no scene with one of the captions.
    """

    counts = Counter(captions)
    found = {
        caption: iter(scenes_with_caption(drawings, caption, copies * count, generator))
        for caption, count in counts.items()
    }
    scenes = [next(found[caption]) for _ in range(copies) for caption in captions]
    parts = [scenes[i : i + 64] for i in range(0, len(scenes), 64)]
    return torch.cat([render(drawings, part) for part in parts])


def table(
    judge: Towers,
    sets: dict[str, Tensor],
    drawings: Drawings,
    captions: Sequence[str],
    things: Sequence[str],
    candidates: Sequence[str],
    generator: Generator,
    copies: int = 4,
    count: int = 100,
) -> dict[str, Quality]:
    """Returns the figures of sets of pictures, against real ones, beside those of real ones.

    Arguments:
        judge: The judge.
        sets: Pictures by name of the set, one for each caption, each (N, 3, 64, 64) in [0, 1].
        drawings: Drawings of the real pictures, such as those that no generator has seen.
        captions: Captions of the real pictures, one for each picture of a set.
        things: Captions that the judge has to find, one for each picture, such as the names.
        candidates: Captions among which they are.
        generator: Source of the real pictures.
        copies: Number of real pictures of every caption that sets are held against.
        count: Number of captions that are compared, see :func:`right`.

    Returns:
        The figures of every set, after those of a set of as many real pictures, named "real".

    Raises:
        ValueError: If a set has another size, or is called "real".
    """

    wrong = [name for name, pictures in sets.items() if len(pictures) != len(captions)]
    if wrong or "real" in sets:
        raise ValueError(
            f"sets must have {len(captions)} pictures, one for each caption, and not be called "
            f"'real', got {wrong or 'real'}"
        )
    reference = embed(judge, real_pictures(drawings, captions, copies, generator))
    sets = {"real": real_pictures(drawings, captions, 1, generator), **sets}
    result = {}
    for name, pictures in sets.items():
        embeddings = embed(judge, pictures)
        found = right(judge, embeddings, things, candidates, count)
        result[name] = compare(embeddings, reference, found)
    return result


def _means(k: Tensor, rows: Tensor, columns: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Returns the mean of a matrix over pairs of different units, with and without each unit."""

    totals = []
    for values in (k, torch.ones_like(k)):
        by_row = values.new_zeros(units, k.shape[1]).index_add_(0, rows, values)
        by_pair = values.new_zeros(units, units).index_add_(1, columns, by_row)
        by_pair.fill_diagonal_(0)
        whole = by_pair.sum()
        totals.append((whole, whole - by_pair.sum(0) - by_pair.sum(1)))
    (total, total_without), (count, count_without) = totals
    return total / count, total_without / count_without


def _share_among(x: Tensor, y: Tensor, k: int) -> float:
    """Returns the share of `x` in a ball around a member of `y` that holds k others of `y`."""

    # Not by products: a distance of zero must be zero.
    mode = "donot_use_mm_for_euclid_dist"
    radius = torch.cdist(y, y, compute_mode=mode).fill_diagonal_(math.inf)
    radius = radius.kthvalue(k, dim=1).values
    inside = torch.cdist(x, y, compute_mode=mode) <= radius
    return float(inside.any(1).double().mean())


def _check(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    shapes = [tuple(z.shape) for z in (x, y)]
    if any(len(s) != 2 or s[0] < least for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"embeddings must have shapes (N, D) and (M, D), N and M at least {least}, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    for z in (x, y):
        if not bool(z.isfinite().all()):
            raise ValueError("embeddings must be finite, got NaN or inf")
    return x.double(), y.double()
