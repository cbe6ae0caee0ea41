"""Every mutant of tests/mutants.py dies, and random ones are what they say they are."""

import ast
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mutant_runs
from forked_mutants import try_forked
from line_map import FOLDER
from mutant_runs import ROOT, Copy
from mutants import MUTANTS, control, files_named, kill, mutated
from mutations import KINDS, mutations
from random_mutants import (
    EQUIVALENT,
    choose,
    equivalents,
    files,
    mutations_of,
    notice,
    relevant_tests,
)


@pytest.fixture(scope="module")
def copy():
    with Copy() as made:
        yield made


@pytest.fixture(scope="module")
def checked():
    """The names of tests that are known to pass without a mutant."""

    return set()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_some_test_notices(mutant, copy, checked):
    if mutant.tests not in checked:
        control(copy, mutant.tests)
        checked.add(mutant.tests)
    outcome = kill(copy, mutant)
    assert outcome.noticed, f"survived: {outcome.first}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_of_the_list_applies_and_has_tests(mutant):
    file, text = mutated(mutant)
    assert text != (ROOT / file).read_text(encoding="utf-8")
    assert files_named(mutant.tests)


def changes(source):
    """Kind, old and new expression of all mutants of a function's body."""

    whole = "def f(x):\n" + textwrap.indent(source, "    ")
    return {(m.kind, m.old, m.new) for m in mutations("file.py", whole)}


