"""The accuracy of towers: shares of pictures whose caption they find among others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..data import Drawings, load_names, sources
from ..encoders import Towers
from ..scenes import COLORS, Scene, on_background, render, sample_scenes, straight_quotes

__all__ = ["measure", "top_one_accuracy"]


def top_one_accuracy(scores: Tensor, right: Tensor, count: int, generator: Generator) -> float:
    """Returns how often the right candidate scores highest, among others chosen at random.

    Arguments:
        scores: Scores of all candidates, with shape (N, M).
        right: Index of the right candidate, with shape (N,).
        count: Number of candidates that are compared, the right one counted in, at most M.
        generator: Source of the random choice.
    """

    own = scores.gather(1, right[:, None])
    order = torch.rand(scores.shape, generator=generator)
    order.scatter_(1, right[:, None], 2.0)  # the right one is not among the others
    others = scores.gather(1, order.argsort(dim=1)[:, : count - 1])
    return float((own > others).all(dim=1).float().mean())


@torch.no_grad()
def measure(
    towers: Towers, drawings: Drawings, role: str, count: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Measures how often towers find the right name among 100, and the right background and style.

    Arguments:
        towers: The towers.
        drawings: All drawings.
        role: Role of the drawings that the towers learned from.
        count: Number of pictures of each kind.
        seed: Seed of pictures and candidates.

    Returns:
        The share of right names on drawings of the generators, of names that these learn and of
        names that they do not, and on drawings that the towers know; the share of right backgrounds
        among 12 and styles among 8, on drawings of the generators. Names are compared with 99
        others of both lists, or with all if there are fewer.
    """

    names = load_names()
    known = {entry.name for entry in drawings.entries}
    every = [name for part in names.values() for name in part if name in known]
    generator = Generator().manual_seed(seed)
    unit = lambda e: F.normalize(e.float(), dim=-1)
    candidates = unit(towers.embed_captions([straight_quotes(name) for name in every]))
    parts = {
        "name_of_other_drawings": drawings.where("generator", names["train"]),
        "name_held_out_from_generators": drawings.where("generator", names["held_out"]),
        "name_of_own_drawings": drawings.where(role, names["train"]),
    }
    figures = {}
    for key, part in parts.items():
        scenes = sample_scenes(part, count, generator)
        x = unit(_embed_scenes(towers, part, scenes))
        own = torch.tensor([every.index(part.entries[s.drawing].name) for s in scenes])
        among = min(100, len(every))
        figures[key] = top_one_accuracy(x @ candidates.T, own, among, generator)
    part = parts["name_of_other_drawings"]
    grounds = {tuple(c / 255 for c in color): i for i, color in enumerate(COLORS.values())}
    scenes = [s for s in sample_scenes(part, 3 * count, generator) if s.background in grounds]
    endings = [f" {on_background(color)}" for color in COLORS]
    right = [grounds[s.background] for s in scenes]
    figures["background"] = _endings(towers, part, scenes, endings, right)
    styles = {row["name"]: f", {row['words']} style" for row in sources()["styles"]}
    scenes = sample_scenes(part, count, generator)
    right = [list(styles).index(part.entries[s.drawing].style) for s in scenes]
    figures["style"] = _endings(towers, part, scenes, list(styles.values()), right)
    return {key: round(value, 4) for key, value in figures.items()}


def _endings(
    towers: Towers,
    part: Drawings,
    scenes: Sequence[Scene],
    endings: Sequence[str],
    right: Sequence[int],
) -> float:
    """Returns how often the right ending of a name scores highest."""

    if not scenes:
        return float("nan")
    names = sorted({straight_quotes(entry.name) for entry in part.entries})
    captions = [name + ending for name in names for ending in endings]
    y = torch.cat(
        [towers.embed_captions(captions[i : i + 256]) for i in range(0, len(captions), 256)]
    )
    y = F.normalize(y.float(), dim=-1).unflatten(0, (len(names), len(endings)))
    own = y[[names.index(straight_quotes(part.entries[s.drawing].name)) for s in scenes]]
    scores = torch.einsum("nd,nkd->nk", _embed_scenes(towers, part, scenes).float(), own)
    return float((scores.argmax(1) == torch.tensor(right)).float().mean())


def _embed_scenes(towers: Towers, part: Drawings, scenes: Sequence[Scene]) -> Tensor:
    rows = range(0, len(scenes), 64)
    return torch.cat([towers.embed_pictures(render(part, scenes[i : i + 64])) for i in rows])
