"""The two tables that come with the package: where drawings are from, and which names are asked."""

import json
from pathlib import Path
from typing import Any

__all__ = ["load_names", "sources"]


def sources() -> dict[str, Any]:
    """The packages, their hashes, licences and credits: the content of ``sources.json``."""

    path = Path(__file__).with_name("sources.json")
    return json.loads(path.read_text(encoding="utf-8"))


def load_names() -> dict[str, list[str]]:
    """The names that the generators learn to draw, "train", and those kept from them, "held_out".

    Every word of a name that is kept occurs in a name that is learned.
    """

    path = Path(__file__).with_name("names.json")
    return json.loads(path.read_text(encoding="utf-8"))
