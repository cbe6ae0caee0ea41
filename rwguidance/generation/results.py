"""The result of a generation: pairs of pictures with their rewards, as a table and as sheets."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..support.files import replacing
from .pictures import Cell, save_sheet

__all__ = ["KINDS", "Generated", "Row", "write_sheets", "write_table"]

KINDS = ("base", "aligned")
"""The two pictures of a pair, as files, columns and captions name them."""

_ROWS_PER_SHEET = 12
_PAIRS_PER_ROW = 4


@dataclass(frozen=True)
class Row:
    """A pair of pictures.

    Arguments:
        prompt: The prompt.
        number: Number of the image, from 0.
        files: Paths of the base picture and the aligned one.
        rewards: Rewards of the two, in reward units; None where the reward failed.
        facts: Facts that the method states about the pair.
        error: The reason why a reward is missing, or empty.
    """

    prompt: str
    number: int
    files: tuple[Path, Path]
    rewards: tuple[float | None, float | None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def gain(self) -> float | None:
        """Reward of the aligned picture less that of the base one; None where one is missing."""

        base, aligned = self.rewards
        return None if base is None or aligned is None else aligned - base


@dataclass(frozen=True)
class Generated:
    """The result of a run.

    Arguments:
        rows: Pairs in the order of the prompts and numbers.
        failed: Prompts that were not finished, with the reasons.
        table: Path of the CSV file.
        sheets: Paths of the pictures of base and aligned beside each other.
        made: Number of pairs that this run made; the others were there.
        unwritten: The table and the sheets if they could not be written, with the reasons.
    """

    rows: tuple[Row, ...]
    failed: dict[str, str]
    table: Path
    sheets: tuple[Path, ...]
    made: int
    unwritten: Mapping[Path, str] = field(default_factory=dict)


def write_table(path: Path, rows: Sequence[Row], failed: Mapping[str, str]) -> None:
    """Writes rows, then the prompts that failed, as a CSV file, atomically.

    Arguments:
        path: The file; pictures are named relative to its folder.
        rows: Pairs of pictures.
        failed: Reasons by prompt.
    """

    columns = ["prompt", "number", *KINDS, "base reward", "aligned reward", "gain"]
    facts = list(dict.fromkeys(key for row in rows for key in row.facts))
    text = lambda value: "" if value is None else f"{value:.7g}"
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *facts, "error"])
        for row in rows:
            files = [picture.relative_to(path.parent).as_posix() for picture in row.files]
            values = [text(value) for value in (*row.rewards, row.gain)]
            about = [_flat(row.facts.get(key)) for key in facts]
            writer.writerow([row.prompt, row.number, *files, *values, *about, row.error])
        for prompt, reason in failed.items():
            writer.writerow([prompt, *[""] * (len(columns) - 1 + len(facts)), reason])


def _flat(value: Any) -> Any:
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else value


def write_sheets(folder: Path, rows: Sequence[Row], title: str) -> tuple[Path, ...]:
    """Writes sheets of the first pairs of every prompt, and removes those of an earlier run.

    Arguments:
        folder: The folder of the sheets.
        rows: Pairs of pictures.
        title: The line at the top of each sheet.

    Returns:
        Paths of the sheets, in order.
    """

    pairs: dict[str, list[list[Cell]]] = {}
    for row in rows:
        some = pairs.setdefault(row.prompt, [])
        if len(some) < _PAIRS_PER_ROW:
            some.append(_cells(row))
    lines = list(pairs.items())
    sheets = []
    for number, start in enumerate(range(0, len(lines), _ROWS_PER_SHEET), 1):
        name = "sheet.png" if len(lines) <= _ROWS_PER_SHEET else f"sheet-{number}.png"
        sheets.append(folder / name)
        save_sheet(lines[start : start + _ROWS_PER_SHEET], sheets[-1], title)
    for path in folder.glob("sheet*.png"):  # of a run with more prompts, or fewer
        if re.fullmatch(r"sheet(-\d+)?\.png", path.name) and path not in sheets:
            path.unlink()
    return tuple(sheets)


def _cells(row: Row) -> list[Cell]:
    shown = ["no reward" if reward is None else f"{reward:.4g}" for reward in row.rewards]
    return [
        Cell(path, f"{kind} {text}")
        for kind, path, text in zip(KINDS, row.files, shown, strict=True)
    ]
