"""Exceptions in process, at every rename, flush, shard and batch."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from rwguidance.store.shards import Shard

from .work import COMMANDS, Command, Line, run_quietly, whole

__all__ = ["lines"]

MOST = 8
"""Places of one kind that are tried in a command, spread over its run."""


class Killed(BaseException):
    """As a signal, it passes every except clause."""


@contextmanager
def failing(
    owner: Any, name: str, at: int, error: BaseException, after: bool
) -> Iterator[list[int]]:
    """Within, a function raises at one of its calls, before it has done its work or after.

    Yields a list with an entry for every call.
    """

    function, calls = getattr(owner, name), []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) != at:
            return function(*args, **kwargs)
        if after:
            function(*args, **kwargs)
        raise error

    with mock.patch.object(owner, name, fail):
        yield calls


def lines(root: Path) -> Iterator[Line]:
    """Yields a line for every command and every kind of place."""

    for command in COMMANDS.values():
        expected = whole(command, root / command.name / "whole")
        places = {"rename": (os, "replace"), "flush": (os, "fsync"), "batch": command.batch}
        if command.stores:
            places["shard"] = (Shard, "write")
        for kind, place in places.items():
            yield _tried(command, kind, place, root / command.name / kind, expected)


def _tried(
    command: Command, kind: str, place: tuple[Any, str], root: Path, expected: dict[str, str]
) -> Line:
    with failing(*place, 0, Killed(), False) as calls:
        run_quietly(command, root / "counted")
    tried = sorted({1 + i * len(calls) // MOST for i in range(MOST)}) if calls else []
    failures = []
    for at in tried:
        for error in (Killed(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
            here = root / f"{at}-{type(error).__name__}"
            after = kind != "batch" and at % 2 == 0 and isinstance(error, Killed)
            with failing(*place, at, error, after), suppress(Killed, Exception):
                run_quietly(command, here)
            found = whole(command, here)
            if found != expected:
                differ = [key for key in expected if found.get(key) != expected[key]]
                failures.append(
                    f"call {at}, {type(error).__name__}: {', '.join(differ[:3])} differ"
                )
    return Line(f"{command.name}: an error at a {kind}", 2 * len(tried), failures)
