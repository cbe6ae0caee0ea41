"""Names and defaults of public arguments are a promise: tests/public_signatures.txt lists them."""

import ast

from test_public_names import ROOT, exported, modules

SIGNATURES = ROOT / "tests" / "public_signatures.txt"


def public_signatures():
    """Every public function, class and method of a class, with names and defaults of arguments."""

    return sorted(f"{name}.{line}" for name, source in modules() for line in signatures(source))


def signatures(source):
    """The signatures of what a module exports, without annotations."""

    exports = exported(source)
    for node in ast.parse(source).body:
        if getattr(node, "name", None) in exports:
            yield from signatures_of(node, node.name)


def signatures_of(node, name):
    if isinstance(node, ast.FunctionDef):
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        yield f"{name}({ast.unparse(node.args)})"
    elif isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and is_public(member.name):
                yield from signatures_of(member, f"{name}.{member.name}")
            elif isinstance(member, ast.AnnAssign | ast.Assign) and member.value is not None:
                target = member.target if isinstance(member, ast.AnnAssign) else member.targets[0]
                if is_public(target.id):
                    yield f"{name}.{target.id} = {ast.unparse(member.value)}"


def is_public(name):
    return name in ("__init__", "__call__") or not name.startswith("_")


def test_the_reader_of_signatures_reads():
    source = """
__all__ = ["f", "A"]
def f(x: int, *, y: float = 2.5) -> float: ...
def g(z=1): ...
class A:
    size: int = 3
    least = 1 / 2
    _own = 4
    def __init__(self, a, b=None): ...
    def draw(self, *parts, **more): ...
    def _hidden(self, c=1): ...
"""
    assert list(signatures(source)) == [
        "f(x, *, y=2.5)",
        "A.size = 3",
        "A.least = 1 / 2",
        "A.__init__(self, a, b=None)",
        "A.draw(self, *parts, **more)",
    ]


def test_arguments_and_defaults_change_on_purpose():
    listed, found = SIGNATURES.read_text(encoding="utf-8").splitlines(), public_signatures()
    new, gone = sorted(set(found) - set(listed)), sorted(set(listed) - set(found))
    assert listed == found, (
        f"arguments or their defaults changed: now {new}, before {gone}. Results of callers may "
        "change with them: say so in docs/migration.md, and write the list anew with "
        "`python tests/test_public_signatures.py`."
    )


if __name__ == "__main__":
    SIGNATURES.write_text("\n".join(public_signatures()) + "\n", encoding="utf-8")
    print(f"wrote {SIGNATURES.relative_to(ROOT)}")
