"""Smoke runs of distillation, and how near a student is to its teacher."""

import json
import math
from dataclasses import replace

import pytest
import torch
from interruption import Interrupted, read_equal_states

from rwguidance_testbed import distill, flow, turbo
from rwguidance_testbed.distill import command

pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OPTIONS = replace(distill.OPTIONS, batch=4, fresh=4, uses=1, kept=16, smoke=True)


def run(kind, folder, out, steps, teacher="flow", start=None):
    """Trains a student; that of turbo starts from the flow's teacher unless told otherwise."""

    options = replace(OPTIONS, steps=steps)
    folders = (folder / teacher, folder / "vae", out, folder)
    distill.train(kind, *folders, start=start, options=options)


@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize("kind", ["flow", "turbo"])
    def test_a_run_that_was_interrupted_goes_on_exactly(
        self, distill_folder, tmp_path, monkeypatch, capsys, kind
    ):
        monkeypatch.setattr(command, "measure", lambda *_: {"distance": 0.0})
        monkeypatch.setattr(command, "write_sheet", lambda *_, **__: None)
        run(kind, distill_folder, tmp_path / "whole", steps=4)
        with monkeypatch.context() as patch:
            patch.setattr(command, "Run", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(kind, distill_folder, tmp_path / "parts", steps=4)
        run(kind, distill_folder, tmp_path / "parts", steps=4)
        assert "going on at step 2" in capsys.readouterr().out
        whole = read_equal_states(tmp_path / "whole.state", tmp_path / "parts.state")
        # A call makes 13 examples, or 5; four steps use 16, each example once.
        assert int(whole["modules"]["buffer"]["made"]) == {"flow": 2, "turbo": 4}[kind]

    @pytest.mark.parametrize("kind", ["flow", "turbo"])
    def test_what_is_written_is_read_by_its_class_and_draws(
        self, distill_folder, distill_vae, tmp_path, kind
    ):
        out = tmp_path / f"emoji-{kind}"
        run(kind, distill_folder, out, steps=3)
        pipe = (flow if kind == "flow" else turbo).read(out, distill_vae)
        assert type(pipe.scheduler).__name__ == (
            "FlowMatchEulerDiscreteScheduler"
            if kind == "flow"
            else "EulerAncestralDiscreteScheduler"
        )
        config = pipe.scheduler.config
        if kind == "flow":
            assert config.shift == 3.0
        else:
            expected = {**turbo.SCHEDULE, "timestep_spacing": "trailing"}
            assert {key: config[key] for key in expected} == expected
        state = torch.load(out.with_suffix(".state"), weights_only=True)["modules"]["average"]
        network = pipe.transformer if kind == "flow" else pipe.unet
        for name, value in network.state_dict().items():
            if name in state:
                assert torch.equal(value, state[name].half().float()), name
        pipe.set_progress_bar_config(disable=True)
        draws = torch.Generator().manual_seed(0)
        for steps in (4,) if kind == "flow" else (1, 2, 4):
            picture = pipe(
                "red apple", height=64, width=64, num_inference_steps=steps, guidance_scale=0.0,
                generator=draws,
            ).images[0]  # fmt: skip
            assert picture.size == (64, 64)
        figures = json.loads((out / "figures.json").read_text())
        paths = {"flow": 4, "turbo": 12}[kind]
        assert (figures["steps"], figures["pictures_seen"], figures["paths"]) == (3, 12, paths)
        for who in ("student", "teacher", "pictures"):
            assert figures[f"variance_{who}"] > 0
        assert f"distill {kind} --teacher" in (out / "README.md").read_text()
        sheets = sorted(path.name for path in (tmp_path / "sheets").iterdir())
        counts = ["4"] if kind == "flow" else ["1", "4"]
        assert sheets == [f"emoji-{kind}-{count}-00000012.png" for count in counts]

    def test_either_teacher_serves_turbo(self, distill_folder, tmp_path, monkeypatch):
        monkeypatch.setattr(command, "measure", lambda *_: {"distance": 0.0})
        monkeypatch.setattr(command, "write_sheet", lambda *_, **__: None)
        run("turbo", distill_folder, tmp_path / "a", 1, teacher="unet")
        run("turbo", distill_folder, tmp_path / "b", 1, start=distill_folder / "unet")
        first, second = (
            torch.load(tmp_path / f"{name}.state", weights_only=True)["modules"] for name in "ab"
        )
        assert torch.equal(first["buffer"]["start"][0, :4], second["buffer"]["start"][0, :4])
        assert not torch.equal(first["buffer"]["end"], second["buffer"]["end"])

    def test_another_kind_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="kind must be flow or turbo, got 'slow'"):
            distill.train("slow", tmp_path)


class TestMeasure:
    def test_distances_and_variances_are_those_of_latents(
        self, flow_student, distill_drawings, distill_vae, monkeypatch
    ):
        pipe = flow_student.pipe(flow_student.average)
        asked = []

        class Fixed:
            vae = distill_vae

            def set_progress_bar_config(self, disable): ...

            def __call__(self, prompts, latents, **options):
                asked.append((prompts, options))
                return type("Output", (), {"images": 2 * latents + 0.5})

        monkeypatch.setattr(flow_student, "pipe", lambda network: Fixed())
        monkeypatch.setattr(flow_student, "target", lambda noise, tokens: 2 * noise)
        figures = distill.measure(flow_student, flow_student.average, 4, draws=40)
        assert figures["distance"] == pytest.approx(0.25, abs=1e-3)
        error = 5 * 4 * math.sqrt(2 / (6 * 39 * 512))
        assert figures["variance_student"] == pytest.approx(4, abs=error)
        assert figures["variance_teacher"] == pytest.approx(4, abs=error)
        # Of one drawing on one background at a random place: neither none nor all of it.
        assert 0 < figures["variance_pictures"] < 4
        assert {len(set(prompts)) for prompts, _ in asked} == {1}
        assert len({prompts[0] for prompts, _ in asked}) == 6
        assert all(options["num_inference_steps"] == 4 for _, options in asked)
        assert all(options["guidance_scale"] == 0.0 for _, options in asked)
        assert pipe.scheduler.config.shift == 3.0
