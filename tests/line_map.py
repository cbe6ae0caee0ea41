"""Which tests run which lines of the packages, and how long each takes.

A run of the suite with `-p line_map` notes it in the folder that RWGUIDANCE_LINE_MAP names, each of
its processes in files of its own; `LineMap` reads them.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import coverage
import pytest

from mutant_runs import ROOT

__all__ = ["FOLDER", "LineMap"]

FOLDER = "RWGUIDANCE_LINE_MAP"
_PACKAGES = ("rwguidance", "rewards", "backbones", "testbed/rwguidance_testbed")
_SAVED_EVERY = 60.0


class _Notes:
    """What one process of a run notes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seconds = folder / f"seconds.{os.getpid()}"
        self.coverage = coverage.Coverage(
            data_file=folder / f"lines.{os.getpid()}",
            source=[str(ROOT / package) for package in _PACKAGES],
            config_file=False,
            messages=False,
        )
        self.saved = time.monotonic()
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        started = time.monotonic()
        done = yield
        now = time.monotonic()
        self.coverage.switch_context("")
        with self.seconds.open("a", encoding="utf-8") as file:
            file.write(json.dumps([item.nodeid, now - started]) + "\n")
        if now - self.saved > _SAVED_EVERY:
            self.coverage.save()
            self.saved = now
        return done

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.coverage.save()


def pytest_configure(config: pytest.Config) -> None:
    divides = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not divides:
        config.pluginmanager.register(_Notes(Path(os.environ[FOLDER])))


class LineMap:
    """What a run of the suite noted.

    Arguments:
        folder: That of the notes.

    Raises:
        FileNotFoundError: If it holds none.
    """

    def __init__(self, folder: Path) -> None:
        self._data = []
        for path in sorted(folder.glob("lines.*")):
            self._data.append(coverage.CoverageData(str(path)))
            self._data[-1].read()
        if not self._data:
            raise FileNotFoundError(f"no notes of tests and lines in {folder}")
        self.seconds: dict[str, float] = {}
        for path in folder.glob("seconds.*"):
            self.seconds.update(map(json.loads, path.read_text(encoding="utf-8").splitlines()))

    def tests(self, file: str, first: int, last: int) -> set[str]:
        """The tests that run one of the lines first to last of a file of the repository."""

        lines = self._lines(file)
        return set().union(*(lines[line] for line in range(first, last + 1) if line in lines))

    @cache  # noqa: B019  # one map lives as long as the process
    def _lines(self, file: str) -> dict[int, set[str]]:
        found: dict[int, set[str]] = defaultdict(set)
        for data in self._data:
            for line, names in data.contexts_by_lineno(str(ROOT / file)).items():
                found[line].update(names)
                found[line].discard("")  # run while modules were imported
        return found
