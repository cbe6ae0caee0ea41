"""Writes docs/commands.md, the reference of the command line: ``python docs/commands.py``.

Everything on the page is what the commands say of themselves with ``--help``.
"""

import inspect
import re
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

from typer.models import ArgumentInfo

from rwguidance.app.cli import app

PAGE = Path(__file__).with_name("commands.md")

_HEAD = """# The command line

This page is made from the commands, by `python docs/commands.py`: what it says, `--help` says, too.
`python -m rwguidance` is the same command. What follows is in the order of `rwguidance --help`."""


def written():
    """The page as it should be."""

    parts = [_HEAD]
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        parts += [f"## `rwguidance {name}`", _prose(inspect.getdoc(command.callback))]
        parts += _tables(inspect.signature(command.callback).parameters.values())
    return "\n\n".join(parts) + "\n"


def _prose(text):
    """A text with the options in it as code, lest two dashes become one."""

    return re.sub(r"(?<![`\w-])--[a-z][\w-]*", lambda option: f"`{option[0]}`", text)


def _tables(parameters):
    """A table of options for each of their panels."""

    panels = {}
    for parameter in parameters:
        kind, about = get_args(parameter.annotation)
        panels.setdefault(about.rich_help_panel or "", []).append(_row(parameter, kind, about))
    for title, rows in panels.items():
        head = "| option | what it is | default |\n| --- | --- | --- |"
        yield (f"{title}:\n\n" if title else "") + "\n".join([head, *rows])


def _row(parameter, kind, about):
    name = parameter.name.replace("_", "-")
    shown = f"--{name} {_value(kind, about)}".rstrip()
    if isinstance(about, ArgumentInfo):
        shown = about.metavar or name.upper()
    elif about.param_decls:
        shown = " ".join(about.param_decls)
    meaning = _prose(" ".join((about.help or "").split()))
    cells = (f"`{shown}`", meaning, _default(parameter.default))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _value(kind, about):
    """What stands for the value of an option; nothing for a flag."""

    if about.metavar:
        return about.metavar
    some = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is Literal:
        return "NAME"
    if get_origin(kind) is tuple:
        return " ".join(_value(one, about) for one in some)
    if some:
        return _value(some[0], about)
    if issubclass(kind, Enum):
        return "NAME"
    words = {bool: "", str: "TEXT", int: "INTEGER", float: "NUMBER"}
    return words.get(kind, kind.__name__.upper())


def _default(value):
    if value is inspect.Parameter.empty:
        return "required"
    return "" if value is None or value is False else f"`{getattr(value, 'value', value)}`"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
