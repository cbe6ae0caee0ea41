"""Processes that are killed, meet a full disk or each other, in children of this one."""

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .work import COMMANDS, Command, Line, differing, ready, whole

__all__ = ["lines"]

KILLS = 30
"""Kills at random moments, of all commands together."""

SIZES = (0, 1, 60, 200, 700, 1500, 4000)
"""Bytes that a file may have on a disk that is full."""


def lines(root: Path) -> Iterator[Line]:
    """Yields a line for every command and every fault."""

    for command in COMMANDS.values():
        here = root / command.name
        began = time.monotonic()
        expected = outcome(command, here / "whole")
        seconds = time.monotonic() - began
        yield _killed(command, here / "killed", expected, seconds)
        yield _full(command, here / "full", expected)
        yield _together(command, here / "together", expected)
        if command.stores:
            yield _unwritable(command, here / "cache", expected)


def outcome(command: Command, root: Path) -> dict[str, str]:
    """Runs a command to its end in a child; returns what came of it, or why nothing did."""

    ready(command, root)
    file = root.parent / f"{root.name}.json"
    file.unlink(missing_ok=True)
    ended(begin(lambda: file.write_text(json.dumps(_whole_or_error(command, root)))))
    found: dict[str, str] = json.loads(file.read_text())
    return found


def _whole_or_error(command: Command, root: Path) -> dict[str, str]:
    try:
        return whole(command, root)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def begin(action: Callable[[], object]) -> int:
    """Does something in a child, and returns its number; its output goes nowhere."""

    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    """Waits for a child, and returns its exit code."""

    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed(command: Command, root: Path, expected: dict[str, str], seconds: float) -> Line:
    draw, failures, died = random.Random(command.name), [], 0
    tries = KILLS // len(COMMANDS) + 1
    for i in range(tries):
        here = ready(command, root / str(i))
        child = begin(lambda here=here: whole(command, here))
        time.sleep(draw.uniform(0.05, 0.95) * seconds)
        os.kill(child, signal.SIGKILL)
        died += ended(child) == -signal.SIGKILL
        if differ := differing(outcome(command, here), expected):
            failures.append(f"kill {i} at a random moment: {differ}")
    return Line(f"{command.name}: a kill ({died} came before its end)", tries, failures)


def _full(command: Command, root: Path, expected: dict[str, str]) -> Line:
    failures = []
    for size in SIZES:
        here = ready(command, root / str(size))

        def run(size: int = size, here: Path = here) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            whole(command, here)

        ended(begin(run))
        if differ := differing(outcome(command, here), expected):
            failures.append(f"no file of more than {size} bytes: {differ}")
    return Line(f"{command.name}: a disk that is full", len(SIZES), failures)


def _together(command: Command, root: Path, expected: dict[str, str]) -> Line:
    failures = []
    for i in range(2):
        here = ready(command, root / str(i))
        children = [begin(lambda here=here: whole(command, here)) for _ in range(2)]
        codes = [ended(child) for child in children]
        differ = differing(outcome(command, here), expected)
        if 0 not in codes or differ:
            failures.append(f"two processes in one folder ended with {codes}: {differ}")
    return Line(f"{command.name}: two processes at once", 2, failures)


def _unwritable(command: Command, root: Path, expected: dict[str, str]) -> Line:
    ready(command, root)
    (root / "store").write_text("in the place of a folder")  # root may write to any folder
    failures = list(filter(None, [differing(outcome(command, root), expected)]))
    return Line(f"{command.name}: a cache that cannot be written", 1, failures)
