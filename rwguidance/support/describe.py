"""Descriptions of objects in one line: their class and what they were made from, never tensors."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["named", "summary"]


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
