"""Changes of one expression, read from the syntax tree: what a slip of the pen would leave.

There are eight kinds: signs, reductions, dtypes, detach, index, order, constants and logic.
Strings, annotations, assertions, what is raised, what is imported for types and the branches of
Windows are left alone, and so are the strict=True of zip, an assertion, too, and the order of a
difference whose absolute value or square is taken. A detach() is put only where a gradient can
pass: not before what becomes a number, nor where autograd is off, nor in files from which numbers,
texts and pictures come alone. Nor are dtypes changed where figures of few digits are made.
"""

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["KINDS", "Mutation", "mutations"]

KINDS = ("sign", "reduction", "dtype", "detach", "index", "order", "constant", "logic")

_REDUCTIONS = {
    "sum": "mean",
    "mean": "sum",
    "median": "mean",
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "argmin": "argmax",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
}
_DTYPES = {"float64": "float32", "float32": "bfloat16", "double": "float", "float": "half"}
_GRADIENTS = {"no_grad": "enable_grad", "enable_grad": "no_grad"}
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
_COMPARISONS = {
    ast.Lt: ("order", ast.LtE),
    ast.LtE: ("order", ast.Lt),
    ast.Gt: ("order", ast.GtE),
    ast.GtE: ("order", ast.Gt),
    ast.Eq: ("logic", ast.NotEq),
    ast.NotEq: ("logic", ast.Eq),
    ast.Is: ("logic", ast.IsNot),
    ast.IsNot: ("logic", ast.Is),
    ast.In: ("logic", ast.NotIn),
    ast.NotIn: ("logic", ast.In),
}
_ONE_SIDED = (ast.Sub, ast.Div, ast.Pow, ast.MatMult)
# Methods of tensors that gradients pass through, on whose tensor a stray detach() may stand.
_DIFFERENTIABLE = {"exp", "flatten", "log", "logsumexp", "mean", "softmax", "sqrt", "square", "sum"}
# What has no gradient: tensors made of numbers, what is asked of a tensor, and of an argument.
_MADE = {"arange", "eye", "linspace", "ones", "rand", "randn", "tensor", "zeros"}
_NUMBERS = {"all", "any", "argsort", "isfinite", "isnan", "item", "nonzero", "numpy", "tolist"}
_TO_NUMBERS = {"bool", "float", "int"}
_WITHOUT_GRADIENTS = (
    "rewards/constraints/",
    "rewards/fitting.py",
    "rewards/scoring/",
    "rewards/unified.py",
    "rewards/vlm.py",
    "rewards/vqascore.py",
    "rwguidance/annealing.py",
    "rwguidance/app/",
    "rwguidance/diagnostics.py",
    "rwguidance/estimators/kernels.py",
    "rwguidance/evaluation/",
    "rwguidance/generation/",
    "rwguidance/metrics/",
    "rwguidance/noise_space/adapted.py",
    "rwguidance/noise_space/gradient.py",
    "rwguidance/noise_space/kernels.py",
    "rwguidance/particles.py",
    "rwguidance/statistics.py",
    "rwguidance/temperature.py",
    "rwguidance/testing/",
    "rwguidance/trainer/",
    "rwguidance/training/calibration.py",
    "testbed/rwguidance_testbed/gold.py",
)
# What they find is stated to three digits, and made of numbers in single precision.
_OF_FEW_DIGITS = ("rwguidance/trainer/figures.py", "rwguidance/trainer/unseen.py")
_NETWORKS = "rwguidance/networks/"
_MODULES = {"math", "np", "numpy", "statistics", "torch"}
# Swapping their arguments changes nothing, or says nothing about formulas.
_SYMMETRIC = {
    *("cosine_similarity", "dot", "equal", "gcd", "isclose", "logaddexp"),
    *("max", "maximum", "min", "minimum"),
}
_UNMUTATED_CALLS = {"warn", "cast", "getattr", "isinstance", "issubclass", "setattr"}
_ATOMS = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Constant)


class Mutation(NamedTuple):
    """One expression of a file, changed."""

    file: str
    line: int
    kind: str
    scope: tuple[str, ...]
    """Names of the classes and functions around it, outermost first."""
    old: str
    """The lines that hold the expression, on one line."""
    new: str
    text: str
    """The whole file with the change."""


