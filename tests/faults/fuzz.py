"""Images and prompts that nobody has thought of: a number, or an error that says why."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import rewards.registry
import zoo

from .work import Line

__all__ = ["lines"]

TRIES = 300
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "HSV")
_LETTERS = "aZ 0\t\n\0é漢🦄\u0301\u202e\ufeff<|endoftext|>\\'\"&amp;%s{}[]()"


def lines(root: Path) -> Iterator[Line]:
    """Yields a line for every reward that can be had here."""

    for name in zoo.OPTIONS:
        yield _fuzzed(name, zoo.load(name, zoo.write(name, root / name)))
    for name in ("jpeg", "emoji-pick", "emoji-hps"):
        if name in rewards.registry._registry.names():
            yield _fuzzed(name, rewards.load(name))


def _fuzzed(name: str, reward: Any) -> Line:
    draw, failures = random.Random(name), []
    for i in range(TRIES):
        image, prompt = _image(draw), "".join(draw.choices(_LETTERS, k=draw.randrange(200)))
        try:
            with torch.no_grad():
                value = reward([image], [prompt])
            if value.shape != (1,) or not bool(value.isfinite().all()):
                failures.append(f"try {i}: {value}")
        except (ValueError, TypeError) as error:
            if len(str(error)) < 10:
                failures.append(f"try {i}: {error!r}")
        except Exception as error:
            failures.append(f"try {i}: {type(error).__name__}: {str(error)[:80]}")
    return Line(f"{name}: images and prompts by chance", TRIES, failures)


def _image(draw: random.Random) -> Any:
    sides = [draw.choice((1, 2, 3, 7, 16, 33, 224, 225, 500)) for _ in range(2)]
    if draw.random() < 0.3:
        image = torch.rand(3, *sides, generator=torch.Generator().manual_seed(draw.randrange(99)))
        return image.half() if draw.random() < 0.3 else image
    if draw.random() < 0.3:
        return Image.effect_noise(sides, 80).convert(draw.choice(("RGB", "L", "RGBA", "P")))
    return Image.new(draw.choice(_MODES), sides)
