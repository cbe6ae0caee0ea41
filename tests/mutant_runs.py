"""Copies of the repository, in which one file is changed and tests are run."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Copy", "Outcome"]

ROOT = Path(__file__).resolve().parent.parent
_WEIGHTS = Path("testbed", "rwguidance_testbed", "weights")
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "_build", "dist", "out")

QUIET = 180.0
"""Seconds without a finished test after which a run is said to hang."""


class Outcome(NamedTuple):
    """What a run of tests gave."""

    verdict: str
    """One of "passed", "failed", "hangs" and "time limit"."""
    seconds: float
    first: str
    """The first test that failed or hangs, or the end of what pytest printed."""

    @property
    def noticed(self) -> bool:
        """Whether some test failed or never ended."""

        return self.verdict in ("failed", "hangs")


class Copy:
    """A copy of the repository in a temporary folder; use it as a context.

    The weights of the test bed are linked to and what git does not hold is left out.
    """

    def __enter__(self) -> "Copy":
        self._temporary = tempfile.TemporaryDirectory()
        self.root = Path(self._temporary.name).resolve() / "repository"

        def left_out(folder: str, names: list[str]) -> set[str]:
            weights = {"weights"} & set(names) if Path(folder) == (ROOT / _WEIGHTS).parent else ()
            kept = {".ci", ".github", ".pre-commit-config.yaml"} if Path(folder) == ROOT else set()
            return (set(_LEFT_OUT(folder, names)) | set(weights)) - kept

        shutil.copytree(ROOT, self.root, ignore=left_out)
        (self.root / _WEIGHTS).symlink_to(ROOT / _WEIGHTS)
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    @contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """Within, a file holds another text."""

        path = self.root / file
        before = path.read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")

    def run(self, tests: Sequence[str], limit: float, without: Sequence[str] = ()) -> Outcome:
        """Runs tests up to the first failure.

        Arguments:
            tests: Files or tests, as pytest names them, in the order in which they run.
            limit: Seconds after which the run is ended.
            without: Tests that are left out.

        Raises:
            RuntimeError: If pytest itself fails, or finds no test.
        """

        packages = os.pathsep.join((str(self.root), str(self.root / "testbed")))
        environment = {
            **os.environ,
            "PYTHONPATH": packages,
            "PYTHONDONTWRITEBYTECODE": "1",  # a changed file may be as old and as long as before
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        left = [f"--deselect={name}" for name in without]
        command = [sys.executable, "-m", "pytest", "-x", "-vv", "--tb=no", "-p", "no:cacheprovider"]
        started = time.monotonic()
        with open(self.root.parent / "output", "w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*command, *left, *tests],
                cwd=self.root,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            ended = _wait(process, Path(output.name), started + limit)
            output.seek(0)
            text = output.read()
        seconds = time.monotonic() - started
        if ended:
            return Outcome(ended, seconds, _last_test(text))
        if process.returncode == 4 and "while loading conftest" in text:
            return Outcome("failed", seconds, tests[0])  # none of them can begin
        if process.returncode not in (0, 1, 2):
            raise RuntimeError(
                f"pytest ended with {process.returncode} on {tests}:\n{text[-2000:]}"
            )
        verdict = "failed" if process.returncode else "passed"
        return Outcome(verdict, seconds, _failed(text) or text[-200:])


def _wait(process: "subprocess.Popen[bytes]", output: Path, until: float) -> str:
    """Waits for a process; returns why it was ended, or nothing if it ended by itself."""

    while True:
        try:
            process.wait(timeout=0.2)
            return ""
        except subprocess.TimeoutExpired:
            quiet = time.time() - output.stat().st_mtime > QUIET
            if quiet or time.monotonic() > until:
                process.kill()
                process.wait()
                return "hangs" if quiet else "time limit"


def _failed(text: str) -> str:
    """The first test that failed, by its full name; a file, if it cannot be imported."""

    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    return found.group(1) if found else ""


def _last_test(text: str) -> str:
    names = re.findall(r"^\S+\.py::\S+", text, re.MULTILINE)
    return names[-1] if names else ""
