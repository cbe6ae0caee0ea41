"""Stores and their drawers: draws on disk, found by what they were made of."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bank import Bank
from ..support import checks
from ..support.files import naming, own_file, read_regular, remove_abandoned, replacing
from ..support.locks import remove_released
from .columns import Column
from .manifest import FORMAT, Manifest

__all__ = ["Drawer", "OldStore", "Store"]

_LABEL = "origin.json"


class OldStore(UserWarning):
    """A store holds draws of an older format, which are made anew."""


@dataclass(frozen=True)
class Drawer:
    """The draws of one origin: a table with a row per draw and a column per thing known of them.

    Arguments:
        folder: Folder of the columns.
        origin: Everything that the draws depend on, in values that JSON can hold.
        shard_bytes: Bytes of entries in one shard, at most.
        required: Whether it is an error that the disk fails.
    """

    folder: Path
    origin: Mapping[str, Any]
    shard_bytes: int = 2**26
    required: bool = False

    def column(self, name: str, origin: Mapping[str, Any] | None = None) -> Column:
        """Returns a column, which may be empty as yet.

        Arguments:
            name: Its name: ``x_0``, ``log_importance``, ``rewards/NAME``, ``embeddings/NAME``.
            origin: What its entries depend on beside the draws, such as a fingerprint of the
                reward, in values that JSON can hold. Another origin is another column.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If the name is empty.
        """

        checks.instance("name", name, str, "a name such as x_0")
        if not name:
            raise ValueError("name must not be empty")
        _text("origin", origin or {})
        return Column(self.folder, name, dict(origin or {}), self.shard_bytes, self.required)

    def columns(self) -> list[Column]:
        """Returns the columns on the disk, by name, of those whose manifest is not damaged."""

        found = [Manifest.described(path.parent) for path in self.folder.glob("*/manifest.json")]
        columns = [self.column(*about) for about in found if about is not None]
        return sorted(columns, key=lambda column: (column.name, column.key))

    def append(self, name: str, start: int, values: Tensor) -> None:
        """Adds entries to a column without an origin of its own, as :meth:`Column.append` does."""

        self.column(name).append(start, values)

    def read(self, name: str, rows: range | None = None) -> Tensor:
        """Returns entries of a column without an origin of its own, as :meth:`Column.read` does."""

        return self.column(name).read(rows)

    def bank(self, n: int | None = None, *rewards: Column) -> Bank:
        """Returns the first draws as a bank, in memory.

        Its condition is the ``prompt`` of the origin, and its origin that of the drawer and of the
        rewards.

        Arguments:
            n: Number of draws. None is all that there are.
            rewards: Columns of their rewards, if wanted.

        Raises:
            Damaged: If a shard is damaged; names it.
            ValueError: If there are not so many draws, or not all have these rewards.
        """

        x_0, log_importance = self.column("x_0"), self.column("log_importance")
        rows = range(len(x_0) if n is None else checks.integer("n", n, 1))
        values = [column.read(rows) for column in rewards]
        return Bank(
            x_0.read(rows),
            [self.origin["prompt"]] * len(rows) if "prompt" in self.origin else None,
            None if not values else values[0] if len(values) == 1 else torch.stack(values, 1),
            {**self.origin, **{key: v for c in rewards for key, v in c.origin.items()}},
            log_importance.read(rows) if len(log_importance) else None,
        )


@dataclass(frozen=True)
class Store:
    """A folder of drawers, one for each origin.

    Arguments:
        root: The folder; made when needed.
        shard_bytes: Bytes of entries in one shard, at most; a single entry may have more. To write
            takes about three times as much memory.
        required: Whether it is an error that the disk is full or fails. If not, a store saves time
            and nothing else: draws stay in memory, and a warning says so.
    """

    root: Path | str
    shard_bytes: int = 2**26
    required: bool = False

    def __post_init__(self) -> None:
        checks.instance("root", self.root, (str, os.PathLike), "a path")
        checks.integer("shard_bytes", self.shard_bytes, 1)
        checks.flag("required", self.required)

    @classmethod
    def default(cls) -> "Store":
        """Returns the user's own store, rwguidance/banks in $XDG_CACHE_HOME or ~/.cache.

        Raises:
            ValueError: If neither is known.
        """

        try:
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:
            raise ValueError(
                "there is no home folder to keep draws in: name one with Store(folder) (on the "
                "command line, --cache)"
            ) from None
        return cls(Path(cache) / "rwguidance" / "banks")

    def of(self, origin: Mapping[str, Any]) -> Drawer:
        """Returns the drawer of an origin.

        Arguments:
            origin: Everything that the draws depend on, in values that JSON can hold; the key
                ``prompt`` is their condition.

        Raises:
            TypeError: If JSON cannot hold the origin.
            OSError: If the disk is required and fails.

        Warns:
            RuntimeWarning: If the drawer's label was damaged, and is written anew.
            OldStore: If the store has draws of an older format; once.
        """

        text = _text("origin", origin)
        root = checks.path("root", self.root)
        folder = root / _name(text)
        try:
            _say_if_old(root)
            _label(folder / _LABEL, text)
            for column in folder.glob("*/"):
                remove_released(column)
        except OSError:  # whoever adds draws will say so
            if self.required:
                raise
        return self._drawer(folder, text)

    def drawers(self, **origin: Any) -> Iterator[Drawer]:
        """Yields the drawers on the disk with these entries in their origins, in a fixed order.

        Arguments:
            origin: Entries, such as ``seed=0``.

        Raises:
            OSError: If the folder cannot be read.
        """

        for path in sorted(checks.path("root", self.root).glob(f"*/{_LABEL}")):
            text = read_regular(path).decode("utf-8", "replace")
            if _name(text) == path.parent.name:  # and not damaged
                drawer = self._drawer(path.parent, text)
                if all(drawer.origin.get(key) == value for key, value in origin.items()):
                    yield drawer

    def _drawer(self, folder: Path, text: str) -> Drawer:
        origin = {key: value for key, value in json.loads(text).items() if key != "format"}
        return Drawer(folder, origin, self.shard_bytes, self.required)


def _say_if_old(root: Path) -> None:
    """Warns of draws of an older format, once, after which the store has a note."""

    note, text = root / "format", f"{FORMAT}\n"
    if note.is_file() and note.read_bytes() == text.encode():
        return
    old = any(root.glob(f"*/{_LABEL}"))
    root.mkdir(parents=True, exist_ok=True)
    with naming(note), open(note, "wb", opener=own_file) as file:
        file.write(text.encode())  # if half of it is written, it is said again
    if old:
        warnings.warn(
            f"{root} holds draws of an older version: they are made anew, and the old ones may be "
            "deleted",
            OldStore,
            stacklevel=3,
        )


def _label(path: Path, text: str) -> None:
    """Writes the label of a drawer, unless it is there."""

    remove_abandoned(path.parent)
    if path.exists():
        with suppress(OSError):
            if read_regular(path) == text.encode():
                return
        warnings.warn(f"{path} is damaged: it is written anew", RuntimeWarning, stacklevel=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


def _text(name: str, origin: Mapping[str, Any]) -> str:
    checks.instance(name, origin, Mapping, "a mapping")
    try:
        return json.dumps({**origin, "format": FORMAT}, indent=1, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold what JSON can, but {error}") from None


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
