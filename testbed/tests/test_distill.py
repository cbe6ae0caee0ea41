"""The few-step models: where their teachers lead, what students learn, and smoke runs."""

import contextlib
import functools
import itertools
import json
import math

import pytest
import torch

from common import assert_rounds_to, assert_within
from rwguidance.support.randomness import seeded
from rwguidance_testbed import data, distill, flow, turbo, vae
from rwguidance_testbed.data import SIZE, Drawing, Drawings
from rwguidance_testbed.distill import (
    FlowStudent,
    FlowTeacher,
    NoiseTeacher,
    ReplayBuffer,
    TurboStudent,
)
from rwguidance_testbed.tokenizer import tokenize, train_tokenizer

pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ("red apple", "pizza", "carrot", "lemon", "sun", "key", "cat")
SHIFT, SCALING = 0.25, 1.5
STD = 0.6  # of the Gaussian law of clean latents
MEANS = (0.5, -0.2)  # with a caption, without


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Drawings, an autoencoder and both teachers, all tiny."""

    path = tmp_path_factory.mktemp("data")
    entries, pixels = [], []
    for i, name in enumerate(NAMES):
        roles = data.assign_roles(name, [row["name"] for row in data.sources()["styles"]])
        for style, role in roles.items():
            entries.append(Drawing(name, style, "x", "food-fruit", (), role))
            picture = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
            picture[0, 5 : 25 + 6 * i, 5:75] = picture[3, 5 : 25 + 6 * i, 5:75] = 255
            pixels.append(picture)
    Drawings(entries, torch.stack(pixels)).save(path)
    tokenizer = train_tokenizer([*NAMES, "on a blue background"] * 3, path / "words", 600)
    autoencoder = vae.new(smoke=True).eval()
    autoencoder.register_to_config(scaling_factor=SCALING, shift_factor=SHIFT)
    autoencoder.half().save_pretrained(path / "vae")
    autoencoder.float()
    pipe = flow.new(autoencoder, tokenizer, smoke=True)
    unet_pipe = turbo.new(pipe, smoke=True)
    noise = torch.Generator().manual_seed(0)
    for network in (pipe.transformer, unet_pipe.unet):
        for parameter in network.parameters():  # else captions would change nothing
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    flow.export(pipe, path / "words", path / "flow")
    flow.export(unet_pipe, path / "words", path / "unet")
    return path


@pytest.fixture
def drawings(folder):
    return Drawings.load(folder)


@pytest.fixture
def autoencoder(folder):
    import diffusers

    with seeded(0):
        return diffusers.AutoencoderKL.from_pretrained(folder / "vae").float().eval()


@pytest.fixture
def flow_pipe(folder, autoencoder):
    return flow.read(folder / "flow", autoencoder)


@pytest.fixture
def unet_pipe(folder, autoencoder):
    return turbo.read(folder / "unet", autoencoder)


@pytest.fixture
def exact(monkeypatch):
    """Without half precision."""

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def captions(pipe, count):
    return tokenize(pipe.tokenizer, [NAMES[i % len(NAMES)] for i in range(count)])


def gaussian_velocity(parts, x_t, t, tokens, log_count):
    """E[noise - x_0 | x_t] of a Gaussian law, whose mean a caption changes."""

    assert bool((log_count == 0).all())
    t = t[:, None, None, None]
    mean = torch.where((tokens[:, 1] == tokens[:, 2])[:, None, None, None], MEANS[1], MEANS[0])
    variance = (1 - t) ** 2 * STD**2 + t**2
    return (t - (1 - t) * STD**2) / variance * (x_t - (1 - t) * mean) - mean


def gaussian_noise(unet, x_t, step, text, pooled):
    """E[noise | x_t] of the same law, of latents without their shift."""

    alphas = teacher_alphas()[step][:, None, None, None]
    without = (text.abs().flatten(1).sum(1) == 0) & (pooled.abs().sum(1) == 0)
    mean = torch.where(without[:, None, None, None], MEANS[1], MEANS[0]) + SHIFT * SCALING
    variance = alphas * STD**2 + 1 - alphas
    return (1 - alphas).sqrt() / variance * (x_t - alphas.sqrt() * mean)


@functools.cache
def teacher_alphas():
    import diffusers

    return diffusers.EulerDiscreteScheduler(**turbo.SCHEDULE).alphas_cumprod


def guided_mean(guidance):
    """Guidance moves the mean, for both laws have the same variance."""

    return MEANS[1] + guidance * (MEANS[0] - MEANS[1])


def carry(x, upper, lower, guidance=3.0):
    """Along the exact flow of the guided law: what is standardized stays."""

    mean = guided_mean(guidance)
    std = lambda t: math.sqrt((1 - t) ** 2 * STD**2 + t**2)
    return (1 - lower) * mean + (x - (1 - upper) * mean) * std(lower) / std(upper)


class TestTeachers:
    def test_the_flow_is_followed_with_guidance(self, flow_pipe, generator):
        teacher = FlowTeacher(flow_pipe, 3.0, gaussian_velocity)
        x = torch.randn(5, 8, 8, 8, generator=generator)
        tokens = captions(flow_pipe, 5)
        errors = []
        for count in (50, 100):
            sigmas = torch.linspace(0.9, 0.2, count + 1).tolist()
            errors.append(teacher.follow(x, sigmas, tokens) - carry(x, 0.9, 0.2))
        assert float(errors[0].abs().max()) < 0.05
        # Steps of Euler: half as long, half as wrong.
        assert torch.allclose(errors[0], 2 * errors[1], atol=2e-3)

    @pytest.mark.parametrize("step", [999, 749, 499, 249])
    def test_both_classes_lead_to_the_same_clean_latents(
        self, flow_pipe, unet_pipe, generator, monkeypatch, step
    ):
        monkeypatch.setattr(distill, "_PATH_STEPS", 1000)
        sigma = float(((1 - teacher_alphas()[step]) / teacher_alphas()[step]).sqrt())
        x = sigma * torch.randn(3, 8, 8, 8, generator=generator)
        tokens = captions(flow_pipe, 3)
        mean = guided_mean(3.0) + SHIFT * SCALING
        along_noise = NoiseTeacher(unet_pipe, 3.0, gaussian_noise).clean(x, step, sigma, tokens)
        expected = mean + (x - mean) * STD / math.sqrt(STD**2 + sigma**2)
        torch.testing.assert_close(along_noise, expected, atol=5e-2, rtol=0)
        along_flow = FlowTeacher(flow_pipe, 3.0, gaussian_velocity).clean(x, step, sigma, tokens)
        if step == 999:  # taken as pure noise
            expected = mean + STD * x / sigma
        torch.testing.assert_close(along_flow, expected, atol=2e-2, rtol=0)

    def test_the_flow_takes_the_steps_of_its_pipeline(self, flow_pipe, exact, generator):
        noise = torch.randn(3, 8, 8, 8, generator=generator)
        prompts = list(NAMES[:3])
        flow_pipe.set_progress_bar_config(disable=True)
        expected = flow_pipe(
            prompts, height=64, width=64, num_inference_steps=5, guidance_scale=3.0,
            latents=noise, output_type="latent", max_sequence_length=1,
        ).images  # fmt: skip
        sigmas = flow_pipe.scheduler.sigmas.tolist()
        found = FlowTeacher(flow_pipe, 3.0).follow(noise, sigmas, captions(flow_pipe, 3))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        other = FlowTeacher(flow_pipe, 1.0).follow(noise, sigmas, captions(flow_pipe, 3))
        assert float((other - found).abs().max()) > 0.01

    def test_the_network_of_noise_takes_the_steps_of_its_pipeline(
        self, unet_pipe, exact, generator
    ):
        noise = torch.randn(3, 8, 8, 8, generator=generator)
        unet_pipe.set_progress_bar_config(disable=True)
        expected = unet_pipe(
            list(NAMES[:3]), height=64, width=64, num_inference_steps=distill._PATH_STEPS,
            guidance_scale=3.0, latents=noise, output_type="latent",
        ).images  # fmt: skip
        top = float(unet_pipe.scheduler.sigmas[0])
        teacher = NoiseTeacher(unet_pipe, 3.0)
        found = teacher.clean(top * noise, 999, top, captions(unet_pipe, 3))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        other = NoiseTeacher(unet_pipe, 1.0)
        other = other.clean(top * noise, 999, top, captions(unet_pipe, 3))
        assert float((other - found).abs().max()) > 0.01

    def test_another_class_is_refused(self, tmp_path, autoencoder):
        (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        with pytest.raises(ValueError, match=r"teacher must hold .* got a FluxPipeline"):
            distill.read_teacher(tmp_path, autoencoder, 3.0)


@pytest.fixture
def flow_student(flow_pipe, drawings):
    return FlowStudent(FlowTeacher(flow_pipe, 3.0, gaussian_velocity), drawings, 8, own=0.0)


class TestFlowStudent:
    def test_windows_are_those_of_the_pipeline(self, flow_student, flow_pipe, generator):
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
        self, flow_student, flow_pipe, generator, monkeypatch
    ):
        monkeypatch.setattr(distill, "_WINDOW_STEPS", (400, 400, 400, 10))
        tokens = captions(flow_pipe, 8)
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

    def test_the_loss_is_the_error_of_the_velocity(self, flow_student, flow_pipe, generator):
        tokens = captions(flow_pipe, 8)
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
        flow_student.loss(distill.Examples(x, x, rows, rows[:, None]), generator)
        share = counts[0] / math.log(256)
        assert_within(share.mean(), 0.5, math.sqrt(1 / 12 / 500))

    @pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
    def test_windows_begin_where_student_or_teacher_led(
        self, flow_student, flow_pipe, generator, exact, own
    ):
        flow_student.own = own
        tokens = captions(flow_pipe, 40)
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

    def test_it_starts_from_the_teacher(self, flow_student, flow_pipe):
        for part in (flow_student.network, flow_student.average):
            for name, value in flow_pipe.transformer.state_dict().items():
                assert torch.equal(part.state_dict()[name], value)
        assert flow_student.network is not flow_pipe.transformer
        assert not any(p.requires_grad for p in flow_pipe.text_encoder.parameters())

    def test_a_teacher_of_noise_is_refused(self, unet_pipe, drawings):
        with pytest.raises(ValueError, match="must be a StableDiffusion3Pipeline"):
            FlowStudent(NoiseTeacher(unet_pipe, 3.0), drawings, 8)


@pytest.fixture
def turbo_student(flow_pipe, unet_pipe, drawings):
    return TurboStudent(unet_pipe, FlowTeacher(flow_pipe, 3.0, gaussian_velocity), drawings, 8)


class TestTurboStudent:
    def test_the_flow_is_followed_in_steps_that_are_finer_where_paths_bend(
        self, flow_pipe, generator, monkeypatch
    ):
        teacher, followed = FlowTeacher(flow_pipe, 3.0), []
        monkeypatch.setattr(teacher, "follow", lambda x, s, tokens: followed.append(s) or x)
        x, tokens = torch.ones(1, 8, 8, 8), captions(flow_pipe, 1)
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
        seen, answers, cleaned = [], [], []

        def hook(module, args, inputs, output):
            seen.append((*args, inputs))
            answers.append(output[0])

        pipe.unet.register_forward_hook(hook, with_kwargs=True)
        step = pipe.scheduler.step
        states = []

        @functools.wraps(step)
        def recorded(noise, t, x, **keywords):
            states.append(x)
            out = step(noise, t, x, **{**keywords, "return_dict": True})
            cleaned.append(out.pred_original_sample)
            return (out.prev_sample,)

        pipe.scheduler.step = recorded
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

            turbo_student.noise_of = spy
            rows = torch.full((3,), level)
            end = cleaned[level] + 0.2
            batch = distill.Examples(states[level], end, rows, tokens)
            assert float(turbo_student.loss(batch, generator)) == pytest.approx(0.04, rel=1e-3)
            x, t, inputs = seen[level]
            torch.testing.assert_close(asked[0][0], x, atol=1e-6, rtol=1e-6)
            assert asked[0][1].tolist() == [float(t)] * 3
            assert_rounds_to(asked[0][2], inputs["encoder_hidden_states"], terms=1024)
            added = inputs["added_cond_kwargs"]
            assert_rounds_to(asked[0][3], added["text_embeds"], terms=1024)
            assert added["time_ids"].tolist() == [list(turbo.SIZES)] * 3

    def test_it_jumps_from_noise_and_from_noisy_ends_to_clean_ends(
        self, turbo_student, flow_pipe, generator, monkeypatch
    ):
        monkeypatch.setattr(distill, "_PATH_STEPS", 400)
        noise = turbo_student.noise(64, generator)
        mean = guided_mean(3.0) + SHIFT * SCALING
        for number, level in ((0, 1), (1, 2), (5, 3)):
            batch = turbo_student.along(noise, captions(flow_pipe, 64), number, generator)
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

    def test_another_tokenizer_is_refused(self, unet_pipe, flow_pipe, drawings, tmp_path):
        unet_pipe.tokenizer = train_tokenizer(["red apple"], tmp_path, size=520)
        with pytest.raises(ValueError, match="must have the tokenizer of its teacher"):
            TurboStudent(unet_pipe, FlowTeacher(flow_pipe, 3.0), drawings, 8)


class TestReplayBuffer:
    def test_it_grows_and_then_forgets_the_oldest(self, flow_student):
        made = []

        def make(number):
            made.append(number)
            rows = torch.full((3,), number)
            x = rows[:, None, None, None].float().expand(3, 8, 2, 2)
            return distill.Examples(x, -x, rows, rows[:, None])

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


SETTINGS = {"batch": 4, "fresh": 4, "uses": 1, "kept": 16, "smoke": True}


def run(kind, folder, out, **settings):
    # The students of turbo start from the flow's teacher, without --start.
    distill.train(kind, folder / "flow", folder / "vae", out, folder, **SETTINGS | settings)


class Interrupted(distill.Run):
    """A run that ends after two steps."""

    def train(self, steps, batch, rate, loss, after, printed):
        def end(step):
            after(step)
            if step == 2:
                self.save()
                raise KeyboardInterrupt

        super().train(steps, batch, rate, loss, end, printed)


class TestTraining:
    @pytest.mark.parametrize("kind", ["flow", "turbo"])
    def test_a_run_that_was_interrupted_goes_on_exactly(
        self, folder, tmp_path, monkeypatch, capsys, kind
    ):
        monkeypatch.setattr(distill, "measure", lambda *_: {"distance": 0.0})
        monkeypatch.setattr(distill, "write_sheet", lambda *_, **__: None)
        run(kind, folder, tmp_path / "whole", steps=4)
        with monkeypatch.context() as patch:
            patch.setattr(distill, "Run", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(kind, folder, tmp_path / "parts", steps=4)
        run(kind, folder, tmp_path / "parts", steps=4)
        assert "going on at step 2" in capsys.readouterr().out
        whole, parts = (
            torch.load(tmp_path / f"{name}.state", weights_only=True) for name in ("whole", "parts")
        )
        for module, values in whole["modules"].items():
            for name, value in values.items():
                assert torch.equal(value, parts["modules"][module][name]), (module, name)
        assert torch.equal(whole["generator"], parts["generator"])
        # A call makes 13 examples, or 5; four steps use 16, each example once.
        assert int(whole["modules"]["buffer"]["made"]) == {"flow": 2, "turbo": 4}[kind]

    @pytest.mark.parametrize("kind", ["flow", "turbo"])
    def test_what_is_written_is_read_by_its_class_and_draws(self, folder, tmp_path, kind):
        import diffusers

        out = tmp_path / f"emoji-{kind}"
        run(kind, folder, out, steps=3)
        with seeded(0):
            autoencoder = diffusers.AutoencoderKL.from_pretrained(folder / "vae").float()
        pipe = (flow if kind == "flow" else turbo).read(out, autoencoder)
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

    def test_either_teacher_serves_turbo(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(distill, "measure", lambda *_: {"distance": 0.0})
        monkeypatch.setattr(distill, "write_sheet", lambda *_, **__: None)
        folders = (folder / "unet", folder / "vae", tmp_path / "a", folder)
        distill.train("turbo", *folders, steps=1, **SETTINGS)
        folders = (folder / "flow", folder / "vae", tmp_path / "b", folder)
        distill.train("turbo", *folders, steps=1, start=folder / "unet", **SETTINGS)
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
        self, flow_student, drawings, autoencoder, monkeypatch
    ):
        pipe = flow_student.pipe(flow_student.average)
        asked = []

        class Fixed:
            vae = autoencoder

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
