"""Files beside the code agree with it: pre-commit, hosted CI, the Makefile, versions."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def jobs():
    return [
        (path.name, name, job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()
    ]


def test_pre_commit_runs_the_versions_of_the_dev_extra():
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    pinned = set(re.findall(r'"((?:ruff|mypy)==[\d.]+)"', PYPROJECT))
    assert len(pinned) == 2
    asked = {one for hook in hooks for one in hook.get("additional_dependencies", ())}
    assert asked <= pinned, f"write the versions of pyproject.toml, {sorted(pinned)}"
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}
    # What has no version of its own is run by the Makefile, whose environment has the extra's.
    for hook in hooks:
        assert hook.get("additional_dependencies") or hook["entry"].startswith("make ")


def targets():
    return set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize(("file", "name", "job"), jobs(), ids=str)
def test_hosted_jobs_only_call_the_makefile(file, name, job):
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands
    listed = job.get("strategy", {}).get("matrix", {}).get("target", [""])
    for command in commands:
        for target in listed:
            line = command.replace("${{ matrix.target }}", target)
            assert re.fullmatch(r"make [a-z-]+( [A-Z]+=.*)?", line), f"{file}: {line}"
            assert line.split()[1] in targets(), f"{file}: the Makefile has no {line.split()[1]}"


def test_the_nightly_jobs_are_what_takes_long():
    listed = read(".github/workflows/nightly.yml")["jobs"]["nightly"]["strategy"]["matrix"][
        "target"
    ]
    called = {target.split()[0] for target in listed}
    assert {"test-slow", "mutants", "mutants-random", "test-versions", "test-settings"} <= called


def test_the_matrix_covers_what_pyproject_claims():
    matrix = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    oldest_python = re.search(r'requires-python = ">=([\d.]+)"', PYPROJECT).group(1)
    oldest_torch = re.search(r'"torch>=([\d.]+)"', PYPROJECT).group(1)
    minors = [int(python.split(".")[1]) for python in matrix["python"]]
    assert matrix["python"][0] == oldest_python
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert matrix["torch"] == [oldest_torch, ""]
    excluded = {tuple(sorted(pair.items())) for pair in matrix["exclude"]}
    assert len(excluded) == len(matrix["include"]), "every excluded pair has another in its place"


def test_the_makefile_declares_all_of_its_commands():
    declared = set(" ".join(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)).split())
    assert targets() == declared


def test_there_is_one_version():
    versions = [
        re.search(r'__version__ = "(.+)"', (ROOT / path).read_text(encoding="utf-8")).group(1)
        for path in ("rwguidance/__init__.py", "testbed/rwguidance_testbed/__init__.py")
    ]
    assert len({*versions, str(read("CITATION.cff")["version"])}) == 1
