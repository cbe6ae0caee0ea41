"""The demo's two pictures. Written with an explicit Agg canvas: no global state, no display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..toy import Law
from .digits import PROMPTS, Pictures
from .mixture import Panel

__all__ = ["draw_digits", "draw_mixture"]

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
    figure.savefig(path, dpi=140)


def draw_mixture(panels: Sequence[Panel], base: Law, target: Law, path: Path) -> None:
    """Base, target and every estimator's samples, over the target's density."""

    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True)
    line = torch.linspace(-3.1, 3.1, 160, dtype=torch.float64)
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
    figure.savefig(path, dpi=140)


def _digit(axis: Any, picture: Tensor, color: str) -> None:
    axis.imshow(picture.numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=1.2)
