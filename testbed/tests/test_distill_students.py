"""Students: what they learn, and that it is what their pipelines ask."""

import functools
import itertools
import math

import pytest
import torch
from gaussian_teachers import NAMES, SCALING, SHIFT, STD, captions, carry, guided_mean

from common import assert_rounds_to, assert_within
from rwguidance_testbed import flow, turbo
from rwguidance_testbed.distill import students, teachers
from rwguidance_testbed.distill.buffer import ReplayBuffer
from rwguidance_testbed.distill.students import Examples, FlowStudent, TurboStudent
from rwguidance_testbed.distill.teachers import FlowTeacher, NoiseTeacher
from rwguidance_testbed.tokenizer import train_tokenizer

pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class TestFlowStudent:
    def test_windows_are_those_of_the_pipeline(self, flow_student, teacher_flow, generator):
        pipe = flow_student.pipe(flow_student.average)
        pipe.set_progress_bar_config(disable=True)
        seen = []
        pipe.transformer.register_forward_pre_hook(
            lambda module, args, inputs: seen.append(inputs), with_kwargs=True
        )
        noise = flow_student.noise(2, generator)
        prompts = list(NAMES[:2])
        size = {"height": 64, "width": 64, **flow_student.options}
        pipe(prompts, num_inference_steps=4, guidance_scale=0.0, latents=noise, **size)
        upper = torch.cat([inputs["timestep"][:1] / 1000 for inputs in seen])
        assert torch.allclose(upper, torch.tensor(flow_student.sigmas[:4]), atol=1e-6)
        assert (flow_student.sigmas[0], flow_student.sigmas[4]) == (1.0, 0.0)
        assert torch.equal(seen[0]["hidden_states"], noise)

    def test_ideal_steps_land_where_the_teacher_does(
        self, flow_student, teacher_flow, generator, monkeypatch
    ):
        monkeypatch.setattr(students, "_WINDOW_STEPS", (400, 400, 400, 10))
        tokens = captions(teacher_flow, 8)
        noise = flow_student.noise(8, generator)
        batch = flow_student.along(noise, tokens, 0, generator)
        sigmas = flow_student.sigmas
        asked = []

        def ideal(parts, x, t, tokens, log_count):
            asked.append((t, tokens, log_count))
            v = torch.zeros_like(x)
            for upper, lower in itertools.pairwise(sigmas):
                here = torch.isclose(t, torch.tensor(upper))
                v[here] = ((x - carry(x, upper, lower)) / (upper - lower))[here]
            return v

        flow_student.velocity = ideal
        assert float(flow_student.loss(batch, generator)) < 1e-4
        assert torch.equal(asked[0][0], torch.tensor(sigmas)[batch.level])
        assert torch.equal(asked[0][1], batch.tokens)
        x, scheduler = noise, flow_student.scheduler
        for t in scheduler.timesteps:
            v = ideal(None, x, (t / 1000).expand(8), tokens, None)
            x = scheduler.step(v, t, x).prev_sample
        torch.testing.assert_close(x, carry(noise, 1.0, 0.0), atol=1e-4, rtol=0)
        assert torch.bincount(batch.level).tolist() == [8, 8, 8, 2]

    def test_the_loss_is_the_error_of_the_velocity(self, flow_student, teacher_flow, generator):
        tokens = captions(teacher_flow, 8)
        batch = flow_student.along(flow_student.noise(8, generator), tokens, 0, generator)
        upper, lower = (torch.tensor(flow_student.sigmas)[batch.level + i] for i in (0, 1))
        v = (batch.start - batch.end) / (upper - lower)[:, None, None, None]
        flow_student.velocity = lambda *_: v + 0.3
        assert float(flow_student.loss(batch, generator)) == pytest.approx(0.09, rel=1e-4)

    def test_it_learns_to_do_its_work_with_any_number_of_zeros(self, flow_student, generator):
        counts = []
        flow_student.velocity = lambda *inputs: counts.append(inputs[4]) or inputs[1]
        rows = torch.zeros(500, dtype=torch.long)
        x = torch.zeros(500, 8, 8, 8)
        flow_student.loss(Examples(x, x, rows, rows[:, None]), generator)
        share = counts[0] / math.log(256)
        assert_within(share.mean(), 0.5, math.sqrt(1 / 12 / 500))

    @pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
    def test_windows_begin_where_student_or_teacher_led(
        self, flow_student, teacher_flow, generator, exact, own
    ):
        flow_student.own = own
        tokens = captions(teacher_flow, 40)
        noise = flow_student.noise(40, generator)
        batch = flow_student.along(noise, tokens, 0, generator)
        level = lambda k: [part[batch.level == k] for part in (batch.start, batch.end)]
        assert torch.equal(level(0)[0], noise)
        for k in (0, 1):
            start, end = level(k)
            width = flow_student.sigmas[k] - flow_student.sigmas[k + 1]
            with torch.no_grad():
                t = torch.full((40,), flow_student.sigmas[k])
                v = flow.predict_velocity(flow_student._parts(), start, t, tokens, torch.zeros(40))
            following = level(k + 1)[0]
            near = lambda a, b: (a - b).flatten(1).abs().amax(1) < 1e-5
            by_student, by_teacher = near(following, start - width * v), near(following, end)
            assert bool((by_student != by_teacher).all())
            if own in (0.0, 1.0):
                assert float(by_student.float().mean()) == own
            else:
                assert_within(by_student.float().mean(), own, math.sqrt(0.25 / 40))

    def test_it_starts_from_the_teacher(self, flow_student, teacher_flow):
        for part in (flow_student.network, flow_student.average):
            for name, value in teacher_flow.transformer.state_dict().items():
                assert torch.equal(part.state_dict()[name], value)
        assert flow_student.network is not teacher_flow.transformer
        assert not any(p.requires_grad for p in teacher_flow.text_encoder.parameters())

    def test_a_teacher_of_noise_is_refused(self, teacher_unet, distill_drawings):
        with pytest.raises(ValueError, match="must be a StableDiffusion3Pipeline"):
            FlowStudent(NoiseTeacher(teacher_unet, 3.0), distill_drawings, 8)


