"""The suite: ``python -m faults [PART ...]`` prints a table, and exits with 1 for a failure."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from . import boundaries, damage, ends, fuzz, systems
from .work import Line

PARTS = {
    "ends": ends,
    "systems": systems,
    "boundaries": boundaries,
    "damage": damage,
    "fuzz": fuzz,
}
"""The parts; children are forked first, before there are threads."""


def remains() -> Line:
    """Processes and threads that are still there."""

    failures = [thread.name for thread in threading.enumerate()[1:] if not thread.daemon]
    try:
        os.waitpid(-1, os.WNOHANG)
        failures.append("a child")
    except ChildProcessError:
        pass
    return Line("what is left: processes, threads", 1, failures)


def every(names: list[str], root: Path) -> Iterator[Line]:
    """Yields the lines of some parts, and at last what is left."""

    for name in names:
        (root / name).mkdir()
        yield from PARTS[name].lines(root / name)
    yield remains()


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    failed = 0
    print(f"{'what':<58} {'tries':>6} {'failures':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for line in every(names, Path(folder)):
            failed += len(line.failures)
            print(f"{line.what:<58} {line.tries:>6} {len(line.failures):>9}", flush=True)
            for failure in line.failures[:5]:
                print(f"    {failure}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
