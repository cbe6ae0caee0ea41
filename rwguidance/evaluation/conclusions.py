"""What a table says, in sentences: which methods reach the tilted law, and which exploit a reward.

A sentence is a claim at two standard errors. Among many cells a few such claims are wrong by
chance: the table has the figures.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .figures import TILTED
from .measured import CLEAR
from .prompt_sets import common
from .results import BASE, Cell, Results
from .targets import FEW

__all__ = ["cheapest", "doubts", "fallen", "nearer", "reached"]

_NAMED = 4
"""Number of cells that a sentence names."""

_TELLING = 0.2
"""Standard error of a share up to which one that does not differ from 1 is said to be 1."""

Rows = Sequence[Mapping[str, Any]]


def reached(rows: Rows) -> str:
    """Returns which cells reach the tilted law, a sentence; empty if nothing is known of it.

    Arguments:
        rows: Rows, as :func:`rwguidance.evaluation.figures.rows_of` returns them.
    """

    verdicts = []
    for side, verb in ((0, "reached by"), (1, "overshot by"), (-1, "not reached by")):
        some = [row for row in _believed(rows) if _share_side(row) == side]
        if some:
            verdicts.append(f"{verb} {_list(some, 'share')}")
    said = f"The exactly tilted law is {'; '.join(verdicts)}." if verdicts else ""
    known = [row for row in _believed(rows) if _side(row, "share", 1) is not None]
    open_ones = [row for row in known if _share_side(row) is None]
    if not open_ones:
        return said
    left = f"Errors are too large to tell of {_list(open_ones, 'share')}."
    return f"{said} {left}" if said else left


def fallen(rows: Rows, aligned: str, held_out: Sequence[str]) -> str:
    """Returns which held-out rewards fall where the one that is aligned to rises, a sentence.

    Arguments:
        rows: Rows of a table.
        aligned: Name of the reward that is aligned to.
        held_out: Names of the other rewards.
    """

    rises = [row for row in _methods(rows) if _side(row, f"{aligned} gain", 0) == 1]
    verdicts = []
    for name in held_out:
        falls = [row for row in rises if _side(row, f"{name} gain", 0) == -1]
        if falls:
            verdicts.append(f"{name} falls with {_list(falls, f'{name} gain')}")
    if verdicts:
        return f"While {aligned} rises, {'; '.join(verdicts)}."
    return f"No held-out reward falls where {aligned} rises." if held_out and rises else ""


def nearer(rows: Rows, embedding: str) -> str:
    """Returns which cells are nearer to the tilted law than the base is, or farther, a sentence.

    Arguments:
        rows: Rows of a table.
        embedding: Name of the embedding.
    """

    name, verdicts = f"{embedding} nearer", []
    for side, verb in ((1, "nearer to the tilted law"), (-1, "farther from it")):
        some = [row for row in _believed(rows) if _side(row, name, 0) == side]
        if some:
            verdicts.append(f"{verb}: {_list(some, name)}")
    if verdicts:
        return f"Than the base, in {embedding}, {'; '.join(verdicts)}."
    known = any(_side(row, name, 0) is not None for row in _believed(rows))
    return f"No cell's distance in {embedding} differs from the base's." if known else ""


def cheapest(rows: Rows) -> str:
    """Returns which of the cells that reach or pass the tilted law cost least, a sentence.

    Arguments:
        rows: Rows of a table.
    """

    sentences = []
    for nats in dict.fromkeys(row["nats"] for row in _believed(rows)):
        there = [row for row in _believed(rows) if row["nats"] == nats]
        there = [row for row in there if _share_side(row) in (0, 1)]
        if len(there) > 1:
            best = min(there, key=lambda row: row["calls with draws"])
            calls = f"{best['calls with draws']:.3g} calls a picture with its draws"
            sentences.append(f"{best['method']} at {nats:g} nats ({calls})")
    return f"Cheapest to reach the target: {', '.join(sentences)}." if sentences else ""


def doubts(results: Results) -> list[str]:
    """Returns what the reader of a table should know before believing it, in sentences."""

    found = []
    for nats, target in results.targets.items():
        if target.few and any(results.draws):  # else none was asked for
            rests = "no draws" if math.isnan(target.effective) else f"{target.effective:.1f} draws"
            found.append(
                f"The target at {nats:g} nats rests on {rests} that count, fewer than {FEW}: what "
                "is held against it is marked with *."
            )
    reused = common(results.plan.get("developed on", ()), results.prompts)
    if reused:
        found.append(
            f"Settings were chosen on {len(reused)} of the {len(results.prompts)} prompts, such as "
            f"{reused[0]!r}: gains are too large by an unknown part."
        )
    for method, nats, why in results.plan.get("omitted", ()):
        found.append(f"{Cell(method, nats)} was left out: {why}.")
    if results.failures:
        first = results.failures[0]
        found.append(
            f"{len(results.failures)} things failed, of which the first is {first.place}, for "
            f"{first.prompt!r}: {first.reason}."
        )
    unfinished = len(results.plan.get("prompts", ())) - len(results.prompts)
    if unfinished > 0:
        found.append(f"{unfinished} prompts are not finished.")
    return found


def _methods(rows: Rows) -> Rows:
    return [row for row in rows if row["method"] not in (BASE.method, TILTED)]


def _believed(rows: Rows) -> Rows:
    return [row for row in _methods(rows) if not row.get("few", True)]


def _share_side(row: Mapping[str, Any]) -> int | None:
    """Returns whether a share is more than 1, less, or as good as 1; None if it cannot be told."""

    side = _side(row, "share", 1)
    return None if side == 0 and row["share error"] > _TELLING else side


def _side(row: Mapping[str, Any], name: str, value: float) -> int | None:
    """Returns whether a figure is larger than a value, 1, or smaller, -1, or 0; None if unknown."""

    figure, error = row.get(name, math.nan), row.get(f"{name} error", math.nan)
    if math.isnan(figure) or math.isnan(error):
        return None
    return 0 if abs(figure - value) <= CLEAR * error else 1 if figure > value else -1


def _list(rows: Rows, name: str) -> str:
    cells = [
        f"{Cell(row['method'], row['nats'])} ({row[name]:.2g} ± {row[f'{name} error']:.1g})"
        for row in rows[:_NAMED]
    ]
    more = len(rows) - _NAMED
    return ", ".join(cells) + (f" and {more} more" if more > 0 else "")
