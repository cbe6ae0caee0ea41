"""Trainings from end to end, on laws whose tilt is known."""

import csv
import json
import math
import shutil

import pytest
import torch
from torch import nn

import pixel_law
from rwguidance import Tilt, networks
from rwguidance.preparation import Preparation, prepare_draws
from rwguidance.support.processes import Processes
from rwguidance.trainer import PRESETS, Settings, Training, fit
from rwguidance.trainer.log import Log
from rwguidance.trainer.material import data_at, read_bank
from rwguidance.training import tilted_gain

pytestmark = pixel_law.QUIET

PROMPTS = [letter * 3 for letter in "abcdefghijklmnopqrst"]
SMALL = {"network": "tiny", "batch_size": 8, "warm_up": 0, "weight_decay": 0.0}


class Law(pixel_law.Law):
    """States of three pixels near N(0, 1), of four steps."""

    depends_on = pixel_law.Law.depends_on

    def __init__(self):
        super().__init__(std=1.0)

    def decode(self, latents):
        return (0.5 + 0.05 * latents).clamp(0, 1)

    def times(self, steps=None):
        return super().times(4 if steps is None else steps)


class Ends(nn.Module):
    """A reward that no training sees: the first pixel."""

    depends_on = ()

    def forward(self, images, prompts):
        return images[:, 0].double().mean((1, 2))


def prepared(out, draws=48, **options):
    job = Preparation(
        backbone=Law(),
        out=out,
        rewards={"brightness": pixel_law.Brightness()},
        batch_size=48,
        validation=0.3,
        **options,
    )
    return prepare_draws(job, PROMPTS, draws)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("data")).folder


def training(data, out, settings=None, **options):
    options = {"held_out": 2, "images": 2, "save_every": 4, **options}
    return Training(data=data, out=out, settings=settings or settings_of(), **options)


def settings_of(preset="recommended", **options):
    changed = {"nats": (1.0,), "steps": 6, **SMALL, **options}
    return Settings(**{**vars(PRESETS[preset]), **changed})


