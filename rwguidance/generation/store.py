"""Tensors on disk, found by what they were made of.

A folder per origin, named by its hash, holds runs of tensors in files named by their first number.
A run is extended file by file, so an interrupted one goes on where it stopped, and a longer one
begins with a shorter one.

A store saves time and nothing else: where a disk is full or may not be written, a warning says so,
and tensors stay in memory.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..support.files import replacing

__all__ = ["Drawer", "OldStore", "Store"]

_FORMAT = 2
"""Number of the format: 1 told models apart by some of their weights and options."""


class OldStore(UserWarning):
    """A store holds tensors of an older format, which are made anew."""


@dataclass(frozen=True)
class Drawer:
    """The tensors of one origin, in a folder of their own."""

    folder: Path

    def read(self, name: str) -> list[Tensor]:
        """Returns the tensors of a run that are there, in order, up to the first gap, on the CPU.

        Arguments:
            name: Name of the run.

        Raises:
            ValueError: If a file is damaged; says which one to delete.

        Warns:
            RuntimeWarning: If files cannot be read; what was read before them is returned.
        """

        from safetensors import SafetensorError
        from safetensors.torch import load_file

        parts: list[Tensor] = []
        done = 0
        with _spared(self.folder.parent):
            while (path := self._path(name, done)).exists():
                try:
                    parts.append(load_file(path)["values"])
                except (SafetensorError, KeyError) as error:
                    raise ValueError(f"{path} is damaged ({error}): delete it") from None
                done += len(parts[-1])
        return parts

    def append(self, name: str, start: int, values: Tensor) -> None:
        """Adds tensors to a run, atomically, if the disk takes them.

        Arguments:
            name: Name of the run.
            start: Number of the first one.
            values: Tensors from that number on, stacked.

        Warns:
            RuntimeWarning: If they cannot be written.
        """

        from safetensors.torch import save_file

        with _spared(self.folder.parent), replacing(self._path(name, start)) as partial:
            save_file({"values": values.detach().cpu().contiguous()}, partial)

    def _path(self, name: str, start: int) -> Path:
        return self.folder / f"{name}-{start:06d}.safetensors"


@dataclass(frozen=True)
class Store:
    """A folder of drawers, one for each origin.

    Arguments:
        root: The folder; made when needed.
    """

    root: Path | str

    @classmethod
    def default(cls) -> "Store":
        """Returns the user's own store, rwguidance/banks in $XDG_CACHE_HOME or ~/.cache."""

        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(cache) / "rwguidance" / "banks")

    def of(self, origin: Mapping[str, Any]) -> Drawer:
        """Returns the drawer of an origin.

        Arguments:
            origin: Everything that the tensors depend on, in values that JSON can hold.

        Raises:
            ValueError: If the folder holds something of another origin.

        Warns:
            RuntimeWarning: If the folder cannot be made or read, so that the drawer stays empty.
        """

        text = json.dumps({**origin, "format": _FORMAT}, indent=1, sort_keys=True)
        folder = Path(self.root) / hashlib.sha256(text.encode()).hexdigest()[:24]
        label = folder / "origin.json"
        with _spared(Path(self.root)):
            self._say_if_old()
            if not label.exists():
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(label) as partial:
                    partial.write_text(text, encoding="utf-8")
            elif label.read_text(encoding="utf-8") != text:
                raise ValueError(f"{folder} holds draws of another origin: delete it")
        return Drawer(folder)

    def _say_if_old(self) -> None:
        """Warns of tensors of an older format, once, after which the store has a note."""

        root = Path(self.root)
        note = root / "format"
        if note.exists():
            return
        old = any(root.glob("*/origin.json"))
        root.mkdir(parents=True, exist_ok=True)
        with replacing(note) as partial:
            partial.write_text(f"{_FORMAT}\n", encoding="utf-8")
        if old:
            text = (
                f"{root} holds draws of an older version, which told models apart less well: they "
                "are made anew, and the old ones may be deleted"
            )
            warnings.warn(text, OldStore, stacklevel=3)


@contextmanager
def _spared(root: Path) -> Iterator[None]:
    """Warns, in words that are the same for all files of a store, where its disk fails."""

    try:
        yield
    except OSError as error:
        warnings.warn(
            f"{root} cannot keep draws ({error.strerror or error}): they stay in memory, and a "
            "later run makes them again",
            RuntimeWarning,
            stacklevel=4,
        )
