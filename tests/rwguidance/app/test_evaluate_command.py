"""`rwguidance evaluate`: from a line to a table, exit codes, and messages before any work."""

import csv
import json
import os
import sys

import pytest

from evaluations import PROMPTS
from processes_of_a_run import launch
from rwguidance.app.cli import main
from rwguidance.app.commands.method_specs import parse_methods
from rwguidance.evaluation import console, load_results
from rwguidance.generation import BestOfN, Importance, PlugInMean

pytestmark = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

OWN = """
from dataclasses import dataclass

import torch
from evaluations import Broken, Flat, Moved, Red
from pixel_law import Brightness, Law

law, bright, red, flat = Law(), Brightness(), Red(), Flat()
reference = Moved(1.0)


def sulky(images, prompts):
    raise RuntimeError("will not look")


def absent(path=None):
    raise FileNotFoundError("no weights of absent: get them from elsewhere")


class Missing(torch.nn.Module):
    def __init__(self):
        raise FileNotFoundError("no weights here, they are published elsewhere")
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def command(monkeypatch, capsys, own, tmp_path):
    def command(*changes, page=False, **named):
        if not page:
            monkeypatch.setattr(console, "write_page", lambda *arguments: "page.html")
        options = {"backbone": f"{own}:law", "reward": f"{own}:bright", "held_out": f"{own}:red",
                   "embedding": f"{own}:flat", "prompts": tmp_path / "prompts.txt", "images": 2,
                   "seeds": "0,1", "strengths": "0.25,1", "steps": 3, "target_draws": 20,
                   "cache": tmp_path / "cache", "out": tmp_path / "out"} | named  # fmt: skip
        line = [part for key, value in options.items() if value is not None
                for part in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["rwguidance", "evaluate", *line, *changes])
        monkeypatch.setattr(os, "fsync", lambda file: None)  # which the tests of the store ask for
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return command


METHODS = ("--method", "importance:bank=16", "--method", "best-of-n:n=3")


def test_a_line_makes_a_table(command, own, tmp_path):
    exact = ("--method", f"{own}:Moved:factor=2", "--method", f"{own}:reference")
    code, out, err = command(*METHODS, *exact, page=True)
    assert code == 0, err
    for text in ("Reward and target", "Gains in what no method sees", "own.py:Moved:factor=2",
                 "Laws in own.py:flat", "tilted law", "rests on"):  # fmt: skip
        assert text in out
    assert "to make 32 pictures of each of 2 prompts" in err
    with (tmp_path / "out" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    gains = {(row["method"], row["nats"]): float(row["own.py:bright gain"] or 0) for row in rows}
    assert gains["own.py:Moved:factor=2", "1.0"] == pytest.approx(
        2 * gains["own.py:reference", "1.0"]
    )
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "rwguidance evaluate --backbone" in page
    assert page.count("<img ") == 2 * 5  # each prompt, at one strength
    assert len(list((tmp_path / "out" / "pictures").rglob("*.png"))) == 2 * 8
    again = command(*METHODS, *exact)
    assert (again[0], again[1]) == (0, out)
    assert "to make" not in again[2]


def test_what_fails_ends_with_two(command, own, tmp_path):
    code, out, err = command("--method", f"{own}:Broken:on=abc", held_out=f"{own}:sulky")
    assert code == 2
    assert "failed: own.py:Broken:on=abc: abcdef: RuntimeError: out of luck" in err
    assert "failed: own.py:sulky of base: ab: RuntimeError: will not look" in err
    assert "things failed" in out
    assert load_results(tmp_path / "out").prompts == list(PROMPTS)


def test_prompts_on_which_settings_were_chosen_are_named(command, tmp_path):
    (tmp_path / "dev.txt").write_text("AB!\nsomething else", encoding="utf-8")
    code, out, err = command(*METHODS, "--developed-on", str(tmp_path / "dev.txt"))
    assert code == 0
    assert "warning: settings were chosen on 1 of the 2 prompts, such as 'ab'" in err
    assert "Settings were chosen on 1 of the 2 prompts" in out


def test_strengths_out_of_reach_are_left_out_and_named(command):
    code, out, err = command("--method", "importance:bank=8", strengths="0.5,3")
    assert code == 0
    assert "importance:bank=8 at 3 nats is left out: kl must be less than log(bank)" in err
    assert "was left out" in out


def test_a_set_may_be_cut(command, tmp_path):
    code, _, _ = command("--subset", "1", "--method", "best-of-n:n=2")
    assert code == 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))
    assert plan["prompt set"] == "prompts.txt (1 of 2, seed 0)"
    assert len(plan["prompts"]) == 1


@pytest.mark.parametrize(
    ("changes", "named", "message"),
    [
        ((), {"prompts": None}, "give --prompts"),
        ((), {"prompts": "nowhere.txt"}, "nowhere.txt"),
        ((), {"prompts": "unheard-of"}, "there is no prompt set 'unheard-of'"),
        (("--method", "importanc"), {}, "there is no method 'importanc', there are 'importance'"),
        (("--method", "importance:bnk=3"), {}, "importance has no 'bnk', it takes bank, beta"),
        (("--method", "importance:bank"), {}, "must be NAME or NAME:KEY=VALUE"),
        (("--method", "importance:bank=1"), {}, "bank must be at least 2"),
        (("--method", "network"), {}, "network needs network, as in network:network="),
        (("--method", "plug-in", "--method", "plug-in"), {}, "each method once, got 'plug-in'"),
        (("--method", "importance:window=[0.95,0.99]"), {}, "window must hold the time"),
        (("--method", "importance:bank=3"), {"strengths": "2"}, "methods must be able to run"),
        ((), {"strengths": "1;2"}, "strengths must be numbers separated by commas"),
        ((), {"strengths": "1,1"}, "strengths must be distinct"),
        ((), {"seeds": ""}, "seeds must be distinct, and one at least"),
        (("--target", "1=2=3"), {}, "target must be NATS=DRAWS"),
        (("--target", "5=20"), {}, "targets must be at strengths of the plan"),
        ((), {"held_out": "pickscor"}, "there is no reward 'pickscor'"),
        ((), {"embedding": "unheard-of"}, "there is no embedding 'unheard-of'"),
        ((), {"backbone": "unheard-of"}, "there is no backbone 'unheard-of'"),
        (("--negative-prompt", "ugly"), {}, "takes negative prompts"),
        (("--path", "pickscore=x"), {}, "path names 'pickscore', which is neither"),
    ],
)
def test_wrong_lines_are_answered_before_any_work(command, tmp_path, changes, named, message):
    code, _, err = command(*changes, **named)
    assert code == 1
    assert message in err
    assert not list((tmp_path / "out").glob("prompts/*"))


def test_missing_weights_are_named_before_any_work(command, own, tmp_path):
    for option in ("held_out", "embedding"):
        code, _, err = command(**{option: f"{own}:Missing"})
        assert code == 1
        assert "no weights here, they are published elsewhere" in err
    assert not list((tmp_path / "out").glob("prompts/*"))


def test_a_folder_of_another_plan_is_refused(command):
    assert command(*METHODS)[0] == 0
    code, _, err = command(*METHODS, images=1)
    assert code == 1
    assert "holds results of another plan: images differ" in err
    assert command(*METHODS, "--restart", images=1)[0] == 0


def test_methods_are_named_with_their_settings(own):
    found = parse_methods([
        "importance", "importance:bank=16,ess=0.5", "best-of-n:n=4,kl=1", "plug-in:window=[0,0.5]",
    ])  # fmt: skip
    assert list(found.values()) == [
        Importance(kl=1.0), Importance(bank=16, ess=0.5, kl=1.0), BestOfN(4, kl=1.0),
        PlugInMean(kl=1.0, window=(0, 0.5)),
    ]  # fmt: skip
    with pytest.raises(TypeError, match="must be a method or a class of methods"):
        parse_methods([f"{own}:bright"])
    with pytest.raises(ValueError, match="takes none"):
        parse_methods([f"{own}:reference:factor=1"])


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(command, own, tmp_path):
    assert command(*METHODS)[0] == 0
    line = ["-m", "rwguidance", "evaluate", "--backbone", f"{own}:law", "--reward",
            f"{own}:bright", "--held-out", f"{own}:red", "--embedding", f"{own}:flat",
            "--prompts", tmp_path / "prompts.txt", "--images", 2, "--seeds", "0,1", "--strengths",
            "0.25,1", "--steps", 3, "--target-draws", 20, "--cache", tmp_path / "other",
            "--out", tmp_path / "shared", *METHODS]  # fmt: skip
    launch(2, *line)
    found = []
    for one in ("out", "shared"):
        rows = json.loads((tmp_path / one / "table.json").read_text(encoding="utf-8"))["rows"]
        timed = ("seconds", "seconds with draws", "memory")
        found.append([{k: v for k, v in row.items() if k not in timed} for row in rows])
    assert found[0] == found[1]
