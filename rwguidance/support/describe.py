"""Descriptions: of objects in one line, never with tensors, and of facts in a box on a terminal.

Names of files and what foreign code says are not trusted: on a terminal, some characters move the
cursor, clear the screen or name the window.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["error_text", "named", "plain_text", "print_facts", "printable", "summary"]

_LENGTH = 500
"""Number of characters after which the text of an error is cut: some print whole configurations."""

_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters that a terminal does not print, but obeys."""


def printable(text: str) -> str:
    """Returns a text in one line, in which characters that steer a terminal are escapes."""

    escape = lambda found: found[0].encode("unicode_escape").decode()
    return _STEERING.sub(escape, " ".join(text.splitlines()))


def error_text(error: BaseException) -> str:
    """Returns the text of an error in one line, cut where it is long, whatever the error does.

    Arguments:
        error: The error, which may be of a class of anybody's.
    """

    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:
        text = "its text cannot be had"
    return printable(text if len(text) <= _LENGTH else text[:_LENGTH] + "...")


def plain_text(text: str) -> "Text":
    """Returns a text for tables and lines of rich, in which brackets mean themselves."""

    from rich.text import Text

    return Text(printable(text))


def summary(owner: Any, **arguments: Any) -> str:
    """Returns the line `Class(argument=value, ...)`, for `__repr__`."""

    listed = ", ".join(f"{name}={named(value)}" for name, value in arguments.items())
    return f"{type(owner).__name__}({listed})"


def named(value: Any) -> str:
    """Returns one value of such a line: a function by its name, a tensor by its shape.

    Objects that describe themselves in one line do so; others, such as networks, whose own line
    would be a page, are named by their class.
    """

    if isinstance(value, Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    if isinstance(value, tuple | list) and any(map(callable, value)):
        return f"[{', '.join(map(named, value))}]"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    page: tuple[Any, ...] = (object.__repr__, torch.nn.Module.__repr__)
    described = type(value).__repr__ not in page
    return repr(value) if described else type(value).__name__


def print_facts(name: str, facts: Mapping[str, str]) -> None:
    """Prints what is known of something, a line for each fact, in a box with its name.

    Arguments:
        name: The name.
        facts: Texts by heading. Brackets in them mean themselves.
    """

    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, text in facts.items():
        grid.add_row(key, plain_text(text))
    Console().print(Panel(grid, title=plain_text(name), title_align="left", padding=(0, 1)))