def record_steps(scheduler):
    """Lists that every step of a scheduler will add its state and the clean state to."""

    step = scheduler.step
    states, cleaned = [], []

    @functools.wraps(step)
    def recorded(noise, t, x, **keywords):
        states.append(x)
        out = step(noise, t, x, **{**keywords, "return_dict": True})
        cleaned.append(out.pred_original_sample)
        return (out.prev_sample,)

    scheduler.step = recorded
    return states, cleaned


class TestTurboStudent:
    def test_the_flow_is_followed_in_steps_that_are_finer_where_paths_bend(
        self, teacher_flow, generator, monkeypatch
    ):
        teacher, followed = FlowTeacher(teacher_flow, 3.0), []
        monkeypatch.setattr(teacher, "follow", lambda x, s, tokens: followed.append(s) or x)
        x, tokens = torch.ones(1, 8, 8, 8), captions(teacher_flow, 1)
        teacher.clean(x, 999, 14.6, tokens)
        teacher.clean(x, 249, 0.5, tokens)
        whole = [2 * (1 - i / 8) / (2 - i / 8) for i in range(9)]
        assert followed[0] == pytest.approx(whole)
        assert followed[1] == pytest.approx([1 / 3, 2 / 9, 0.0])

    @pytest.mark.parametrize("steps", [1, 4])
    def test_it_learns_what_the_pipeline_asks_and_makes_of_it(
        self, turbo_student, exact, generator, steps
    ):
        pipe = turbo_student.pipe(turbo_student.average)
        pipe.set_progress_bar_config(disable=True)
        seen, answers = [], []

        def hook(module, args, inputs, output):
            seen.append((*args, inputs))
            answers.append(output[0])

        pipe.unet.register_forward_hook(hook, with_kwargs=True)
        states, cleaned = record_steps(pipe.scheduler)
        noise = turbo_student.noise(3, generator)
        prompts = list(NAMES[:3])
        found = pipe(
            prompts, height=64, width=64, num_inference_steps=steps, guidance_scale=0.0,
            latents=noise, generator=generator, output_type="latent",
        ).images  # fmt: skip
        assert torch.equal(states[0], turbo_student.sigmas[0] * noise)
        torch.testing.assert_close(found, cleaned[-1], atol=1e-5, rtol=1e-6)
        tokens = captions(pipe, 3)
        for level in range(steps):
            asked = []

            def spy(unet, x, step, text, pooled, asked=asked, level=level):
                asked.append((x, step, text, pooled))
                return answers[level]

            turbo_student.predict = spy
            rows = torch.full((3,), level)
            end = cleaned[level] + 0.2
            batch = Examples(states[level], end, rows, tokens)
            assert float(turbo_student.loss(batch, generator)) == pytest.approx(0.04, rel=1e-3)
            x, t, inputs = seen[level]
            torch.testing.assert_close(asked[0][0], x, atol=1e-6, rtol=1e-6)
            assert asked[0][1].tolist() == [float(t)] * 3
            assert_rounds_to(asked[0][2], inputs["encoder_hidden_states"], terms=1024)
            added = inputs["added_cond_kwargs"]
            assert_rounds_to(asked[0][3], added["text_embeds"], terms=1024)
            assert added["time_ids"].tolist() == [list(turbo.SIZES)] * 3

    def test_it_jumps_from_noise_and_from_noisy_ends_to_clean_ends(
        self, turbo_student, teacher_flow, generator, monkeypatch
    ):
        monkeypatch.setattr(teachers, "_PATH_STEPS", 400)
        noise = turbo_student.noise(64, generator)
        mean = guided_mean(3.0) + SHIFT * SCALING
        for number, level in ((0, 1), (1, 2), (5, 3)):
            batch = turbo_student.along(noise, captions(teacher_flow, 64), number, generator)
            assert torch.bincount(batch.level, minlength=4)[[0, level]].tolist() == [64, 16]
            assert torch.equal(batch.start[:64], turbo_student.sigmas[0] * noise)
            torch.testing.assert_close(batch.end[:64], mean + STD * noise, atol=0.02, rtol=0)
            sigma = turbo_student.sigmas[level]
            added = (batch.start[64:] - batch.end[:16]) / sigma
            count = math.sqrt(added.numel())
            assert_within(added.mean(), 0, 1 / count)
            assert_within(added.square().mean(), 1, math.sqrt(2) / count)
            assert_within((added * noise[:16]).mean(), 0, 1 / count)
            expected = mean + (batch.start[64:] - mean) * STD / math.sqrt(STD**2 + sigma**2)
            torch.testing.assert_close(batch.end[64:], expected, atol=0.02, rtol=0)
            assert torch.equal(batch.tokens[64:], batch.tokens[:16])

    def test_another_tokenizer_is_refused(
        self, teacher_unet, teacher_flow, distill_drawings, tmp_path
    ):
        teacher_unet.tokenizer = train_tokenizer(["red apple"], tmp_path, size=520)
        with pytest.raises(ValueError, match="must have the tokenizer of its teacher"):
            TurboStudent(teacher_unet, FlowTeacher(teacher_flow, 3.0), distill_drawings, 8)


