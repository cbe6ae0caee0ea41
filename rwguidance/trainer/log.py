"""The log of a training: a row for every step, as comma-separated values."""

import csv
from collections.abc import Mapping
from pathlib import Path

from ..support.files import replacing

__all__ = ["Log"]


class Log:
    """A table with a row for every step, which goes on where a training does.

    Arguments:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
            self._columns = ["step", *figures]
            kept = [row for row in self._rows() if int(row["step"]) < step]
            with replacing(self.path) as partial:
                self._write(partial, [self._columns, *(list(row.values()) for row in kept)], "w")
        self._write(self.path, [[step, *(f"{value:.9g}" for value in figures.values())]], "a")

    def _rows(self) -> list[dict[str, str]]:
        """Returns the rows that are there, none of other columns or cut off."""

        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            same = list(table.fieldnames or ()) == self._columns
            whole = lambda row: None not in row and None not in row.values()
            return [row for row in table if whole(row)] if same else []

    def _write(self, path: Path, rows: list[list[object]] | list[list[str]], mode: str) -> None:
        with path.open(mode, encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