def mutations(file: str, source: str) -> list[Mutation]:
    """All changes of single expressions of a file, in the order of its lines."""

    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    place = lambda line, column: starts[line - 1] + column
    found = []
    for node, scope, graph in _expressions(ast.parse(source), (), True):
        graph = graph and not file.startswith(_WITHOUT_GRADIENTS)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = place(node.lineno, node.col_offset)
        end = place(node.end_lineno, node.end_col_offset)
        left, right = starts[node.lineno - 1], starts[node.end_lineno]
        cuts = _detached(node, trained=file.startswith(_NETWORKS)) if graph else ()
        for kind, changed in (*_changes(node), *cuts):
            if kind == "dtype" and file in _OF_FEW_DIGITS:
                continue
            text = ast.unparse(ast.fix_missing_locations(changed))
            new = (text if isinstance(changed, _ATOMS) else f"({text})").encode()
            shown = [data[left:right], data[left:start] + new + data[end:right]]
            old_line, new_line = (" ".join(part.decode().split()) for part in shown)
            whole = (data[:start] + new + data[end:]).decode()
            found.append(Mutation(file, node.lineno, kind, scope, old_line, new_line, whole))
    return found


def _expressions(
    node: ast.AST, scope: tuple[str, ...], graph: bool
) -> Iterator[tuple[ast.expr, tuple[str, ...], bool]]:
    """Every expression that may be changed, the names around it, and if gradients pass through."""

    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Call) and _name(node.func) in _UNMUTATED_CALLS:
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return
    if isinstance(node, ast.keyword) and ast.unparse(node) == "strict=True":
        return
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        scope = (*scope, node.name)
    if isinstance(difference := _evened(node), ast.BinOp) and isinstance(difference.op, ast.Sub):
        difference.even = True  # type: ignore[attr-defined]
    if isinstance(node, ast.expr):
        yield node, scope, graph
    graph = graph and not _cuts(node)
    windows = isinstance(node, ast.If) and ast.unparse(node.test) == "sys.platform == 'win32'"
    skipped = ["annotation", "returns", "decorator_list", "bases"]
    skipped += ["body"] if windows else []
    zips = isinstance(node, ast.Call) and _name(node.func) == "zip"
    skipped += ["keywords"] if zips else []  # strict=True asserts that there are as many
    for name, value in ast.iter_fields(node):
        if name not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _expressions(child, scope, graph)


def _evened(node: ast.AST) -> ast.AST | None:
    """What an absolute value or a square is taken of."""

    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return node.left if ast.unparse(node.right) == "2" else None
    if isinstance(node, ast.Call) and _name(node.func) in ("abs", "square"):
        return node.func.value if isinstance(node.func, ast.Attribute) else node.args[0]
    return None


def _cuts(node: ast.AST) -> bool:
    """Whether no gradient passes from within a node: it makes numbers, or turns autograd off."""

    if isinstance(node, ast.Call):
        method = isinstance(node.func, ast.Attribute)
        return _name(node.func) in (_NUMBERS if method else _TO_NUMBERS)
    decorators = getattr(node, "decorator_list", [])
    contexts = [item.context_expr for item in getattr(node, "items", [])]
    return "torch.no_grad()" in map(ast.unparse, (*decorators, *contexts))


