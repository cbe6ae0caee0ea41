"""Telling conditions apart. The core never looks inside a condition, it only compares them.

Where that is needed (a bank that holds several prompts, an error message that names one), a
condition must be a collection with one hashable item per sample: a list of prompts, a 1-D integer
tensor of labels, or a backbone's own type that iterates over such items.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Sized
from numbers import Real
from typing import Any

from torch import Tensor

__all__ = ["condition_keys", "describe_keys", "has_half_surrogate", "lookup", "string_keys", "take"]


def condition_keys(condition: Any, n: int, name: str = "condition") -> tuple[Hashable, ...] | None:
    """Returns the `n` items of a condition as hashable keys, one per sample; None stays None.

    Raises:
        TypeError: If the condition is one string, a set, or not a collection of hashable items.
        ValueError: If it does not hold `n` items, or one of them is NaN.
    """

    if condition is None:
        return None
    if isinstance(condition, Tensor):
        if condition.ndim != 1 or condition.is_floating_point():
            raise TypeError(
                f"{name} as a tensor must be 1-D with integer labels, "
                f"got {condition.dtype} with shape {tuple(condition.shape)}"
            )
        condition = condition.tolist()
    if (
        isinstance(condition, str | bytes | Mapping)
        or not isinstance(condition, Sized)
        or not isinstance(condition, Iterable)
    ):
        raise TypeError(
            f"{name} must hold one hashable item per sample in their order, such as a list of "
            f"prompts, got {type(condition).__name__}; write [prompt] * n to repeat one prompt"
        )
    if isinstance(condition, set | frozenset):
        raise TypeError(
            f"{name} must have an order, such as a list, to tell which item belongs to which "
            f"sample, got {type(condition).__name__}"
        )
    keys = tuple(condition)
    if len(keys) != n:
        raise ValueError(f"{name} must hold one item per sample, {n}, got {len(keys)}")
    for key in keys:
        if not isinstance(key, Hashable):
            raise TypeError(f"{name} must hold hashable items, got {type(key).__name__}")
        if isinstance(key, Real) and key != key:
            raise ValueError(f"{name} must hold items that equal themselves, got NaN")
    return keys


def string_keys(condition: Any, n: int, name: str = "condition") -> list[str]:
    """The `n` items of a condition that must be strings, such as prompts; empty if it is None.

    Raises:
        TypeError: If it holds something else, or is no collection.
        ValueError: If it does not hold `n` items.
    """

    strings = []
    for key in condition_keys(condition, n, name) or ():
        if not isinstance(key, str):
            raise TypeError(f"{name} must be strings, got {type(key).__name__}")
        strings.append(key)
    return strings


def has_half_surrogate(text: str) -> bool:
    """Whether a string holds what no encoding of text can: JSON allows it."""

    return any("\ud800" <= letter <= "\udfff" for letter in text)


def describe_keys(keys: Sequence[Hashable], limit: int = 5) -> str:
    """A short list of conditions for a message."""

    shown = ", ".join(repr(key) for key in keys[:limit])
    return shown + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def take(condition: Any, index: list[int]) -> Any:
    """The condition of the samples `index`, in that order.

    Arguments:
        condition: None, a tensor, a sequence, a dict of these, or a type of its own whose
            `condition[index]` does it.
        index: Numbers of samples; may repeat.

    Raises:
        TypeError: For types that cannot be indexed so.
    """

    if condition is None:
        return None
    if isinstance(condition, Mapping):
        return {name: take(value, index) for name, value in condition.items()}
    if isinstance(condition, Sequence) and not isinstance(condition, str | bytes):
        return [condition[i] for i in index]
    if isinstance(condition, str | bytes) or not hasattr(condition, "__getitem__"):
        raise TypeError(
            "condition must be None, a tensor, a sequence, a dict of these, or take a list of "
            f"indices, got {type(condition).__name__}"
        )
    return condition[index]


def lookup(condition: Any) -> Callable[[Sequence[Hashable]], Any]:
    """A table of what was encoded once: from keys to the condition of samples with these keys.

    Arguments:
        condition: One whose items can be told apart and taken out, such as what a backbone's
            `condition(prompts)` returns.

    Returns:
        A function of keys, which may repeat. It raises ValueError for keys that it does not know.
    """

    return _Lookup(condition)


class _Lookup:
    depends_on = ("condition",)

    def __init__(self, condition: Any) -> None:
        keys = condition_keys(condition, len(condition)) or ()
        self.condition = condition
        self.places = {key: i for i, key in enumerate(keys)}

    def __call__(self, keys: Sequence[Hashable]) -> Any:
        missing = [key for key in dict.fromkeys(keys) if key not in self.places]
        if missing:
            raise ValueError(
                f"nothing was encoded for {describe_keys(missing)}, only for "
                + describe_keys(list(self.places))
            )
        return take(self.condition, [self.places[key] for key in keys])
