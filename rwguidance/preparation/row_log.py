"""What was found in the rows of a file of data, in a file of lines that only grows."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.files import naming, open_regular, own_file, replacing

__all__ = ["Row", "RowLog"]


@dataclass(frozen=True)
class Row:
    """A row of data: a caption with ranked pictures, or the reason why it was left out.

    Arguments:
        caption: The caption; empty if the row was left out.
        ranks: Rank of each of its pictures; lower is better.
        group: Name that pictures of other rows share which they are ranked with, or None.
        problem: Why the row was left out; empty if it was not.
    """

    caption: str = ""
    ranks: tuple[float, ...] = ()
    group: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class RowLog:
    """The rows of one file of data, in order, on the disk.

    They are added in batches, and the last line says that there are no more. A batch that a killed
    process has written in part does not count, and is written anew. So is all from a line on that
    was damaged, which its digest tells.

    Arguments:
        path: The file of lines.
        batch: Number of rows in a batch.
    """

    path: Path
    batch: int

    def read(self) -> tuple[list[Row], bool]:
        """Returns the rows of whole batches, and whether these are all rows of the data.

        Raises:
            OSError: If the file cannot be read.
        """

        rows: list[Row] = []
        for entry in self._entries():
            if entry == {"rows": len(rows)}:
                return rows, True
            row = _row(entry)
            if row is None:
                break
            rows.append(row)
        return rows[: len(rows) // self.batch * self.batch], False

    def whole(self) -> list[Row]:
        """Returns the rows of a file of data that is finished.

        Raises:
            ValueError: If some are damaged or lost; names the file.
            OSError: If the file cannot be read.
        """

        rows, complete = self.read()
        if not complete:
            raise ValueError(
                f"{self.path} is damaged, {len(rows)} rows of it are left: preparing the data "
                "again makes the others anew"
            )
        return rows

    def extend(self, rows: Sequence[Row], last: bool) -> None:
        """Adds a batch; waits for the disk.

        Arguments:
            rows: The rows of the batch.
            last: Whether there are no more.

        Raises:
            OSError: If the disk is full or cannot be written to.
        """

        entries = [_entry(row) for row in rows]
        if last:
            entries.append({"rows": len(self.read()[0]) + len(rows)})
        with naming(self.path), open(self.path, "ab", opener=own_file) as file:
            file.write("".join(map(_line, entries)).encode())
            file.flush()
            os.fsync(file.fileno())

    def mend(self) -> None:
        """Removes what a killed process has written in part.

        Raises:
            OSError: If the disk is full or cannot be written to.
        """

        rows, complete = self.read()
        if complete or not self.path.exists():
            return
        text = "".join(_line(_entry(row)) for row in rows)
        if self.path.read_text(encoding="utf-8", errors="replace") != text:
            with replacing(self.path, durable=True) as partial:
                partial.write_bytes(text.encode())

    def _entries(self) -> Iterator[Any]:
        if not self.path.exists():
            return
        with open_regular(self.path) as file:
            for line in file:
                try:
                    yield _opened(json.loads(line)) if line.endswith(b"\n") else None
                except ValueError:
                    yield None


_SEAL = "sha256"

_NAMES = ({"problem"}, {"caption", "ranks"}, {"caption", "ranks", "group"}, {"rows"})
"""Names of what lines hold besides their digest, which older ones lack."""


def _line(entry: dict[str, Any]) -> str:
    return json.dumps({**entry, _SEAL: _digest(entry)}) + "\n"


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]


def _opened(entry: Any) -> Any:
    """Returns what a line holds; None if it is not what was written."""

    if not isinstance(entry, dict):
        return None
    seal = entry.pop(_SEAL, None)
    return entry if entry.keys() in _NAMES and seal in (None, _digest(entry)) else None


def _entry(row: Row) -> dict[str, Any]:
    if row.problem:
        return {"problem": row.problem}
    entry: dict[str, Any] = {"caption": row.caption, "ranks": list(row.ranks)}
    return entry if row.group is None else {**entry, "group": row.group}


def _row(entry: Any) -> Row | None:
    """Returns the row of an entry; None if it is not what was written."""

    try:
        if "problem" in entry:
            return Row(problem=str(entry["problem"]))
        group = entry.get("group")
        return Row(str(entry["caption"]), tuple(map(float, entry["ranks"])), group)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
