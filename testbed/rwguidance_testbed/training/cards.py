"""Cards of trained models: what they are, what they learned from, by what command, how well."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

from rwguidance.support.files import replacing

__all__ = ["write_card"]

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
    """Writes ``README.md`` and ``figures.json``.

    Arguments:
        folder: Of the model, whose name is that of the model.
        about: What it is; paragraphs, and code if indented.
        data: What it learned from.
        training: How.
        command: What made it, after ``python -m rwguidance_testbed.``.
        quality: What the figures are.
        figures: By name.
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
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("figures.json", json.dumps(dict(figures), indent=2)),
        ("README.md", "\n\n".join(parts) + "\n"),
    ):
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def _filled(paragraph: str) -> str:
    if paragraph.startswith("    "):
        return paragraph
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)


def _command(line: str) -> str:
    """An indented command, its lines broken between options."""

    words = line.replace(" --", "\n--").split("\n")
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > 90:
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}"
    return textwrap.indent(" \\\n".join(lines), "    ")
