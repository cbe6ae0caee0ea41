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

__all__ = ["SIZE", "Drawing", "Drawings", "fingerprint"]

SIZE = 80
"""Pixels along a side of a rasterized drawing, which touches two opposite sides."""


@dataclass(frozen=True)
class Drawing:
    """The name, style, classes and role of a drawing.

    Arguments:
        name: Name of the thing that it shows, as in the Unicode standard: "red apple".
        style: Style, one of eight, as named in ``sources.json``.
        group: Larger one of the standard's two classes: "food-drink".
        kind: Smaller one: "food-fruit".
        tags: Words that go with the name.
        role: Part of the test bed that may see it, one of `ROLES`.
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
        entries: The drawings without pixels.
        pixels: Red, green, blue and alpha, colors premultiplied by alpha, of type uint8 and with
            shape (N, 4, 80, 80).

    Raises:
        ValueError: If the pixels have another type or shape.
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
        """Returns the drawings that meet all conditions.

        Arguments:
            role: Role that they have; None for any.
            names: Names of which they have one; None for any.
            encoded: Whether the autoencoder learns from them; None for both.

        Raises:
            ValueError: If the role is unknown, or no drawing is left.
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
    def load(cls, folder: Path) -> "Drawings":
        """Returns the drawings that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there are none; says how to build them.
        """

        from safetensors.torch import load_file

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
            path.write_bytes(json.dumps([vars(e) for e in self.entries]).encode())


def fingerprint(drawings: Drawings) -> str:
    """Returns the SHA-256 of drawings and of their pixels."""

    digest = hashlib.sha256(json.dumps([vars(e) for e in drawings.entries]).encode())
    digest.update(drawings.pixels.numpy().tobytes())
    return digest.hexdigest()
