"""Banks that a pipeline draws: whose draws they are, what they carry, and which calls fit them."""

import copy
import inspect

import diffusers
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

import backbones
from backbones import PipelineDecoder, draw, guide
from backbones.states import check_handed_on
from guided_pipelines import Probe
from law_pipelines import tiny, with_scheduler
from pipeline_cases import QUIET, TOKENS, distance
from rwguidance import Bank, ImportanceSampling, Tilt
from rwguidance.store import Store
from rwguidance.support.fingerprint import NotKept, fingerprint
from rwguidance.support.randomness import generator_for

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")]

SIZE = {"height": 16, "width": 24}
CALLS = {
    "sdxl": {"guidance_scale": 5.0, "negative_prompt": "fog", **SIZE},
    "sdxl-turbo": {"guidance_scale": 0.0, **SIZE},
    "sd3": {"guidance_scale": 4.5, **SIZE, **TOKENS},
    "flux": {"guidance_scale": 3.5, **SIZE, **TOKENS},
}
PROMPTS = ["a cat", "a boat in the rain"]


def brightness(images, prompts):
    return images.mean((1, 2, 3))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "banks")


def call_of(name, steps=2, **keywords):
    return {**CALLS[name], "num_inference_steps": steps, **keywords}


def drawn(name, store, n=3, prompts=PROMPTS[0], **keywords):
    return draw(tiny(name), prompts, n, batch_size=2, store=store, **call_of(name, **keywords))


class Counted:
    """Counts the calls of a network, for as long as it is open."""

    def __init__(self, pipe):
        self.part = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
        self.calls = 0

    def __enter__(self):
        self.hook = self.part.register_forward_pre_hook(self.count)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    def count(self, *_):
        self.calls += 1


def gray_picture(level):
    return PIL.Image.new("L", (2, 2), level)


BY_NAME = [
    pytest.param(name, marks=() if name in ("sdxl-turbo", "flux") else pytest.mark.slow)
    for name in CALLS
]


@pytest.mark.parametrize("name", BY_NAME)
def test_draws_are_the_pipelines_own_by_seed_prompt_and_number(name, store):
    pipe = tiny(name)
    bank = draw(pipe, PROMPTS, 3, seed=5, batch_size=2, store=store, **call_of(name))
    for prompt in PROMPTS:
        for number, x_0 in enumerate(bank.x_0[bank.rows[prompt]]):
            generator = generator_for(5, prompt, number)
            call = call_of(name, generator=generator, output_type="latent")
            truth = pipe(prompt, **call).images
            if name == "flux":
                truth = pipe._unpack_latents(truth, *SIZE.values(), pipe.vae_scale_factor)
            assert distance(x_0, truth[0]) <= 1e-4  # in a batch, it is rounded otherwise
    assert bank.condition == tuple(prompt for prompt in PROMPTS for _ in range(3))
    other = draw(pipe, PROMPTS[0], 1, seed=6, store=store, **call_of(name))
    assert distance(other.x_0, bank.x_0[:1]) > 0.1


@pytest.mark.parametrize("name", ["FlowMatchLCMScheduler", "DPMSolverMultistepScheduler"])
def test_random_steps_of_a_draw_do_not_depend_on_its_batch(name, store, tmp_path):
    # StableDiffusion3Pipeline does not hand its generators to the scheduler.
    solver = {"algorithm_type": "sde-dpmsolver++", "use_flow_sigmas": True, "flow_shift": 3.0}
    config = {} if "LCM" in name else {**solver, "prediction_type": "flow_prediction"}
    pipe = with_scheduler(tiny("sd3"), name, **config)
    call = call_of("sd3", steps=3, guidance_scale=0.0)
    one = draw(pipe, "a cat", 3, batch_size=1, store=store, **call)
    three = draw(pipe, "a cat", 3, batch_size=3, store=Store(tmp_path / "other"), **call)
    assert distance(three.x_0, one.x_0) <= 1e-4


def test_more_draws_begin_with_fewer_and_what_is_there_is_read(store):
    few = drawn("sd3", store, n=2)
    with Counted(tiny("sd3")) as counted:
        assert torch.equal(drawn("sd3", store, n=2).x_0, few.x_0)
        assert counted.calls == 0
        more = drawn("sd3", store, n=4)
        assert counted.calls == 2  # steps of one batch
    assert torch.equal(more.x_0[:2], few.x_0)


