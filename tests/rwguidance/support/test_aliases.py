"""One module under two names, whoever else has the short one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SLOW = pytest.param("backbones", marks=pytest.mark.slow)  # each is an interpreter of its own
SLOW_MODULE = pytest.param("module", marks=pytest.mark.slow)


def run(code, cwd, path=ROOT):
    """What a fresh interpreter prints in a folder, which its scripts see first."""

    code = f"import sys; sys.path[:0] = ['', {str(path)!r}]\n{code}"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True
    )
    return ran.stdout.strip() or ran.stderr.strip().splitlines()[-1]


IMPORTS = {
    "short first": "import {0} as a, rwguidance.{0} as b",
    "long first": "import rwguidance.{0} as b, {0} as a",
    "attribute": "import rwguidance, {0} as a; b = rwguidance.{0}",
    "from": "from rwguidance import {0} as b; import {0} as a",
    "submodule of the short": "import {0}.registry; import {0} as a, rwguidance.{0} as b",
    "submodule of the long": "import rwguidance.{0}.registry as b; import {0}.registry as a",
}


BOTH = [(how, "rewards") for how in IMPORTS] + [("long first", "backbones")]
LONG = [(how, "backbones") for how in IMPORTS if how != "long first"]


@pytest.mark.parametrize(
    ("how", "package"), [*BOTH, *(pytest.param(*one, marks=pytest.mark.slow) for one in LONG)]
)
def test_both_names_are_one_module_with_one_registry(package, how, tmp_path):
    code = (
        IMPORTS[how].format(package)
        + f"""
import {package}.registry as c, rwguidance.{package}.registry as d
assert a is b and c is d and c._registry is d._registry
assert d.__name__ == d.__spec__.name == "rwguidance.{package}.registry"
assert a.load.__module__ == "rwguidance.{package}.registry"
print("one")
"""
    )
    assert run(code, tmp_path) == "one"


def test_a_function_stays_what_it_is_although_a_module_has_its_name(tmp_path):
    code = "import backbones, backbones.guide, backbones.tiny; print(callable(backbones.guide))"
    assert run(code, tmp_path) == "True"
    code = "import backbones.guide, rwguidance; print(callable(rwguidance.backbones.tiny))"
    assert run(code, tmp_path) == "True"


def test_an_import_that_failed_can_be_tried_again(tmp_path):
    code = """
import sys, rwguidance
sys.modules["rwguidance.rewards.registry"] = None
for _ in range(2):
    try:
        import rwguidance.rewards
    except ModuleNotFoundError as error:
        assert "rwguidance.rewards.registry" in str(error)
    else:
        assert False
    assert "rwguidance.rewards" not in sys.modules
del sys.modules["rwguidance.rewards.registry"]
import rwguidance.rewards, rewards
print(rewards is rwguidance.rewards)
"""
    assert run(code, tmp_path) == "True"


class TestShadows:
    """Another package of the same name: beside the user's script, or written over ours."""

    @pytest.mark.parametrize("package", ["rewards", SLOW])
    @pytest.mark.parametrize("kind", ["package", "namespace", SLOW_MODULE])
    def test_a_folder_beside_the_script_is_not_ours(self, package, kind, tmp_path):
        if kind == "module":
            (tmp_path / f"{package}.py").write_text("x = 1")
        else:
            (tmp_path / package).mkdir()
            (tmp_path / package / "data.txt").write_text("")
        if kind == "package":
            (tmp_path / package / "__init__.py").write_text("x = 1")
        code = f"from rwguidance import {package}; print({package}.load.__module__)"
        assert run(code, tmp_path) == f"rwguidance.{package}.registry"
        if kind == "namespace":  # no module at all, so ours is found under the short name, too
            return
        code = f"import {package} as theirs; from rwguidance import {package} as ours\n"
        assert run(code + "print(theirs.x, hasattr(ours, 'load'))", tmp_path) == "1 True"
        code = f"from rwguidance import {package} as ours; import {package} as theirs\n"
        assert run(code + "print(theirs.x, hasattr(ours, 'load'))", tmp_path) == "1 True"

    def test_the_command_line_uses_ours(self, tmp_path):
        for name in ("rewards", "backbones"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("")
        code = "import sys; sys.argv = ['rwguidance', 'rewards', 'jpeg']\n"
        assert "jpeg" in run(code + "from rwguidance.app.cli import main; main()", tmp_path).lower()
        code = "import sys; sys.argv = ['rwguidance', 'backbones']\n"
        assert "sdxl" in run(code + "from rwguidance.app.cli import main; main()", tmp_path)

    @pytest.mark.parametrize("package", ["rewards", SLOW])
    def test_a_package_that_was_written_over_is_named(self, package, tmp_path):
        for name in ("rwguidance", "rewards", "backbones"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
        (tmp_path / package / "__init__.py").write_text("def load(): return 'theirs'")
        last = run(f"from rwguidance import {package}", tmp_path / "rwguidance", tmp_path)
        file = tmp_path / package / "__init__.py"
        assert last.startswith(f"ImportError: {file} is not that of rwguidance")
        assert "remove it and install rwguidance again" in last
        shutil.rmtree(tmp_path / package)
        last = run(f"import rwguidance.{package}", tmp_path / "rwguidance", tmp_path)
        assert last.startswith("ImportError: ")
        assert str(file) in last


class TestMoved:
    def test_old_paths_lead_to_the_new_ones_and_warn(self, tmp_path):
        code = """
import warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from rwguidance.fingerprint import fingerprint
import rwguidance.support.fingerprint as new
assert fingerprint is new.fingerprint and new.__spec__.name == "rwguidance.support.fingerprint"
(one,) = [w for w in seen if w.category is DeprecationWarning]
print(one.message, one.filename)
"""
        # The warning points at the code that imports.
        assert run(code, tmp_path) == (
            "rwguidance.fingerprint is now rwguidance.support.fingerprint <string>"
        )

    def test_what_never_was_is_not_found(self, tmp_path):
        assert "No module named 'rwguidance.nothing'" in run("import rwguidance.nothing", tmp_path)
        assert "has no attribute 'nothing'" in run(
            "import rwguidance; rwguidance.nothing", tmp_path
        )


def test_subpackages_are_there_when_asked_for(tmp_path):
    code = """
import sys, rwguidance as rw
lazy = ("backbones", "generation", "networks", "rewards", "testing", "training")
assert not [name for name in lazy if f"rwguidance.{name}" in sys.modules]
assert set(lazy) <= set(dir(rw))
print(*[getattr(rw, name).__name__ for name in lazy])
"""
    lazy = ("backbones", "generation", "networks", "rewards", "testing", "training")
    assert run(code, tmp_path) == " ".join(f"rwguidance.{name}" for name in lazy)
