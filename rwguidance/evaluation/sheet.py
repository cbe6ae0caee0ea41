"""A contact sheet: pictures of the first prompts, by the model and by methods, from one noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..generation import pictures
from .curves import drawn
from .hacking import believed
from .results import BASE, Cell, Results

__all__ = ["Shown", "shown", "write_sheet"]


@dataclass(frozen=True)
class Shown:
    """A picture of a contact sheet.

    Arguments:
        cell: The cell that it is of.
        path: Path of its file.
        rewards: Its rewards by name, the one that is aligned to first; NaN where one failed.
    """

    cell: Cell
    path: Path
    rewards: Mapping[str, float]

    @property
    def lines(self) -> list[str]:
        """Lines of text below the picture: the cell, then the rewards."""

        numbers = [
            f"{name} {'failed' if math.isnan(value) else f'{value:.3g}'}"
            for name, value in self.rewards.items()
        ]
        return [str(self.cell), *numbers]


def shown(results: Results) -> list[tuple[str, list[Shown]]]:
    """Returns prompts with their first picture of the base and of methods at one strength.

    The strength is that of :func:`~rwguidance.evaluation.hacking.believed`, the methods are those
    of the curves, and the prompts are those of which pictures were kept.
    """

    methods, strengths = drawn(results), (None, believed(results))
    cells = [
        cell
        for cell in results.cells
        if cell == BASE or (cell.method in methods and cell.nats in strengths)
    ]
    rows = []
    for i, prompt in enumerate(results.prompts):
        row = [
            Shown(cell, results.cells[cell].files[i], _rewards(results, cell, i))
            for cell in cells
            if i in results.cells[cell].files and results.cells[cell].files[i].exists()
        ]
        if row:
            rows.append((prompt, row))
    return rows


def _rewards(results: Results, cell: Cell, prompt: int) -> dict[str, float]:
    rewards = results.cells[cell].rewards
    return {name: float(rewards[name][prompt, 0]) for name in results.rewards if name in rewards}


def write_sheet(rows: Sequence[tuple[str, Sequence[Shown]]], path: Path) -> None:
    """Writes a contact sheet as a PNG file, atomically.

    Arguments:
        rows: Prompts with their pictures, one at least.
        path: The file.
    """

    sheet = [
        (prompt, [[pictures.Cell(one.path, "\n".join(one.lines)) for one in row]])
        for prompt, row in rows
    ]
    pictures.save_sheet(sheet, path, "The model alone and methods, from the same noise")
