"""Smoke runs of the towers: what they write, go on with, and learn."""

import json
import math
import re
import types
from dataclasses import replace

import pytest
import torch
from interruption import Interrupted
from test_preference_pairs import write_pairs

from rwguidance_testbed import encoders, towers, vae
from rwguidance_testbed.data import Drawings
from rwguidance_testbed.encoders import KINDS
from rwguidance_testbed.towers import Pairs, command, losses, objectives
from rwguidance_testbed.towers.objectives import visible_patches


@pytest.fixture(scope="module")
def folders(square_folder, tmp_path_factory):
    """Of the drawings, and of an autoencoder."""

    path = tmp_path_factory.mktemp("vae")
    vae.new(smoke=True).save_pretrained(path)
    return {"data": square_folder, "vae": path}


def train(kind, out, folders, steps, peak=1e-3, kept=32, **changes):
    options = replace(towers.OPTIONS, steps=steps, peak=peak, batch=8, kept=kept, smoke=True)
    towers.train(kind, out=out, options=options, **folders, **changes)


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A smoke run of every kind."""

    out = tmp_path_factory.mktemp("trained")
    for kind in KINDS:
        train(kind, out / kind, folders, 4)
    return out


@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_smoke_run_writes_figures_and_a_card(self, trained, kind):
        figures = json.loads((trained / kind / "figures.json").read_text())
        shares = {"name_of_other_drawings", "name_held_out_from_generators", "background", "style"}
        assert all(0 <= figures[key] <= 1 for key in shares)
        card = (trained / kind / "README.md").read_text()
        assert f"rwguidance_testbed.towers {kind} --steps 4" in card
        state = torch.load(trained / f"{kind}.state", weights_only=True)["modules"]["average"]
        for name, value in encoders.read(kind, trained / kind).state_dict().items():
            wanted = state[name]
            assert torch.equal(
                value, wanted.half().float() if value.is_floating_point() else wanted
            )

    def test_a_false_caption_is_held_against_its_own_picture_alone(
        self, folders, tmp_path, monkeypatch
    ):
        counts, whole = [], losses.contrastive_loss

        def spy(pictures, captions, others, *rest):
            counts.append((len(pictures), len(captions), len(others)))
            return whole(pictures, captions, others, *rest)

        for module in (objectives, losses):
            monkeypatch.setattr(module, "contrastive_loss", spy)
        train("judge", tmp_path / "judge", folders, 1)
        # First pictures, second ones, of whose names the false captions may be true, and the head.
        assert counts == [(4, 4, 4), (4, 4, 0), (4, 4, 0)]

    @pytest.mark.parametrize("kind", ["judge", "pick"])
    def test_an_interrupted_run_ends_where_another_does(
        self, trained, folders, kind, capsys, monkeypatch
    ):
        out = trained / f"{kind}-parts"
        with monkeypatch.context() as patch:
            patch.setattr(command, "Run", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(kind, out, folders, 4)
        train(kind, out, folders, 4)
        assert "going on at step 2" in capsys.readouterr().out
        whole, parts = (
            torch.load(trained / f"{name}.state", weights_only=True)
            for name in (kind, f"{kind}-parts")
        )
        assert whole["step"] == parts["step"] == 4
        for part in ("towers", "head", "average"):
            for name, value in whole["modules"][part].items():
                assert torch.equal(value, parts["modules"][part][name]), name

    def test_the_judge_learns(self, folders, tmp_path, capsys):
        out = tmp_path / "judge"
        train("judge", out, folders, 600, peak=3e-3, kept=64)
        lines = re.findall('{"step.*}', capsys.readouterr().out)
        losses = [json.loads(line)["loss"] for line in lines]
        assert losses[-1] < losses[0] - 0.15, losses
        figures = json.loads((tmp_path / "judge" / "figures.json").read_text())
        judge = encoders.read("judge", tmp_path / "judge").eval()
        assert figures["steps"] == 600
        found = towers.measure(judge, Drawings.load(folders["data"]), "judge", 200)
        # Eight channels learn little; by chance it would be 1 / 8, with this standard error.
        error = math.sqrt(1 / 8 * 7 / 8 / 200)
        assert found["name_of_own_drawings"] > 1 / 8 + 3 * error
        assert found["name_of_other_drawings"] > 1 / 8 + 3 * error

    def test_what_is_asked_wrongly_is_said(self, square_folder, tmp_path):
        with pytest.raises(ValueError, match="kind must be one of judge, pick, hps, got 'clip'"):
            towers.train("clip", square_folder)
        with pytest.raises(ValueError, match="start must be a folder of towers"):
            towers.train("pick", square_folder, pairs=tmp_path / "pairs.parquet")
        for options in ({"kind": "pick"}, {"kind": "hps", "start": tmp_path}):
            with pytest.raises(ValueError, match='vision must be given with kind "hps"'):
                towers.train(data=square_folder, vision=tmp_path, **options)

    def test_an_hps_learns_on_from_the_image_tower_of_a_pick(self, trained, folders, tmp_path):
        train("hps", tmp_path / "hps", folders, 1, peak=0.0, vision=trained / "pick")
        hps, pick = (
            encoders.read(kind, path).eval()
            for kind, path in (("hps", tmp_path / "hps"), ("pick", trained / "pick"))
        )
        pictures = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
        with torch.no_grad():
            found, wanted = hps.embed_pictures(pictures), pick.embed_pictures(pictures)
        assert torch.allclose(found, wanted, atol=1e-2)
        assert float(wanted.abs().max()) > 0.1

    def test_what_is_written_is_a_mean_over_steps(self, folders, tmp_path, monkeypatch):
        seen = []
        whole = command.Run._step

        def spy(run, *arguments):
            loss = whole(run, *arguments)
            seen.append(float(run.modules["towers"].scale.detach()))
            return loss

        monkeypatch.setattr(command.Run, "_step", spy)
        start = math.log(1 / 0.07)
        train("judge", tmp_path / "judge", folders, 3)
        for step, value in enumerate(seen, 1):
            start += (1 - (1 + step) / (10 + step)) * (value - start)
        found = torch.load(tmp_path / "judge.state", weights_only=True)["modules"]["average"]
        assert float(found["scale"]) == pytest.approx(start, rel=1e-6)
        assert start != pytest.approx(seen[-1], rel=1e-4)

    def test_half_of_the_patches_are_seen_until_the_last_fifth(self):
        run = types.SimpleNamespace(step=0, generator=torch.Generator().manual_seed(0))
        first = visible_patches(50, run, 100)
        assert first.shape == (50, 32)
        assert all(len(set(row)) == 32 for row in first.tolist())
        assert set(first.flatten().tolist()) == set(range(64))
        run.step = 79
        assert visible_patches(50, run, 100) is not None
        run.step = 80
        assert visible_patches(50, run, 100) is None

    @pytest.mark.parametrize("kind", ["pick", "hps"])
    def test_preferences_are_learned(self, trained, folders, tmp_path, kind):
        write_pairs(tmp_path / "pairs.parquet")
        start = {"start": trained / kind, "pairs": tmp_path / "pairs.parquet"}
        train(kind, tmp_path / kind, folders, 40, peak=3e-3, **start)
        figures = json.loads((tmp_path / kind / "figures.json").read_text())
        assert figures["agreement_on_pairs_learned"] > 0.9
        card = (tmp_path / kind / "README.md").read_text(encoding="utf-8")
        assert f"--start .../{kind} --pairs pairs.parquet" in " ".join(card.split()).replace(
            "\\ ", ""
        )
        before = encoders.read(kind, trained / kind)
        pairs = Pairs(tmp_path / "pairs.parquet")
        assert pairs.agreement(before.eval(), torch.arange(64)) < 0.9
