"""The benchmark of methods: its calls of `rwguidance evaluate`, and the methods of its own."""

import csv
import itertools
import subprocess
import sys

import pytest
import torch

from evaluations import PROMPTS
from pixel_law import Brightness, Law
from rwguidance.app.commands.method_specs import parse_methods
from rwguidance.backbones import available
from rwguidance.evaluation import evaluate
from rwguidance.generation import Importance, PlugInMean

# Of diffusers, in versions that are older than the warning.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def named(line, option):
    return [after for before, after in itertools.pairwise(line) if before == option]


def test_every_model_has_a_line_whose_methods_exist(bench, tmp_path):
    methods = bench.methods
    assert {*methods.ALONE} <= {*available()}
    for backbone in methods.ALONE:
        line = methods.command(backbone, tmp_path, 200, False, ["--seeds", "1,2"])
        found = parse_methods(named(line, "--method"))
        assert len(found) == len(methods.SHARED) + len(methods.ALONE[backbone])
        assert named(line, "--backbone") == [backbone]
        assert named(line, "--seeds") == ["1,2"]
        assert {method.at(1.0) for method in found.values()} - {None}


def test_unknown_options_go_to_evaluate(bench):
    arguments, more = bench.methods.parse(["--subset", "24", "--seeds", "1,2", "--restart"])
    assert arguments.subset == 24
    assert more == ["--seeds", "1,2", "--restart"]


def test_the_call_is_printed_and_made(bench, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda line, check: calls.append((line, check)))
    bench.methods.main(["--smoke", "--out", str(tmp_path), "--threads-of-its-own"])
    printed = capsys.readouterr().out.splitlines()
    assert len(calls) == len(printed) == len(bench.methods.ALONE)
    for (line, check), text in zip(calls, printed, strict=True):
        assert check
        assert line[:3] == [sys.executable, "-m", "rwguidance"]
        assert line[-1] == "--threads-of-its-own"
        assert text.startswith("rwguidance evaluate --backbone emoji-")


def test_kernels_on_single_positions_are_plain_importance_sampling(bench, tmp_path):
    # The pictures of this law have one pixel, so that its mean is all of it.
    exact, pooled = Importance(bank=16, kl=1.0), bench.own_methods.Pooled(bank=16, kl=1.0)
    found = evaluate(
        Law(), Brightness(), PROMPTS, tmp_path, {"exact": exact, "pooled": pooled},
        strengths=[0.5], steps=3, target_draws=0,
    )  # fmt: skip
    one, other = (found.gains(cell, "reward") for cell in list(found.cells)[1:])
    assert torch.allclose(one, other, rtol=1e-4)
    assert bool((one.abs() > 1e-3).all())


def test_the_jacobian_of_a_normal_law_is_its_posterior_variance(bench, tmp_path):
    methods = {
        "jacobian": bench.own_methods.Jacobian(kl=1.0, window=(0, 0.9)),
        "plain": PlugInMean(kl=1.0, prior_variance=0.1**2, window=(0, 0.9)),
    }
    found = evaluate(
        Law(), Brightness(), PROMPTS, tmp_path, methods, strengths=[0.5], steps=3, target_draws=0
    )
    one, other = (found.gains(cell, "reward") for cell in list(found.cells)[1:])
    assert torch.allclose(one, other, rtol=1e-4)


@pytest.mark.slow
def test_the_whole_command_in_small(bench, tmp_path):
    bench.methods.main(["--smoke", "--out", str(tmp_path)])
    for backbone in bench.methods.ALONE:
        with (tmp_path / backbone / "table.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {"base", "tilted law", "plug-in", "best-of-n:n=2"} <= {row["method"] for row in rows}
        assert all(row["failed"] in ("", "0") for row in rows)
