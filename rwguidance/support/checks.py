"""Checks of arguments: one kind of error, which names the argument, what is expected, what came.

Each takes the name of the argument first and raises TypeError for a value of another kind,
ValueError for one out of range. Booleans are no numbers; numbers of NumPy and tensors of shape ()
are.

.. code-block:: python

    self.eta = number("eta", eta, 0, 1)
    self.steps = integer("steps", steps, 1)
    instance("bank", bank, Bank, "a Bank")
"""

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from .files import expanded

__all__ = [
    "bad_items",
    "choice",
    "described",
    "device",
    "flag",
    "floating_dtype",
    "function",
    "generator",
    "instance",
    "integer",
    "number",
    "optional",
    "path",
    "real_tensor",
    "states",
    "tensor",
    "times",
]

T = TypeVar("T")
V = TypeVar("V")

_SHOWN = 60
"""Number of characters of a value that a message shows."""


def described(value: Any) -> str:
    """Returns what came in place of an argument, for a message: its kind, and a short value."""

    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"{kind} of {value.dtype} with shape {tuple(value.shape)}"
    if isinstance(value, bool | int | float | str):
        text = repr(value)
        return f"{kind} {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"
    return kind


def optional(check: Callable[..., T], name: str, value: Any, *arguments: Any, **bounds: Any) -> Any:
    """Returns None for None, and what `check` returns for every other value.

    Raises:
        TypeError: As the check does.
        ValueError: As the check does.
    """

    return None if value is None else check(name, value, *arguments, **bounds)


def number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Returns a finite number as a float.

    Arguments:
        name: Name of the argument.
        value: A real number, of Python, NumPy or as a tensor of shape ().
        low: The least value. None is no bound.
        high: The largest value. None is no bound.
        above: A bound that the value must exceed, in place of `low`.
        below: A bound that the value must stay under, in place of `high`.

    Raises:
        TypeError: If the value is no number.
        ValueError: If the number is NaN, infinite or out of range.
    """

    value = _item(value)
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {described(value)}")
    result = float(value)
    inside = (
        math.isfinite(result)
        and (low is None or result >= low)
        and (high is None or result <= high)
        and (above is None or result > above)
        and (below is None or result < below)
    )
    if not inside:
        raise ValueError(f"{name} must {_range(low, high, above, below)}, got {result}")
    return result


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Returns an integer as an int.

    Arguments:
        name: Name of the argument.
        value: An integer, of Python, NumPy or as a tensor of shape (). A float is none.
        low: The least value. None is no bound.
        high: The largest value. None is no bound.

    Raises:
        TypeError: If the value is no integer.
        ValueError: If it is out of range.
    """

    value = _item(value)
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {described(value)}")
    result = int(value)
    if (low is not None and result < low) or (high is not None and result > high):
        raise ValueError(f"{name} must {_range(low, high, None, None)}, got {result}")
    return result


def flag(name: str, value: Any) -> bool:
    """Returns a boolean.

    Raises:
        TypeError: If the value is neither True nor False.
    """

    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    return value


def choice(name: str, value: V, allowed: Sequence[V]) -> V:
    """Returns one of the allowed values.

    Raises:
        ValueError: If the value is none of them; lists them.
    """

    for one in allowed:
        if type(value) is type(one) and value == one:
            return one
    listed = ", ".join(map(repr, allowed))
    raise ValueError(f"{name} must be one of {listed}, got {described(value)}")


def instance(
    name: str, value: Any, kinds: type[Any] | tuple[type[Any], ...], expected: str
) -> None:
    """Checks that a value is of a class.

    Arguments:
        name: Name of the argument.
        value: The value.
        kinds: The class, or several of which any will do.
        expected: What is expected, for the message, with its article: "a Bank", "a Kernel or None".

    Raises:
        TypeError: If it is of none of them.
    """

    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {expected}, got {described(value)}")


