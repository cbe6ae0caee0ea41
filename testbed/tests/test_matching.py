"""Students matched to a law: their draws, their directions, and smoke runs."""

import json
from dataclasses import replace

import pytest
import torch
from gaussian_teachers import SCALING, SHIFT
from torch import nn

from rwguidance_testbed import flow, matching, turbo
from rwguidance_testbed.matching import paths as files
from rwguidance_testbed.matching.objective import Matching, Networks, direction
from rwguidance_testbed.matching.pool import Captions, Pool, paint
from rwguidance_testbed.matching.scores import Discriminator, GuidedVelocity, Velocity
from rwguidance_testbed.matching.students import FlowStudent, TurboStudent, flow_sigmas
from rwguidance_testbed.tokenizer import tokenize
from rwguidance_testbed.training.attention import CountedAttention
from rwguidance_testbed.training.timed import adam, set_rate

pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TEXTS = ["red apple", "pizza", "sun on a blue background"]
SHAPE = (8, 8, 8)


def captions_of(pipe, embed):
    encoders = [pipe.text_encoder.eval(), pipe.text_encoder_2.eval()]
    return Captions(embed, encoders, tokenize(pipe.tokenizer, TEXTS)).float()


class Toward(nn.Module):
    """The velocity of a law that is one point, wherever the state is."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self, x_t, t, text, pooled):
        return (x_t - self.value) / t[:, None, None, None]


class Constant(nn.Module):
    """A student that draws one number everywhere."""

    def __init__(self):
        super().__init__()
        self.network = nn.ParameterList([nn.Parameter(torch.zeros(()))])

    def draw(self, index, generator):
        return self.network[0].expand(len(index), *SHAPE), index

    def regression(self, path, index, generator):
        return (self.network[0] - path[:, -1]).square().mean()


class Mean(nn.Module):
    """A discriminator to which large numbers look painted."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x_t, t, text, pooled):
        return self.factor * x_t.mean(1)


def matching_of(generator, teacher, painted, adversarial=0.0, paired=0.0):
    """Steps of a constant student, toward a teacher at one point and pictures at another."""

    networks = Networks(Constant(), Toward(teacher), Toward(0.0), Mean())
    optimizers = {
        name: adam(part.parameters(), torch.device("cpu"), (0.0, 0.99))
        for name, part in networks.trained().items()
    }
    set_rate(optimizers["student"], 0.01)
    words = Captions(lambda *_: (torch.zeros(4, 2, 3), torch.zeros(4, 3)), [], torch.zeros(4, 5))
    pool = Pool(torch.full((4, *SHAPE), float(painted)), torch.zeros(4, 5))
    paths = torch.full((4, 5, *SHAPE), -2.0).half()
    return Matching(networks, optimizers, pool, paths, words, 6, adversarial, paired, generator)


class TestObjective:
    def test_the_direction_is_the_difference_of_posterior_means(self, generator):
        networks = Networks(Constant(), Toward(-1.0), Toward(0.5), Mean())
        x_0, noise = (torch.randn(4, *SHAPE, generator=generator) for _ in range(2))
        t = torch.tensor([0.1, 0.4, 0.7, 1.0])
        found = direction(networks, x_0, t, noise, (torch.zeros(4), torch.zeros(4)))
        wanted = 1.5 / (x_0 + 1).abs().mean((1, 2, 3), keepdim=True)
        assert torch.allclose(found, wanted.expand_as(found), atol=1e-4)

    @pytest.mark.parametrize("teacher", [1.0, -1.0])
    def test_a_student_goes_to_its_teacher(self, generator, teacher):
        steps = matching_of(generator, teacher, painted=-teacher)
        for _ in range(5):
            steps.match()
        assert steps.networks.student.network[0].item() * teacher > 0.04

    @pytest.mark.parametrize("painted", [1.0, -1.0])
    def test_a_discriminator_leads_where_it_says(self, generator, painted):
        # To this one large numbers look painted, whatever the pictures are.
        steps = matching_of(generator, -1.0, painted, adversarial=10.0)
        for _ in range(5):
            steps.match()
        assert steps.networks.student.network[0].item() > 0.04

    def test_paths_lead_to_their_ends(self, generator):
        # They end at -2, while the teacher is at 1.
        for step, weight in (("regress", 0.0), ("match", 50.0)):
            steps = matching_of(generator, 1.0, 0.0, paired=weight)
            for _ in range(5):
                getattr(steps, step)()
            assert steps.networks.student.network[0].item() < -0.04

    def test_critics_learn_what_is_drawn_and_what_is_painted(self, generator):
        steps = matching_of(generator, 0.0, painted=-3.0)
        for name in ("fake", "discriminator"):
            set_rate(steps.optimizers[name], 0.05)
        with torch.no_grad():
            steps.networks.student.network[0].fill_(0.7)
        for _ in range(60):
            steps.learn()
        assert steps.networks.fake.value.item() == pytest.approx(0.7, abs=0.1)
        assert steps.networks.discriminator.factor.item() < 0  # small numbers are painted here


