"""The report of a training: which figures it states, and what it doubts."""

import json
import math
import re

import pytest
import torch

from rwguidance.evaluation.measured import Measured
from rwguidance.trainer import Findings
from rwguidance.trainer.lengths import Lengths
from rwguidance.trainer.report import write_report
from rwguidance.trainer.unseen import Level
from rwguidance.training import Calibration

LOSSES = torch.arange(40, dtype=torch.float64)


def level(t=0.5, effective=100.0, chance=0.01):
    figures = (Measured(0.9, 0.01), Measured(1.2, 0.02), Measured(0.7, 0.03))
    return Level(t, *figures, 0.85, 0.95, effective, chance)


def written(folder, **known):
    """The figures and the words of a report, cells apart."""

    write_report(Findings({"reward": "brightness"}, LOSSES, **known), folder, folder / "pictures")
    page = (folder / "report.html").read_text(encoding="utf-8")
    words = re.sub(r"\s*(<[^>]*>\s*)+", "|", page.partition("<body")[2])
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), words


@pytest.mark.parametrize(
    ("effective", "chance", "doubt"),
    [
        (5.0, 0.05, None),
        (4.9, 0.01, "at 1 nats, t = 0.5: 4.9 effective draws of unseen banks, too few to know"),
        (5.0, 0.06, "at 1 nats, t = 0.5: shuffled rewards agree as well in 6% of the cases"),
    ],
)
def test_few_draws_and_agreement_by_chance_are_doubted(effective, chance, doubt):
    findings = Findings({}, LOSSES, {1.0: [level(effective=effective, chance=chance)]})
    assert [said.startswith(doubt or "") for said in findings.doubts] == [True] * bool(doubt)


def test_the_loss_is_that_of_the_first_and_last_twentieth(tmp_path):
    report, words = written(tmp_path)
    assert report["loss"] == {"first": 0.5, "last": 38.5}
    assert "0.5 in the first twentieth of 40 steps, 38.5 in the last" in words
    few = Findings({}, LOSSES[:5])
    write_report(few, tmp_path, tmp_path / "pictures")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["loss"] == {"first": 0.0, "last": 4.0}


def test_every_figure_is_in_its_column(tmp_path):
    lengths = Lengths({1.0: Calibration(1.5, 0.8, 0.9, 0.1)}, {2.0: "too far"})
    levels = {1.0: [level(), level(t=0.25, chance=0.02)]}
    report, words = written(tmp_path, levels=levels, weights={1.0: {0.5: 0.25}}, lengths=lengths)
    found = {"cosine": Measured(0.9, 0.01), "length": Measured(1.2, 0.02)}
    figures = "|".join(map(str, (*found.values(), Measured(0.7, 0.03))))
    assert f"|1|t = 0.5|{figures}|0.85|0.95|100.0|0.01|" in words
    assert f"|1|t = 0.25|{figures}|0.85|0.95|100.0|0.02|" in words
    assert "|1|t = 0.5|0.250|" in words
    assert f"|1|{Measured(1.5, 0.1)}|0.8|0.9|" in words
    assert "at 2 nats there is no calibration: too far" in words
    assert "|reward|brightness|" in words
    first, _ = report["agreement"]["1"]
    assert first["cosine"] == 0.9
    assert first["length error"] == 0.02
    assert report["calibration"]["1"]["scale"] == 1.5
    assert report["explained variance of weights"] == {"1": {"0.5": 0.25}}
    assert "Left out" not in words


def test_the_curve_is_over_times_or_where_there_is_one_level_over_strengths(tmp_path, monkeypatch):
    panels = []

    def inline(panel):
        panels.append(panel)
        return ""

    monkeypatch.setattr("rwguidance.trainer.report.inline", inline)
    one = {nats: [level(effective=4.0 + nats)] for nats in (0.5, 1.0)}
    some = {1.0 + nats: [level(), level(t=0.25)] for nats in range(7)}
    for levels in (one, some, {0.5: [level()], **some}):
        written(tmp_path, levels=levels)
    strengths, times, both = panels
    written(tmp_path, curves={"cosine": {4: 0.5, 9: 0.75}})
    (line,) = panels[-1].lines.values()
    assert [(point.x, point.y) for point in line.points] == [
        (Measured(5.0, 0.0), Measured(0.5, 0.0)),
        (Measured(10.0, 0.0), Measured(0.75, 0.0)),
    ]
    assert strengths.x == "strength, nats"
    (line,) = strengths.lines.values()
    found = [(point.x.value, point.y.value, point.few) for point in line.points]
    assert found == [(0.5, 0.9, True), (1.0, 0.9, False)]
    assert [line.label for line in times.lines.values()] == [f"{n} nats" for n in range(1, 7)]
    assert [point.x.value for point in times.lines[0].points] == [0.5, 0.25]
    assert both.x == times.x == "time, 1 is noise"


def test_what_is_not_a_number_is_null_and_clean_outputs_have_no_time(tmp_path):
    report, words = written(tmp_path, levels={1.0: [level(t=math.nan)]}, left_out=["no pictures"])
    assert report["agreement"]["1"][0]["t"] is None
    assert "|1|clean outputs|" in words
    assert "|Left out|no pictures|" in words


def test_the_cosine_is_drawn_over_time_where_there_are_several_levels(tmp_path):
    pytest.importorskip("matplotlib")
    _, words = written(tmp_path, levels={1.0: [level()], 2.0: [level()]})
    assert "|strength, nats|" in words
    assert "|time, 1 is noise|" not in words
    levels = {0.1 * nats: [level(), level(t=0.25)] for nats in range(1, 8)}
    _, words = written(tmp_path, levels={**levels, 1.0: [level()]})
    assert "|strength, nats|" not in words
    assert "|time, 1 is noise|" in words
