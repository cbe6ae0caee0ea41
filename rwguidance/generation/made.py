"""What a generation has left in its folder: pictures, and the prompt and the kind of each.

A picture says in its metadata what it is. Where it has lost them, as programs that compress
pictures drop them, the table ``results.csv`` says it. Sheets are no pictures of the model.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..support.files import read_regular
from ..support.records import read_records
from .pictures import read_facts
from .results import KINDS

__all__ = ["Made", "is_generated", "is_picture", "read_made"]

_SHEET = re.compile(r"sheet(-\d+)?\.png")


class Made(NamedTuple):
    """A picture of a generation.

    Arguments:
        prompt: Its prompt.
        kind: Whether it is the "base" picture of a pair or the "aligned" one.
    """

    prompt: str
    kind: str


def is_generated(folder: Path) -> bool:
    """Returns whether a folder is one that ``rwguidance generate`` wrote, by its settings."""

    return "rwguidance" in _settings(folder)


def is_picture(name: str) -> bool:
    """Returns whether an image in such a folder is a picture, and no sheet and not half written."""

    *folders, last = name.split("/")
    if any(folder.endswith(".partial") for folder in folders):
        return False
    return bool(folders) or not _SHEET.fullmatch(last)


def read_made(folder: Path, names: Iterable[str]) -> dict[str, Made | None]:
    """Returns the prompt and the kind of pictures by their paths; None where they are not known.

    Pictures of other settings than those of the folder are left out: an earlier run made them.
    Pixels are not read.

    Arguments:
        folder: The folder of the generation.
        names: Paths of the pictures in it, with slashes.

    Raises:
        ValueError: If the table has another format.
    """

    settings, listed = _settings(folder), _listed(folder / "results.csv")
    found: dict[str, Made | None] = {}
    for name in names:
        facts = read_facts(folder / name, whole=False) or {}
        if facts.get("kind") not in KINDS or not isinstance(facts.get("prompt"), str):
            found[name] = listed.get(name)
        elif not settings or facts.get("settings") == settings:
            found[name] = Made(facts["prompt"], facts["kind"])
    return found


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_regular(folder / "settings.json")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _listed(table: Path) -> dict[str, Made]:
    if not table.is_file():
        return {}
    records = read_records(table, "prompt", *KINDS, spaces=True)
    # Prompts as they are, white space included; a prompt that failed has no pictures.
    return {r.values[kind]: Made(r.values["prompt"], kind) for r in records for kind in KINDS}
