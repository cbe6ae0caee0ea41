"""`--reward FILE.py:NAME` and `--backbone FILE.py:NAME`: the user's own code."""

import csv
import sys

import pytest
import torch
from PIL import Image

import backbones
import rewards
from pixel_law import QUIET, table
from rwguidance.app.cli import main
from rwguidance.app.commands.sources import Sources, is_own

pytestmark = QUIET

CODE = """
import torch
from torch import nn
import rewards
from pixel_law import Law

def red(images, prompts):
    return images[:, 0].mean((1, 2))

class Red(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, images, prompts):
        return self.factor * red(images, prompts)

class Own(rewards.Reward):
    spec = rewards.RewardSpec(
        name="{name}", title="Own", differentiable=True, needs_prompt=False, code_license="MIT",
        weights_license="none", formula="red", typical_range=(0.0, 1.0), citation="none",
    )

    def forward(self, images, prompts):
        return red(images, prompts)

law = Law()
module = Red(2.0)
number = 3
weighted = Law()
weighted.weight = nn.Parameter(torch.ones(2))

def wide(std=0.2):
    return Law(std)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE.replace("{name}", f"own-{tmp_path.name}"), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    for package in (backbones, rewards):
        registry = package.registry._registry
        monkeypatch.setattr(registry, "_values", dict(registry._values))


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["rwguidance", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return command


@pytest.fixture
def generate(command, tmp_path, file):
    def generate(reward, backbone="law", *arguments, out="out"):
        return command(
            "generate", "--reward", f"{file}:{reward}", "--backbone", f"{file}:{backbone}",
            "--prompt", "ab", "--method", "best-of-n", "--bank", "2", "--steps", "2", "--out",
            str(tmp_path / out), "--cache", str(tmp_path / "cache"), *arguments,
        )  # fmt: skip

    return generate


def test_names_of_files_are_told_from_registered_ones():
    assert is_own("a/b.py:C")
    assert is_own("C:\\code\\b.py:C")
    assert not any(map(is_own, ("emoji-flow", "b.py", "b:C", "b.txt:C")))


def test_functions_modules_and_classes_of_a_file_are_rewards(generate, tmp_path, file):
    means = {}
    for name in ("red", "module", "Red", "Own"):
        code, _, err = generate(name, out=name)
        assert code == 0, err
        assert f"{file}" not in err
        (row,) = table(tmp_path / name / "results.csv")
        means[name] = float(row["base reward"])
    assert means["module"] == pytest.approx(2 * means["red"], rel=1e-6)
    assert means["Red"] == means["Own"] == pytest.approx(means["red"], rel=1e-6)
    code, _, err = generate("Red", "law", "--option", f"{file}:Red:factor=3", out="three")
    assert code == 0, err
    (row,) = table(tmp_path / "three" / "results.csv")
    assert float(row["base reward"]) == pytest.approx(3 * means["red"], rel=1e-6)


def test_a_function_of_a_file_is_known_by_the_file(generate, file):
    assert "1 pairs, 0 of them" in generate("red")[1]
    assert "1 pairs, 1 of them" in generate("red")[1]
    file.write_text(file.read_text().replace("images[:, 0]", "images[:, 1]"), encoding="utf-8")
    code, _, err = generate("red")
    assert code == 1
    assert "other settings" in err
    assert "reward key" in err


def test_an_object_of_a_file_is_moved_frozen_and_evaluated(file):
    sources = Sources({}, {}, "cpu", torch.bfloat16)
    backbone = sources.backbone(f"{file}:weighted")
    assert backbone.weight.dtype == torch.bfloat16
    assert not backbone.weight.requires_grad
    assert not backbone.training


def test_functions_and_objects_of_a_file_are_backbones(generate, tmp_path, file):
    assert generate("red", "wide", out="wide")[0] == 0
    assert generate("red", "wide", "--option", f"{file}:wide:std=0.3", out="wider")[0] == 0
    gray = [
        abs(float(table(tmp_path / out / "results.csv")[0]["base reward"]) - 0.52)
        for out in ("wide", "wider")
    ]
    assert gray[0] < gray[1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("nothing",), "has no 'nothing', it has"),
        (("number",), "must be a function of images and prompts, a module or a class of modules"),
        (
            ("red", "number"),
            "must be a subclass of backbones.Backbone or backbones.Generator, got 3",
        ),
        (("red", "Red"), "must be a subclass of backbones.Backbone"),
    ],
)
def test_what_is_no_reward_or_backbone_is_one_line(generate, tmp_path, names, message):
    code, _, err = generate(*names)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_options_of_what_is_no_class_are_refused(generate, file):
    for name in ("red", "module"):
        code, _, err = generate(name, "law", "--option", f"{file}:{name}:factor=3")
        assert code == 1
        assert "is no class, so --path and --option cannot be given to it" in err


def test_score_takes_a_reward_class_of_a_file(command, tmp_path, file):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png")
    out = tmp_path / "scores.csv"
    code, _, err = command("score", str(tmp_path), "--reward", f"{file}:Own", "--out", str(out))
    assert code == 0, err
    with out.open() as lines:
        (row,) = csv.DictReader(lines)
    assert float(row[f"own-{tmp_path.name}"]) == 1.0
    code, _, err = command("score", str(tmp_path), "--reward", f"{file}:red", "--out", str(out))
    assert code == 1
    assert "must be a subclass of rewards.Reward" in err
