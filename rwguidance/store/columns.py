"""Columns: tensors with an entry for each draw, on the disk, made piece by piece."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..support import checks
from ..support.batches import batches
from ..support.files import flush, remove_abandoned
from ..support.locks import locked
from .manifest import Manifest, missing, overlap
from .shards import Damaged, Shard, joined

__all__ = ["Column"]

_WAIT = 600.0
"""Seconds to wait for another process that changes the same column."""

_MOST_SMALL = 256
"""Number of small shards that are merged, though together they are no large one yet."""


@dataclass(frozen=True)
class Column:
    r"""A tensor with an entry for each draw of a drawer, with shape (N, \*event), of any dtype.

    It may have gaps. Its length is the number of rows before the first one.

    Arguments:
        home: Folder of the drawer.
        name: Name of the column, such as ``x_0`` or ``rewards/pickscore``.
        origin: What the entries depend on beside the draws, such as a fingerprint of the reward, in
            values that JSON can hold.
        shard_bytes: Bytes of entries in one shard, at most; a single entry may have more.
        required: Whether it is an error that the disk fails; if not, entries stay in memory, and a
            warning says so.
    """

    home: Path
    name: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    shard_bytes: int = 2**26
    required: bool = False
    _unsaved: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Key of the column among those of all drawers, 32 hexadecimal digits."""

        text = json.dumps([self.home.name, self.name, self.origin], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Folder of the shards and the manifest."""

        return self.home / f"{re.sub(r'[^A-Za-z0-9_]+', '-', self.name)[:60]}-{self.key[:8]}"

    def __len__(self) -> int:
        parts = self._parts()
        return missing(range(parts[-1].stop + 1), parts)[0].start if parts else 0

    def missing(self, rows: range) -> list[range]:
        """Returns the gaps within rows, in order."""

        return missing(rows, self._parts())

    def read(self, rows: range | None = None) -> Tensor:
        r"""Returns entries, on the CPU, with shape (N, \*event); reads no others into memory.

        Arguments:
            rows: Numbers of the draws, in steps of 1. None is all before the first gap.

        Raises:
            Damaged: If a shard with one of them is damaged; names it.
            OSError: If a shard cannot be read.
            ValueError: If there are no such entries.
        """

        rows = self._chosen(rows)
        while True:
            shards = self._shards()
            for gap in missing(rows, self._parts(shards)):
                raise ValueError(
                    f"column {self.name} in {self.home} must be filled before it is read, but rows "
                    f"{gap.start} to {gap.stop - 1} are not there"
                )
            try:
                return joined(self._pieces(rows, shards), len(rows))
            except (Damaged, FileNotFoundError):
                if self._shards() == shards:  # and not merged by another process meanwhile
                    raise

    def batches(self, size: int, rows: range | None = None) -> Iterator[tuple[range, Tensor]]:
        r"""Yields entries batch by batch, of which one is in memory at a time.

        Arguments:
            size: Number of entries in a batch.
            rows: Numbers of the draws, in steps of 1. None is all before the first gap.

        Yields:
            Numbers of the draws, and their entries, with shape (B, \*event).

        Raises:
            Damaged: If a shard is damaged; names it.
            ValueError: If there are no such entries, or `size` is less than 1.
        """

        size, rows = checks.integer("size", size, 1), self._chosen(rows)
        for some in batches(rows.stop, size, rows.start):
            yield some, self.read(some)

    def append(self, start: int, values: Tensor, durable: bool = True) -> None:
        r"""Adds entries, those of them that are not there; they outlive the process.

        Arguments:
            start: Number of the first draw.
            values: Entries from that number on, with shape (N, \*event).
            durable: Whether to wait for the disk, so that they outlive a loss of power as well. If
                not, small shards wait until :meth:`settle`; one that is lost before is damaged, and
                made again.

        Raises:
            TypeError: If an argument is of the wrong kind, or the dtype not that of the column.
            ValueError: If there are no entries, or they do not have the shape of those there.
            OSError: If they are required on the disk and it fails.

        Warns:
            RuntimeWarning: If the disk fails, and they stay in memory.
        """

        start = checks.integer("start", start, 0)
        checks.instance("values", values, Tensor, "a tensor")
        if values.ndim == 0 or len(values) == 0:
            raise ValueError(f"values must hold N >= 1 entries, got shape {tuple(values.shape)}")
        values = values.detach().cpu()
        with self._spared():
            with self._locked():
                shards = self._shards()
                self._check_alike(values, shards)
                self._write(start, values, shards, durable)
            return
        for gap in self.missing(range(start, start + len(values))):
            self._unsaved[gap.start] = values[gap.start - start : gap.stop - start].clone()

    def fill(
        self,
        n: int,
        make: Callable[[range], Tensor],
        batch_size: int,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Makes the first `n` entries as far as they are not there, as :func:`fill` does.

        Arguments:
            n: Number of entries.
            make: Function from numbers of draws to their entries.
            batch_size: Number of entries that are made at once.
            report: Is told how many of them are done, and out of how many.
        """

        from .filling import Task, fill

        fill([Task(self, n, make, batch_size)], report=report)

    def repair(self, rows: range) -> None:
        """Sets damaged shards with some of the rows aside, so that there are gaps in their place.

        Arguments:
            rows: Numbers of the draws.

        Raises:
            OSError: If the column is required on the disk and it fails.

        Warns:
            RuntimeWarning: For every damaged file: where it is now, and that it is made again.
        """

        with self._spared():
            remove_abandoned(self.folder)
            # The first look takes long: without the lock. What is whole is not written to.
            shards, manifest = self._shards(), self._manifest
            whole = not any(shard.problem(self.folder, self.key) for shard in overlap(shards, rows))
            if whole and manifest.complete and not manifest.others(shards):
                return
            with self._locked():
                self._set_aside(rows)

    def settle(self) -> None:
        """Merges small shards to larger ones, and waits until all is on the disk.

        Raises:
            OSError: If the column is required on the disk and it fails.
        """

        with self._spared(), self._locked():
            shards = self._merged(self._shards())
            for shard in shards:
                if _is_small(shard.bytes, self.shard_bytes):  # large ones have been
                    flush(self.folder / shard.name)
            self._manifest.write(shards, durable=True)

    @property
    def _manifest(self) -> Manifest:
        return Manifest(self.folder, self.key, self.name, self.origin)

    def _chosen(self, rows: range | None) -> range:
        """Returns the rows that were asked for, or all before the first gap; at least one."""

        rows = range(len(self)) if rows is None else rows
        checks.instance("rows", rows, range, "a range of numbers of draws, or None")
        if not rows:
            raise ValueError(f"column {self.name} in {self.home} must hold rows, got {rows}")
        if rows.start < 0 or rows.step != 1:
            raise ValueError(f"rows must count up from 0 or more in steps of 1, got {rows}")
        return rows

    def _shards(self) -> list[Shard]:
        with self._spared():
            return self._manifest.shards()
        return []

    def _parts(self, shards: Sequence[Shard] | None = None) -> list[range]:
        """Returns the numbers of the rows that are there, in order."""

        saved = [shard.rows for shard in (self._shards() if shards is None else shards)]
        unsaved = [range(start, start + len(rows)) for start, rows in self._unsaved.items()]
        return sorted([*saved, *unsaved], key=lambda part: part.start)

    def _pieces(self, rows: range, shards: Sequence[Shard]) -> Iterator[Tensor]:
        """Yields rows that are all there, in order, shard by shard."""

        found = {shard.start: shard for shard in shards}
        for part in self._parts(shards):
            some = range(max(part.start, rows.start), min(part.stop, rows.stop))
            if not some:
                continue
            if part.start in found:
                yield found[part.start].read(self.folder, self.key, some)
            else:
                unsaved = self._unsaved[part.start]
                yield unsaved[some.start - part.start : some.stop - part.start].clone()

    def _check_alike(self, values: Tensor, shards: Sequence[Shard]) -> None:
        """Raises where entries do not have the dtype and shape of those that are there."""

        for shard in shards:
            try:
                known = shard.read(self.folder, self.key, range(shard.start, shard.start))
            except Damaged:
                continue
            if known.dtype != values.dtype:
                raise TypeError(
                    f"values must have the dtype of the column, {known.dtype}, got {values.dtype}"
                )
            if known.shape[1:] != values.shape[1:]:
                raise ValueError(
                    f"values must be entries of shape {tuple(known.shape[1:])}, as those in the "
                    f"column are, got {tuple(values.shape[1:])}"
                )
            return

    def _write(self, start: int, values: Tensor, shards: list[Shard], durable: bool) -> None:
        """Writes those entries that are not there to new shards, beside these."""

        size = max(1, self.shard_bytes // max(1, values[0].nbytes))
        for gap in missing(range(start, start + len(values)), self._parts(shards)):
            for first in range(gap.start, gap.stop, size):
                part = values[first - start : min(first + size, gap.stop) - start]
                shards.append(Shard.write(self.folder, self.key, first, part, durable))
                if not durable and not _is_small(shards[-1].bytes, self.shard_bytes):
                    flush(self.folder / shards[-1].name)  # large ones are seldom, small ones wait
        self._manifest.write(shards)
        small = [shard.bytes for shard in shards if _is_small(shard.bytes, self.shard_bytes)]
        if sum(small) >= self.shard_bytes or len(small) >= _MOST_SMALL:
            self._merged(sorted(shards))

    def _merged(self, shards: list[Shard]) -> list[Shard]:
        """Merges small shards; returns all that there are then."""

        for group in _groups(shards, self.shard_bytes):
            parts = (shard.read(self.folder, self.key, shard.rows) for shard in group)
            try:
                values = joined(parts, group[-1].stop - group[0].start)
            except Damaged:  # is made again when the column is filled
                continue
            merged = Shard.write(self.folder, self.key, group[0].start, values)
            shards = [merged, *(shard for shard in shards if shard not in group)]
            self._manifest.write(shards)
            for shard in group:  # only now: who is killed before loses nothing
                with suppress(OSError):
                    (self.folder / shard.name).unlink()
        return shards

    def _set_aside(self, rows: range) -> None:
        manifest, key = self._manifest, self.key
        shards = manifest.shards()
        problems = {shard: shard.problem(self.folder, key) for shard in overlap(shards, rows)}
        left = [shard for shard in shards if not problems.get(shard)]
        for other in manifest.others(shards):
            if overlap(left, other.rows):  # parts that were merged, by a process killed just then
                with suppress(PermissionError):  # Windows removes none that another process reads
                    (self.folder / other.name).unlink()
            else:
                problems[other] = other.problem(self.folder, key)
        for shard, problem in problems.items():
            if problem:
                _set_file_aside(self.folder / shard.name, problem)
        if manifest.damaged:
            text = f"{manifest.path} is damaged: it is made anew from the shards beside it"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        if left != shards or not manifest.complete:
            manifest.write(left)

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder, _WAIT)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Warns, in words that are the same for all files of a store, where its disk fails."""

        try:
            yield
        except OSError as error:
            if self.required:
                raise
            warnings.warn(
                f"{self.home.parent} cannot keep draws ({error.strerror or error}): they stay in "
                "memory, and a later run makes them again; choose another folder with "
                "Store(folder) (on the command line, --cache)",
                RuntimeWarning,
                stacklevel=2,
            )


def _is_small(size: int, most: int) -> bool:
    return 2 * size <= most


def _groups(shards: Sequence[Shard], most: int) -> list[list[Shard]]:
    """Returns small shards in a row that together make one of at most so many bytes.

    Larger ones are left alone, lest what grows little by little is written over and over.
    """

    groups: list[list[Shard]] = [[]]
    for shard in shards:
        group = groups[-1]
        fits = sum(part.bytes for part in group) + shard.bytes <= most
        if not (group and group[-1].stop == shard.start and fits):
            group = []
            groups.append(group)
        if _is_small(shard.bytes, most):
            group.append(shard)
    return [group for group in groups if len(group) > 1]


def _set_file_aside(path: Path, problem: str) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    moved = ""
    with suppress(FileNotFoundError):
        path.replace(aside)
        moved = f"set aside as {aside.name}, and "
    warnings.warn(f"{path} is damaged ({problem}): {moved}made again", RuntimeWarning, stacklevel=2)
