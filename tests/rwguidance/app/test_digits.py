"""The demo on digits: its table, its pictures, and what the command writes and prints."""

import csv
import time

import matplotlib.figure
import numpy
import pytest
import torch

from common import assert_within
from rwguidance import ConditionalExpectation, RectifiedSchedule, Tilt
from rwguidance.app import demo
from rwguidance.app.demo import digits
from rwguidance.app.demo.digits import PROMPTS, Pictures, Row, align_digits
from rwguidance.app.demo.figures import draw_digits
from rwguidance.app.demo.mixture import Panel
from rwguidance.estimators.base import Estimate
from rwguidance.testing import check_model


@pytest.fixture(scope="module")
def found():
    """Runs the demo on three digits, with as little as shows what it does."""

    said: list[str] = []
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "PROMPTS", ("zero", "one", "seven"))
        patch.setattr(digits._Run.target, "__defaults__", (4000,))
        rows, pictures = align_digits(8, bank_size=64, training_steps=2, say=said.append)
    elapsed = time.perf_counter() - started
    assert [text.partition(",")[0] for text in said] == ["thickness", "lightness"]
    return rows, pictures, elapsed


class Told(ConditionalExpectation):
    """An estimator without a shift, whose draws count for less towards the data."""

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        ess = torch.as_tensor(t).reshape(-1)[0] * torch.tensor([90.0, 10.0, 20.0])
        zero = torch.zeros_like(x_t)
        return Estimate(prediction, zero.flatten(1).sum(1), zero, {"ess_tilted": ess})


def test_effective_draws_are_medians_at_the_first_and_the_last_step(monkeypatch):
    monkeypatch.setattr(digits, "PROMPTS", ("zero", "one", "seven"))
    run = digits._Run(digits.Digits(), 1, torch.Generator().manual_seed(0))
    base = run.digits.model(RectifiedSchedule())
    found = run.draw(base, Told(), 5, "target", 100.0)
    assert found.ess == pytest.approx((20.0, 20 / 5))
    assert (found.target, found.steps, found.calls) == ("target", 5, 5)
    assert 100 < found.seconds < 120
    plain = run.draw(base, None, 5, "target")
    assert plain.ess is None
    assert torch.equal(plain.draws, found.draws)  # a shift of zero


