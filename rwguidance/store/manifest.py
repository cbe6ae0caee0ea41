"""The manifest of a column: which shards hold its rows, with their digests."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..support.files import read_regular, replacing
from .shards import Shard

__all__ = ["FORMAT", "Manifest", "missing", "overlap"]

FORMAT = 3
"""Number of the format of stores; drawers of another one have another name."""

_FILE = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """The manifest of a column, in a file that is replaced whole.

    It can be spared: what it says stands in the names of the shards as well. A shard that it lacks,
    as when a process was killed just before, counts as if it had it.

    Arguments:
        folder: Folder of the column.
        owner: Key of the column, which its shards have in them.
        name: Name of the column, for who reads the file.
        origin: Origin of the column.
    """

    folder: Path
    owner: str
    name: str
    origin: Mapping[str, Any]

    @classmethod
    def described(cls, folder: Path) -> tuple[str, dict[str, Any]] | None:
        """Returns the name and origin of the column in a folder, by its manifest.

        Returns:
            None if there is none, or a damaged one.

        Raises:
            OSError: If it cannot be read.
        """

        content = _content(folder / _FILE)
        return None if content is None else (content.name, content.origin)

    @property
    def path(self) -> Path:
        """The file."""

        return self.folder / _FILE

    @property
    def damaged(self) -> bool:
        """Whether it is there, and not what was written for this column."""

        return self.path.exists() and self._listed() is None

    @property
    def complete(self) -> bool:
        """Whether it lists all shards that are there, of which there may be none."""

        return not self.damaged and (self._listed() or []) == self.shards()

    def shards(self) -> list[Shard]:
        """Returns the shards, in order; no two of them have a row in common.

        Raises:
            OSError: If it cannot be read.
        """

        found = self._listed() or []
        # Where a merged shard lies beside its parts, the longer one is as good, and one file.
        for other in sorted(self.others(found), key=lambda shard: (shard.start, -shard.stop)):
            if not overlap(found, other.rows) and not other.problem(self.folder, self.owner):
                found.append(other.completed(self.folder))
        return sorted(found)

    def others(self, shards: Sequence[Shard]) -> list[Shard]:
        """Returns what the folder has of shards, by their names, besides these."""

        known = {shard.name for shard in shards}
        paths = [path for path in self.folder.glob("*.safetensors") if path.name not in known]
        return [shard for path in paths if (shard := Shard.named(path)) is not None]

    def write(self, shards: Sequence[Shard], durable: bool = False) -> None:
        """Writes it anew, with these shards.

        Arguments:
            shards: The shards, in any order.
            durable: Whether to wait for the disk. Where it is not waited for, a loss of power
                leaves an older manifest, or a damaged one: the shards' names say as much.

        Raises:
            OSError: If the disk is full or cannot be written to.
        """

        entries = [shard.entry for shard in sorted(shards)]
        content = {
            "format": FORMAT,
            "column": self.name,
            "origin": self.origin,
            "owner": self.owner,
            "shards": entries,
        }
        text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
        with replacing(self.path, durable) as partial:
            partial.write_bytes(text.encode())

    def _listed(self) -> list[Shard] | None:
        """Returns the shards that it lists; None if it is absent, damaged or another column's."""

        content = _content(self.path)
        return content.shards if content is not None and content.owner == self.owner else None


def missing(rows: range, parts: Sequence[range]) -> list[range]:
    """Returns the gaps between parts, within rows.

    Arguments:
        rows: Numbers of the rows.
        parts: Numbers of the rows that are there, in order and without overlap.
    """

    gaps, start = [], rows.start
    for part in parts:
        if start < min(part.start, rows.stop):
            gaps.append(range(start, min(part.start, rows.stop)))
        start = max(start, part.stop)
    return [*gaps, range(start, rows.stop)] if start < rows.stop else gaps


def overlap(shards: Sequence[Shard], rows: range) -> list[Shard]:
    """Returns the shards that have some of the rows."""

    return [shard for shard in shards if shard.start < rows.stop and rows.start < shard.stop]


class _Content(NamedTuple):
    """What a manifest says."""

    owner: str
    name: str
    origin: dict[str, Any]
    shards: list[Shard]


def _content(path: Path) -> _Content | None:
    """Returns what a manifest says; None if there is none, or not what was written."""

    try:
        content = dict(json.loads(read_regular(path)))
        if content.pop("sha256") != _digest(content):
            return None
        shards = [Shard.listed(entry) for entry in content["shards"]]
        name, origin = str(content["column"]), dict(content["origin"])
    except (FileNotFoundError, LookupError, TypeError, ValueError, RecursionError):
        return None
    return _Content(str(content["owner"]), name, origin, shards)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
