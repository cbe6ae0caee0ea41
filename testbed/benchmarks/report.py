"""The report of `methods.py`: tables, a page, curves and contact sheets."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from formatting import across, console, markdown, print_table, shown_rows, write_csv
from plots import draw_curves, draw_sheet
from results import SHOWN, Results
from tables import steps_of, table_of, targets_of

from rwguidance.support.files import replacing

COLUMNS = (
    ("proxy gain", 3),
    ("share", 2),
    ("gold gain", 3),
    ("right", 3),
    ("right gain", 3),
    ("kernel", 4),
    ("frechet", 3),
    ("precision", 2),
    ("recall", 2),
    ("calls", 0),
    ("seconds", 3),
    ("bank", 0),
)

SHORT = (
    ("proxy gain", 2),
    ("share", 2),
    ("gold gain", 2),
    ("right gain", 3),
    ("kernel", 4),
    ("calls", 0),
    ("bank", 0),
)
"""Columns of the table that the documentation has, with their digits."""

PRINTED = ("proxy gain", "share", "gold gain", "right gain", "kernel", "calls", "bank")
TARGETS = (("proxy gain", 3), ("gold gain", 3), ("median ESS", 1), ("median k", 2))

STEPS = (("ess", 1), ("ess_tilted", 1), ("pareto_k", 2), ("reliable", 2))

PARTS = (("proxy", 3), ("gold", 3), ("right", 3), ("proxy gain", 3), ("gold gain", 3))


def report(
    found: Mapping[str, Results], real: Mapping[str, Any], out: Path, about: str
) -> list[dict[str, Any]]:
    """Writes tables, a page and figures of all models, and prints and returns the main table.

    Arguments:
        found: Results of the models by name.
        real: The judge and the embeddings of real pictures, as `real_embeddings` returns them.
        out: Folder to write to.
        about: Paragraph that begins the page.
    """

    everything, all_targets, all_steps, page = [], [], [], [about]
    for name, results in found.items():
        table = table_of(name, results, real)
        targets, steps = targets_of(name, results), steps_of(name, results)
        everything += table
        all_targets += targets
        all_steps += steps
        rows = shown_rows(table, SHOWN)
        printed = [(head, digits) for head, digits in COLUMNS if head in PRINTED]
        print_table(f"{name}, {SHOWN} nats", rows, printed)
        page += _page(name, table, targets, steps)
        with replacing(out / f"{name}-shown.md") as partial:
            partial.write_text(markdown(rows, SHORT) + "\n", encoding="utf-8")
        draw_curves(table, targets, steps, out / f"{name}.png")
        if results.pictures:
            draw_sheet(results, out, name)
    write_csv(everything, out / "results.csv")
    write_csv(all_targets, out / "targets.csv")
    write_csv(all_steps, out / "steps.csv")
    with replacing(out / "results.md") as partial:
        partial.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    console.print(f"written to {out}")
    return everything


def _page(
    name: str,
    table: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Returns the paragraphs of one model."""

    exact = [{"method": f"{row['nats']} nats", **row} for row in targets]
    parts = [
        {**row, "method": f"{row['method']}, {row['part']} names"}
        for row in table
        if row.get("part") in ("learned", "held out")
        if row["method"] in ("base", "importance", "network") and row["nats"] in (None, SHOWN)
    ]
    shown_steps = [
        {**row, "method": f"{row['method']}, step {row['step']}"}
        for row in steps
        if row["nats"] == SHOWN and not math.isnan(row["ess"])
    ]
    return [
        f"## {name}",
        f"At {SHOWN} nats:",
        markdown(shown_rows(table, SHOWN), COLUMNS),
        "The exactly tilted law, from the banks:",
        markdown(exact, TARGETS),
        "Share of the way to the exact mean reward, by strength:",
        across(table, "share", 2),
        "Gain in gold utility, by strength:",
        across(table, "gold gain", 3),
        "Learned and held-out names:",
        markdown(parts, PARTS),
        f"Effective draws at each step, median over prompts, {SHOWN} nats:",
        markdown(shown_steps, STEPS),
    ]
