"""The two tables that come with the package: the sources of the drawings, and the names."""

import json
from pathlib import Path
from typing import Any

__all__ = ["load_names", "sources"]


def sources() -> dict[str, Any]:
    """Returns the packages with their hashes, licenses and credits, from ``sources.json``."""

    path = Path(__file__).with_name("sources.json")
    return json.loads(path.read_text(encoding="utf-8"))


def load_names() -> dict[str, list[str]]:
    """Returns the names that generators learn to draw, "train", and those held out, "held_out".

    Every word of a name that is held out occurs in a name that is learned.
    """

    path = Path(__file__).with_name("names.json")
    return json.loads(path.read_text(encoding="utf-8"))