def test_the_exact_target_is_drawn_in_single_precision_by_its_weights(monkeypatch):
    monkeypatch.setattr(digits, "PROMPTS", ("zero", "one"))
    law = digits.Digits()
    law.laws = {name: law.laws[name] for name in ("zero", "one")}
    seen = []

    def reward(x, condition=None):
        seen.append(x.dtype)
        return x.flatten(1).sum(1)

    run = digits._Run(law, 6, torch.Generator().manual_seed(0))
    found = run.target("ink", Tilt(reward, 2.0), 1000)
    assert set(seen) == {found.draws.dtype} == {torch.float32}
    assert found.draws.shape == (6, 2, 8, 8)
    x = torch.stack([one.sample(20_000, run.generator) for one in law.laws.values()])
    rewards = x.flatten(2).sum(2)
    exact = ((rewards / 2).softmax(1) * rewards).sum(1).mean()
    assert_within(found.mean, exact, found.standard_error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_model_of_digits_conforms(dtype):
    law = digits.Digits()
    x_0 = law.sample(2, torch.Generator().manual_seed(0)).x_0.to(dtype)
    model = law.model(RectifiedSchedule())
    check_model(model, x_0, [prompt for prompt in PROMPTS for _ in range(2)])


def test_the_table_has_a_row_for_each_method_and_the_target(found):
    rows, _, elapsed = found
    assert [(row.reward, row.method, row.steps, row.calls) for row in rows] == [
        ("thickness", "base", 4, 4),
        ("thickness", "importance", 4, 4),
        ("thickness", "base", 25, 25),
        ("thickness", "importance", 25, 25),
        ("thickness", "exact target", 0, 0),
        *(
            ("lightness", method, steps, steps)
            for steps in (1, 25)
            for method in ("base", "network, log h", "network, shift")
        ),
        ("lightness", "exact target", 0, 0),
    ]
    assert [row.seconds > 0 for row in rows] == [row.method != "exact target" for row in rows]
    assert max(row.seconds for row in rows) < elapsed
    training = [row.seconds for row in rows if row.method.startswith("network")]
    assert min(training) > 0


def test_importance_sampling_goes_to_the_target(found):
    rows, _, _ = found
    four, guided_in_four, base, guided, target = rows[:5]
    for plain, aligned in ((four, guided_in_four), (base, guided)):
        assert plain.mean + 3 * plain.standard_error < aligned.mean < target.mean
        assert plain.distance > aligned.distance > target.distance
        assert plain.ess is None
        first, last = aligned.ess
        # Where all is noise every draw of the prompt counts, by its weight; at the data one does.
        assert 1 <= last < first < 64
        # 24 pictures, whose ink varies by a few pixels within a prompt.
        assert 0.1 < plain.standard_error < 1.5
    assert target.standard_error < 0.5 * base.standard_error
    assert target.mean == pytest.approx(25.0, abs=0.6)
    lightest = rows[-1]
    assert lightest.mean > rows[5].mean + 2 * rows[5].standard_error
    assert lightest.distance < rows[5].distance


def test_pictures_of_a_prompt_stand_beside_those_of_the_base(found):
    _, pictures, _ = found
    assert [block.title.replace("\n", " ") for block in pictures] == [
        "thicker: black-box reward, training-free, rectified path, 4 steps",
        "thicker: black-box reward, training-free, rectified path, 25 steps",
        "lighter: trained network (shift), VP path, one step",
        "lighter: trained network (log h), VP path, one step: errors grow 150-fold",
        "lighter: trained network (shift), VP path, 25 steps",
        "lighter: trained network (log h), VP path, 25 steps",
    ]
    for block in pictures:
        assert block.base.shape == block.aligned.shape == (3, 3, 8, 8)
        assert not torch.equal(block.base, block.aligned)
        assert not block.aligned.requires_grad
    assert torch.equal(pictures[2].base, pictures[3].base)
    assert not torch.equal(pictures[2].aligned, pictures[3].aligned)
    # The ends of a path are where a picture of its prompt is: a zero has a hole.
    zero, one = pictures[1].base[:, 0], pictures[1].base[:, 1]
    assert bool((zero[:, 3:5, 3:5] < one[:, 3:5, 3:5]).float().mean() > 0.5)


def test_rows_of_base_and_aligned_digits_alternate(tmp_path, monkeypatch):
    figures = []
    save = lambda figure, path, dpi: figures.append((figure, dpi)) or path.touch()
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
    values = torch.linspace(-1, 1, 2 * 2 * 10 * 64).reshape(2, 2, 10, 8, 8)
    draw_digits([Pictures("a title", values[0], values[1])], tmp_path / "digits.png")
    ((figure, dpi),) = figures
    assert (tmp_path / "digits.png").exists()
    assert dpi == 140
    assert figure.get_size_inches().tolist() == pytest.approx([13, 4.8])
    panel = figure.subfigs[0]
    assert panel.get_suptitle() == "a title"
    axes = numpy.array(panel.axes).reshape(4, 10)
    for row in range(4):
        kind = row % 2
        assert axes[row, 0].get_ylabel() == ("base", "aligned")[kind]
        assert {axis.get_ylabel() for axis in axes[row, 1:]} == {""}
        for column in range(10):
            axis = axes[row, column]
            (image,) = axis.images
            assert numpy.array_equal(image.get_array(), values[kind, row // 2, column].numpy())
            assert image.get_clim() == (-1, 1)
            assert axis.get_title() == (PROMPTS[column] if row == 0 else "")
    edge = lambda axis: axis.spines["left"].get_edgecolor()
    assert edge(axes[0, 0]) == edge(axes[2, 9]) != edge(axes[1, 0]) == edge(axes[3, 9])


def test_the_command_writes_two_pictures_and_two_tables(tmp_path, monkeypatch, capsys):
    drawn = []
    rows = [
        Row("thickness", "base", 4, 4, 31.25, 0.5, 1.0, None, 0.4),
        Row("thickness", "importance", 4, 4, 40.0, 0.25, 0.5, (63.6, 1.2), 2.6),
        Row("thickness", "exact target", 0, 0, 41.0, 0.125, 0.25, None, 0),
    ]
    panels = [
        Panel("base law", torch.zeros(1, 2), -3.0, 1.5, 0.0),
        Panel("exact shift", torch.zeros(1, 2), -1.0, 0.125, 2.25),
    ]
    monkeypatch.setattr(demo, "align_digits", lambda seed, say: (rows, "pictures"))
    monkeypatch.setattr(demo, "align_mixture", lambda seed, say: panels)
    figures = "rwguidance.app.demo.figures."
    monkeypatch.setattr(figures + "draw_digits", lambda *given: drawn.append(given))
    monkeypatch.setattr(figures + "draw_mixture", lambda *given: drawn.append(given))
    out = tmp_path / "new" / "folder"
    files = demo.run_digits(out)
    names = ["digits.png", "mixture.png", "digits.csv", "mixture.csv"]
    assert files == [out / name for name in names]
    assert drawn[0] == ("pictures", files[0])
    assert (drawn[1][0], drawn[1][-1]) == (panels, files[1])
    base, target = drawn[1][1:3]
    x = torch.tensor([[1.2, 0.9]])  # where the reward has its top
    assert float(target.log_prob(x)) > float(base.log_prob(x))
    with files[2].open(newline="") as file:
        assert [line["mean"] for line in csv.DictReader(file)] == ["31.25", "40.0", "41.0"]
    with files[3].open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {"title": "base law", "reward": "-3.0", "distance": "1.5", "seconds": "0.0"}
    assert second["seconds"] == "2.25"
    said = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]
    assert "thickness base 4 31.25 ± 0.50 1.000 0" in lines
    assert "thickness importance 4 40.00 ± 0.25 0.500 64 to 1 3" in lines
    assert "thickness exact target 41.00 ± 0.12 0.250" in lines
    assert "base law -3.000 1.500" in lines
    assert "exact shift -1.000 0.125 2.2" in lines
    assert "done in 0 s; look at" in lines
    for name in names:
        assert name in said
