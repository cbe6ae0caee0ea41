"""The demo's pictures. Written with an explicit Agg canvas: no global state, no display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...support.files import replacing
from ...support.outside import require
from ...toy import Law
from .digits import PROMPTS, Pictures
from .mixture import Panel
from .pictures import Pairs

__all__ = ["draw_digits", "draw_mixture", "draw_pictures"]

_BASE, _ALIGNED = "#6b7280", "#c2410c"


def draw_digits(blocks: Sequence[Pictures], path: Path) -> None:
    """One block per alignment: rows of base and aligned digits from the same noise."""

    from matplotlib.figure import Figure

    columns = len(PROMPTS)
    figure = Figure(figsize=(13, 1.5 + 3.3 * ((len(blocks) + 1) // 2)), layout="constrained")
    panels: Any = figure.subfigures((len(blocks) + 1) // 2, 2, wspace=0.04, hspace=0.04)
    for panel, block in zip(panels.flat, blocks, strict=False):
        rows = 2 * len(block.base)
        panel.suptitle(block.title, fontsize=11)
        axes = panel.subplots(rows, columns, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
        for row in range(rows):
            aligned = row % 2 == 1
            pictures = (block.aligned if aligned else block.base)[row // 2]
            color = _ALIGNED if aligned else _BASE
            axes[row, 0].set_ylabel(
                "aligned" if aligned else "base",
                color=color,
                rotation=0,
                ha="right",
                va="center",
                fontsize=9,
            )
            for column in range(columns):
                _digit(axes[row, column], pictures[column], color)
        for column, prompt in enumerate(PROMPTS):
            axes[0, column].set_title(prompt, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=140)


def draw_mixture(panels: Sequence[Panel], base: Law, target: Law, path: Path) -> None:
    """Base, target and every estimator's samples, over the target's density."""

    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True)
    line = torch.linspace(-3.1, 3.1, 160)
    grid = torch.cartesian_prod(line, line)
    ticks = line.numpy()
    for axis, panel in zip(axes.flat, panels, strict=False):
        law = base if panel.title == "base law" else target
        density = law.log_prob(grid).exp().reshape(len(line), len(line)).T.numpy()
        axis.contour(ticks, ticks, density, levels=5, colors="#1d4ed8", linewidths=0.6, alpha=0.7)
        color = _BASE if panel.title == "base law" else _ALIGNED
        axis.plot(*panel.draws.T.numpy(), ".", ms=1.6, color=color, alpha=0.5)
        axis.set_title(
            f"{panel.title}\nreward {panel.reward:.2f}, distance {panel.distance:.2f}", fontsize=10
        )
        axis.set(xlim=(-3.1, 3.1), ylim=(-3.1, 3.1), xticks=[], yticks=[], aspect="equal")
    figure.suptitle(
        "Tilting a mixture towards the upper right. Lines: the density to reach "
        "(of the base law in its panel). Distance: sliced Wasserstein to the target.",
        fontsize=10,
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=140)


def draw_pictures(
    prompts: Sequence[str], blocks: Sequence[Pairs], path: Path, columns: int = 3, rows: int = 2
) -> None:
    """A cell for each prompt: base beside aligned of every model, some pictures under each other.

    Arguments:
        prompts: As many as there are pictures of every model.
        blocks: The models.
        path: A PNG file.
        columns: Number of cells beside each other.
        rows: Number of pictures of a prompt, at most as many as there are.
    """

    image = require("PIL.Image", "contact sheets need", "demo")
    pen_of = require("PIL.ImageDraw", "contact sheets need", "demo").Draw
    font = require("PIL.ImageFont", "contact sheets need", "demo").load_default(15)
    side, gap, margin, line = 128, 3, 18, 24
    rows = min(rows, *(block.base.shape[1] for block in blocks))
    width = len(blocks) * (2 * side + gap + margin)
    height = rows * (side + gap) + line + margin
    down = -(-len(prompts) // columns)
    size = (margin + columns * (width + margin), 2 * line + margin + down * height)
    sheet = image.new("RGB", size, "white")
    pen = pen_of(sheet)
    for column in range(min(columns, len(prompts))):
        for i, block in enumerate(blocks):
            left = margin + column * (width + margin) + i * (2 * side + gap + margin)
            pen.text((left, margin // 2), block.model, "black", font)
            for j, (word, color) in enumerate((("base", _BASE), ("aligned", _ALIGNED))):
                pen.text((left + j * (side + gap), margin // 2 + line), word, color, font)
    for k, prompt in enumerate(prompts):
        left = margin + k % columns * (width + margin)
        top = 2 * line + margin + k // columns * height
        for i, block in enumerate(blocks):
            for j, pictures in enumerate((block.base, block.aligned)):
                for row in range(rows):
                    place = (
                        left + i * (2 * side + gap + margin) + j * (side + gap),
                        top + row * (side + gap),
                    )
                    levels = (255 * pictures[k, row]).round().clamp(0, 255).byte()
                    picture = image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
                    picture = picture.resize((side, side), image.Resampling.NEAREST)
                    sheet.paste(picture, place)
        pen.text((left, top + rows * (side + gap)), prompt, "black", font)
    with replacing(path) as partial:
        sheet.save(partial, format="PNG")


def _digit(axis: Any, picture: Tensor, color: str) -> None:
    axis.imshow(picture.numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=1.2)