def function(name: str, value: Any, expected: str = "callable", *, classes: bool = True) -> None:
    """Checks that a value can be called.

    Arguments:
        name: Name of the argument.
        value: The value.
        expected: What is expected, for the message.
        classes: Whether a class is fine, too, where calling it makes what is asked for.

    Raises:
        TypeError: If it cannot.
    """

    if not callable(value) or (isinstance(value, type) and not classes):
        raise TypeError(f"{name} must be {expected}, got {described(value)}")


def path(name: str, value: Any) -> Path:
    """Returns a path, in which ``~`` at the beginning is the user's own folder.

    Raises:
        TypeError: If the value is neither a string nor a path.
        ValueError: If it holds NUL, which no name can, or there is no home folder.
    """

    instance(name, value, (str, os.PathLike), "a path")
    if "\0" in os.fsdecode(value):
        raise ValueError(f"{name} must be a path without NUL, got {os.fsdecode(value)!r}")
    return expanded(os.fsdecode(value))


def states(name: str, x: Any, *, finite: bool = False, event: bool = True) -> None:
    r"""Checks that a value is a batch of states: floating point, dense, of shape (B, \*event).

    Arguments:
        name: Name of the argument.
        x: The states.
        finite: Whether NaN and infinite values are refused, too, which reads every value.
        event: Whether a state must have an axis of its own, so that shape (B,) is refused.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it is sparse or without values (of the meta device), the shape does not fit,
            an event holds nothing, or a value is not finite; names the items.
    """

    if not _holds_numbers(x):
        raise TypeError(
            f"{name} must be a floating-point tensor of shape (B, *event), got {described(x)}"
        )
    _require_values(name, x)
    if x.ndim < 1 + event or math.prod(x.shape[1:]) == 0:
        raise ValueError(
            f"{name} must be a floating-point tensor of shape (B, *event) with an event that is "
            f"not empty, got shape {tuple(x.shape)}"
        )
    # A sum that is finite has finite terms, and costs one look at them.
    if finite and not (bool(x.sum().isfinite()) or bool(x.isfinite().all())):
        raise ValueError(f"{name} must be finite, got NaN or inf in {bad_items(x)}")


def tensor(name: str, value: Any, shape: tuple[int, ...] | None = None) -> None:
    """Checks that a value is a floating-point tensor that holds values.

    Arguments:
        name: Name of the argument.
        value: The value.
        shape: The shape that it must have; None for any with one axis at least.

    Raises:
        TypeError: If it is no floating-point tensor.
        ValueError: If it is sparse or without values, or of another shape.
    """

    if not _holds_numbers(value):
        raise TypeError(f"{name} must be a floating-point tensor, got {described(value)}")
    _require_values(name, value)
    if shape is None and value.ndim == 0:
        raise ValueError(f"{name} must have one axis at least, got shape ()")
    if shape is not None and tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")


def bad_items(x: Tensor) -> str:
    """Returns, for a message, the items of a batch that hold NaN or an infinite value."""

    bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return ("item " if len(bad) == 1 else "items ") + ", ".join(map(str, bad[:5])) + more


def times(name: str, value: Any, batch: int | None = None) -> Tensor:
    r"""Returns times as a float64 tensor of shape () or (B,).

    Arguments:
        name: Name of the argument.
        value: Times in [0, 1], a number or a tensor of shape () or (B,).
        batch: The number of states, if a tensor of shape (B,) must match it.

    Raises:
        TypeError: If it is not made of real numbers.
        ValueError: If a time lies outside [0, 1] or is NaN, or the shape does not fit.
    """

    t = real_tensor(name, value, "a number or a tensor of times")
    if t.ndim > 1 or (t.ndim == 1 and batch is not None and t.numel() != batch):
        expected = "() or (B,)" if batch is None else f"() or ({batch},)"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(t.shape)}")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(
            f"{name} must lie in [0, 1] (0 is data, 1 is noise), got {t.tolist()}; "
            "network timesteps such as 999 belong inside the backbone's adapter"
        )
    return t


