"""The file of a trained network, read with its figures."""

import json
from pathlib import Path
from typing import Any

from rwguidance.networks import LatentShift, load

__all__ = ["FILE", "read"]

FILE = "network.safetensors"
"""Name of the file of the network, in its folder."""


def read(folder: Path) -> tuple[LatentShift, dict[str, float]]:
    """Returns the network in a folder, in single precision, and its figures, beta among them.

    Raises:
        FileNotFoundError: If there is no network.
    """

    network: Any = load(folder / FILE)
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return network.float().requires_grad_(False).eval(), figures
