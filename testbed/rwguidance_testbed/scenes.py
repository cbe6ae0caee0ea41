r"""Pictures and captions for training: a drawing on a colored ground, placed at random.

A caption names some of what is in the picture and leaves the rest open; what it leaves open varies.
"a small red apple on a blue background, noto style" fixes name, size, background and style, "apple"
would fix the name alone. Always open are hue (a rotation by at most 15 degrees), angle (at most 12
degrees) and place. A background that is named has exactly the color of `COLORS`; one that is not
named lies between two of them. So the law of the pictures given a caption has a density around
each drawing, and as many modes as drawings fit the caption.

All random numbers come from a generator that the caller gives.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .data import Drawings, sources

__all__ = [
    "COLORS",
    "KIND_WORDS",
    "Scene",
    "on_background",
    "render",
    "sample_pictures",
    "sample_scenes",
    "scenes_with_caption",
    "straight_quotes",
]

COLORS = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (144, 144, 144),
    "red": (220, 50, 47),
    "orange": (245, 140, 40),
    "yellow": (250, 220, 70),
    "green": (70, 170, 80),
    "cyan": (80, 200, 210),
    "blue": (50, 100, 210),
    "purple": (140, 80, 190),
    "pink": (245, 160, 190),
    "brown": (130, 85, 55),
}
"""Backgrounds by name: red, green and blue out of 255."""

KIND_WORDS = {
    "animal-mammal": "animal",
    "animal-bird": "bird",
    "animal-marine": "sea animal",
    "animal-bug": "insect",
    "animal-reptile": "reptile",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "food",
    "food-sweet": "dessert",
    "drink": "drink",
    "place-building": "building",
    "transport-ground": "vehicle",
    "transport-water": "boat",
    "transport-air": "aircraft",
    "sky-weather": "weather",
    "sport": "ball",
    "clothing": "clothing",
    "musical-instrument": "instrument",
    "face-smiling": "face",
    "face-concerned": "face",
    "heart": "heart",
}
"""Words for whole kinds of things, used now and then instead of a name."""

_SIZES = {"": (0.7, 0.95), "small": (0.5, 0.65), "large": (0.88, 0.97)}
_DEGREES = 12.0  # the most that a drawing is turned either way
_HUE = 15.0  # the most, in degrees, that colors are turned: a name with a color stays true
_RARE = 32  # as many thousand scenes are tried at least: a caption may come up once in 2,300


@dataclass(frozen=True)
class Scene:
    """The drawing, the background and the caption of one picture.

    Arguments:
        drawing: Index of the drawing.
        background: Red, green and blue in [0, 1].
        scale: Side of the drawing over the side of the picture.
        angle: Angle by which the drawing is turned clockwise, in degrees.
        place: Place of the drawing, right and down, in [-1, 1]; at 1 it touches the border.
        hue: Angle by which colors are turned about the gray axis, in degrees.
        caption: Caption of the picture.
    """

    drawing: int
    background: tuple[float, float, float]
    scale: float
    angle: float
    place: tuple[float, float]
    hue: float
    caption: str


def sample_scenes(drawings: Drawings, count: int, generator: Generator) -> list[Scene]:
    """Draws scenes: drawings uniformly, everything else as the module says.

    Arguments:
        drawings: Drawings to choose from.
        count: Number of scenes.
        generator: Source of all random numbers, on the CPU.
    """

    styles = {row["name"]: row["words"] for row in sources()["styles"]}
    chosen = torch.randint(len(drawings), (count,), generator=generator).tolist()
    uniform = torch.rand(count, 16, generator=generator, dtype=torch.float64).tolist()
    scenes = []
    for index, u in zip(chosen, uniform, strict=True):
        entry = drawings.entries[index]
        size = "" if u[0] < 0.8 else ("small" if u[0] < 0.9 else "large")
        low, high = _SIZES[size]
        first, second = (list(COLORS)[int(u[i] * len(COLORS))] for i in (1, 2))
        named_ground = u[3] < 0.4
        mix = 0.0 if named_ground else u[4]
        words = [KIND_WORDS[entry.kind] if u[5] < 0.06 and entry.kind in KIND_WORDS else entry.name]
        if size:
            words.insert(0, size)
        if u[6] < 0.3:
            words.insert(0, _article(words[0]))
        if named_ground:
            words.append(on_background(first))
        caption = " ".join(words)
        if u[7] < 0.4:
            caption += f", {styles[entry.style]} style"
        if u[8] < 0.08 and entry.tags:
            caption += f", {entry.tags[int(u[9] * len(entry.tags))]}"
        red, green, blue = (
            ((1 - mix) * a + mix * b) / 255
            for a, b in zip(COLORS[first], COLORS[second], strict=True)
        )
        scenes.append(
            Scene(
                drawing=index,
                background=(red, green, blue),
                scale=low + (high - low) * u[10],
                angle=_DEGREES * (2 * u[11] - 1),
                place=(2 * u[12] - 1, 2 * u[13] - 1),
                hue=_HUE * (2 * u[14] - 1),
                caption=straight_quotes(caption),
            )
        )
    return scenes


def on_background(color: str) -> str:
    """Returns the words of captions for a background: "on an orange background"."""

    return f"on {_article(color)} {color} background"


def scenes_with_caption(
    drawings: Drawings, caption: str, count: int, generator: Generator
) -> list[Scene]:
    """Draws scenes of one caption, exactly: those of :func:`sample_scenes` that have it.

    Arguments:
        drawings: Drawings to choose from.
        caption: Caption of every scene; a leading article does not matter.
        count: Number of scenes.
        generator: Source of all random numbers, on the CPU.

    Raises:
        ValueError: If in a thousand tries for each scene, or 32,000, the caption did not come up.
    """

    bare = lambda text: re.sub("^an? ", "", text)
    # What comes after the size, and before background, style and tag.
    heads = {bare(caption), re.sub("^(small|large) ", "", bare(caption))}
    shows = lambda word: any(re.match(re.escape(word) + r"( on an? |,|$)", head) for head in heads)
    fits = lambda entry: (
        shows(straight_quotes(entry.name)) or shows(KIND_WORDS.get(entry.kind, "?"))
    )
    index = [i for i, entry in enumerate(drawings.entries) if fits(entry)]
    part = Drawings([drawings.entries[i] for i in index], drawings.pixels[index])
    found: list[Scene] = []
    tries = 0
    while len(found) < count:
        if not index or (tries >= 1000 * max(count, _RARE) and not found):
            raise ValueError(f"no scene of these drawings has the caption {caption!r}")
        tries += 4 * count
        for scene in sample_scenes(part, 4 * count, generator):
            if bare(scene.caption) == bare(caption):
                found.append(replace(scene, drawing=index[scene.drawing]))
    return found[:count]


def render(drawings: Drawings, scenes: Sequence[Scene], size: int = 64) -> Tensor:
    """Returns the pictures of scenes, in [0, 1], with shape (B, 3, size, size).

    They are on the device of the drawings.

    Arguments:
        drawings: Drawings that the scenes refer to.
        scenes: Scenes to render.
        size: Pixels along a side.
    """

    pixels = drawings.pixels[[scene.drawing for scene in scenes]].float() / 255
    column = lambda values: torch.tensor(values, dtype=torch.float32, device=pixels.device)
    scale = column([scene.scale for scene in scenes])
    angle = column([math.radians(scene.angle) for scene in scenes])
    place = column([scene.place for scene in scenes])
    offset = place * (1 - scale)[:, None]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = torch.stack((cos, sin, -sin, cos), dim=1).unflatten(1, (2, 2))
    matrix = torch.cat((rows, -rows @ offset[:, :, None]), dim=2)
    # Twice as fine, then averaged: small drawings would alias otherwise.
    grid = F.affine_grid(matrix, [len(scenes), 4, 2 * size, 2 * size], align_corners=False)
    fine = F.grid_sample(pixels, grid, align_corners=False)
    picture = F.avg_pool2d(fine, 2)
    color, alpha = picture[:, :3], picture[:, 3:]
    turns = _hue_rotation(column([math.radians(scene.hue) for scene in scenes]))
    turned = torch.einsum("bij,bjhw->bihw", turns, color)
    ground = column([scene.background for scene in scenes])[:, :, None, None]
    return (turned.clamp(min=0).minimum(alpha) + (1 - alpha) * ground).clamp(0, 1)


def sample_pictures(
    drawings: Drawings, count: int, generator: Generator, size: int = 64
) -> tuple[Tensor, list[str]]:
    """Draws pictures in [0, 1], with shape (count, 3, size, size), and their captions."""

    scenes = sample_scenes(drawings, count, generator)
    return render(drawings, scenes, size), [scene.caption for scene in scenes]


def straight_quotes(text: str) -> str:
    """Returns a text with straight quotes in the place of curly ones, as captions have it."""

    return re.sub("[\u2018-\u201d]", "'", text)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _hue_rotation(theta: Tensor) -> Tensor:
    """Returns rotations of the colors about the gray axis, (B, 3, 3); grays stay as they are."""

    cos, sin = theta.cos(), theta.sin()
    same = cos + (1 - cos) / 3
    plus = (1 - cos) / 3 + sin / math.sqrt(3)
    minus = (1 - cos) / 3 - sin / math.sqrt(3)
    rows = (same, minus, plus, plus, same, minus, minus, plus, same)
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))