def test_a_run_that_was_cut_off_goes_on(store, tmp_path):
    pipe = tiny("sd3")
    truth = drawn("sd3", Store(tmp_path / "whole"), n=6)
    with Counted(pipe) as counted:

        def fail(*_):
            if counted.calls > 4:  # within the third batch
                raise KeyboardInterrupt

        hook = pipe.transformer.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            drawn("sd3", store, n=6)
        hook.remove()
        counted.calls = 0
        bank = drawn("sd3", store, n=6)
        assert counted.calls == 2
    assert torch.equal(bank.x_0, truth.x_0)


@pytest.mark.parametrize("name", BY_NAME)
def test_its_decoder_is_that_of_the_adapter(name, store):
    pipe = tiny(name)
    bank = drawn(name, store)
    backbone = backbones.from_pipeline(pipe)
    with Counted(pipe) as counted:
        images = bank.decode(bank.x_0)
    assert counted.calls == 0
    assert images.shape == (3, 3, *SIZE.values())
    assert_close(images, backbone.decode(bank.x_0), rtol=0, atol=1e-5)
    states = [bank.x_0[:2].clone().requires_grad_() for _ in range(2)]
    for x, decode in zip(states, (bank.decode, backbone.decode), strict=True):
        decode(x).square().sum().backward()
    assert float(states[1].grad.norm()) > 0
    assert_close(states[0].grad, states[1].grad, rtol=1e-3, atol=1e-5)
    assert not pipe.scheduler.__dict__.get("_guidance")


def test_a_decoder_builds_no_graph_of_texts(store):
    pipe, graphs = tiny("sdxl-turbo"), []
    bank = draw(pipe, "a cat", 1, store=store, **call_of("sdxl-turbo"))
    note = lambda *_: graphs.append(torch.is_grad_enabled())
    with pipe.text_encoder.register_forward_pre_hook(note):
        bank.decode(bank.x_0.requires_grad_())
    assert set(graphs) == {False}


def test_the_images_are_those_of_the_pipeline(store):
    pipe = tiny("sdxl-turbo")
    bank = drawn("sdxl-turbo", store, n=1)
    generator = generator_for(0, "a cat", 0)
    call = call_of("sdxl-turbo", generator=generator, output_type="pt")
    assert_close(bank.decode(bank.x_0), pipe("a cat", **call).images, rtol=0, atol=1e-5)