class TestReplayBuffer:
    def test_it_grows_and_then_forgets_the_oldest(self, flow_student):
        made = []

        def make(number):
            made.append(number)
            rows = torch.full((3,), number)
            x = rows[:, None, None, None].float().expand(3, 8, 2, 2)
            return Examples(x, -x, rows, rows[:, None])

        flow_student.examples = make
        buffer = ReplayBuffer(flow_student, 7)  # room for three times three
        levels = lambda: sorted(
            set(buffer.batch(200, torch.Generator().manual_seed(0)).level.tolist())
        )
        assert levels() == [0]
        buffer.renew()
        assert levels() == [0, 1]
        for _ in range(3):
            buffer.renew()
        assert made == [0, 1, 2, 3, 4]
        assert levels() == [2, 3, 4]
        batch = buffer.batch(50, torch.Generator().manual_seed(1))
        assert torch.equal(batch.start[:, 0, 0, 0], batch.level.float())
        assert torch.equal(batch.start, -batch.end)
        assert torch.equal(batch.tokens[:, 0], batch.level)

    def test_paths_depend_on_the_number_alone(self, turbo_student):
        first, again, other = (turbo_student.examples(number) for number in (4, 4, 7))
        assert torch.equal(first.start, again.start)
        assert torch.equal(first.tokens, again.tokens)
        assert not torch.equal(first.start, other.start)
