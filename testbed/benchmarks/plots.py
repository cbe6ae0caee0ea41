"""Curves and contact sheets of what `methods.py` found."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import SHEET_ROWS, SHOWN, Results

from rwguidance.generation.pictures import Cell, save_picture, save_sheet

DRAWN = (
    "importance",
    "importance, first step",
    "15 % ESS",
    "pooled to 1 x 1",
    "plug-in",
    "soft best of 16",
    "network",
)
"""Methods in the figures; all are in the tables."""

SHEET = ("base", "importance", "15 % ESS", "pooled to 1 x 1", "plug-in", "network")


def draw_curves(
    table: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Draws rewards over strength, gold over proxy and over cost, and effective draws by step."""

    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9), layout="tight")
    axes: Any = figure.subplots(2, 3).flat
    whole = [row for row in table if row.get("part") == "all"]
    lines = {name: [row for row in whole if row["method"] == name] for name in DRAWN}
    lines = {name: rows for name, rows in lines.items() if rows}
    for axis, name in zip(axes, ("proxy gain", "gold gain", "right gain"), strict=False):
        _draw_gains(axis, lines, targets, name)
    axes[0].legend(fontsize=7)
    over = axes[3]
    best = [row for row in whole if row["method"].startswith("best of")]
    for method, rows in {**lines, "best of n": best}.items():
        _curve(over, rows, "proxy gain", "gold gain", method)
    _curve(over, targets, "proxy gain", "gold gain", "exactly tilted", "k--")
    over.set(xlabel="proxy gain", ylabel="gold gain")
    _draw_costs(axes[4], whole)
    _draw_effective_draws(axes[5], steps)
    figure.savefig(path, dpi=130)


def _draw_gains(
    axis: Any,
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    targets: Sequence[Mapping[str, Any]],
    name: str,
) -> None:
    for method, rows in lines.items():
        points = [row for row in rows if row["nats"] is not None]
        _curve(axis, points, "nats", name, method)
    if name != "right gain":
        _curve(axis, targets, "nats", name, "exactly tilted", "k--")
    axis.set(xlabel="strength, nats", ylabel=name, xscale="log")
    axis.set_xticks([row["nats"] for row in targets], [row["nats"] for row in targets])
    axis.minorticks_off()
    axis.axhline(0, color="gray", lw=0.5)


def _draw_costs(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if row["nats"] in (None, SHOWN) and row["method"] != "base":
            calls = row["calls"] + row["bank"] * row["calls"]
            axis.errorbar(calls, row["gold gain"], row["gold gain error"], fmt="o", ms=3)
            axis.annotate(row["method"], (calls, row["gold gain"]), fontsize=5)
    axis.set(xlabel="network calls of one picture and its bank", ylabel="gold gain", xscale="log")


def _draw_effective_draws(axis: Any, steps: Sequence[Mapping[str, Any]]) -> None:
    for method in dict.fromkeys(row["method"] for row in steps):
        points = [row for row in steps if row["method"] == method and row["nats"] == SHOWN]
        points = [row for row in points if not math.isnan(row["ess_tilted"])]
        numbers = [row["step"] for row in points]
        axis.plot(numbers, [row["ess_tilted"] for row in points], "o-", ms=3, label=method)
    axis.axhline(5, color="gray", lw=0.5)
    axis.set(xlabel="step", ylabel=f"median effective draws, {SHOWN} nats", yscale="log")
    axis.legend(fontsize=6)


def _curve(
    axis: Any, rows: Sequence[Mapping[str, Any]], x: str, y: str, label: str, style: str = "o-"
) -> None:
    axis.errorbar(
        [row[x] for row in rows],
        [row[y] for row in rows],
        [row[f"{y} error"] for row in rows],
        fmt=style,
        ms=3,
        lw=1,
        capsize=2,
        label=label,
    )


def draw_sheet(results: Results, out: Path, name: str) -> None:
    """Draws pictures of the first prompts: base beside methods, from the same noise."""

    methods = [method for method in SHEET if method in results.pictures]
    folder = out / "pictures" / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(results.prompts[:SHEET_ROWS]):
        cells = []
        for method in methods:
            if i < len(results.pictures[method]):
                path = folder / f"{i:02d}-{method.replace(' ', '-').replace('%', '')}.png"
                facts = {"prompt": prompt.text, "method": method}
                save_picture(results.pictures[method][i].float() / 255, path, facts)
                cells.append(Cell(path, method))
        rows.append((prompt.text, [cells]))
    title = f"{name}: base, and methods at {SHOWN} nats, from the same noise"
    save_sheet(rows, out / f"{name}-sheet.png", title)
