"""Random mutants: which expressions change, and which tests should notice.

Kinds of change take turns; within one, every file is as likely as every other. The tests of a
mutant are the file that reads the signatures of all modules, and those that import the changed
module, directly or not, the nearest first.
"""

import ast
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mutant_runs import ROOT, Copy, Outcome
from mutations import KINDS, Mutation, mutations

__all__ = ["EQUIVALENT", "Equivalent", "choose", "equivalents", "notice", "relevant_tests"]

EQUIVALENT = ROOT / "tests" / "mutants_equivalent.txt"
MUTATED = ("rwguidance", "rewards", "backbones")
MUTATED_TOO = ("plugins.py", "gold.py")
TESTS = ("tests", "testbed/tests")
READS_ALL = "tests/test_public_signatures.py"
NEAREST = 8
"""Files of tests that run before the others, since collecting all of them takes half a minute."""


def files() -> list[str]:
    """The files that are mutated, relative to the repository."""

    found = [path for package in MUTATED for path in (ROOT / package).rglob("*.py")]
    found += [ROOT / "testbed" / "rwguidance_testbed" / name for name in MUTATED_TOO]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@cache
def mutations_of(file: str) -> list[Mutation]:
    return mutations(file, (ROOT / file).read_text(encoding="utf-8"))


def choose(count: int, seed: int, among: Sequence[str] | None = None) -> list[Mutation]:
    """Returns `count` different mutants; of those files alone, if `among` names some."""

    random_numbers = random.Random(seed)
    pool: dict[str, dict[str, list[Mutation]]] = {kind: defaultdict(list) for kind in KINDS}
    for file in among or files():
        for mutation in mutations_of(file):
            pool[mutation.kind][file].append(mutation)
    chosen: list[Mutation] = []
    while len(chosen) < count and any(pool.values()):
        for kind in KINDS:
            if pool[kind] and len(chosen) < count:
                file = random_numbers.choice(sorted(pool[kind]))
                left = pool[kind][file]
                chosen.append(left.pop(random_numbers.randrange(len(left))))
                if not left:
                    del pool[kind][file]
    return chosen


class Equivalent(NamedTuple):
    """A mutant that no test can notice, or none should, and why."""

    file: str
    old: str
    new: str
    reason: str


def equivalents() -> list[Equivalent]:
    """The entries of tests/mutants_equivalent.txt.

    Raises:
        ValueError: If an entry lacks one of its parts, or the empty line after it.
    """

    found = []
    for entry in EQUIVALENT.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in entry.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        if len(lines) < 4 or lines[1][:2] != "- " or lines[2][:2] != "+ ":
            raise ValueError(f"an entry of {EQUIVALENT.name} is a file, -, + and a reason: {lines}")
        if any(line[:2] in ("- ", "+ ") for line in lines[3:]):
            raise ValueError(f"an entry of {EQUIVALENT.name} ends with an empty line: {lines}")
        reason = " ".join(lines[3:])
        found.append(Equivalent(lines[0], lines[1][2:], lines[2][2:], reason))
    return found


def notice(copy: Copy, mutation: Mutation, limit: float) -> Outcome:
    """Whether some test notices the mutant within `limit` seconds.

    A test that fails without the mutant, too, does not count, and the rest runs on without it.
    """

    tests, broken = relevant_tests(mutation), []
    while True:
        spent = 0.0
        with copy.changed(mutation.file, mutation.text):
            outcome = copy.run(tests[:NEAREST], limit, broken)
            if outcome.verdict == "passed" and tests[NEAREST:]:
                spent = outcome.seconds
                outcome = copy.run(tests[NEAREST:], max(limit - spent, 1.0), broken)
        outcome = outcome._replace(seconds=outcome.seconds + spent)
        if outcome.verdict != "failed" or not _fails_anyway(copy, outcome.first):
            return outcome
        broken.append(outcome.first)


def _fails_anyway(copy: Copy, test: str) -> bool:
    return copy.run([test], limit=600).verdict != "passed"


def relevant_tests(mutation: Mutation) -> list[str]:
    """The file that reads them all, and the files of tests that import the mutated one.

    Nearest is the test of that name, then that of the name of its folder, then those that name the
    class or function, then by the number of imports between, those in the mirrored folder first.
    """

    path = Path(mutation.file)
    own, above = f"test_{path.stem}", f"test_{path.parent.name}"
    folder = Path("tests", mutation.file).parent.as_posix()
    names = [name for name in mutation.scope[:2] if not name.startswith("__")]
    ranked = []
    for test in _test_files():
        steps = _distances(test).get(mutation.file)
        if steps is not None:
            text = (ROOT / test).read_text(encoding="utf-8")
            named = sum(text.count(name) for name in names)
            same = Path(test).parent.as_posix() == folder
            name = Path(test).stem
            key = (name != own, name != above, not named, steps, not same, len(text), test)
            ranked.append(key)
    return [READS_ALL, *(key[-1] for key in sorted(ranked) if key[-1] != READS_ALL)]


@cache
def _test_files() -> list[str]:
    found = [path for folder in TESTS for path in (ROOT / folder).rglob("test_*.py")]
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return sorted(name for name in names if not name.endswith("test_mutants.py"))


@cache
def _distances(test: str) -> dict[str, int]:
    """The files that a test imports, directly or not, with the number of imports between."""

    found, front, steps = {test: 0}, [test], 0
    while front:
        steps += 1
        new = {file for known in front for file in _imports(known)} - set(found)
        found.update(dict.fromkeys(new, steps))
        front = sorted(new)
    return found


@cache
def _imports(file: str) -> set[str]:
    """The files that one imports anywhere, those behind names of a package instead of it."""

    path = Path(file)
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    aliases = {}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = alias.name
                found.add(_module(alias.name))
        elif isinstance(node, ast.ImportFrom):
            around = path.parts[: len(path.parts) - node.level] if node.level else ()
            base = ".".join((*around, *([node.module] if node.module else [])))
            for alias in node.names:
                found.add(_defines(base, alias.name))
                aliases[alias.asname or alias.name] = f"{base}.{alias.name}"
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = aliases.get(node.value.id)
            if module is not None:
                found.add(_defines(module, node.attr))
    return found - {"", file}


@cache
def _module(name: str) -> str:
    """The file of a module or package of this repository, or nothing."""

    name = name.removeprefix("rwguidance.") if name.startswith(_MIRRORED) else name
    path = name.replace(".", "/")
    places = (path, f"tests/{path}", f"testbed/{path}", f"testbed/tests/{path}")
    for place in places:
        for file in (f"{place}.py", f"{place}/__init__.py"):
            if (ROOT / file).is_file():
                return file
    return ""


_MIRRORED = ("rwguidance.rewards", "rwguidance.backbones")
"""Packages that have this name, too."""


@cache
def _defines(module: str, name: str) -> str:
    """The file in which a name of a module stands, looked up in what a package imports."""

    if whole := _module(f"{module}.{name}"):
        return whole
    file = _module(module)
    if file.endswith("__init__.py"):
        for source, names in _reexports(file):
            if name in names:
                return _module(source)
    return file


@cache
def _reexports(file: str) -> tuple[tuple[str, frozenset[str]], ...]:
    package = ".".join(Path(file).parent.parts).removeprefix("testbed.")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return tuple(
        (f"{package}.{node.module}", frozenset(alias.name for alias in node.names))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    )
