"""The log of a training: a row for every step, as comma-separated values."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..support.files import own_file, read_regular, replacing

__all__ = ["Log"]


class Log:
    """A table with a row for every step, which goes on where a training does.

    Arguments:
        path: The file.
        rare: Names of figures that not every step has; the others have NaN.
    """

    def __init__(self, path: Path, rare: Sequence[str] = ()) -> None:
        self.path = path
        self.rare = rare
        self._columns: list[str] = []

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a row; rows of this step and later ones, of a training that was cut off, go.

        Arguments:
            step: Number of the step.
            figures: Figures by name.

        Raises:
            OSError: If the file cannot be written.
        """

        if not self._columns:
            self._columns = [*dict.fromkeys(["step", *figures, *self.rare])]
            kept = [row for row in self._rows() if int(row[0]) < step]
            with replacing(self.path) as partial:
                self._write(partial, [self._columns, *kept], "w")
        row = [f"{figures.get(name, math.nan):.9g}" for name in self._columns[1:]]
        self._write(self.path, [[step, *row]], "a")

    def figures(self, name: str) -> dict[int, float]:
        """Returns the values of a figure by step, of the steps that have it."""

        columns, rows = self._read()
        if name not in columns:
            return {}
        place = columns.index(name)
        found = {int(row[0]): float(row[place]) for row in rows}
        return {step: value for step, value in found.items() if not math.isnan(value)}

    def _rows(self) -> list[list[str]]:
        """Returns the rows that are whole, if the columns are those of this training."""

        columns, rows = self._read()
        return rows if columns == self._columns else []

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Returns the names of the columns that are there, and the rows that are whole."""

        if not self.path.exists():
            return [], []
        text = read_regular(self.path).decode("utf-8", "replace")
        whole = text.rpartition("\n")[0].splitlines()
        columns, *rows = [line.split(",") for line in whole] or [[]]
        return columns, [row for row in rows if _is_whole(row, columns)]

    def _write(self, path: Path, rows: list[list[object]] | list[list[str]], mode: str) -> None:
        with open(path, mode, encoding="utf-8", newline="", opener=own_file) as file:
            csv.writer(file).writerows(rows)


def _is_whole(row: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether a row has a number in every column, an integer in the first."""

    try:
        int(row[0])
        return len([float(value) for value in row]) == len(columns)
    except ValueError:
        return False
