"""Commands as on Windows, as far as Linux can play it, and without a home folder."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from other_systems import homeless, windows

from .boundaries import Killed, failing
from .ends import begin, ended, outcome
from .work import COMMANDS, Command, Line, differing, ready, run_quietly, whole

__all__ = ["lines"]

PLACES = (1, 3)
"""Calls at which a run is ended, of renames and of batches."""


def lines(root: Path) -> Iterator[Line]:
    """Yields a line for every command and every system; none where Linux is not there to play."""

    if sys.platform != "linux":
        return
    for command in COMMANDS.values():
        here = root / command.name
        expected = outcome(command, here / "whole")
        yield _interrupted(command, here / "windows", expected)
        yield _together(command, here / "together", expected)
        with homeless():
            found = outcome(command, here / "homeless")
        differ = list(filter(None, [differing(found, expected)]))
        yield Line(f"{command.name}: without a home folder", 1, differ)


def _interrupted(command: Command, root: Path, expected: dict[str, str]) -> Line:
    failures = []
    tries = [(place, at) for place in ((os, "replace"), command.batch) for at in PLACES]
    for place, at in tries:
        here = ready(command, root / f"{place[1]}-{at}")

        def interrupt(place: tuple[object, str] = place, at: int = at, here: Path = here) -> None:
            with windows(here), failing(*place, at, Killed(), False), suppress(Killed):
                run_quietly(command, here)

        ended(begin(interrupt))
        with windows(here):
            found = outcome(command, here)
        if differ := differing(found, expected):
            failures.append(f"ended at {place[1]} {at}: {differ}")
    return Line(f"{command.name}: as on Windows, interrupted", len(tries), failures)


def _together(command: Command, root: Path, expected: dict[str, str]) -> Line:
    here = ready(command, root)
    with windows(here):
        children = [begin(lambda: whole(command, here)) for _ in range(2)]
        codes = [ended(child) for child in children]
        differ = differing(outcome(command, here), expected)
    failures = [f"ended with {codes}: {differ}"] if 0 not in codes or differ else []
    return Line(f"{command.name}: as on Windows, two processes at once", 1, failures)