def test_images_of_a_pipeline_in_half_precision_are_in_single():
    pipe = backbones.tiny("sdxl-turbo").to(torch.bfloat16)
    decode = PipelineDecoder(pipe, call_of("sdxl-turbo"))
    assert decode(torch.zeros(1, 4, 8, 12, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_decoder_is_known_by_its_parts_and_its_call():
    pipe, call = tiny("sd3"), call_of("sd3")
    key = fingerprint(PipelineDecoder(pipe, call))
    assert fingerprint(PipelineDecoder(pipe, {**call, "num_inference_steps": 9}, 3)) == key
    assert fingerprint(PipelineDecoder(pipe, {**call, "height": 32})) != key
    assert fingerprint(PipelineDecoder(backbones.tiny("sd3", seed=1), call)) != key
    # Tensors and pictures are told by what they hold.
    things = [torch.zeros(2), torch.ones(2), [torch.ones(2)], *map(gray_picture, (0, 9))]
    keys = {fingerprint(PipelineDecoder(pipe, {**call, "image": thing})) for thing in things}
    assert len(keys) == len(things)


def test_four_lines_guide_the_pipeline(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe = tiny("sd3")
    call = call_of("sd3", steps=1, guidance_scale=0.0)
    bank = draw(pipe, "a cat", 24, **call)
    tilt = Tilt.for_kl(brightness, bank, nats=1.5)
    guided = guide(pipe, ImportanceSampling(bank, tilt))
    runs = (
        model("a cat", **call, num_images_per_prompt=8, generator=seed, output_type="pt").images
        for model in (pipe, guided)
        for seed in [torch.Generator().manual_seed(1)]
    )
    plain, moved = (brightness(images, None).mean() for images in runs)
    # One step leads to the mean of the tilted bank, and so above the mean of the pipeline.
    assert float(moved) > float(plain)
    assert list((tmp_path / "rwguidance" / "banks").iterdir())


def test_it_is_scored_in_batches_by_its_decoder(store):
    bank = drawn("sd3", store, n=5)
    sizes = []

    def reward(images, prompts):
        sizes.append(len(images))
        return brightness(images, prompts)

    tilt = Tilt.for_kl(reward, bank, nats=0.5)
    assert sizes == [2, 2, 1]
    truth = Tilt.for_kl(
        brightness, bank, nats=0.5, decode=backbones.from_pipeline(tiny("sd3")).decode
    )
    assert tilt.betas == pytest.approx(truth.betas, rel=1e-3)
    assert_close(bank.scored(Tilt(brightness, 3.0)).rewards, bank.scored(truth).rewards)
    assert tilt.decode is bank.decode


def test_a_bank_that_was_read_says_that_it_has_no_decoder(store, tmp_path):
    bank = drawn("sd3", store)
    bank.save(tmp_path / "bank.safetensors")
    again = Bank.load(tmp_path / "bank.safetensors")
    assert again.decode is None
    assert again.origin == bank.origin
    for attempt in (
        lambda: Tilt.for_kl(brightness, again, nats=0.5),
        lambda: ImportanceSampling(again, Tilt(brightness, 1.0)),
    ):
        with pytest.raises(ValueError, match=r"decode must be given.*PipelineDecoder"):
            attempt()
    decode = PipelineDecoder(tiny("sd3"), call_of("sd3"))
    tilt = Tilt.for_kl(brightness, again, nats=0.5, decode=decode)
    assert tilt.betas == pytest.approx(Tilt.for_kl(brightness, bank, nats=0.5).betas, rel=1e-3)


REFUSED = [
    ({"guidance_scale": 2.0}, r"guidance_scale must be .* 5\.0, got 2\.0"),
    ({"negative_prompt": "dark"}, "negative_prompt must be .* 'fog', got 'dark'"),
    ({"negative_prompt": None}, "negative_prompt must be .* 'fog', got None"),
    ({"height": 32}, r"height and width must be .* \(16, 24\), got \(32, 24\)"),
    ({"clip_skip": 1}, "clip_skip must be .* None, got 1"),
    ({"prompt": "a dog"}, "no draws for condition 'a dog'"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 64)}, "has prompt_embeds and no prompt"),
]


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    bank = drawn("sdxl", Store(tmp_path_factory.mktemp("banks")))
    return guide(tiny("sdxl"), ImportanceSampling(bank, Tilt(brightness, 1.0)))


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_call_of_another_law_is_refused_before_the_network(change, message, guided):
    with Counted(guided) as counted, pytest.raises(ValueError, match=message):
        guided(**{"prompt": "a cat", **call_of("sdxl"), **change})
    assert counted.calls == 0


def test_a_call_may_differ_in_what_leaves_the_law_alone(guided):
    call = call_of("sdxl", steps=3, output_type="pt", negative_prompt=["fog", "fog"])
    told = []
    call["callback_on_step_end"] = lambda *facts: told.append(facts[1]) or {}
    images = guided(["a cat"] * 2, generator=torch.Generator().manual_seed(0), **call).images
    assert images.shape == (2, 3, 16, 24)
    assert told == [0, 1, 2]


def test_a_pipeline_of_other_weights_or_of_another_class_is_refused(store):
    bank = drawn("sd3", store)
    estimator = ImportanceSampling(bank, Tilt(brightness, 1.0))
    guide(tiny("sd3"), estimator)
    with pytest.raises(ValueError, match=r"must have the weights .* draw a bank of this one"):
        guide(backbones.tiny("sd3", seed=1), estimator)
    with pytest.raises(ValueError, match=r"must be a StableDiffusion3Pipeline, .* got a Flux"):
        guide(tiny("flux"), estimator)


def test_draws_of_weights_that_say_nothing_are_made_and_not_kept(store, monkeypatch):
    class Own(torch.nn.Identity):
        """Has no depends_on."""

    kept = drawn("sd3", store, prompts=PROMPTS, n=3)
    pipe = backbones.tiny("sd3")
    pipe.transformer.pos_embed.own = Own()
    told = []
    note = lambda bar, task, completed, total: told.append((completed, total))
    monkeypatch.setattr("rich.progress.Progress.update", note)
    with pytest.warns(NotKept, match=r"^draws are not kept for another run: .*\bOwn\b"):
        bank = draw(pipe, PROMPTS, 3, batch_size=2, store=store, progress=True, **call_of("sd3"))
    assert told == [(0, 8), (2, 8), (4, 8), (6, 8)]  # batches count as full
    assert torch.equal(bank.x_0, kept.x_0)
    assert (bank.origin["weights"], bank.condition) == (None, kept.condition)


def test_what_draws_and_a_guided_call_depend_on_is_in_the_origin(store):
    origin = drawn("sdxl", store, n=1).origin
    assert origin["pipeline"] == "StableDiffusionXLPipeline"
    assert origin["scheduler"]["class"] == "EulerDiscreteScheduler"
    assert origin["call"]["guidance_scale"] == 5.0
    assert origin["call"]["num_inference_steps"] == 2
    assert origin["size"] == [16, 24]
    assert drawn("sdxl", store, n=1, steps=1).origin != origin


def test_a_prompt_that_is_cut_is_told(store):
    with pytest.warns(UserWarning, match="cuts the prompt 'long long .* to 77"):
        drawn("sdxl", store, n=1, prompts="long " * 20)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1"),
        ({"prompts": []}, ValueError, "prompts must be distinct, and at least one"),
        ({"prompts": ["a", "a"]}, ValueError, "prompts must be distinct"),
        ({"prompts": [3]}, TypeError, "prompts must be strings"),
        ({"generator": torch.Generator()}, ValueError, "draw takes no generator: pass seed"),
        ({"latents": torch.zeros(1)}, ValueError, "draw takes no latents: pass seed"),
        ({"num_images_per_prompt": 2}, ValueError, "no num_images_per_prompt: pass n"),
        ({"prompt_embeds": torch.zeros(1)}, ValueError, "no prompt_embeds: pass prompts"),
        ({"guidance": 2.0}, TypeError, "takes no guidance, it takes .*guidance_scale"),
        ({"store": "folder"}, TypeError, "store must be a Store or None"),
        ({"height": 15}, ValueError, "divisible by 8"),
        ({"pipe": None}, TypeError, "pipe must be a pipeline with a scheduler"),
    ],
)
def test_wrong_arguments_are_refused_before_the_network(keywords, error, message, store):
    pipe = tiny("sdxl")
    call = {"pipe": pipe, "prompts": "a", "n": 1, "store": store, **call_of("sdxl"), **keywords}
    with Counted(pipe) as counted, pytest.raises(error, match=message):
        draw(**call)
    assert counted.calls == 0


