"""Tables of texts as people keep them: one reader for CSV, TSV, JSON, JSON lines, Parquet and text.

=============  =====================================================================================
``.txt``       One text per line, the only column
``.csv``       A header, then rows; cells that hold commas are quoted
``.tsv``       A header, then rows; tabs between cells, and quotation marks mean themselves
``.jsonl``     An object per line
``.json``      A list of objects, or of texts, which are the only column
``.parquet``   The columns of text; others are not read
=============  =====================================================================================

Names of columns are compared in lower case. Texts are UTF-8, with or without a byte order mark, or
UTF-16 or UTF-32 with one, and blank lines are skipped. A ``.csv`` may have semicolons or tabs in
place of commas if its header has no comma, and spaces before a cell or its quotation marks mean
nothing. Whatever is wrong is refused, with the file, the line, what was expected and what came.
"""

import codecs
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import checks
from .conditions import has_half_surrogate
from .files import open_regular, read_regular
from .outside import require

__all__ = ["SUFFIXES", "Record", "read_records"]

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")
"""The formats, by the endings of files."""

_LARGEST = 1 << 30
"""Bytes of a file that is text, at most."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # which begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_SHOWN = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32"}

_COUNTED = {".json": "entry", ".parquet": "row"}


class Record(NamedTuple):
    """One row of a table.

    Arguments:
        path: The file.
        line: Number of the line that it begins in, from 1; of the entry of a list, or of the row.
        values: Values by the names of their columns, which are in lower case.
    """

    path: Path
    line: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """The file and the line, for messages."""

        return _place(self.path, self.line)

    def text(self, column: str) -> str:
        """Returns the text of a column that is there, without white space at both ends.

        Arguments:
            column: Name of the column, in lower or upper case.

        Raises:
            ValueError: If it is no string, or holds half of a surrogate pair.
        """

        column = column.strip().lower()
        value = self.values[column]
        if not isinstance(value, str):
            raise ValueError(f"{self.place}: {column!r} must be a string, got {value!r:.80}")
        if has_half_surrogate(value):
            raise ValueError(f"{self.place}: {column!r} holds half of a surrogate pair")
        return value.strip()


def read_records(
    path: str | os.PathLike[str], *columns: str, spaces: bool = False
) -> Iterator[Record]:
    """Yields the rows of a table that has some columns, and perhaps others.

    Arguments:
        path: The file.
        columns: Names of the columns, in lower or upper case, at least one; the first is the only
            one of a text.
        spaces: Whether spaces at the beginning of the cells of a ``.csv`` are part of them, as in a
            table that this library wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pyarrow is missing for a file in Parquet.
        ValueError: If the file is malformed, has another format, or lacks a column; names the line.
    """

    path, needed = checks.path("path", path), [column.strip().lower() for column in columns]
    column = needed[0]
    readers = {
        ".csv": lambda: _read_csv(path, spaces),
        ".json": lambda: _read_json(path, column),
        ".jsonl": lambda: _read_jsonl(path, column),
        ".parquet": lambda: _read_parquet(path),
        ".tsv": lambda: _read_cells(
            path, csv.reader(_lines(path), "excel-tab", quoting=csv.QUOTE_NONE)
        ),
        ".txt": lambda: _read_txt(path, column),
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"prompts must be in a file {', '.join(readers)}, got {path}")
    if not path.is_file():  # nor a pipe, which could hang
        raise FileNotFoundError(f"no file of prompts at {path}")
    for line, keys, values in readers[path.suffix.lower()]():
        names = [key.strip().lower() for key in keys]
        _check_names(path, line, names, needed)
        if values is not None:
            yield Record(path, line, dict(zip(names, values, strict=True)))


_Rows = Iterator[tuple[int, Sequence[str], Sequence[Any] | None]]
"""Numbers of lines, names of columns, and values; None where the line is the header."""


def _read_txt(path: Path, column: str) -> _Rows:
    for line, text in enumerate(_text(path).split("\n"), 1):
        if text.strip():
            yield line, [column], [text]


def _read_csv(path: Path, spaces: bool) -> _Rows:
    text = _text(path)
    header = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = "," if "," in header else max(",;\t", key=header.count)
    lines = io.StringIO(text, newline="")
    return _read_cells(
        path, csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=not spaces)
    )


def _read_cells(path: Path, reader: Any) -> _Rows:
    header: list[str] | None = None
    end = 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = cells
                yield line, header, None
                continue
            if len(cells) != len(header):
                names = ", ".join(cell.strip().lower() for cell in header)
                advice = "; quote a cell that holds commas" if path.suffix.lower() == ".csv" else ""
                raise ValueError(
                    f"{path}, line {line}: expected {len(header)} cells ({names}), got {len(cells)}"
                    f"{advice}"
                )
            yield line, header, cells
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _read_jsonl(path: Path, column: str) -> _Rows:
    for line, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        record = _parsed(_place(path, line), text)
        if not isinstance(record, dict):
            raise ValueError(
                f"{_place(path, line)}: expected an object like {_example(column)}, got {text:.80}"
            )
        yield line, list(record), list(record.values())


def _read_json(path: Path, column: str) -> _Rows:
    expected = f"expected a list of texts, or of objects like {_example(column)}"
    entries = _parsed(str(path), _text(path))
    if not isinstance(entries, list):
        raise ValueError(f"{path}: {expected}, got {json.dumps(entries):.80}")
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, str):
            entry = {column: entry}
        if not isinstance(entry, dict):
            raise ValueError(f"{_place(path, number)}: {expected}, got {json.dumps(entry):.80}")
        yield number, list(entry), list(entry.values())


def _read_parquet(path: Path) -> _Rows:
    parquet = require("pyarrow.parquet", "a .parquet file needs", "rewards")
    types = require("pyarrow.types", "a .parquet file needs", "rewards")
    error: Any = require("pyarrow", "a .parquet file needs", "rewards").ArrowException
    open_regular(path).close()  # what the system refuses keeps its own error
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = [field.name for field in schema if _is_text(types, field.type)]
            yield 0, names, None
            number = 0
            for batch in file.iter_batches(columns=names):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, names, row
    except (error, OSError, ValueError) as failure:  # damage has all of these classes
        raise ValueError(f"{path}: not Parquet, {failure}") from None


def _is_text(types: Any, kind: Any) -> bool:
    """Whether a column holds texts, or numbers of texts that are kept once (categories)."""

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _check_names(path: Path, line: int, names: Sequence[str], needed: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{_place(path, line)}: the column {twice[0]!r} comes twice")
    if not set(needed) <= set(names):
        columns = "the column " if len(needed) == 1 else "the columns "
        expected, found = (", ".join(map(repr, some)) or "nothing" for some in (needed, names))
        raise ValueError(f"{_place(path, line)}: expected {columns}{expected}, got {found}")


def _example(column: str) -> str:
    return json.dumps({column: "a cat"})


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # a number of too many digits is not of JSON's own class
        raise ValueError(f"{place}: not JSON, {getattr(error, 'msg', error)}") from None
    except RecursionError:
        raise ValueError(f"{place}: nested too deeply") from None


def _place(path: Path, line: int) -> str:
    if not line:
        return str(path)
    return f"{path}, {_COUNTED.get(path.suffix.lower(), 'line')} {line}"


def _lines(path: Path) -> io.StringIO:
    return io.StringIO(_text(path), newline="")


def _text(path: Path) -> str:
    data = read_regular(path, _LARGEST)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not {_SHOWN.get(encoding, encoding)}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{path}, line {line}: holds NUL; save UTF-16 with a byte order mark, or as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")
