"""The record beside a finished table: what it was made from, so that the same call knows it."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rwguidance.support.files import open_regular, read_regular, replacing

from .evaluation import FAILED
from .journal import RESTART, Row

__all__ = ["check_finished", "finished_rows", "is_left", "record_path", "write_record"]


def record_path(out: str | os.PathLike[str]) -> Path:
    """The file that says what a finished result was made from, beside it."""

    return Path(f"{os.fspath(out)}.record.json")


def write_record(out: Path, header: Mapping[str, Any]) -> None:
    """Writes the record of a finished table.

    Arguments:
        out: The table.
        header: The facts about its job, as in the journal.
    """

    with replacing(record_path(out)) as partial:
        text = json.dumps({**header, "table": _digest(out)}, indent=1)
        partial.write_bytes(text.encode())


def check_finished(out: Path, header: Mapping[str, Any]) -> None:
    """Checks that a table that is there is the result of a job.

    Arguments:
        out: The table.
        header: The facts about the job, or a part of them.

    Raises:
        FileExistsError: If it is not known to be, or any entry of `header` differs; names those.
    """

    try:
        found = dict(json.loads(read_regular(record_path(out))))
    except (OSError, ValueError, TypeError, RecursionError):
        found = {}
    if found.get("table") != _digest(out):
        raise FileExistsError(
            f"{out} exists, and it is not known what it was made from: write elsewhere, or "
            f"replace it, {RESTART}"
        )
    differ = [key for key, value in header.items() if found.get(key) != value]
    if differ:
        raise FileExistsError(
            f"{out} exists, and is the result of another job: its {', '.join(differ)} differ. "
            f"Write elsewhere, or replace it, {RESTART}"
        )


def finished_rows(out: Path, labels: int) -> list[Row]:
    """The rows of a finished table: one value or None per reward, and the reason if one is None.

    Arguments:
        out: The table.
        labels: Number of columns before those of rewards.
    """

    read = _read_parquet if out.suffix == ".parquet" else _read_csv
    return list(read(out, labels))


def is_left(row: Row, names: list[str]) -> bool:
    """Returns whether a reward failed at a row, so that the same call tries again.

    A server may be back, or memory be free. An image that cannot be read stays what it is.
    """

    return any(f"{name} {FAILED}" in row[-1] for name in names)


def _read_csv(out: Path, labels: int) -> Iterator[Row]:
    with out.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for row in rows:
            *values, reason = row[labels:]
            yield [*(float(value) if value else None for value in values), reason]


def _read_parquet(out: Path, labels: int) -> Iterator[Row]:
    from pyarrow import parquet

    table = parquet.read_table(out)
    for row in zip(*(column.to_pylist() for column in table.columns[labels:]), strict=True):
        yield list(row)


def _digest(out: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(out) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
