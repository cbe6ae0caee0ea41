"""Pictures of the page on the paper's claims: cost against gold and distance, and artefacts.

`python -m benchmarks.alignment.drawing` draws the costs from the result file, and with `--models`
the pictures of the sweeps, from noise that all of them share.
"""

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rwguidance import networks
from rwguidance.generation import ChangeNetwork
from rwguidance.support.files import replacing

from .bed import Bed, Maker
from .report import RESULTS

__all__ = ["artefacts", "costs"]

IMAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
MARKERS = {"ours": "o", "fine-tuner": "s", "existing": "^"}
TICKS = (13, 20, 40, 80, 250)
SHOWN = 8
"""Reported prompts whose pictures are shown, the first ones."""

ROWS = (
    ("scale", "network, scale 1"),
    ("scale", "network, scale 8"),
    ("scale", "plug-in, scale 1"),
    ("scale", "plug-in, scale 8"),
    ("eta", "log h, eta 0, scale 64"),
    ("eta", "log h, eta 1, scale 64"),
    ("eta", "log h, eta 10, scale 64"),
)
"""Points of the sweeps whose pictures are shown below those of model and shipped network."""


def costs(found: Mapping[str, Any], path: Path) -> None:
    """Draws gold against operations, and distance against gold, a line for each trial of a method.

    Arguments:
        found: The result file of `benchmarks.alignment_cost`.
        path: File that is written.
    """

    from matplotlib import colormaps
    from matplotlib.figure import Figure

    law = found["tilted law"]["emoji-gold"][0]
    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(row["method"] for row in found["rows"]))
    for rows in _lines(found["rows"]):
        name, group = rows[0]["method"], rows[0]["group"]
        color = colormaps["tab20"](names.index(name))
        look: dict[str, Any] = {"color": color, "marker": MARKERS[group], "ms": 5, "lw": 1}
        gold = [row["emoji-gold gain"][0] for row in rows]
        total = [row["operations with pictures"]["10000"] / 1e12 for row in rows]
        left.plot(total, gold, label=f"{name} ({group})", **look)
        right.plot(gold, [row["energy gain"][0] for row in rows], **look)
    left.axhline(law, color="black", lw=1, ls=":", label="tilted law")
    right.axvline(law, color="black", lw=1, ls=":")
    right.axhline(0, color="0.8", lw=1, zorder=0)
    left.set(xscale="log", xlabel="operations of training and 10,000 pictures, 1e12")
    left.set_xticks(TICKS, map(str, TICKS))
    left.minorticks_off()
    left.set_ylabel("gain of gold")
    right.set_yscale("symlog", linthresh=0.5)
    right.set(xlabel="gain of gold", ylabel="energy distance to the tilted law, less the model's")
    lines, labels = left.get_legend_handles_labels()
    kept = dict(zip(labels, lines, strict=True))
    figure.legend(kept.values(), kept, loc="outside lower center", ncols=4, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Returns rows of the same method and trial together, by their budgets."""

    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(f"{row['method']} {row['trial']}", []).append(row)
    return [sorted(line, key=lambda row: row["budget"]) for line in found.values()]


def artefacts(bed: Bed, path: Path, seed: int = 0) -> None:
    """Draws pictures of points of the sweeps, a row for each, of the noise of one seed.

    Arguments:
        bed: The test bed.
        path: File that is written.
        seed: Seed of noise and training.
    """

    from matplotlib.figure import Figure

    from ..alignment_curves import SWEEPS

    network = ChangeNetwork(networks.load("emoji-turbo-change"))
    makers = {"the model": Maker(), "emoji-turbo-\nchange": Maker(network)}
    makers |= {name: SWEEPS[sweep][name](bed, seed) for sweep, name in ROWS}
    chosen, run = bed.prompts("report", SHOWN), bed.run(seed)
    figure = Figure(figsize=(1.5 * SHOWN, 1.62 * len(makers)), layout="constrained")
    axes = figure.subplots(len(makers), SHOWN)
    for line, (name, maker) in zip(axes, makers.items(), strict=True):
        for axis, prompt in zip(line, chosen, strict=True):
            (image,) = run.decode(maker.states(run, prompt, 1))
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace(", ", "\n"), fontsize=8)
    for axis, prompt in zip(axes[0], chosen, strict=True):
        axis.set_title(textwrap.fill(prompt, 22), fontsize=7)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment.drawing")
    parser.add_argument("--models", action="store_true", help="draw pictures of the sweeps, too")
    parser.add_argument("--cache", type=Path, default=Path("out/alignment/draws"))
    given = parser.parse_args()
    costs(json.loads(RESULTS.read_text("utf-8")), IMAGES / "claims-cost.png")
    if given.models:
        torch.set_num_threads(1)
        artefacts(Bed(given.cache), IMAGES / "claims-artefacts.png")


if __name__ == "__main__":
    main()
