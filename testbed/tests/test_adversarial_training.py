"""A one-step student's change as a LoRA, its draws and examples, and a smoke run."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from gaussian_teachers import NAMES, SCALING, SHIFT
from interruption import Clock, read_equal_states
from torch import nn

from rwguidance.support.randomness import seeded
from rwguidance_testbed import adversarial, turbo
from rwguidance_testbed.adversarial import command, examples, lora
from rwguidance_testbed.adversarial.critic import GROUP
from rwguidance_testbed.adversarial.examples import Counts, Pipelines
from rwguidance_testbed.adversarial.objective import Widening
from rwguidance_testbed.training import timed

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TEXTS = ["red apple", "pizza", "sun on a blue background"]


def changed(network, generator, scale=0.02):
    """A copy whose weights are all others."""

    other = copy.deepcopy(network)
    for parameter in other.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(scale * noise.to(parameter.dtype))
    return other


def small_network():
    with seeded(0):
        layers = (nn.Conv2d(3, 12, 3), nn.GroupNorm(2, 12), nn.Conv2d(12, 5, 1), nn.Linear(9, 20))
        return nn.Sequential(*layers).double()


class TestLora:
    def test_projections_are_the_nearest_ones_of_a_rank(self, generator):
        base = small_network()
        free = changed(base, generator)
        found = copy.deepcopy(free)
        lost = lora.project(found, base, 3)
        apart = whole = 0.0
        for i in (0, 2, 3):
            change = (free[i].weight - base[i].weight).detach().flatten(1)
            kept = (found[i].weight - base[i].weight).detach().flatten(1)
            left, values, right = torch.linalg.svd(change, full_matrices=False)
            assert torch.allclose(kept, (left[:, :3] * values[:3]) @ right[:3], atol=1e-9)
            apart, whole = apart + values[3:].square().sum(), whole + values.square().sum()
            assert torch.equal(found[i].bias, base[i].bias)
        assert torch.equal(found[1].weight, base[1].weight)
        assert lost == pytest.approx(float(apart / whole) ** 0.5)

    def test_changes_of_that_rank_stay_as_they_are(self, generator):
        base = small_network()
        once = changed(base, generator)
        lora.project(once, base, 3)
        again = copy.deepcopy(once)
        assert lora.project(again, base, 3) < 1e-7
        for x, y in zip(once.parameters(), again.parameters(), strict=True):
            assert torch.allclose(x, y, atol=1e-12)
        assert lora.project(copy.deepcopy(base), base, 3) == 0.0

    def test_products_are_the_changes(self, generator):
        """Of layers with fewer inputs or outputs than the rank as well."""

        base = small_network()
        network = changed(base, generator)
        lora.project(network, base, 8)
        layers = lora.lora_layers(network, base, 8)
        assert {name.split(".lora")[0] for name in layers} == {"0", "2", "3"}
        assert layers["0.lora_A.weight"].shape == (8, 3, 3, 3)
        assert layers["0.lora_B.weight"].shape == (12, 8, 1, 1)
        for i in (0, 2, 3):
            down, up = (layers[f"{i}.lora_{letter}.weight"].double() for letter in "AB")
            change = (network[i].weight - base[i].weight).detach()
            product = (up.flatten(1) @ down.flatten(1)).view_as(change)
            # Numbers of half precision are off by a 2048th at most, and there are two factors.
            assert float((product - change).norm() / change.norm()) < 2 / 2048

    def test_pipelines_read_what_is_written(self, teacher_unet, generator, tmp_path):
        pytest.importorskip("peft")
        base = teacher_unet.unet
        other = changed(base, generator)
        lora.project(other, base, 4)
        lora.write(tmp_path, other, base, 4)
        assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
        pictures = []
        for unet in (base, other):
            teacher_unet.register_modules(unet=unet)
            pictures.append(drawn(teacher_unet))
        teacher_unet.register_modules(unet=base)
        with seeded(0):  # what is read replaces random weights
            teacher_unet.load_lora_weights(tmp_path)
        teacher_unet.fuse_lora()
        apart = float((pictures[1] - pictures[0]).norm())
        assert apart > 0.1 * float(pictures[0].norm())
        assert float((drawn(teacher_unet) - pictures[1]).norm()) < apart * 4 / 2048


def drawn(pipe):
    """Latents of one step of the pipeline."""

    import diffusers

    kind = diffusers.EulerAncestralDiscreteScheduler
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = kind(**turbo.SCHEDULE, timestep_spacing="trailing")
    noise = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    return pipe(
        TEXTS, height=64, width=64, num_inference_steps=1, guidance_scale=0.0, latents=noise,
        output_type="latent", generator=torch.Generator().manual_seed(2),
    ).images  # fmt: skip


def test_one_step_draws_what_the_pipeline_draws(teacher_unet):
    noise = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    words = examples.words(teacher_unet, TEXTS)
    kept = float(teacher_unet.scheduler.alphas_cumprod[-1])
    with torch.no_grad():
        found = command.draw_one_step(teacher_unet.unet, noise, words, kept, SHIFT * SCALING)
    assert torch.allclose(found + SHIFT * SCALING, drawn(teacher_unet), atol=1e-3)


def test_the_flow_draws_what_its_pipeline_draws_but_for_a_hundredth(teacher_flow, generator):
    noise = torch.randn(3, 8, 8, 8, generator=generator)
    teacher_flow.set_progress_bar_config(disable=True)
    states = []
    end = lambda pipe, step, t, given: states.append(given["latents"]) or given
    teacher_flow(
        TEXTS, height=64, width=64, num_inference_steps=4, guidance_scale=0.0, latents=noise,
        output_type="latent", max_sequence_length=1, callback_on_step_end=end,
    )  # fmt: skip
    found = examples.drawn_by_flow(teacher_flow, noise, examples.words(teacher_flow, TEXTS))
    assert torch.allclose(found, states[2], atol=1e-4)


def test_examples_belong_together(distill_drawings, teacher_flow, teacher_unet):
    drawings = distill_drawings.where("generator")
    counts = Counts(painted=70, pairs=66, recombined=3)
    pipes = Pipelines(teacher_flow, teacher_flow, teacher_unet)
    found = examples.make_examples(drawings, pipes, counts, 0)
    assert found.recombined == 3 * GROUP
    assert [len(found.latents), len(found.ends)] == [70 + 12, 66 + 12]
    assert torch.equal(found.latents[:12], found.ends[:12])
    assert found.names[:12].tolist() == [7] * 4 + [8] * 4 + [9] * 4
    assert found.names[12:].max() < 7
    assert len(found.table) == 10
    # A bare caption has the embedding of its name, unless there is an article.
    bare = found.bare.nonzero()[:, 0]
    assert len(bare) > 0
    pooled = found.seen[1][bare].float()
    near = (pooled - found.table[found.names[bare]]).abs().amax(1) < 1e-2
    assert bool(near.any())
    words = [part[60:78].float() for part in found.seen]
    ends = examples.drawn_by_flow(teacher_flow, found.noise[60:78].float(), words)
    assert torch.allclose(ends, found.ends[60:78].float(), atol=2e-2)


def test_rates_are_constant_and_then_fall_to_zero():
    rates = lambda share: command.rates(share, adversarial.OPTIONS)
    peaks = {"student": 4e-5, "critic": 6e-4}
    assert rates(0.0) == {"student": 0.0, "critic": 6e-4}
    for share, factor in ((0.1, 1.0), (0.5, 1.0), (0.75, 0.5), (1.0, 0.0)):
        assert rates(share) == pytest.approx({k: factor * peak for k, peak in peaks.items()})


@pytest.mark.slow
class TestTraining:
    OPTIONS = replace(
        adversarial.OPTIONS, minutes=10.0, painted=70, pairs=64, recombined=3, groups=2, blocks=1,
        reading=2, rank=2,
    )  # fmt: skip

    @pytest.fixture
    def widen(self, distill_folder, tmp_path, monkeypatch):
        """A run of three steps of 200 seconds each; the critic learns alone in the first."""

        monkeypatch.setattr(command, "write_sheet", lambda *_: None)
        monkeypatch.setattr(command, "load_names", lambda: {"train": NAMES})
        monkeypatch.setattr(command, "_EVERY", 2)
        folders = [distill_folder / name for name in ("vae", "flow", "flow", "unet")]

        def run(name):
            monkeypatch.setattr(timed, "time", Clock(200.0))
            adversarial.widen(distill_folder, *folders, tmp_path / name, self.OPTIONS)

        return run

    def test_a_run_that_was_interrupted_goes_on_exactly(self, widen, tmp_path, monkeypatch, capsys):
        widen("whole")
        step = Widening.step

        def interrupted(self, number, alone):
            if number == 2:
                raise KeyboardInterrupt
            step(self, number, alone)

        with monkeypatch.context() as patch:
            patch.setattr(Widening, "step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                widen("parts")
        widen("parts")
        assert "going on at step 2" in capsys.readouterr().out
        read_equal_states(tmp_path / "whole.state", tmp_path / "parts.state")

    def test_what_is_written_changes_the_model_by_that_rank(self, widen, teacher_unet, tmp_path):
        from safetensors.torch import load_file

        before = {name: value.clone() for name, value in teacher_unet.unet.named_parameters()}
        widen("wide")
        figures = json.loads((tmp_path / "wide" / "figures.json").read_text())
        assert (figures["steps"], figures["minutes"], figures["rank"]) == (3, 10.0, 2)
        written = load_file(tmp_path / "wide" / "pytorch_lora_weights.safetensors")
        state = torch.load(tmp_path / "wide.state", weights_only=True)
        average = copy.deepcopy(teacher_unet.unet)
        average.load_state_dict(state["modules"]["average"])
        lora.project(average, teacher_unet.unet, 2)
        moved = 0
        for name, weight in average.named_parameters():
            if weight.ndim > 1:
                path = "unet." + name.removesuffix(".weight")
                down, up = (written[f"{path}.lora_{letter}.weight"].float() for letter in "AB")
                product = (up.flatten(1) @ down.flatten(1)).view_as(weight)
                assert torch.allclose(product, weight - before[name], atol=1e-6), name
                moved += bool(product.abs().max() > 1e-6)
        assert moved > 10
