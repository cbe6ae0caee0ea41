"""Files of preference data, read row by row: Parquet, Arrow, WebDataset, tables beside pictures.

Rows are numbered from 0 within their file. What is read of a file is bounded by its rows, so files
may be larger than memory. A row whose own content cannot be read is an empty one, which no layout
accepts; a file that cannot be read at all raises. (The loader of WebDataset in `datasets` ends at
the first member that is broken or missing, so archives are read here.)
"""

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, AnyStr

from ..support import checks
from ..support.files import expanded, open_regular, read_regular

__all__ = ["Source", "find_sources"]

_ENDS = 2**20
"""Bytes at both ends of a file that its key depends on; data has the size of disks."""

_MOST_TEXT, _MOST_PICTURE = 2**24, 2**28
"""Bytes of a member of an archive that is text, or of a line; of a member that is a picture."""

_MOST_LIST = 2**30
"""Bytes of a list in JSON, which is read at once, at most."""

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")

_ENDINGS = (".parquet", ".arrow", ".tar", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Source:
    """A file of preference data.

    Arguments:
        path: The file: .parquet, .arrow (as `datasets` keeps them), .tar (WebDataset), or a table
            .jsonl, .json or .csv whose pictures are paths beside it.
    """

    path: Path

    @property
    def key(self) -> str:
        """A key of the content: SHA-256 of its size and of its first and last MiB.

        Raises:
            ValueError: If it cannot be read; names it.
        """

        with _reading(self.path), open_regular(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
        return digest.hexdigest()[:24]

    def rows(self, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """Yields rows from a number on; pictures are as they are in the file.

        Arguments:
            start: Number of the first row.

        Raises:
            ValueError: If the file is not of its format, is a pipe, a device or a folder, or cannot
                be read; names it.
        """

        read = {
            ".parquet": _of_parquet,
            ".arrow": _of_arrow,
            ".tar": _of_archive,
            ".jsonl": _of_lines,
            ".json": _of_list,
            ".csv": _of_csv,
        }[self.path.suffix.lower()]
        with _reading(self.path):
            yield from read(self.path, start)

    def count(self) -> int:
        """Returns the number of rows, for which no pictures of an archive are read.

        Raises:
            ValueError: If the file is not of its format, or cannot be read; names it.
        """

        count = {".parquet": _rows_of_parquet, ".tar": _rows_of_archive}
        known = count.get(self.path.suffix.lower())
        if known is None:
            return sum(1 for _ in self.rows())
        with _reading(self.path):
            return known(self.path)

    def columns(self) -> list[str]:
        """Returns the names of the columns, as far as the first rows have them.

        Raises:
            ValueError: If the file is not of its format, or cannot be read; names it.
        """

        names: dict[str, None] = {}
        for row, _ in zip(self.rows(), range(64), strict=False):
            names.update(dict.fromkeys(row))
        return list(names)


def find_sources(paths: Sequence[Path | str]) -> list[Source]:
    """Returns the files of data at these paths, in order of their names.

    Arguments:
        paths: Files, or folders that are searched for .parquet, .arrow, .tar, .jsonl, .json and
            .csv.

    What a folder has under these endings and cannot be read, such as a link to nothing, is found.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        OSError: If a path leads to a pipe or a device.
        ValueError: If a file has another ending, or nothing is found.
    """

    found: dict[Path, None] = {}
    for given in paths:
        checks.instance("data", given, (str, Path), "a path")
        path = expanded(given)
        if not path.exists():
            raise FileNotFoundError(f"data: there is no file or folder {path}")
        if not path.is_dir():
            open_regular(path).close()
            if path.suffix.lower() not in _ENDINGS:
                raise ValueError(f"data must end in {', '.join(_ENDINGS)}, got {path}")
        inside = path.rglob("*") if path.is_dir() else [path]
        found.update(dict.fromkeys(p for p in sorted(inside) if _is_data(p)))
    if not found:
        raise ValueError(f"data must hold files that end in {', '.join(_ENDINGS)}, found none")
    return [Source(path) for path in found]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuses what libraries would wait for, and gives errors of reading the file's name."""

    try:
        open_regular(path).close()
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and not path.is_dir() and not path.name.startswith(".")


def _of_parquet(path: Path, start: int) -> Iterator[Mapping[str, Any]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        first = 0
        for i in range(file.num_row_groups):
            count = file.metadata.row_group(i).num_rows
            if first + count > start:
                skipped = max(0, start - first)
                for batch in file.iter_batches(64, row_groups=[i]):
                    if skipped < batch.num_rows:
                        yield from batch.slice(skipped).to_pylist()
                    skipped = max(0, skipped - batch.num_rows)
            first += count


def _rows_of_parquet(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def _of_arrow(path: Path, start: int) -> Iterator[Mapping[str, Any]]:
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as file, ipc.open_stream(file) as batches:
        first = 0
        for batch in batches:
            batch.validate(full=True)  # places that lead out of the file would end the process
            for offset in range(max(0, start - first), batch.num_rows, 64):
                yield from batch.slice(offset, 64).to_pylist()
            first += batch.num_rows


def _of_archive(path: Path, start: int) -> Iterator[Mapping[str, Any]]:
    """Yields the samples of a WebDataset: members in a row whose names share what is before a dot.

    A picture KEY.0.jpg is the column jpg_0, the entries of KEY.json are columns, KEY.txt is the
    caption, and any other member is a column of the name of its ending.
    """

    with tarfile.open(path, "r:") as archive:
        for number, members in enumerate(_samples(archive)):
            row: dict[str, Any] = {}
            for member, ending in members if number >= start else ():
                row.update(_member(archive, member, ending.lower()))
            if number >= start:
                yield row


def _rows_of_archive(path: Path) -> int:
    with tarfile.open(path, "r:") as archive:
        return sum(1 for _ in _samples(archive))


def _samples(archive: tarfile.TarFile) -> Iterator[list[tuple[tarfile.TarInfo, str]]]:
    """Yields the members of each sample with their endings; reads headers alone."""

    known, members = None, list[tuple[tarfile.TarInfo, str]]()
    for member in archive:
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if (folder, stem) != known and members:
            yield members
            members = []
        known = folder, stem
        members.append((member, ending))
    if members:
        yield members


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> dict[str, Any]:
    is_text = ending in ("json", "txt") or ending.startswith(("label", "has_label", "caption"))
    if member.size > (_MOST_TEXT if is_text else _MOST_PICTURE):  # zeros take no place in a file
        return {}
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    if ending == "json":
        return _entries(content)  # a row that lacks columns says so by its layout
    if is_text:
        text = content.decode("utf-8", "replace").strip()
        return {"caption" if ending == "txt" else ending: text}
    number, _, kind = ending.partition(".")
    return {f"jpg_{number}" if f".{kind}" in _PICTURES and number.isdigit() else ending: content}


def _of_lines(path: Path, start: int) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file)):
            if number >= start:
                yield _entries(line)


def _lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    while line := file.readline(_MOST_TEXT):  # zeros take no place in a file
        if len(line) == _MOST_TEXT:
            raise ValueError(f"a line must have fewer than {_MOST_TEXT:,} characters")
        yield line


def _entries(line: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _of_list(path: Path, start: int) -> Iterator[Mapping[str, Any]]:
    entries = json.loads(read_regular(path, _MOST_LIST))
    if not isinstance(entries, list):
        raise ValueError("it must hold a list of rows")
    for entry in entries[start:]:
        yield entry if isinstance(entry, dict) else {}


def _of_csv(path: Path, start: int) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for number, row in enumerate(csv.DictReader(_lines(file))):
            if number >= start:
                yield {name: value for name, value in row.items() if isinstance(name, str)}
