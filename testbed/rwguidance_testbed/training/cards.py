"""Cards and figures of trained models."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

from rwguidance.support.files import replacing

__all__ = ["write_card", "write_figures"]

_CREDITS = "Credits and licenses are in `rwguidance_testbed/NOTICE`."


def write_card(
    folder: Path,
    about: str,
    data: str,
    training: str,
    command: str,
    quality: str,
    figures: Mapping[str, float],
) -> None:
    """Writes the card of a model, ``README.md``, and its figures, ``figures.json``.

    Arguments:
        folder: Folder of the model, whose name is that of the model.
        about: Description of the model; paragraphs, and code if indented.
        data: Description of the data that it learned from.
        training: Description of the training.
        command: Command that made it, after ``python -m rwguidance_testbed.``.
        quality: Description of the figures.
        figures: Figures by name.
    """

    shown = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:g}"
    rows = [f"| {key.replace('_', ' ')} | {shown(value)} |" for key, value in figures.items()]
    parts = [
        "---\nlicense: mit\n---",
        f"# {folder.name}",
        *map(_filled, about.split("\n\n")),
        _filled(f"**Data.** {data} {_CREDITS}"),
        _filled(f"**Training.** {training}"),
        _command(f"python -m rwguidance_testbed.{command}"),
        _filled(f"**Quality.** {quality}"),
        "\n".join(["| figure | value |", "|---|---|", *rows]),
    ]
    write_figures(folder, figures)
    with replacing(folder / "README.md") as partial:
        partial.write_bytes(("\n\n".join(parts) + "\n").encode())


def write_figures(folder: Path, figures: Mapping[str, float]) -> None:
    """Writes the figures of a model, ``figures.json``, and makes its folder if it is not there."""

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "figures.json") as partial:
        partial.write_bytes(json.dumps(dict(figures), indent=2).encode())


def _filled(paragraph: str) -> str:
    if paragraph.startswith("    "):
        return paragraph
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)


def _command(line: str) -> str:
    """Returns a command, indented, its lines broken between options."""

    words = line.replace(" --", "\n--").split("\n")
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > 90:
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}"
    return textwrap.indent(" \\\n".join(lines), "    ")
