"""Figures of a set of pictures against real ones, and the share that shows what was asked for.

All of it rests on the embeddings of the judge, and on :mod:`rwguidance.metrics`. Distances compare
the laws of two sets; precision and recall tell whether single pictures look real, and whether all
that is real can be made. None of them looks at the prompts; :func:`right` does.

All figures but the kernel distance depend on the sizes of the sets: the Frechet distance is too
large for small ones, even of one law. So :func:`table` puts beside the figures of pictures those of
as many real ones, which are what perfect pictures would have.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rwguidance import metrics
from rwguidance.statistics import mean_and_error

from .data import Drawings
from .encoders import Towers
from .scenes import render, scenes_with_caption

__all__ = [
    "Quality",
    "compare",
    "embed",
    "real_pictures",
    "right",
    "table",
]


@dataclass(frozen=True)
class Quality:
    """Figures of a set of pictures.

    Arguments:
        frechet: Distance by :func:`rwguidance.metrics.frechet_distance`.
        kernel: Distance by :func:`rwguidance.metrics.kernel_distance`, pooled, with the cubic
            kernel.
        kernel_error: Standard error of the latter, over captions.
        precision: Precision by :func:`rwguidance.metrics.precision_recall`.
        recall: Recall by :func:`rwguidance.metrics.precision_recall`.
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
        k: Number of the neighbor, see :func:`rwguidance.metrics.precision_recall`.

    Raises:
        ValueError: If M is not a multiple of N, or as the parts raise it.
    """

    n = len(pictures)
    if len(real) < n or len(real) % n or len(found) != n:
        raise ValueError(
            f"real must hold a multiple of {n} items, as many for each picture, and found {n}, "
            f"got {len(real)} and {len(found)}"
        )
    # Pictures of one caption are not independent, in whichever sets they are.
    made, all_real = (
        metrics.Sample(z, None, [i % n for i in range(len(z))]) for z in (pictures, real)
    )
    distance = metrics.kernel_distance(made, all_real, pooled=True)
    precision, recall = metrics.precision_recall(pictures, real[:n], k)
    return Quality(
        metrics.frechet_distance(made, all_real).value,
        distance.value,
        distance.error,
        precision.value,
        recall.value,
        *mean_and_error(found),
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