class Rescaling(diffusers.StableDiffusion3Pipeline):
    """A pipeline that doubles its states between steps."""

    def progress_bar(self, *args, **kwargs):
        plain_step = type(self.scheduler).step

        def step(output, timestep, sample, **keywords):
            state = plain_step(self.scheduler, output, timestep, sample, **keywords)[0]
            return (2 * state,)

        self.scheduler.step = step
        return super().progress_bar(*args, **kwargs)


@pytest.mark.parametrize("guided", [False, True])
def test_a_pipeline_that_rescales_its_states_is_refused(guided, store):
    pipe = tiny("sd3")
    pipe.__class__ = Rescaling
    pipe.scheduler = copy.copy(pipe.scheduler)
    call, generator = call_of("sd3", steps=3), torch.Generator().manual_seed(0)
    attempt = (
        (lambda: guide(pipe, Probe())("a cat", generator=generator, **call))
        if guided
        else (lambda: draw(pipe, "a cat", 1, store=store, **call))
    )
    with pytest.raises(TypeError, match="multiplies them by 2 between two steps"):
        attempt()


class Undecorated(diffusers.StableDiffusion3Pipeline):
    """A pipeline whose call leaves it to the caller whether a graph is built."""

    __call__ = inspect.unwrap(diffusers.StableDiffusion3Pipeline.__call__)


def test_drawing_builds_no_graph(store):
    pipe, graphs = tiny("sd3"), []
    pipe.__class__ = Undecorated
    note = lambda *_: graphs.append(torch.is_grad_enabled())
    with pipe.transformer.register_forward_pre_hook(note):
        draw(pipe, "a cat", 1, store=store, **call_of("sd3", steps=2))
    assert graphs == [False] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_multiple_of_a_state_is_told_at_any_size_and_precision(dtype, generator):
    state = (30 * torch.randn(2, 4, 16, 16, generator=generator)).to(dtype).requires_grad_()
    check_handed_on(state, state.clone())
    with pytest.raises(TypeError, match=r"multiplies them by 1\.5 between two steps"):
        check_handed_on(state, 1.5 * state)


def test_schedulers_that_are_not_understood_are_refused(store):
    pipe = with_scheduler(tiny("sdxl"), "EDMEulerScheduler")
    with pytest.raises(TypeError, match="understands the schedulers"):
        draw(pipe, "a cat", 1, store=store)