def _changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The kinds of change of one expression, with what stands in its place."""

    if isinstance(node, ast.UnaryOp):
        yield from _of_unary(node)
    elif isinstance(node, ast.BinOp):
        yield from _of_arithmetic(node)
    elif isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            if type(operator) in _COMPARISONS:
                kind, other = _COMPARISONS[type(operator)]
                changed = copy.deepcopy(node)
                changed.ops[i] = other()
                yield kind, changed
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "logic", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.IfExp):
        yield "logic", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Attribute):
        yield from _of_attribute(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Subscript):
        yield from _of_subscript(node)
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)


def _of_unary(node: ast.UnaryOp) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node.op, ast.USub):
        yield "sign", node.operand
    elif isinstance(node.op, ast.Not):
        yield "logic", node.operand


def _of_arithmetic(node: ast.BinOp) -> Iterator[tuple[str, ast.expr]]:
    if any(_is_text(side) for side in ast.walk(node)):
        return
    if type(node.op) in _ARITHMETIC:
        yield "sign", ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    if isinstance(node.op, _ONE_SIDED) and not getattr(node, "even", False):
        yield "order", ast.BinOp(node.right, node.op, node.left)


def _of_attribute(node: ast.Attribute) -> Iterator[tuple[str, ast.expr]]:
    renamed = lambda name: ast.Attribute(node.value, name, node.ctx)
    if _name(node.value) == "torch":
        if node.attr in ("float32", "float64"):
            yield "dtype", renamed(_DTYPES[node.attr])
        if node.attr in _GRADIENTS:
            yield "detach", renamed(_GRADIENTS[node.attr])


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    name, method = _name(node.func), isinstance(node.func, ast.Attribute)
    call = lambda function: ast.Call(function, node.args, node.keywords)
    if name in _REDUCTIONS:
        other = _REDUCTIONS[name]
        if isinstance(node.func, ast.Attribute):
            yield "reduction", call(ast.Attribute(node.func.value, other, ast.Load()))
        elif other != "mean":  # no function of that name
            yield "reduction", call(ast.Name(other, ast.Load()))
    if isinstance(node.func, ast.Attribute):
        receiver = node.func.value
        if name in ("double", "float") and not node.args:
            yield "dtype", call(ast.Attribute(receiver, _DTYPES[name], ast.Load()))
        if name == "to" and not all(_is_device(argument) for argument in _arguments(node)):
            yield "dtype", receiver
        if name == "detach":
            yield "detach", receiver
    swappable = len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args[:2])
    same = swappable and ast.unparse(node.args[0]) == ast.unparse(node.args[1])
    if swappable and not same and not (name in _SYMMETRIC and (method or len(node.args) == 2)):
        first, second, *rest = node.args
        yield "order", ast.Call(node.func, [second, first, *rest], node.keywords)


def _detached(node: ast.expr, trained: bool) -> Iterator[tuple[str, ast.expr]]:
    """A stray detach() before a method that gradients pass through.

    Comparisons, what is made of them and of numbers have no gradient, nor have the attributes of an
    object that is not trained.
    """

    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    receiver, name = node.func.value, node.func.attr
    innermost: ast.expr = receiver
    while isinstance(innermost, ast.Call) and isinstance(innermost.func, ast.Attribute):
        made = innermost.func.attr in _MADE and _name(innermost.func.value) in _MODULES
        if made or innermost.func.attr in (*_NUMBERS, "detach"):
            return
        innermost = innermost.func.value
    held = isinstance(innermost, ast.Attribute) and _name(innermost.value) == "self"
    if isinstance(innermost, ast.Compare | ast.UnaryOp) or (held and not trained):
        return
    if name in _DIFFERENTIABLE and _name(receiver) not in _MODULES:
        cut = ast.Call(ast.Attribute(receiver, "detach", ast.Load()), [], [])
        function = ast.Attribute(cut, name, ast.Load())
        yield "detach", ast.Call(function, node.args, node.keywords)


def _of_subscript(node: ast.Subscript) -> Iterator[tuple[str, ast.expr]]:
    """Other indices and ends of slices, at any place of the brackets."""

    many = isinstance(node.slice, ast.Tuple)
    for i, index in enumerate(node.slice.elts if many else [node.slice]):  # type: ignore[attr-defined]
        for changed in _of_index(index):
            new = copy.deepcopy(node)
            if isinstance(new.slice, ast.Tuple):
                new.slice.elts[i] = changed
            else:
                new.slice = changed
            yield "index", new


def _of_index(index: ast.expr) -> Iterator[ast.expr]:
    if isinstance(index, ast.Slice):
        for name in ("lower", "upper"):
            end = getattr(index, name)
            if end is not None:
                new = copy.deepcopy(index)
                setattr(new, name, ast.BinOp(end, ast.Add(), ast.Constant(1)))
                yield new
    elif isinstance(index, ast.Constant) and type(index.value) is int:
        yield ast.Constant(-1 if index.value == 0 else index.value + 1)
    elif isinstance(index, ast.UnaryOp) and ast.unparse(index) == "-1":
        yield ast.Constant(0)


def _of_constant(node: ast.Constant) -> Iterator[tuple[str, ast.expr]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield "constant", ast.Constant(value + 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(2 * value if value else 1.0)


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _is_device(node: ast.expr) -> bool:
    """Whether an argument names a device: on one device, no test can tell."""

    if isinstance(node, ast.BoolOp):
        return all(map(_is_device, node.values))
    return _name(node).endswith(("device", "place")) or isinstance(node, ast.Constant)


def _name(node: ast.expr) -> str:
    """The last part of a dotted name, or nothing."""

    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.AST) -> bool:
    joined = isinstance(node, ast.JoinedStr | ast.List | ast.Tuple)
    return joined or (isinstance(node, ast.Constant) and isinstance(node.value, str))
