"""The public names are a promise: tests/public_names.txt lists them and changes on purpose only."""

import ast
import importlib
import inspect
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTED = ROOT / "tests" / "public_names.txt"
PACKAGES = ("rwguidance", "rewards", "backbones")


def public_names():
    """Every name in the `__all__` of a module, with the module's, sorted."""

    return sorted({f"{module}.{name}" for module, source in modules() for name in exported(source)})


def modules():
    """Names and sources of all modules."""

    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, path.read_text(encoding="utf-8")


def exported(source):
    """The names in the `__all__` of a module; nothing if it has none, or another module's."""

    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_the_reader_of_exports_reads():
    assert exported('import a\n__all__ = [\n  "f",\n  "g",\n]\nb = ["h"]') == ["f", "g"]
    assert exported("from a import __all__ as __all__") == exported("") == []
    names = public_names()
    assert {"rwguidance.Bank", "rwguidance.bank.Bank", "rewards.base.Reward"} <= set(names)
    assert len(names) > 200


def test_public_names_change_on_purpose():
    listed, names = LISTED.read_text(encoding="utf-8").splitlines(), public_names()
    new, gone = sorted(set(names) - set(listed)), sorted(set(listed) - set(names))
    assert listed == names, (
        f"the public names changed: new {new}, gone {gone}. A name that goes or moves keeps "
        "working for one release with a DeprecationWarning, and has a line in docs/migration.md. "
        "Then write the list anew with `python tests/test_public_names.py`."
    )


def test_seeds_are_zero_where_none_is_given():
    seen = 0
    for name in public_names():
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        function = value.__init__ if inspect.isclass(value) else value
        if inspect.isfunction(function):
            seed = inspect.signature(function).parameters.get("seed")
            seen += seed is not None
            assert seed is None or seed.default in (0, inspect.Parameter.empty), name
    assert seen > 10


if __name__ == "__main__":
    LISTED.write_text("\n".join(public_names()) + "\n", encoding="utf-8")
    print(f"wrote {LISTED.relative_to(ROOT)}")
