"""The result of scoring: a table, as CSV or Parquet, that appears at once when it is complete."""

import csv
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rwguidance.support.files import replacing

from .journal import Row

__all__ = ["escaped", "write_table"]

_ROW_GROUP = 65536
_COMPUTED = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that spreadsheets take for a formula."""


def write_table(
    out: Path, labels: list[str], rewards: list[str], rows: Iterator[Row], escape: bool = False
) -> None:
    """Writes a ``.parquet`` or else a CSV file, which is on the disk when this returns.

    Arguments:
        out: The file.
        labels: Names of the first columns, which hold texts.
        rewards: Names of the columns of rewards, after which comes the column error.
        rows: Values of the columns, row by row.
        escape: Whether texts of a CSV file that a spreadsheet would compute get an apostrophe.
    """

    if escape and out.suffix != ".parquet":
        rows = ([escaped(value) for value in row] for row in rows)
    with replacing(out) as partial, partial.open("wb") as file:
        write = _write_parquet if out.suffix == ".parquet" else _write_csv
        write(file, labels, rewards, rows)
        file.flush()
        os.fsync(file.fileno())


def escaped(value: Any) -> Any:
    """Returns a text that a spreadsheet would compute with an apostrophe before it, else itself.

    Texts are written as they are unless this is asked for: a prompt must come back unchanged.
    """

    return f"'{value}" if isinstance(value, str) and value.startswith(_COMPUTED) else value


def _write_csv(file: IO[bytes], labels: list[str], rewards: list[str], rows: Iterator[Row]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*labels, *rewards, "error"])
    writer.writerows(rows)  # floats by repr, None as nothing
    text.detach()


def _write_parquet(
    file: IO[bytes], labels: list[str], rewards: list[str], rows: Iterator[Row]
) -> None:
    import pyarrow
    from pyarrow import parquet

    text, number = pyarrow.string(), pyarrow.float64()
    types = [*[text] * len(labels), *[number] * len(rewards), text]
    schema = pyarrow.schema(list(zip([*labels, *rewards, "error"], types, strict=True)))
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            columns = [
                pyarrow.array(column, kind)
                for column, kind in zip(zip(*group, strict=True), types, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
