"""The dependency rule, read from the imports: rewards -> rwguidance <- backbones."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("rwguidance", "rewards", "backbones")
ALLOWED = {
    "rwguidance": {"rwguidance"},
    "rewards": {"rwguidance", "rewards"},
    "backbones": {"rwguidance", "backbones"},
}
LIGHT = {"torch", *PACKAGES, *sys.stdlib_module_names}
# Files that name subpackages which are imported when asked for.
LAZY = {ROOT / "rwguidance" / name for name in ("__init__.py", "rewards.py", "backbones.py")}
APP = ROOT / "rwguidance" / "app"
# The command line may join the three, within its functions, and reads its options with typer.
COMMANDS = {APP / "cli.py", *(APP / "commands").glob("*.py"), *LAZY}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(source, path, eager):
    """Top-level names of the modules that a file imports; only those at import time if `eager`."""

    def visit(node):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(ROOT).parts) - 1  # packages around the file
            assert node.level <= depth, f"{path} imports from above its package"
            yield path.relative_to(ROOT).parts[0] if node.level else node.module.split(".")[0]
        elif eager and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        elif eager and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                yield from visit(child)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    return set(visit(ast.parse(source)))


def module_of(path):
    """The dotted name of a file, and of the package that its relative imports start from."""

    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[:-1]
    return ".".join(package if parts[-1] == "__init__" else parts), package


def modules_that_a_file_imports(source, path, known):
    """Those of the `known` modules that a file imports outside its functions, for types or not.

    What the files in LAZY import for types alone is left out: it is imported when asked for.
    """

    def visit(node):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if types and path in LAZY:
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            _, package = module_of(path)
            around = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*around, *([node.module] if node.module else [])))
            # What is imported from a package may be a module itself.
            whole = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in known else base for name in whole)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return (set(visit(ast.parse(source))) & set(known)) - {module_of(path)[0]}


def circle(graph):
    """Modules that import each other in a circle, the first one again at the end, if there are."""

    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def ids(path):
    return str(path.relative_to(ROOT))


def test_the_reader_of_imports_reads():
    source = """
import scipy.stats
from torch import nn
from ..weights import ess
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import pandas
class A:
    import numpy
    def f(self):
        import rewards
try:
    import rich
except ImportError:
    pass
"""
    path = ROOT / "rwguidance" / "estimators" / "x.py"
    at_once = {"scipy", "torch", "rwguidance", "typing", "numpy", "rich"}
    assert imports(source, path, eager=True) == at_once
    assert imports(source, path, eager=False) == at_once | {"pandas", "rewards"}
    with pytest.raises(AssertionError, match="above its package"):
        imports("from ...rewards import load", path, eager=False)


def test_the_reader_of_modules_reads():
    source = """
import rewards.base, torch
from .. import toy, Tilt
from ..support import memory
from ..weights import ess
from . import base
if TYPE_CHECKING:
    from ..bank import Bank
def f():
    from ..schedules import Schedule
g = lambda: __import__("rwguidance.models")
"""
    path = ROOT / "rwguidance" / "estimators" / "x.py"
    known = {module_of(path)[0] for path in FILES}
    found = {"rewards.base", "rwguidance", "rwguidance.toy", "rwguidance.support.memory"}
    found |= {"rwguidance.weights", "rwguidance.estimators.base", "rwguidance.bank"}
    assert modules_that_a_file_imports(source, path, known) == found
    package = ROOT / "rwguidance" / "estimators" / "__init__.py"
    found = {"rwguidance.estimators.base"}
    assert modules_that_a_file_imports("from .base import x", package, known) == found


def test_circles_are_found():
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    found = circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    assert set(found) == {"b", "c"}
    assert found[0] == found[-1]


def test_modules_do_not_import_each_other_in_a_circle():
    known = {module_of(path)[0] for path in FILES}
    graph = {
        module_of(path)[0]: modules_that_a_file_imports(path.read_text(), path, known)
        for path in FILES
    }
    assert sum(map(len, graph.values())) > 200
    found = circle(graph)
    assert found is None, " imports ".join(reversed(found))


def test_all_packages_are_seen():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_siblings_do_not_know_each_other_and_the_core_knows_neither(path):
    package = path.relative_to(ROOT).parts[0]
    # Only commands join the three, and not before they run.
    found = imports(path.read_text(), path, eager=path in COMMANDS)
    assert found & set(PACKAGES) <= ALLOWED[package]


@pytest.mark.parametrize("path", [path for path in FILES if path not in COMMANDS], ids=ids)
def test_heavy_packages_are_imported_where_they_are_used(path):
    heavy = imports(path.read_text(), path, eager=True) - LIGHT
    assert not heavy, f"import {', '.join(sorted(heavy))} inside the function that needs it"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_brings_in_torch_and_nothing_heavier(package):
    heavy = "scipy transformers diffusers matplotlib sklearn rich typer pandas accelerate datasets"
    code = f"""
import sys, {package}
assert "torch" in sys.modules
loaded = [name for name in {heavy.split()} if name in sys.modules]
assert not loaded, loaded
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_global_generators_are_borrowed_in_one_place_where_threads_take_turns():
    names = ("fork_rng", "set_rng_state", "default_generator")
    borrow = [path for path in FILES if any(name in path.read_text() for name in names)]
    assert borrow == [ROOT / "rwguidance" / "support" / "randomness.py"]