@pytest.mark.parametrize(
    ("source", "kind", "new"),
    [
        ("-x", "sign", "x"),
        ("x + y", "sign", "(x - y)"),
        ("x * y", "sign", "(x / y)"),
        ("x - y", "order", "(y - x)"),
        ("x < y", "order", "(x <= y)"),
        ("f(x, y, z)", "order", "f(y, x, z)"),
        ("x.sum(1)", "reduction", "x.mean(1)"),
        ("min(x)", "reduction", "max(x)"),
        ("x.median()", "reduction", "x.mean()"),
        ("x.double()", "dtype", "x.float()"),
        ("x.to(y.dtype)", "dtype", "x"),
        ("torch.float32", "dtype", "torch.bfloat16"),
        ("x.detach()", "detach", "x"),
        ("x.exp()", "detach", "x.detach().exp()"),
        ("torch.no_grad()", "detach", "torch.enable_grad()"),
        ("x[0]", "index", "x[-1]"),
        ("x[:, 1]", "index", "x[:, 2]"),
        ("x[:y]", "index", "x[:y + 1]"),
        ("x[-1]", "index", "x[0]"),
        ("2", "constant", "3"),
        ("0.5", "constant", "1.0"),
        ("True", "constant", "False"),
        ("not x", "logic", "x"),
        ("x and y", "logic", "(x or y)"),
        ("x is None", "logic", "(x is not None)"),
        ("x if y else z", "logic", "(z if y else x)"),
    ],
)
def test_an_expression_is_changed(source, kind, new):
    assert (kind, source, new) in changes(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring of -1 words."""',
        'raise ValueError(f"{-x} of 3")',
        "assert x < 2",
        "y: Literal[1] = x",
        'f"{x + 1}"',
        '"a" + x',
        "x.to(y.device)",
        "x.to(y._execution_device)",
        "zip(*x, strict=True).z",
        "F.cosine_similarity(x, y).z",
        "if TYPE_CHECKING:\n    y = 1",
        "if sys.platform == 'win32':\n    y = 1\nelse:\n    z",
        "min(x, y).z",
    ],
)
def test_what_is_said_is_left_alone(source):
    made = {change for change in changes(source) if change[0] != "reduction"}
    assert not {change for change in made if "sys.platform" not in change[1]}


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ("(x - y).abs()", "y - x"),
        ("abs(x - y)", "y - x"),
        ("(x - y).square()", "y - x"),
        ("(x - y) ** 2", "y - x"),
        ("dot(x, y)", "dot(y, x)"),
        ("zip(x, y, strict=True)", "strict=False"),
    ],
)
def test_what_changes_nothing_is_not_made(source, same):
    assert not [new for _, _, new in changes(source) if same in new]
    assert "dtype" not in {kind for kind, _, _ in changes("x.to(self.device or 'cpu')")}


@pytest.mark.parametrize(
    ("source", "cut"),
    [
        ("x.exp()", True),
        ("f(x.exp())", True),
        ("float(x.exp())", False),
        ("x.exp().tolist()", False),
        ("x.detach().exp()", False),
        ("(x > 0).sum()", False),
        ("x.isnan().flatten().sum()", False),
        ("self.f(x).exp()", True),
        ("self.x.exp()", False),
        ("with torch.no_grad():\n    x.exp()", False),
        ("with other():\n    x.exp()", True),
    ],
)
def test_gradients_are_cut_where_they_pass(source, cut):
    made = {new for kind, _, new in changes(source) if kind == "detach"} - {source}
    assert any("detach().exp()" in new or "detach().sum()" in new for new in made) == cut


def test_gradients_are_cut_in_files_that_have_some():
    source = "class A:\n    def f(self, x):\n        return x.exp(), self.x.exp()\n"
    count = lambda file: len([m for m in mutations(file, source) if m.kind == "detach"])
    assert count("rwguidance/losses.py") == 1
    assert count("rwguidance/networks/guidance.py") == 2
    assert count("rwguidance/statistics.py") == 0


def test_every_mutant_of_a_file_is_one_change_of_a_program():
    source = 'def f(x, ü="é"):\n    y = "ö", (x +\n        1) * 2  # ß\n    return y[0], -x\n'
    found = mutations("file.py", source)
    assert {m.kind for m in found} == {"sign", "constant", "index"}
    before = ast.unparse(ast.parse(source))
    texts = {ast.unparse(ast.parse(mutant.text)) for mutant in found}
    assert len(texts) == len(found)
    assert before not in texts
    assert ('y = "ö", (x + 1) * 2 # ß', 'y = "ö", ((x - 1)) * 2 # ß') in {
        (m.old, m.new) for m in found
    }


def test_a_seed_chooses_the_same_mutants_and_another_seed_others():
    few = ["rwguidance/weights.py", "rewards/towers.py", "backbones/sd3.py"]
    chosen = choose(24, 0, few)
    assert chosen == choose(24, 0, few)
    assert chosen != choose(24, 1, few)
    assert len(set(chosen)) == 24
    assert {mutation.kind for mutation in chosen} == set(KINDS)
    assert {mutation.file for mutation in chosen} == set(few)


def test_all_mutants_can_be_chosen():
    everything = mutations_of("rwguidance/diagnostics.py")
    assert len(choose(10**6, 0, ["rwguidance/diagnostics.py"])) == len(everything) > 20


def test_every_package_is_mutated():
    packages = {Path(file).parts[0] for file in files()}
    assert packages == {"rwguidance", "rewards", "backbones", "testbed"}


@pytest.mark.parametrize(
    ("file", "nearest", "too"),
    [
        ("rwguidance/weights.py", "tests/rwguidance/test_weights.py", "test_importance"),
        ("rwguidance/estimators/learned.py", "tests/rwguidance/estimators/test_learned.py", ""),
        ("rewards/towers.py", "tests/rewards/test_towers.py", "test_zoo"),
        ("backbones/guide.py", "tests/backbones/test_guide.py", ""),
        ("rewards/constraints/dual.py", "tests/rewards/test_constraints.py", ""),
        ("testbed/rwguidance_testbed/gold.py", "testbed/tests/test_gold.py", "test_shipped"),
    ],
)
def test_the_nearest_tests_run_first_and_those_that_import_it_after(file, nearest, too):
    tests = relevant_tests(mutations_of(file)[0])
    assert tests[:2] == ["tests/test_public_signatures.py", nearest]
    assert any(too in test for test in tests[2:])
    assert "tests/test_mutants.py" not in tests


def test_equivalent_mutants_are_mutants_of_today():
    for entry in equivalents():
        known = {(mutation.old, mutation.new) for mutation in mutations_of(entry.file)}
        assert (entry.old, entry.new) in known, f"{EQUIVALENT.name}: {entry.file}: {entry.old}"
        assert len(entry.reason) > 20, f"{entry.file}: {entry.old} needs a reason"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("one.py\n- a\nfor a reason\n", "a file, -, . and a reason"),
        ("one.py\n- a\n+ b\nfor a reason\n" * 2, "ends with an empty line"),
    ],
)
def test_entries_that_run_into_each_other_are_refused(text, match, tmp_path, monkeypatch):
    path = tmp_path / "entries.txt"
    path.write_text(text)
    monkeypatch.setattr("random_mutants.EQUIVALENT", path)
    with pytest.raises(ValueError, match=match):
        equivalents()


# Away from the others, without their fixtures and PyTorch.
TESTS = """
import pathlib, time
NUMBER = pathlib.Path("number.py")
def test_number():
    assert "-1" in NUMBER.read_text()
def test_that_never_passes():
    assert False
def test_that_may_wait():
    time.sleep(600 * ("0" in NUMBER.read_text()))
"""


@pytest.fixture
def small(copy, monkeypatch):
    """The copy with a file that is mutated, and tests of it of which one always fails."""

    folder = copy.root / "small"
    folder.mkdir()
    (folder / "test_number.py").write_text(TESTS)
    (copy.root / "number.py").write_text("number = -1\n")
    monkeypatch.setattr("random_mutants.relevant_tests", lambda mutation: ["small"])
    yield copy
    shutil.rmtree(folder)
    (copy.root / "number.py").unlink()


@pytest.mark.slow
def test_tests_that_fail_anyway_do_not_kill(small, monkeypatch):
    sign, constant = mutations("number.py", "number = -1\n")
    assert (sign.new, constant.new) == ("number = 1", "number = -2")
    killed = notice(small, sign, limit=60)
    assert killed.noticed
    assert killed.first == "small/test_number.py::test_number"
    harmless = constant._replace(text="number = -1  # 2\n")
    assert notice(small, harmless, limit=60).verdict == "passed"
    assert (small.root / "number.py").read_text() == "number = -1\n"


@pytest.mark.slow
def test_a_conftest_that_cannot_be_imported_kills(small, monkeypatch):
    begin = "import pathlib\nassert '-1' in pathlib.Path('number.py').read_text()\n"
    (small.root / "small" / "conftest.py").write_text(begin)
    (small.root / "small" / "test_fine.py").write_text("def test_fine():\n    pass\n")
    monkeypatch.setattr("random_mutants.relevant_tests", lambda mutation: ["small/test_fine.py"])
    sign, _ = mutations("number.py", "number = -1\n")
    assert notice(small, sign, limit=60).noticed
    assert notice(small, sign._replace(text="number = -1  # 2\n"), limit=60).verdict == "passed"


@pytest.mark.slow
def test_tests_that_never_end_kill(small, monkeypatch):
    constant = mutations("number.py", "number = -1\n")[1]._replace(text="number = -10\n")
    monkeypatch.setattr(mutant_runs, "QUIET", 30.0)
    outcome = notice(small, constant, limit=600)
    assert outcome.verdict == "hangs"
    assert outcome.first == "small/test_number.py::test_that_may_wait"
    assert notice(small, constant, limit=20).verdict == "time limit"


@pytest.mark.slow
def test_forks_notice_what_the_tests_of_changed_lines_notice(tmp_path):
    tests, file = "tests/rwguidance/test_statistics.py", "rwguidance/statistics.py"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "line_map", "-p", "no:cacheprovider", tests],
        cwd=ROOT,
        env={**os.environ, FOLDER: str(tmp_path), "PYTHONPATH": f"{ROOT}/tests:{ROOT}"},
        check=True,
    )
    draw = {"count": 20, "seed": 0, "among": [file]}
    noticed = try_forked(list(range(20)), draw, tmp_path, workers=2)
    assert len(noticed) >= 12
    assert {outcome.first.split("::")[0] for outcome in noticed.values()} == {tests}
