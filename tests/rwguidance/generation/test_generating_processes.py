"""Generation by several processes: the folder is that of one, whichever of them has died before."""

import csv
import hashlib
from pathlib import Path

import pytest

from processes_of_a_run import launch

pytestmark = pytest.mark.slow

OWN = """
import os
from pathlib import Path

import torch

from pixel_law import Brightness, Law

class Dying(Law):
    depends_on = ("schedule", "std")

    def forward(self, x_t, t, condition=None):
        rank, calls = os.environ.get("RANK", "0"), int(os.environ.get("DIES", "0"))
        with open(f"calls-{rank}", "a") as file:
            file.write("x")
        if rank == "1" and calls and Path("calls-1").stat().st_size > calls:
            os._exit(9)
        return super().forward(x_t, t, condition)

class Picky(Brightness):
    depends_on = ("factor",)

    def forward(self, images, prompts):
        if "not this" in prompts:
            raise ValueError("not this one")
        return super().forward(images, prompts)
"""
PROMPTS = ["a", "bb", "not this", "ccc", "dddd", "eeeee", "ffffff"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("p.txt").write_text("\n".join(PROMPTS))
    return tmp_path


def generate(size, out, *more, **environment):
    arguments = ["--backbone", "own.py:Dying", "--reward", "own.py:Picky", "--prompts", "p.txt"]
    arguments += ["--method", "importance", "--bank", "6", "--kl", "0.5", "--images", "3"]
    arguments += ["--batch-size", "2", "--steps", "3", "--out", out, "--cache", f"cache-{out}"]
    return launch(
        size, "-W", "ignore", "-m", "rwguidance", "generate", *arguments, *more,
        expected=None, **environment,
    )  # fmt: skip


def content(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    return {str(path.relative_to(folder)): digest(path) for path in files}


def calls():
    found = {path.name: path.stat().st_size for path in sorted(Path().glob("calls-*"))}
    for name in found:
        Path(name).unlink()
    return found


def test_several_processes_write_the_folder_of_one(place):
    ((code, printed, err),) = generate(1, "one")
    assert code == 2, err
    whole = calls()["calls-0"]
    first, second = generate(2, "two")
    assert content("two") == content("one")
    assert (first[0], second[:2]) == (2, (0, "")), first
    assert first[1].replace("two", "one") == printed
    assert "not this one" in first[2]
    shared = calls()
    assert sum(shared.values()) == whole
    assert len(shared) == 2
    with open("two/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows[:3]] == ["a"] * 3
    assert rows[-1]["error"].endswith("not this one")
    # The same command again makes what failed, and nothing else.
    first, _ = generate(2, "two")
    assert first[1].splitlines()[-2].startswith("18 pairs, 18 of them from before")
    assert content("two") == content("one")


@pytest.mark.parametrize("size", [1, 3])
def test_what_a_process_that_died_has_made_is_kept(place, size):
    generate(1, "whole")
    whole = calls()["calls-0"]
    died = generate(2, "out", DIES="25")
    assert died[1][0] == 9
    assert died[0][0] == 1
    assert "another process of this run has ended" in died[0][2]
    before = sum(calls().values())
    pictures = {name for name in content("out") if name.endswith("aligned.png")}
    assert 0 < len(pictures) < 18
    generate(size, "out")
    assert content("out") == content("whole")
    assert sum(calls().values()) < whole < before + whole


def test_another_run_is_kept_out(place):
    from rwguidance.support.locks import locked

    with locked(Path("out")):
        first, second = generate(2, "out")
    assert first[0] == second[0] == 1
    assert "is in use by process" in first[2]
    assert "another process of this run has ended" in second[2]
    assert calls() == {}
