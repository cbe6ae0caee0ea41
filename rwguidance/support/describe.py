"""Descriptions: of objects in one line, never with tensors, and of facts in a box on a terminal."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["named", "print_facts", "summary"]


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
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, text in facts.items():
        grid.add_row(key, Text(text))
    Console().print(Panel(grid, title=Text(name), title_align="left", padding=(0, 1)))
