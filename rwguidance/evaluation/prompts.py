"""Sets of prompts by name: what a model is asked for, with the license and where it comes from.

Some sets come with a package. Others are published: their files are the user's, and are read in the
formats of their publishers. A package adds either kind by an entry point of the group
`rwguidance.prompts`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, overload

from ..support import checks
from ..support.files import expanded
from ..support.records import SUFFIXES
from ..support.registry import Registry
from .prompt_sets import PromptSet, common
from .published import PUBLISHED, PublishedPrompts, collect, repeated_note

__all__ = [
    "PromptSet",
    "PromptTable",
    "available",
    "common",
    "find",
    "load",
    "read",
    "register",
]

Known: TypeAlias = "PromptSet | PublishedPrompts"
"""What has a name."""

S = TypeVar("S", bound=Known)


def _check(name: str, value: Any) -> None:
    if not isinstance(value, PromptSet | PublishedPrompts):
        raise TypeError(
            f"prompt set {name!r} must be a rwguidance.evaluation.PromptSet, or PublishedPrompts, "
            f"got {type(value).__name__}"
        )
    if value.name != name:
        raise ValueError(
            f"prompt set {value.name!r} must be registered under its name, not {name!r}"
        )


_registry: Registry[Known] = Registry("prompt set", "rwguidance.prompts", _check)


def register(name: str) -> Callable[[S], S]:
    """Returns a function that makes a set of prompts available under `name`, and returns it.

    Raises:
        TypeError: If it is neither a :class:`PromptSet` nor :class:`PublishedPrompts`.
        ValueError: If the name is already taken, or is not its own.
    """

    return _registry.register(name)


for _set in PUBLISHED:
    register(_set.name)(_set)


class PromptTable(Sequence[Known]):
    """The facts about some sets of prompts: a sequence that prints as a table.

    Arguments:
        sets: The sets, in order.
    """

    def __init__(self, sets: Sequence[Known]) -> None:
        self._sets = tuple(sets)

    def __len__(self) -> int:
        return len(self._sets)

    @overload
    def __getitem__(self, index: int) -> Known: ...

    @overload
    def __getitem__(self, index: slice) -> "PromptTable": ...

    def __getitem__(self, index: int | slice) -> "Known | PromptTable":
        if isinstance(index, slice):
            return PromptTable(self._sets[index])
        return self._sets[index]

    def __str__(self) -> str:
        rows = [("name", "prompts", "license", "where")]
        for known in self._sets:
            number = "?" if known.number is None else str(known.number)
            rows.append((known.name, number, known.license, known.source))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join(lines)

    __repr__ = __str__


def available() -> PromptTable:
    """Returns all sets of prompts, sorted by name, as a table with licenses and sources.

    Imports every package that adds one.

    Warns:
        RuntimeWarning: For every name that cannot be loaded, with the reason.
    """

    return PromptTable(list(_registry.available().values()))


def load(name: str, path: str | os.PathLike[str] | None = None) -> PromptSet:
    """Returns the set of prompts that is registered under `name`.

    Arguments:
        name: A name that :func:`available` lists.
        path: A file, or the folder of the files, of a set that others publish. ``~`` is the user's
            own folder.

    Raises:
        TypeError: If the name is not a string.
        LookupError: If there is no such set; lists those that exist.
        FileNotFoundError: If its files are not there; says where they are published, and under
            which license.
        ValueError: If a file has another format, or the set comes with a package and takes no path.
    """

    known = _registry.load(name)
    if isinstance(known, PublishedPrompts):
        return known.read(path)
    if path is not None:
        raise ValueError(f"the prompts of {name!r} come with a package: path must be None")
    return known


def read(path: str | os.PathLike[str], column: str = "prompt") -> PromptSet:
    """Returns the prompts of a file of one's own; those that repeat others are left out, and noted.

    Arguments:
        path: A file that :mod:`rwguidance.support.records` reads. ``~`` is the user's own folder.
        column: The column of the prompts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another format, or holds no prompt or an empty one.
    """

    file = checks.path("path", path)
    prompts, _, repeated = collect([file], column)
    return PromptSet(
        name=file.name,
        title=file.name,
        license="unknown",
        source=str(file),
        prompts=prompts,
        notes=repeated_note(repeated, len(prompts) + repeated, file),
    )


def find(text: str, column: str = "prompt") -> PromptSet:
    """Returns the prompts that a command line names: ``NAME``, ``NAME=PATH`` or ``FILE``.

    Arguments:
        text: The name of a set, with the path of its files if they are the user's, or a file of
            one's own.
        column: The column of the prompts in a file of one's own.

    Raises:
        LookupError: If there is no such set; lists those that exist.
        FileNotFoundError: If there is no such file.
        ValueError: If a file has another format.
    """

    name, equals, path = text.partition("=")
    if name in _registry.names():
        return load(name, path if equals else None)
    file = expanded(text)
    if file.exists() or (text.lower().endswith(SUFFIXES) and not equals):
        return read(file, column)
    return load(name)
