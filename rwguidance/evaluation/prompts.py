"""Sets of prompts by name: what a model is asked for, with the license and where it comes from.

A package adds a set by an entry point of the group `rwguidance.prompts`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..support.registry import Registry

__all__ = ["PromptSet", "available", "load", "register"]

S = TypeVar("S", bound="PromptSet")


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """A set of prompts.

    Arguments:
        name: The name under which it is registered.
        title: The name it goes by in the literature.
        license: SPDX identifier of its license, or "unknown".
        source: Where it is published.
        prompts: The prompts, distinct and in order.

    Raises:
        ValueError: If there are no prompts, or a prompt comes twice.
    """

    name: str
    title: str
    license: str
    source: str
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(
                f"prompts must be distinct and at least one, got {len(self.prompts)} with "
                f"{len(set(self.prompts))} distinct ones"
            )


def _check(name: str, value: Any) -> None:
    if not isinstance(value, PromptSet):
        raise TypeError(
            f"prompt set {name!r} must be a rwguidance.evaluation.PromptSet, "
            f"got {type(value).__name__}"
        )
    if value.name != name:
        raise ValueError(
            f"prompt set {value.name!r} must be registered under its name, not {name!r}"
        )


_registry: Registry[PromptSet] = Registry("prompt set", "rwguidance.prompts", _check)


def register(name: str) -> Callable[[S], S]:
    """Returns a function that makes a :class:`PromptSet` available under `name`, and returns it.

    Raises:
        TypeError: If it is not a set of prompts.
        ValueError: If the name is already taken, or is not its own.
    """

    return _registry.register(name)


def load(name: str) -> PromptSet:
    """Returns the set of prompts that is registered under `name`.

    Raises:
        TypeError: If the name is not a string.
        LookupError: If there is none; lists those that exist.
    """

    return _registry.load(name)


def available() -> list[str]:
    """Returns the names of all sets of prompts, sorted; imports nothing."""

    return _registry.names()