def run(job, judged=True, **options):
    rewards = {"brightness": pixel_law.Brightness(), "ends": Ends()} if judged else {}
    return fit(job, Law(), rewards, **options)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def log_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A folder of a training of two strengths with all that belongs to it, and what was said."""

    out, said = tmp_path_factory.mktemp("whole"), []
    settings = settings_of(nats=(0.5, 1.0), steps=40, learning_rate=3e-3, average=0.9)
    found = run(training(data, out, settings), say=said.append)
    return out, found, said


class TestWhole:
    def test_the_folder_is_a_network(self, whole):
        out, found, _ = whole
        network = networks.load(out)
        assert (network.output, network.strength) == ("shift", True)
        assert set(network.scales) == set(found.lengths.found)
        card = (out / "README.md").read_text()
        assert "| reward | brightness |" in card
        assert "0.5 nats (beta" in card
        assert {path.name for path in out.iterdir()} >= {
            "model.safetensors",
            "config.json",
            "log.csv",
            "report.json",
            "report.html",
            "plan.json",
            "checkpoint.pt",
        }

    def test_it_is_said_what_there_is_to_do(self, whole):
        _, _, said = whole
        assert "40 steps of 8 states" in said[0]
        assert "minutes, by the first steps" in said[1]

    def test_the_log_has_every_step(self, whole):
        out, found, _ = whole
        rows = log_of(out)
        assert [int(row["step"]) for row in rows] == list(range(40))
        losses = [float(row["loss"]) for row in rows]
        assert losses == pytest.approx(found.losses.tolist(), rel=1e-6)

    def test_the_report_states_figures_of_unseen_prompts(self, whole):
        out, _, _ = whole
        report = report_of(out)
        assert set(report["agreement"]) == {"0.5", "1"}
        for levels in report["agreement"].values():
            assert [level["t"] for level in levels] == [1, 0.75, 0.5, 0.25]
            assert all(0 < level["chance"] <= 1 for level in levels)
            assert levels[0]["cosine"] > 0.8
        names = {name for row in report["pictures"] for name in row}
        assert {"brightness gain", "ends gain", "thumbnail energy"} <= names
        page = (out / "report.html").read_text()
        assert "Unseen banks" in page
        assert "<svg" in page

    def test_pictures_are_of_as_many_held_out_prompts_as_were_asked_for(self, whole, data):
        _, found, _ = whole
        pictures = found.pictures
        assert list(pictures.prompts) == data_at(data).split("validation")[:2]
        assert list(pictures.rewards) == ["brightness", "ends"]
        assert list(pictures.strengths) == [0.5, 1.0]
        assert [len(draws.rewards["ends"]) for draws in pictures.draws] == [64, 64]

    def test_a_finished_training_is_left_alone(self, whole, data):
        out, _, _ = whole
        before = (out / "report.json").read_bytes()
        settings = settings_of(nats=(0.5, 1.0), steps=40, learning_rate=3e-3, average=0.9)
        assert run(training(data, out, settings)) is None
        assert (out / "report.json").read_bytes() == before

    def test_a_damaged_network_is_written_again(self, whole, data):
        out, _, _ = whole
        settings = settings_of(nats=(0.5, 1.0), steps=40, learning_rate=3e-3, average=0.9)
        before, scales = networks.load(out).state_dict(), networks.load(out).scales
        content = bytearray((out / "model.safetensors").read_bytes())
        content[-7] ^= 4
        (out / "model.safetensors").write_bytes(content)
        assert run(training(data, out, settings)) is not None
        for name, value in networks.load(out).state_dict().items():
            assert torch.equal(before[name], value)
        assert networks.load(out).scales == pytest.approx(scales, rel=1e-6)

    def test_other_settings_are_refused_by_name(self, whole, data):
        out, _, _ = whole
        settings = settings_of(nats=(0.5, 1.0), steps=40, learning_rate=1e-3, average=0.9)
        with pytest.raises(ValueError, match=r"holds a training of another learning_rate: use"):
            run(training(data, out, settings))


def test_an_interrupted_training_ends_where_another_does(data, tmp_path):
    settings = settings_of(steps=7, objective="log-h", eta=0.5)

    def stop(step, figures):
        if step == 5:
            raise KeyboardInterrupt

    run(training(data, tmp_path / "whole", settings, validate_every=2), judged=False)
    cut = training(data, tmp_path / "cut", settings, validate_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(cut, judged=False, track=stop)
    assert not (tmp_path / "cut" / "report.json").exists()
    run(cut, judged=False)
    for name in ("log.csv", "report.json"):
        one, other = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    one, other = (networks.load(tmp_path / folder) for folder in ("whole", "cut"))
    for value, again in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, again)


@pytest.fixture(scope="module")
def validated(data, tmp_path_factory):
    """A folder of a training with validations, what was found, what was said, and the settings."""

    out, said = tmp_path_factory.mktemp("validated"), []
    settings = settings_of(nats=(0.5, 1.0), steps=30, learning_rate=3e-3, average=0.9)
    job = training(data, out, settings, validate_every=12)
    return out, run(job, judged=False, say=said.append), said, settings


class TestValidations:
    """What is looked at during a training, of prompts that it has not seen."""

    def test_they_are_in_the_log_on_the_console_and_in_the_report(self, validated):
        out, found, said, _ = validated
        rows = {int(row["step"]): row for row in log_of(out)}
        steps = [step for step, row in rows.items() if row["validation loss"] != "nan"]
        assert steps == [11, 23, 29]
        assert next(text for text in said if "unseen" in text).startswith("step 12: loss")
        for name, curve in found.curves.items():
            assert [*curve] == steps
            assert curve[29] == pytest.approx(float(rows[29][name]))
        told = report_of(out)["during the training"]
        assert set(told) == {"validation loss", "validation cosine", "validation length"}
        assert (out / "report.html").read_text().count("<svg") >= 4

    def test_they_see_the_network_become_better(self, validated):
        _, found, _, _ = validated
        cosine, length = (found.curves[f"validation {name}"] for name in ("cosine", "length"))
        assert cosine[11] > 0.3
        assert length[29] > length[11]  # it grows from zero

    def test_the_last_one_is_what_the_report_says(self, validated):
        # Of the same prompts, at one of the strengths, with the average of the weights.
        _, found, _, _ = validated
        cosines = [level.cosine.value for level in found.levels[1.0]]
        assert found.curves["validation cosine"][29] == pytest.approx(
            sum(cosines) / len(cosines), abs=1e-6
        )

    def test_the_training_is_the_same_without_them(self, validated, data, tmp_path):
        out, found, _, settings = validated
        other = run(training(data, tmp_path, settings, validate_every=0), judged=False)
        assert torch.equal(found.losses, other.losses)
        assert not any(other.curves.values())
        one, two = networks.load(out), networks.load(tmp_path)
        for value, again in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(value, again)

    @pytest.mark.parametrize(
        ("steps", "given", "expected"),
        [(199, None, 0), (200, None, 10), (5000, None, 250), (5000, 0, 0), (6, 2, 2)],
    )
    def test_how_often(self, data, tmp_path, steps, given, expected):
        job = training(data, tmp_path, settings_of(steps=steps), validate_every=given)
        assert job.steps_between_validations == expected


def test_the_preset_of_the_paper_reports_the_weights(data, tmp_path):
    found = run(training(data, tmp_path, settings_of("paper")), judged=False)
    assert networks.load(tmp_path).output == "log_h"
    assert found.lengths is None
    report = report_of(tmp_path)
    # Six steps: hardly more than the constant.
    assert all(-1 < value < 0.5 for value in report["explained variance of weights"]["1"].values())
    assert any("calibration and pictures" in text for text in report["left out"])


def test_a_reward_that_is_followed_must_be_there(data, tmp_path):
    with pytest.raises(ValueError, match="reward must be given to follow its gradient"):
        run(training(data, tmp_path, settings_of("gradient")), judged=False)


def test_another_model_or_reward_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="prepared with another model"):
        fit(training(data, tmp_path), pixel_law.Law())
    other = {"brightness": pixel_law.Brightness(factor=50.0)}
    with pytest.raises(ValueError, match="brightness is another one than that which the data"):
        fit(training(data, tmp_path), Law(), other)
    with pytest.raises(ValueError, match="one of those that were prepared, brightness, got 'none'"):
        fit(training(data, tmp_path, reward="none"), Law())


def test_a_training_whose_loss_is_not_finite_keeps_its_checkpoint(data, tmp_path, monkeypatch):
    job = training(data, tmp_path, settings_of(steps=6), save_every=2)

    def stop(step, figures):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, judged=False, track=stop)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    forward = networks.GuidanceNetwork.forward
    broken = lambda self, *arguments: forward(self, *arguments) * math.nan
    with monkeypatch.context() as patch:
        patch.setattr(networks.GuidanceNetwork, "forward", broken)
        with pytest.raises(FloatingPointError, match="not finite at step 4"):
            run(job, judged=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content
    assert run(job, judged=False) is not None


@pytest.mark.slow
def test_pictures_gain_what_the_exactly_tilted_law_gains(tmp_path):
    """A Gaussian law and a linear reward: the gain of the tilted law is its variance over beta."""

    # The reward is 5 times the mean of three pixels, each with the spread of four Euler steps.
    variance = 25 / 3 * pixel_law.spread(4, 1.0) ** 2
    beta = math.sqrt(variance / (2 * 0.5))  # half a nat
    data = prepared(tmp_path / "data", draws=512)
    settings = settings_of(
        beta=beta, steps=800, batch_size=32, learning_rate=3e-3, average=0.99, tilted=0.5
    )
    found = run(training(data.folder, tmp_path / "out", settings, images=8, held_out=8))
    ((nats, levels),) = found.levels.items()
    assert abs(nats - 0.5) < 0.05
    for level in levels:
        assert level.chance == 0.01
        assert level.cosine.value > 0.9
    assert abs(levels[0].length.value - 1) < 0.1 + 5 * levels[0].length.error
    # The target was measured on unseen prompts, and what it is off by is the error of all.
    bank = read_bank(data, "brightness", data.split("validation"))
    targets = tilted_gain(bank, Tilt(pixel_law.Brightness(), beta)) * beta
    error = float(targets.std()) / math.sqrt(len(targets))
    pictures = found.pictures
    (cell,) = [cell for cell in pictures.cells if cell.method == "network"]
    gain = float(pictures.gains(cell, "brightness").mean())
    exact = variance / beta
    bias = 0.02 * exact  # of self-normalized weights of 512 draws, of which e^-1 are effective
    assert abs(gain - exact) < 5 * error + bias
    assert 5 * error + bias < 0.3 * exact  # or it would say nothing


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    run(training(data, out), judged=False)
    return out


class TestWhatIsInTheFolder:
    """A finished training, in which a file is not what it was."""

    @pytest.fixture
    def out(self, finished, tmp_path):
        return shutil.copytree(finished, tmp_path / "out")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "report.json"])
    @pytest.mark.parametrize("damage", ["cut", "removed"])
    def test_what_is_damaged_is_written_again(self, finished, out, data, name, damage):
        if damage == "removed":
            (out / name).unlink()
        else:
            (out / name).write_bytes((finished / name).read_bytes()[:-9])
        assert run(training(data, out), judged=False) is not None
        assert (out / name).read_bytes() == (finished / name).read_bytes()

    def test_a_finished_training_needs_no_checkpoint(self, out, data):
        (out / "checkpoint.pt").unlink()
        steps = []
        track = lambda step, figures: steps.append(step)
        assert run(training(data, out), judged=False, track=track) is None
        assert steps == []

    def test_it_is_left_alone_by_every_process_of_several(self, out, data):
        class Second(Processes):
            def gather(self, value):
                """Of which the first process tells what its folder is, and all else is alike."""

                return [True if value is False else value, value]

        job = training(data, out, parts=1)
        assert run(job, judged=False, processes=Second(rank=1, size=2)) is None

    @pytest.mark.parametrize("damage", [b"\xff\xfe", b"\0" * 9, b"9" * 200_000, b",", b"\n\n", b""])
    @pytest.mark.parametrize("cut", [True, False])
    def test_a_damaged_log_loses_only_its_own_rows(self, finished, out, data, damage, cut):
        whole = (finished / "log.csv").read_bytes()
        (out / "report.json").unlink()
        (out / "checkpoint.pt").unlink()
        (out / "log.csv").write_bytes(whole[:80] + damage + (b"" if cut else whole[80:]))
        run(training(data, out), judged=False)
        assert (out / "log.csv").read_bytes() == whole

    def test_another_plan_is_named(self, out, data):
        (out / "plan.json").write_text("[1")
        with pytest.raises(ValueError, match=r"plan\.json, out holds a training of another"):
            run(training(data, out), judged=False)


def test_rows_of_a_log_that_are_damaged_or_cut_off_go(tmp_path):
    path = tmp_path / "log.csv"
    rows = ["step,loss", "0,1", "x,2", "1,y", "2", "3,4", "4,5,6", "5,7", "6,0.1"]
    path.write_bytes("\r\n".join(rows).encode())  # the last one lacks its end
    Log(path).add(8, {"loss": 0.5})
    assert path.read_text().split() == ["step,loss", "0,1", "3,4", "5,7", "8,0.5"]


def test_a_tilde_is_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(data, tmp_path / "data")
    job = training("~/data", "~/out")
    assert job.folder == tmp_path / "out"
    assert data_at(job.data).prompts == data_at(data).prompts
    assert training(data, "~nobody-of-this-name/out").folder.parts[0] == "~nobody-of-this-name"
