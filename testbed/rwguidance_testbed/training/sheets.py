"""Contact sheets: one picture of each of sixty prompts, to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Generator

from rwguidance.support.outside import require

from ..data import load_names
from ..scenes import COLORS, on_background

__all__ = ["check_prompts", "write_sheet"]


def check_prompts() -> list[str]:
    """Returns sixty prompts of names that are learned, every other with a background."""

    colors = list(COLORS)
    return [
        f"{name} {on_background(colors[i // 2 % len(colors)])}" if i % 2 else name
        for i, name in enumerate(load_names()["train"][::3][:60])
    ]


def write_sheet(
    pipe: Any,
    prompts: Sequence[str],
    path: Path,
    seed: int = 0,
    guidance: float = 3.0,
    steps: int = 20,
) -> None:
    """Writes a picture of one sample of each prompt, ten in a row."""

    image = require("PIL.Image", "contact sheets need", "rewards")
    drawing = require("PIL.ImageDraw", "contact sheets need", "rewards")
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        list(prompts),
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=Generator().manual_seed(seed),
        **({"max_sequence_length": 1} if hasattr(pipe, "transformer") else {}),
    ).images
    rows = -(-len(prompts) // 10)
    canvas = image.new("RGB", (10 * 132, rows * 156), "white")
    pen = drawing.Draw(canvas)
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        left, top = i % 10 * 132, i // 10 * 156
        canvas.paste(picture.resize((128, 128), image.Resampling.NEAREST), (left, top))
        pen.text((left, top + 128), f"{prompt[:22]}\n{prompt[22:44]}", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