class TestScores:
    def test_guidance_goes_from_no_caption_to_the_caption_and_beyond(self, teacher_flow, generator):
        teacher_flow.transformer.set_attn_processor(CountedAttention())
        words = captions_of(teacher_flow, flow.embed_captions)(torch.arange(3))
        with torch.no_grad():
            tokens = tokenize(teacher_flow.tokenizer, [""])
            empty = flow.embed_captions(
                [teacher_flow.text_encoder, teacher_flow.text_encoder_2], tokens
            )
        x, t = torch.randn(3, *SHAPE, generator=generator), torch.tensor([0.2, 0.5, 0.9])
        network = teacher_flow.transformer.eval()
        with torch.no_grad():
            given = Velocity(network)(x, t, *words)
            none = Velocity(network)(x, t, *(part.expand(3, *part.shape[1:]) for part in empty))
        assert not torch.allclose(given, none, atol=1e-3)
        for guidance in (0.0, 1.0, 2.5):
            found = GuidedVelocity(network, guidance, empty)(x, t, *words)
            assert torch.allclose(found, none + guidance * (given - none), atol=1e-5)

    def test_a_discriminator_starts_undecided_and_can_learn(self, teacher_flow, generator):
        critic = Discriminator(teacher_flow.transformer)
        words = captions_of(teacher_flow, flow.embed_captions)(torch.arange(3))
        x = torch.randn(3, *SHAPE, generator=generator)
        logits = critic(x, torch.full((3,), 0.5), *words)
        assert torch.equal(logits, torch.zeros(3, 8, 8))
        logits.sum().backward()
        assert float(critic.transformer.proj_out.weight.grad.abs().sum()) > 0
        assert float(teacher_flow.transformer.proj_out.weight.abs().sum()) > 0


