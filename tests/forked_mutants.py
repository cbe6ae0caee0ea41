"""Random mutants tried without a new start of the tests for each.

All tests are collected once. For each mutant a forked process puts the changed code into the
functions that hold it and runs the tests that run the changed statement, the nearest and shortest
first. What is run when a module is imported cannot be tried so, and neither can child processes.
"""

import ast
import gc
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from line_map import LineMap
from mutant_runs import ROOT, Outcome
from mutations import Mutation
from random_mutants import choose, files, relevant_tests

__all__ = ["try_forked"]

_LIMIT = 40.0
"""Seconds that the tests of a mutant may take, by the notes."""

_FAR = 9
"""Rank of a file of tests from which on all are as far."""


def try_forked(
    places: Sequence[int], draw: dict[str, Any], folder: Path, workers: int
) -> dict[int, Outcome]:
    """Tries random mutants, and returns what came out of those that some test noticed.

    Arguments:
        places: Those of the mutants in the draw.
        draw: Arguments of `random_mutants.choose`.
        folder: The notes of a run with `-p line_map`.
        workers: Number of processes.

    Raises:
        RuntimeError: If pytest itself fails.
    """

    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        processes = []
        for worker in range(workers):
            order = {
                "draw": draw,
                "places": places[worker::workers],
                "folder": str(folder.resolve()),
                "results": str(Path(temporary, f"{worker}.jsonl")),
            }
            command = [sys.executable, __file__, json.dumps(order)]
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL))
        for process in processes:
            if process.wait():
                raise RuntimeError(f"the tests ended with {process.returncode}")
        for path in Path(temporary).glob("*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines():
                place, *outcome = json.loads(line)
                found[place] = Outcome(*outcome)
    return {place: outcome for place, outcome in found.items() if outcome.noticed}


class _Forks:
    """A plugin of pytest that runs tests of mutants where pytest would run all tests."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.lines = LineMap(Path(order["folder"]))
        self.results = Path(order["results"])
        drawn = choose(**order["draw"])
        self.chosen = [(place, drawn[place]) for place in order["places"]]
        self.failed = ""
        self.passes: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        for file in files():  # those, too, that a function of a test imports
            importlib.import_module(_name(file))
        self.functions = _functions()
        gc.freeze()  # so that collecting garbage in a fork does not copy all memory
        for place, mutation in self.chosen:
            outcome = self._notice(mutation)
            with self.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps([place, *outcome]) + "\n")
        return True

    def _notice(self, mutation: Mutation) -> Outcome:
        """Whether a test notices a mutant; tests that fail without it do not count."""

        started = time.monotonic()
        tests = self._tests(mutation)
        expected = sum(self.lines.seconds[name] for name in tests)
        verdict, note = "passed", ""
        while tests:
            verdict, note = self._forked(mutation, tests, 30 + 6 * expected)
            if verdict != "failed" or note in self.passes:
                break
            if self._forked(None, [note], 600)[0] == "passed":
                self.passes.add(note)
            else:
                tests.remove(note)
        return Outcome(verdict if tests else "passed", time.monotonic() - started, note)

    def _tests(self, mutation: Mutation) -> list[str]:
        """The tests that run the changed statement, as many as the limit allows."""

        near = {file: i for i, file in enumerate(relevant_tests(mutation))}
        found = self.lines.tests(mutation.file, *_statement(mutation.file, mutation.line))
        rank = lambda name: min(near.get(name.split("::")[0], _FAR), _FAR) // 3
        chosen: list[str] = []
        spent = 0.0
        for name in sorted(
            found & set(self.items), key=lambda n: (rank(n), self.lines.seconds[n], n)
        ):
            if not chosen or spent + self.lines.seconds[name] <= _LIMIT:
                chosen.append(name)
                spent += self.lines.seconds[name]
        return chosen

    def _forked(
        self, mutation: Mutation | None, tests: Sequence[str], limit: float
    ) -> tuple[str, str]:
        """What a fork says of tests: a verdict and the first that failed."""

        reading, writing = os.pipe()
        scratch = Path(tempfile.gettempdir(), f"forked-mutants-{os.getpid()}")
        child = os.fork()
        if not child:
            with suppress(BaseException):  # a fork that says nothing has noticed the mutant
                os.setpgid(0, 0)
                os.write(writing, json.dumps(self._run(mutation, tests, scratch)).encode())
            os._exit(0)
        os.close(writing)
        said = select.select([reading], [], [], limit)[0]
        data = os.read(reading, 65536) if said else b""
        os.close(reading)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        shutil.rmtree(scratch, ignore_errors=True)
        verdict, note = json.loads(data) if data else ("failed" if said else "hangs", tests[0])
        if said and not data:
            self.passes.add(note)  # what ended the process was the mutant
        return verdict, note

    def _run(
        self, mutation: Mutation | None, tests: Sequence[str], scratch: Path
    ) -> tuple[str, str]:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        if mutation is not None and not self._put(mutation):
            return "passed", ""
        items = [self.items[name] for name in tests]
        config = items[0].config
        config._tmp_path_factory._given_basetemp = scratch  # type: ignore[attr-defined]
        for item, following in zip(items, [*items[1:], None], strict=True):
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return "failed", self.failed
        return "passed", ""

    def _put(self, mutation: Mutation) -> int:
        """Puts the changed code into the functions that hold it; returns how many did."""

        changed = 0
        for before, after in _changed(_compiled(mutation.file), _compiled_text(mutation)):
            if before.co_freevars != after.co_freevars:  # a closure holds what it was made with
                continue
            for function in self.functions.get(_key(before), ()):
                function.__code__ = after
                changed += 1
        return changed


@cache
def _statements(file: str) -> list[tuple[int, int]]:
    """First and last lines of all statements, of those that hold others those before their body."""

    found = []
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            body = getattr(node, "body", [])
            first = node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno
            last = body[0].lineno - 1 if body else node.end_lineno  # type: ignore[union-attr]
            found.append((first, max(first, last or first)))
    return found


def _statement(file: str, line: int) -> tuple[int, int]:
    """Lines of the smallest statement around one."""

    around = [span for span in _statements(file) if span[0] <= line <= span[1]]
    return min(around, key=lambda span: span[1] - span[0], default=(line, line))


def _name(file: str) -> str:
    """The name of the module that a file is."""

    return ".".join(Path(file.removeprefix("testbed/")).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def _functions() -> "dict[object, list[types.FunctionType]]":
    """All functions of the repository, by their code."""

    found = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is types.FunctionType and thing.__code__.co_filename.startswith(str(ROOT)):
            found[_key(thing.__code__)].append(thing)
    return found


def _key(code: types.CodeType) -> object:
    return code.co_filename, code.co_firstlineno, code.co_name, *_content(code)


def _content(code: types.CodeType) -> tuple[object, ...]:
    constants = [value for value in code.co_consts if not isinstance(value, types.CodeType)]
    return code.co_code, code.co_names, code.co_freevars, repr(constants)


@cache
def _compiled(file: str) -> types.CodeType:
    text = (ROOT / file).read_text(encoding="utf-8")
    return compile(text, str(ROOT / file), "exec", dont_inherit=True)


def _compiled_text(mutation: Mutation) -> types.CodeType:
    return compile(mutation.text, str(ROOT / mutation.file), "exec", dont_inherit=True)


def _changed(
    before: types.CodeType, after: types.CodeType
) -> Iterator[tuple[types.CodeType, types.CodeType]]:
    """Pairs of the code of a function before and after, where they or what is in them differ."""

    inner = [
        [part for part in code.co_consts if isinstance(part, types.CodeType)]
        for code in (before, after)
    ]
    if [part.co_name for part in inner[0]] != [part.co_name for part in inner[1]]:
        return
    for pair in zip(*inner, strict=True):
        deeper = list(_changed(*pair))
        if deeper or _content(pair[0]) != _content(pair[1]):
            yield pair
            yield from deeper


if __name__ == "__main__":
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "--capture=no"]
    ended = pytest.main(options, plugins=[_Forks(json.loads(sys.argv[1]))])
    os._exit(ended)  # at an orderly end, libraries tell of what was frozen in memory as of leaks
