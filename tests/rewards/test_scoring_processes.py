"""Scoring by several processes: the files are those of one, whichever of them has died before."""

import json
from pathlib import Path

import pytest

from processes_of_a_run import launch
from rewards.scoring import journal_path
from scored_folders import paint, read

pytestmark = pytest.mark.slow

REWARD = """
import os, sys, torch
from pathlib import Path
from rwguidance import rewards

class Letters(rewards.Reward):
    depends_on = ()
    spec = rewards.RewardSpec(
        name="letters", title="Letters", differentiable=False, needs_prompt=True,
        code_license="MIT", weights_license="none", formula="red times letters",
        typical_range=(0.0, 1.0), citation="none",
    )

    def forward(self, images, prompts):
        rank = os.environ.get("RANK", "0")
        with open(f"seen-{rank}", "a") as seen:
            seen.writelines("x" * len(images))
        calls = int(os.environ.get("DIES", "0"))
        if rank == "1" and calls and Path("seen-1").stat().st_size > calls:
            os._exit(9)
        if "bad" in prompts:
            raise ValueError("not this one")
        letters = torch.tensor([len(prompt) for prompt in prompts])
        return images[:, 0].mean((1, 2)) * letters / 7
"""
N = 23


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Pictures with texts beside them, one of which the reward refuses, and the reward."""

    monkeypatch.chdir(tmp_path)
    for i in range(N):
        paint(tmp_path / "images" / f"{i}.png", (4, 4 + i % 3), (11 * i, 40, 9))
        Path(f"images/{i}.txt").write_text("bad" if i == 12 else "a" * (1 + i % 5))
    Path("own.py").write_text(REWARD)
    return tmp_path


def score(size, out="scores.csv", expected=0, **environment):
    arguments = ["images", "--reward", "own.py:Letters,jpeg", "--batch-size", 3, "--out", out]
    return launch(size, "-m", "rwguidance", "score", *arguments, expected=expected, **environment)


def seen():
    """Images that the reward has seen, by process, since the last time."""

    found = {path.name: len(path.read_text()) for path in sorted(Path().glob("seen-*"))}
    for name in found:
        Path(name).unlink()
    return found


def test_several_processes_write_the_table_of_one(pictures):
    ((code, printed, _),) = score(1, "one.csv", expected=None)
    assert code == 2
    whole = seen()["seen-0"]
    first, *others = score(3, "three.csv", expected=None)
    assert Path("three.csv").read_bytes() == Path("one.csv").read_bytes()
    assert [code for code, *_ in (first, *others)] == [2, 0, 0]
    assert first[1].replace("three.csv", "one.csv") == printed
    assert all(printed == "" for _, printed, _ in others)
    shared = seen()
    assert len(shared) == 3
    assert sum(shared.values()) == whole
    record = lambda name: json.loads(Path(f"{name}.record.json").read_text())
    assert record("three.csv") == record("one.csv")
    left = sorted(path.name for path in pictures.glob("three.csv*"))
    assert left == ["three.csv", "three.csv.record.json"]


@pytest.mark.parametrize("size", [1, 3])
def test_what_a_process_that_died_has_finished_is_kept(pictures, size):
    score(1, "whole.csv", expected=None)
    whole = seen()["seen-0"]
    died = score(2, DIES="5", expected=None)
    assert died[1][0] == 9
    assert died[0][0] == 1
    assert "another process of this run has ended" in died[0][2]
    assert not Path("scores.csv").exists()
    before = seen()
    kept = sum(
        len(json.loads(line).get("rows", ()))
        for path in (journal_path("scores.csv"), journal_path("scores.csv", 1))
        for line in path.read_bytes().splitlines()
    )
    assert 0 < kept < N
    assert min(before.values()) > 0
    score(size, expected=None)
    assert Path("scores.csv").read_bytes() == Path("whole.csv").read_bytes()
    # Batches that are finished are not scored again; a batch that fails is asked one by one.
    assert sum(seen().values()) <= whole - kept
    assert sorted(path.name for path in pictures.glob("scores.csv*")) == [
        "scores.csv",
        "scores.csv.record.json",
    ]


def test_a_restart_discards_the_journals_of_all_processes(pictures):
    score(3, DIES="5", expected=None)
    assert {path.name for path in pictures.glob("*.jsonl")} == {
        "scores.csv.partial.jsonl",
        "scores.csv.partial-1.jsonl",
        "scores.csv.partial-2.jsonl",
    }
    seen()
    score(1, "whole.csv", expected=None)
    whole = seen()["seen-0"]
    arguments = ["images", "--reward", "own.py:Letters,jpeg", "--batch-size", 3, "--restart"]
    launch(2, "-m", "rwguidance", "score", *arguments, expected=None)
    assert sum(seen().values()) == whole
    assert Path("scores.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not list(pictures.glob("*.jsonl"))


def test_journals_of_another_job_are_refused_by_all(pictures):
    score(2, DIES="5", expected=None)
    paint(pictures / "images" / "3.png", (5, 5))
    for code, _, err in score(2, expected=None):
        assert code == 1
        assert "another, unfinished job: its images and prompts differ" in err


def test_torchrun_is_a_launcher(pictures):
    score(1, "whole.csv", expected=None)
    arguments = ["images", "--reward", "jpeg", "--batch-size", "3"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    launch(1, *torchrun, "-m", "rwguidance", "score", *arguments)
    assert [row["jpeg"] for row in read()] == [row["jpeg"] for row in read("whole.csv")]
