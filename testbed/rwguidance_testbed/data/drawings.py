"""Drawings, what is known of each, and their pixels."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwguidance.support.files import replacing

from .roles import ROLES

__all__ = ["SIZE", "Drawing", "Drawings", "default_folder", "fingerprint"]

SIZE = 80
"""Pixels along a side of a rendered drawing, the drawing touching two opposite sides."""


@dataclass(frozen=True)
class Drawing:
    """One drawing and what is known of it.

    Arguments:
        name: What it shows, as the Unicode standard calls it: "red apple".
        style: One of eight, as named in ``sources.json``.
        group: The larger of the standard's two classes: "food-drink".
        kind: The smaller one: "food-fruit".
        tags: Words that go with the name.
        role: Who may see it, one of `ROLES`.
        encoded: Whether the autoencoder learns from it, too.
    """

    name: str
    style: str
    group: str
    kind: str
    tags: tuple[str, ...]
    role: str
    encoded: bool = False


class Drawings:
    """Drawings with their pixels.

    Arguments:
        entries: What the drawings are.
        pixels: Red, green, blue and alpha, colours premultiplied by alpha, (N, 4, 80, 80), uint8.
    """

    depends_on = ("entries", "pixels")

    def __init__(self, entries: Sequence[Drawing], pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.shape != (len(entries), 4, SIZE, SIZE):
            raise ValueError(
                f"pixels must be of type uint8 and shape {(len(entries), 4, SIZE, SIZE)}, "
                f"got {pixels.dtype} and {tuple(pixels.shape)}"
            )
        self.entries = tuple(entries)
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.entries)

    def where(
        self,
        role: str | None = None,
        names: Iterable[str] | None = None,
        encoded: bool | None = None,
    ) -> "Drawings":
        """Those of a role, of some names, that the autoencoder learns from or not, or all of it.

        Raises:
            ValueError: If the role is unknown, or nothing is left.
        """

        if role not in (None, *ROLES):
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
        wanted = None if names is None else set(names)
        index = [
            i
            for i, entry in enumerate(self.entries)
            if role in (None, entry.role)
            and (wanted is None or entry.name in wanted)
            and encoded in (None, entry.encoded)
        ]
        if not index:
            raise ValueError(f"there is no drawing of role {role!r} with one of the names")
        return Drawings([self.entries[i] for i in index], self.pixels[index])

    @classmethod
    def load(cls, folder: Path | None = None) -> "Drawings":
        """What :func:`build` wrote.

        Raises:
            FileNotFoundError: If nothing was built there; says how to.
        """

        from safetensors.torch import load_file

        folder = folder or default_folder()
        if not (folder / "drawings.json").exists():
            raise FileNotFoundError(
                f"{folder} has no drawings.json; "
                f"build the drawings with: python -m rwguidance_testbed.data --data {folder}"
            )
        table = json.loads((folder / "drawings.json").read_text(encoding="utf-8"))
        entries = [Drawing(**{**row, "tags": tuple(row["tags"])}) for row in table]
        return cls(entries, load_file(folder / "drawings.safetensors")["pixels"])

    def save(self, folder: Path) -> None:
        """Writes ``drawings.safetensors`` and ``drawings.json``."""

        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "drawings.safetensors") as path:
            save_file({"pixels": self.pixels}, path)
        with replacing(folder / "drawings.json") as path:
            path.write_text(json.dumps([vars(e) for e in self.entries]), encoding="utf-8")


def default_folder() -> Path:
    """Where drawings are built and looked for, unless told otherwise: ``out/testbed``."""

    return Path("out") / "testbed"


def fingerprint(drawings: Drawings) -> str:
    """The SHA-256 of all pixels and of what the drawings are."""

    digest = hashlib.sha256(json.dumps([vars(e) for e in drawings.entries]).encode())
    digest.update(drawings.pixels.numpy().tobytes())
    return digest.hexdigest()
