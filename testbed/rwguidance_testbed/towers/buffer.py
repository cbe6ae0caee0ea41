"""A buffer of painted pictures and captions, in pairs that show the same name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..data import Drawing, Drawings, load_names
from ..scenes import Scene, render, sample_scenes
from .augmentation import add_outlines, blur, jitter_colors, jitter_hue
from .negatives import hard_negative

__all__ = ["ROLES", "Batch", "PictureBuffer", "partners", "training_drawings"]

ROLES = {"judge": "judge", "pick": "proxy", "hps": "proxy"}
"""Role of the drawings that each kind of towers learns from."""

_ENCODED = 8
"""One picture in so many goes through the autoencoder, for generated pictures come out of it:
enough for towers to get used to, at an eighth of the cost."""

_SIDED = re.compile("left|right|clock")  # names that are not true of a mirrored picture
_GROUPS = (
    "activities",
    "animals-nature",
    "food-drink",
    "objects",
    "smileys-emotion",
    "travel-places",
)


@dataclass(frozen=True)
class Batch:
    """Pairs of pictures that show the same name in different styles, with captions.

    Arguments:
        pictures: Pictures of type uint8, with shape (B, 2, 3, 64, 64).
        captions: Two captions for each pair.
        negatives: A caption for each pair that is false of the first picture.
        names: The name that each pair shows.
    """

    pictures: Tensor
    captions: list[tuple[str, str]]
    negatives: list[str]
    names: list[str]


class PictureBuffer:
    """Painted pictures, some of which are replaced at every step: painting is slower than learning.

    What it holds at a step is a function of the step and the seed, so that a run which goes on
    there sees the same pictures.

    Arguments:
        parts: Drawings to paint, as many pairs from each part.
        size: Number of pairs kept.
        fresh: Number of pairs replaced in a step.
        seed: Seed of the pictures.
        step: Number of steps that the run has taken.
        vae: Autoencoder through which an eighth of the pictures go; None for none.
    """

    def __init__(
        self,
        parts: Sequence[Drawings],
        size: int,
        fresh: int,
        seed: int,
        step: int = 0,
        vae: Any = None,
    ) -> None:
        self.parts, self.fresh, self.seed, self.vae = parts, fresh, seed, vae
        self.relatives: dict[str, list[str]] = {}
        for kind, name in sorted({(e.kind, e.name) for part in parts for e in part.entries}):
            self.relatives.setdefault(kind, []).append(name)
        self.partners = [partners(part) for part in parts]
        self.count = max(1, size // fresh)
        numbers = range(step, step + self.count)
        painted = {number % self.count: self._paint(number) for number in numbers}
        self.chunks = [painted[slot] for slot in range(self.count)]

    def advance(self, step: int) -> None:
        """Replaces the oldest pictures, after a number of steps."""

        self.chunks[step % self.count] = self._paint(step + self.count)

    def batch(self, count: int, generator: Generator) -> Batch:
        """Returns random pairs with different names.

        Raises:
            ValueError: If there are fewer names than pairs wanted.
        """

        where: dict[str, tuple[int, int]] = {}
        for index in torch.randperm(self.count * self.fresh, generator=generator).tolist():
            slot, row = divmod(index, self.fresh)
            where.setdefault(self.chunks[slot].names[row], (slot, row))
            if len(where) == count:
                break
        if len(where) < count:
            raise ValueError(
                f"batch must be at most twice the number of names in the buffer, {len(where)}, "
                f"got {2 * count}"
            )
        chosen = [(self.chunks[slot], row) for slot, row in where.values()]
        return Batch(
            torch.stack([chunk.pictures[row] for chunk, row in chosen]),
            [chunk.captions[row] for chunk, row in chosen],
            [chunk.negatives[row] for chunk, row in chosen],
            list(where),
        )

    def _paint(self, number: int) -> Batch:
        """Returns new pairs; the same for the same number."""

        generator = Generator().manual_seed(1_000_003 * self.seed + number)
        which = number % len(self.parts)
        part = self.parts[which]
        scenes = self._scenes(which, generator)
        entries = [part.entries[scene.drawing] for scene in scenes]
        negatives = [
            hard_negative(scene, entry, self.relatives, generator)
            for scene, entry in zip(scenes[: self.fresh], entries[: self.fresh], strict=True)
        ]
        pixels = part.pixels[[scene.drawing for scene in scenes]].float() / 255
        pictures = self._render(scenes, entries, pixels, generator)
        captions = [scene.caption for scene in scenes]
        return Batch(
            torch.stack((255 * pictures).round().byte().chunk(2), dim=1),
            list(zip(captions[: self.fresh], captions[self.fresh :], strict=True)),
            negatives,
            [entry.name for entry in entries[: self.fresh]],
        )

    def _scenes(self, which: int, generator: Generator) -> list[Scene]:
        """Returns scenes of a part, and then one of a partner for each of them."""

        part = self.parts[which]
        first = sample_scenes(part, self.fresh, generator)
        second = []
        for scene in first:
            others = self.partners[which][scene.drawing]
            index = others[int(_uniform(generator) * len(others))]
            one = Drawings([part.entries[index]], part.pixels[index : index + 1])
            second.append(replace(sample_scenes(one, 1, generator)[0], drawing=index))
        return [*first, *second]

    def _render(
        self,
        scenes: Sequence[Scene],
        entries: Sequence[Drawing],
        pixels: Tensor,
        generator: Generator,
    ) -> Tensor:
        """Returns the pictures of scenes, augmented."""

        pixels = add_outlines(jitter_colors(pixels, generator), generator)
        drawings = Drawings(entries, (255 * pixels).round().byte())
        scenes = [
            replace(scene, drawing=i, hue=jitter_hue(scene, entry, _uniform(generator)))
            for i, (scene, entry) in enumerate(zip(scenes, entries, strict=True))
        ]
        pictures = blur(render(drawings, scenes), generator)
        mirrored = torch.rand(len(scenes), generator=generator) < 0.5
        mirrored &= torch.tensor([not _SIDED.search(entry.name) for entry in entries])
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
        if self.vae is not None:
            pictures[::_ENCODED] = _reconstruct(self.vae, pictures[::_ENCODED])
        return pictures


def partners(part: Drawings) -> list[list[int]]:
    """Returns for each drawing those of its name in other styles, itself if there are none."""

    same: dict[str, list[int]] = {}
    for i, entry in enumerate(part.entries):
        same.setdefault(entry.name, []).append(i)
    return [[j for j in same[entry.name] if j != i] or [i] for i, entry in enumerate(part.entries)]


@torch.no_grad()
def _reconstruct(vae: Any, pictures: Tensor) -> Tensor:
    """Returns pictures as the autoencoder gives them back."""

    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = vae.encode(2 * pictures - 1).latent_dist.mode()
        decoded: Tensor = vae.decode(latents).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def training_drawings(drawings: Drawings, kind: str) -> tuple[Drawings, ...]:
    """Returns the drawings of a kind's role in two parts, which overlap.

    The first part is of names that prompts have, the second of these and more things.
    """

    names, role = load_names(), ROLES[kind]
    asked = [*names["train"], *names["held_out"]]
    things = [*asked, *(entry.name for entry in drawings.entries if entry.group in _GROUPS)]
    return drawings.where(role, asked), drawings.where(role, things)


def _uniform(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))