class TestStudents:
    def test_the_flow_draws_what_its_pipeline_draws(self, teacher_flow, generator, monkeypatch):
        monkeypatch.setattr(flow, "log_counts", lambda count, _: torch.zeros(count))
        teacher_flow.scheduler = type(teacher_flow.scheduler)(shift=3.0)
        student = FlowStudent(
            teacher_flow.transformer, captions_of(teacher_flow, flow.embed_captions)
        )
        noise = torch.randn(3, *SHAPE, generator=generator)
        monkeypatch.setattr(student, "noise", lambda count, _: noise)
        teacher_flow.set_progress_bar_config(disable=True)
        wanted = teacher_flow(
            TEXTS, height=64, width=64, num_inference_steps=4, guidance_scale=0.0,
            max_sequence_length=1, latents=noise, output_type="latent",
        ).images  # fmt: skip
        found, index = student.draw(torch.arange(3), generator)
        assert torch.allclose(found, wanted, atol=1e-4)
        assert torch.equal(index, torch.arange(3))

    def test_turbo_draws_what_its_pipeline_draws(self, teacher_unet, generator, monkeypatch):
        shift = SHIFT * SCALING
        words = captions_of(teacher_unet, turbo.embed_captions)
        student = TurboStudent(teacher_unet.unet, words, shift, batch=6)
        noise = torch.randn(3, *SHAPE, generator=generator)
        monkeypatch.setattr(student, "noise", lambda count, _: noise[:count])
        teacher_unet.set_progress_bar_config(disable=True)
        wanted = teacher_unet(
            TEXTS, height=64, width=64, num_inference_steps=1, guidance_scale=0.0, latents=noise,
            output_type="latent",
        ).images  # fmt: skip
        found, index = student.draw(torch.tensor([0, 1, 2, 0, 0, 0]), generator)
        assert torch.allclose(found[:3] + shift, wanted, atol=1e-3)
        assert index[:3].tolist() == [0, 1, 2]

    def test_turbo_goes_on_as_ancestral_steps_do(self, teacher_unet, generator, monkeypatch):
        import diffusers

        scheduling = diffusers.schedulers.scheduling_euler_ancestral_discrete
        monkeypatch.setattr(scheduling, "randn_tensor", lambda shape, **_: torch.ones(shape))
        scheduler = diffusers.EulerAncestralDiscreteScheduler(
            **turbo.SCHEDULE, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(4)
        words = captions_of(teacher_unet, turbo.embed_captions)
        student = TurboStudent(teacher_unet.unet, words, 0.0, batch=6)
        monkeypatch.setattr(student, "noise", lambda count, _: torch.ones(count, *SHAPE))
        x = student.sigmas[0] * torch.ones(1, *SHAPE)
        for level in range(4):  # the first picture of each call goes on at the next level
            drawn, index = student.draw(torch.tensor([2 - level % 3, 1, 1, 0, 0, 0]), generator)
            row = 0 if level == 0 else student.first + level - 1
            assert index[row] == 2
            step = scheduler.timesteps[level]
            scaled = x / (student.sigmas[level] ** 2 + 1) ** 0.5
            with torch.no_grad():
                predicted = turbo.predict_noise(
                    teacher_unet.unet, scaled, step[None].float(), *words(torch.tensor([2]))
                )
            clean = x - student.sigmas[level] * predicted
            assert torch.allclose(drawn[row : row + 1], clean, atol=2e-3), level
            x = scheduler.step(predicted, step, x, return_dict=False)[0]

    @pytest.mark.parametrize("off", [0.0, 0.3])
    def test_regression_is_the_distance_from_the_paths(
        self, teacher_flow, teacher_unet, generator, monkeypatch, off
    ):
        v = torch.randn(4, *SHAPE, generator=generator)
        noise = torch.randn(4, *SHAPE, generator=generator)
        sigmas = flow_sigmas()
        path = torch.stack([noise - (1 - sigma) * v for sigma in sigmas], dim=1)
        index = torch.tensor([0, 1, 2, 0])
        monkeypatch.setattr(flow, "velocity", lambda *_: v + off)
        student = FlowStudent(
            teacher_flow.transformer, captions_of(teacher_flow, flow.embed_captions)
        )
        assert student.regression(path, index, generator).item() == pytest.approx(off**2, abs=1e-5)
        words = captions_of(teacher_unet, turbo.embed_captions)
        one = TurboStudent(teacher_unet.unet, words, 0.375, batch=6)
        end = path[:, -1] + 0.375 + off
        top = one.sigmas[0]
        monkeypatch.setattr(turbo, "predict_noise", lambda *_: (top * noise - end) / top)
        assert one.regression(path, index, generator).item() == pytest.approx(off**2, abs=1e-5)


def test_paths_are_those_of_the_velocity(generator, teacher_flow):
    words = captions_of(teacher_flow, flow.embed_captions)
    found = files.walk(Toward(0.25), words, SHAPE, flow_sigmas(), generator, part=2)
    assert found.shape == (3, 5, *SHAPE)
    assert found.dtype == torch.float16
    noise = found[:, 0].float()
    for level, sigma in enumerate(flow_sigmas()):
        wanted = (1 - sigma) * 0.25 + sigma * noise
        assert torch.allclose(found[:, level].float(), wanted, atol=4e-3)


def test_painted_pictures_keep_their_captions(distill_drawings, distill_vae, teacher_flow):
    pool = paint(distill_drawings, distill_vae, teacher_flow.tokenizer, 5, seed=0)
    again = paint(distill_drawings, distill_vae, teacher_flow.tokenizer, 5, seed=0)
    assert len(pool) == 5
    assert torch.equal(pool.latents, again.latents)
    assert torch.equal(pool.tokens, again.tokens)
    assert pool.latents.shape == (5, *SHAPE)


class TestRuns:
    @pytest.mark.parametrize("kind", ["flow", "turbo"])
    def test_what_is_written_is_read_by_its_class_and_goes_on(
        self, distill_folder, distill_vae, tmp_path, monkeypatch, capsys, kind
    ):
        monkeypatch.setattr(matching.command, "write_sheet", lambda *_, **__: None)
        teacher, file = distill_folder / "flow", tmp_path / "paths"
        matching.walk(teacher, distill_folder, distill_folder / "vae", file, painted=7)
        start = distill_folder / ("flow" if kind == "flow" else "unet")
        out = tmp_path / f"emoji-{kind}"
        options = replace(matching.MATCHING, minutes=1e-6, alone=0.0, batch=6, critics=1)
        run = lambda: matching.match(
            kind, teacher, file, start, out, distill_folder / "vae", options
        )
        run()
        assert (flow if kind == "flow" else turbo).read(out, distill_vae) is not None
        assert json.loads((out / "figures.json").read_text())["pictures_seen"] == 6
        run()
        assert "going on at step 1" in capsys.readouterr().out
        assert json.loads((out / "figures.json").read_text())["steps"] == 2

    def test_wrong_arguments_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="kind must be flow or turbo, got 'slow'"):
            matching.match("slow", tmp_path)
        with pytest.raises(ValueError, match="multiple of six, got 8"):
            matching.match("flow", tmp_path, options=replace(matching.MATCHING, batch=8))
