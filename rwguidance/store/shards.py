"""Shards: files that hold some rows of a column, and can tell whether they still do.

A shard is never changed. Its name states the rows and the beginning of the SHA-256 of the whole
file, so that a shard is known for what it is without any other file.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..support.files import replacing

__all__ = ["Damaged", "Shard", "joined"]

_NAME = re.compile(r"(\d{9,})-(\d{9,})-([0-9a-f]{16})\.safetensors")


class Damaged(ValueError):
    """A shard is not what was written: damaged, lost, or another file under its name."""


@dataclass(frozen=True, order=True)
class Shard:
    """Rows of a column, in a file.

    Arguments:
        start: Number of the first row.
        stop: Number of the last row, plus 1.
        sha256: Digest of the file; the first 16 of 64 digits, where it is known from its name.
        bytes: Size of the file.
    """

    start: int
    stop: int
    sha256: str
    bytes: int

    @classmethod
    def write(
        cls, folder: Path, owner: str, start: int, values: Tensor, durable: bool = True
    ) -> "Shard":
        r"""Writes rows to a new shard.

        Arguments:
            folder: Folder of the column, which exists.
            owner: Key of the column.
            start: Number of the first row.
            values: The rows, with shape (N, \*event).
            durable: Whether to wait for the disk. Where it is not waited for, a loss of power may
                leave half of the file under its name, which its digest then tells.

        Raises:
            OSError: If the disk is full or cannot be written to.
        """

        from safetensors.torch import save

        # One entry: the order of several in the file is left to chance.
        label = {"rwguidance": json.dumps([owner, start])}
        data = save({"values": values.cpu().contiguous()}, label)
        shard = cls(start, start + len(values), hashlib.sha256(data).hexdigest(), len(data))
        with replacing(folder / shard.name, durable) as partial:
            partial.write_bytes(data)
        return shard

    @classmethod
    def named(cls, path: Path) -> "Shard | None":
        """Returns the shard that a file is by its name; None if it is something else, or gone."""

        match = _NAME.fullmatch(path.name)
        if match is None or int(match[1]) >= int(match[2]):
            return None
        try:
            return cls(int(match[1]), int(match[2]), match[3], path.stat().st_size)
        except FileNotFoundError:
            return None

    @classmethod
    def listed(cls, entry: Any) -> "Shard":
        """Returns the shard of an entry of a manifest, as :attr:`entry` is.

        Raises:
            LookupError: If the entry lacks something.
            TypeError: If it holds something else.
            ValueError: If it is no shard, such as one with a name elsewhere.
        """

        shard = cls(*(entry[name] for name in ("start", "stop", "sha256", "bytes")))
        if not 0 <= shard.start < shard.stop or re.fullmatch("[0-9a-f]{64}", shard.sha256) is None:
            raise ValueError(f"no shard is {entry}")
        return shard

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of a manifest."""

        return asdict(self)

    @property
    def name(self) -> str:
        """Name of the file."""

        return f"{self.start:09d}-{self.stop:09d}-{self.sha256[:16]}.safetensors"

    def completed(self, folder: Path) -> "Shard":
        """Returns the shard with the whole digest of its file, for a manifest."""

        return replace(self, sha256=_described(folder / self.name).sha256)

    @property
    def rows(self) -> range:
        """Numbers of the rows."""

        return range(self.start, self.stop)

    def problem(self, folder: Path, owner: str) -> str:
        """Returns what is wrong with the file, "" if nothing; it is read once in a process.

        A file that has changed since, by its size and time, is read again.

        Arguments:
            folder: Folder of the column.
            owner: Key of the column.

        Raises:
            OSError: If it cannot be read.
        """

        try:
            found = _described(folder / self.name)
        except FileNotFoundError:
            return "it is missing"
        if not found.sha256.startswith(self.sha256):
            return "its SHA-256 is not that of what was written"
        if found.label != json.dumps([owner, self.start]) or found.rows != len(self.rows):
            return "it is of another column"
        return ""

    def read(self, folder: Path, owner: str, rows: range) -> Tensor:
        r"""Returns some rows, on the CPU, with shape (N, \*event); reads no others.

        Arguments:
            folder: Folder of the column.
            owner: Key of the column.
            rows: Numbers of the rows, all of them in the shard.

        Raises:
            Damaged: If it is not what was written; names it.
            OSError: If it cannot be read.
        """

        from safetensors import safe_open

        problem = self.problem(folder, owner)
        if problem:
            raise Damaged(
                f"{folder / self.name} is damaged ({problem}): filling its column again sets it "
                "aside and makes its rows anew"
            )
        with safe_open(folder / self.name, framework="pt") as file:
            part = file.get_slice("values")[rows.start - self.start : rows.stop - self.start]
        return part.clone()  # not a view of a file that others may remove


def joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Returns `rows` rows in one tensor, of parts that are in memory one at a time."""

    whole: Tensor | None = None
    done = 0
    for part in parts:
        if whole is None:
            whole = part if len(part) == rows else part.new_empty((rows, *part.shape[1:]))
        if part is not whole:
            whole[done : done + len(part)] = part
        done += len(part)
    assert whole is not None
    assert done == rows
    return whole


class _Description(NamedTuple):
    """A file's SHA-256, and what it states: its label and the number of its rows."""

    sha256: str
    label: str
    rows: int


def _described(path: Path) -> _Description:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        return _Description("", "", 0)
    return _read_description(os.fspath(path), about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=65536)
def _read_description(path: str, *_: int) -> _Description:
    from safetensors import SafetensorError, safe_open

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    try:
        with safe_open(path, framework="pt") as opened:
            label = (opened.metadata() or {}).get("rwguidance", "")
            shape = opened.get_slice("values").get_shape()
    except SafetensorError:
        label, shape = "", []
    return _Description(digest.hexdigest(), label, shape[0] if shape else 0)