def real_tensor(name: str, value: Any, expected: str) -> Tensor:
    """Returns a dense float64 tensor of real numbers, of a tensor, a number or nested sequences.

    Arguments:
        name: Name of the argument.
        value: The numbers.
        expected: What is expected, for the message, with its article.

    Raises:
        TypeError: If it holds something else.
        ValueError: If nested sequences are ragged, or a tensor is sparse or without values.
    """

    wrong = f"{name} must be {expected}, got {described(value)}"
    if value is None or isinstance(value, bool | str | bytes | Mapping | type):
        raise TypeError(wrong)
    try:
        kind = torch.as_tensor(value).dtype
        tensor = torch.as_tensor(value, dtype=torch.float64)  # floats must not become float32 first
    except ValueError as error:  # ragged, or strings
        raise ValueError(f"{wrong} ({error})") from None
    except (TypeError, RuntimeError):
        raise TypeError(wrong) from None
    if kind == torch.bool or kind.is_complex:
        raise TypeError(wrong)
    _require_values(name, tensor)
    return tensor


def generator(name: str, value: Any) -> None:
    """Checks that a value is a source of randomness: None, one generator, or a sequence of them.

    Raises:
        TypeError: If it is something else, such as a seed.
    """

    if value is None or isinstance(value, torch.Generator):
        return
    fine = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if fine and isinstance(value, list | tuple):  # other sequences may make theirs when asked
        fine = all(isinstance(one, torch.Generator) for one in value)
    if not fine:
        hint = "; write torch.Generator().manual_seed(0)" if isinstance(value, int) else ""
        raise TypeError(
            f"{name} must be a torch.Generator, a sequence of one per sample, or None, "
            f"got {described(value)}{hint}"
        )


def device(name: str, value: Any) -> torch.device | None:
    """Returns a device that can be used, after allocating nothing on it; None stays None.

    Raises:
        TypeError: If it is neither a torch.device nor a string.
        ValueError: If there is no such device here.
    """

    if value is None:
        return None
    instance(name, value, (torch.device, str), "a torch.device or a string such as 'cuda:0'")
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} {str(value)!r} cannot be used: {reason}") from None
    return found


def floating_dtype(name: str, value: Any) -> torch.dtype | None:
    """Returns a floating-point dtype, of itself or of its name ("bfloat16"); None stays None.

    Raises:
        TypeError: If it is neither a torch.dtype nor a string.
        ValueError: If it is not of floating point.
    """

    if value is None:
        return None
    instance(name, value, (torch.dtype, str), "a torch.dtype or its name, such as 'bfloat16'")
    found = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"{name} must be floating point, such as float32, float16 or bfloat16, got {value!r}"
        )
    return found


def _item(value: Any) -> Any:
    """The number in a tensor of shape (), and everything else as it is."""

    plain = isinstance(value, Tensor) and value.shape == () and not value.is_meta
    return value.item() if plain else value


def _holds_numbers(value: Any) -> TypeGuard[Tensor]:
    """Returns whether a value is a tensor of floating point; 8 bits mean nothing without scales."""

    return isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1


def _require_values(name: str, x: Tensor) -> None:
    """Raises ValueError for a sparse tensor and for one of the meta device."""

    if x.layout is not torch.strided or x.is_meta:
        what = "of the meta device" if x.is_meta else f"of layout {x.layout}"
        raise ValueError(f"{name} must be a dense tensor that holds values, got one {what}")


def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    """The values that are allowed, after "must": "lie in (0, 1]", "be at least 1"."""

    least, most = above if low is None else low, below if high is None else high
    if least is None and most is None:
        return "be finite"
    if most is None:
        if low is None:
            return "be positive and finite" if least == 0 else f"be finite and above {least}"
        return f"be at least {least}"
    if least is None:
        return f"be at most {most}" if below is None else f"be below {most}"
    left, right = "(" if low is None else "[", ")" if high is None else "]"
    return f"lie in {left}{least}, {most}{right}"
