"""Guided pipelines: the plain ones where nothing is guided, exact where the truth is known."""

import contextlib
import copy
import inspect
import re
import socket

import diffusers
import pytest
import torch
from test_backbones import offload_one_by_one, offload_whole_models
from torch.testing import assert_close

import backbones
from backbones import guide
from common import assert_rounds_to, randn
from law_pipelines import (
    FLOW,
    FLOW_SIGMAS,
    SOLVERS,
    VE,
    VP,
    Exact,
    diffusion_network,
    exactly,
    flow_network,
    knows,
    tiny,
    with_scheduler,
)
from problems import mixture, tilt_of
from rwguidance import (
    DDIM,
    Bank,
    ConditionalExpectation,
    Estimate,
    GuidedModel,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
    TargetESS,
    Tilt,
    UnreliableEstimate,
    sample,
)
from rwguidance.estimators.base import shift_norm

# Schedulers of diffusers hand tensors to numpy in a way that newer versions of it dislike.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

PROMPTS = ["a cat", "a watercolour of two dogs in a boat", "x"]
SIZE = {"height": 16, "width": 24}
TOKENS = {"max_sequence_length": 48}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a pipeline that is there must not need a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@contextlib.contextmanager
def replaced(module, forward):
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def run(pipe, steps, prompts=PROMPTS, **keywords):
    """Latents of a pipeline, with all random numbers fixed."""

    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):  # which SD3 leaves to its stochastic schedulers
        torch.default_generator.manual_seed(2)
        return pipe(
            prompts,
            num_inference_steps=steps,
            generator=generator,
            output_type="latent",
            **keywords,
        ).images


def distance(x, truth):
    return float((x - truth).abs().max() / truth.abs().max())


def reward(x, condition=None):
    """Smooth, differentiable, and of order one nat."""

    x = x.flatten(1)
    return 4 * torch.tanh(x.mean(1)) + x[:, 0] - 0.1 * x[:, 1] ** 2


RELIABLE = TargetESS(0.7)


def importance(shape, prompts=None, kernel=RELIABLE):
    """A bank of draws; for several prompts, different ones for each. Reliable unless exact."""

    n = 60
    draws = randn(5, n, *shape, dtype=torch.float32)
    tilt = Tilt(reward, 2.0)
    if prompts is None:
        return ImportanceSampling(Bank(draws), tilt, kernel)
    keys = [prompts[i % len(prompts)] for i in range(n)]
    offset = torch.tensor([float(prompts.index(key)) for key in keys])
    return ImportanceSampling(Bank(draws + offset[:, None, None, None], keys), tilt, kernel)


# One exact law in place of the network: guided with the exact shift, the run must be that of the
# tilted law, whatever the scheduler does with the output.

LAW = mixture(3, 16)
TILT = tilt_of("quadratic", 5, 16)
FLOW_LAW = mixture(3, 64)
FLOW_TILT = tilt_of("quadratic", 5, 64)

DIFFUSION = [
    pytest.param(name, output, {}, steps, marks=() if fast else pytest.mark.slow)
    for name in (*VE, *VP)
    for output, steps in (("epsilon", 1), ("epsilon", 4), ("v_prediction", 3), ("sample", 2))
    if output != "sample" or not re.search("KDPM2|PNDM|Ancestral", name)
    # The other types of output and single steps on one scheduler of each way of stepping.
    for fast in [steps == 4 or re.match("Euler|DDIM|LCM|DPMSolverMultistep", name)]
]
SPACINGS = [
    ("EulerDiscreteScheduler", "epsilon", {"timestep_spacing": "linspace"}),
    ("EulerDiscreteScheduler", "epsilon", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", "epsilon", {"timestep_spacing": "leading"}),
    ("KDPM2AncestralDiscreteScheduler", "epsilon", {"timestep_spacing": "linspace"}),
    ("HeunDiscreteScheduler", "v_prediction", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", "epsilon", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", "epsilon", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", "v_prediction", {"solver_order": 3}),
    ("UniPCMultistepScheduler", "epsilon", {"use_karras_sigmas": True, "solver_order": 3}),
    ("UniPCMultistepScheduler", "sample", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("DDIMScheduler", "v_prediction", {"rescale_betas_zero_snr": True}),
    ("PNDMScheduler", "epsilon", {"skip_prk_steps": False, "timestep_spacing": "leading"}),
]


def sdxl_with(name, output, config):
    config = {"timestep_spacing": "trailing", **{**VE, **VP}[name], **config}
    return with_scheduler(tiny("sdxl"), name, prediction_type=output, **config)


def tilted_and_guided(pipe, part, network, law, tilt, steps, **keywords):
    truth, base, guided = law.tilted(tilt), exactly(law), guide(pipe, Exact(law, tilt))
    with replaced(part, network(pipe, exactly(truth))):
        expected = run(pipe, steps, **keywords)
    with replaced(part, network(pipe, base)):
        plain = run(pipe, steps, **keywords)
    with replaced(part, network(guided, base)):
        result = run(guided, steps, **keywords)
    assert distance(plain, expected) > 0.05, "the tilt is too weak to see"
    return distance(result, expected)


@pytest.mark.parametrize(
    ("name", "output", "config", "steps"),
    DIFFUSION + [(*spacing, 4) for spacing in SPACINGS],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_the_exact_shift_gives_the_run_of_the_tilted_law(name, output, config, steps):
    pipe = sdxl_with(name, output, config)
    keywords = {
        "prompts": None,
        "latents": randn(0, 3, 4, 2, 2, dtype=torch.float32),
        "guidance_scale": 0.0,
        # The law looks at no text, whose encoding takes as long as all the rest.
        "prompt_embeds": torch.zeros(3, 1, 64),
        "pooled_prompt_embeds": torch.zeros(3, 32),
    }
    error = tilted_and_guided(pipe, pipe.unet, diffusion_network, LAW, TILT, steps, **keywords)
    assert error <= 2e-5


FLOWS = [*FLOW.items(), *((name, FLOW_SIGMAS) for name in SOLVERS if knows(name, FLOW_SIGMAS))]


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [(name, config, 5) for name, config in FLOWS] + [("FlowMatchEulerDiscreteScheduler", {}, 1)],
)
def test_the_exact_shift_gives_the_run_of_the_tilted_law_on_straight_paths(name, config, steps):
    pipe = with_scheduler(tiny("sd3"), name, **config)
    latents = randn(0, 3, 16, 2, 2, dtype=torch.float32)
    error = tilted_and_guided(
        pipe,
        pipe.transformer,
        flow_network,
        FLOW_LAW,
        FLOW_TILT,
        steps,
        latents=latents,
        guidance_scale=0.0,
        height=8,
        width=8,
        **TOKENS,
    )
    assert error <= 2e-5


def test_packed_latents_are_unpacked_for_the_estimator():
    pipe = tiny("flux")
    size = {"height": 8, "width": 8}
    law, tilt = mixture(3, 256), tilt_of("quadratic", 5, 256)
    pack = lambda x: pipe._pack_latents(x, *x.shape)
    unpack = lambda x: pipe._unpack_latents(x, *size.values(), pipe.vae_scale_factor)
    network = lambda pipe, denoise: flow_network(pipe, denoise, unpack, pack)
    latents = pack(randn(0, 3, 16, 4, 4, dtype=torch.float32))
    error = tilted_and_guided(
        pipe, pipe.transformer, network, law, tilt, 3, latents=latents, **size, **TOKENS
    )
    assert error <= 2e-5


def test_with_classifier_free_guidance_the_composed_law_is_tilted():
    # Two Gaussians of one covariance: their composition is the Gaussian of the composed mean.
    from rwguidance.toy import Gaussian

    pipe, scale = sdxl_with("EulerDiscreteScheduler", "epsilon", {}), 3.0
    covariance = LAW.covariances[0]
    negative, positive = (Gaussian(randn(seed, 16), covariance) for seed in (1, 2))
    composed = Gaussian(negative.mean + scale * (positive.mean - negative.mean), covariance)

    def denoise(x_t, t, schedule, text):
        x_t = x_t.flatten(1)
        n = len(x_t) // 2
        halves = [
            law.denoise(x, t, schedule) for law, x in ((negative, x_t[:n]), (positive, x_t[n:]))
        ]
        return torch.cat(halves).reshape(-1, 4, 2, 2)

    latents = randn(0, 3, 4, 2, 2, dtype=torch.float32)
    with replaced(pipe.unet, diffusion_network(pipe, exactly(composed.tilted(TILT)))):
        expected = run(pipe, 4, latents=latents, guidance_scale=0.0)
    guided = guide(pipe, Exact(composed, TILT))
    with replaced(pipe.unet, diffusion_network(guided, denoise)):
        result = run(guided, 4, latents=latents, guidance_scale=scale)
    assert distance(result, expected) <= 2e-5


# Without guidance


def cheap(x_t, t, schedule, text):
    return torch.tanh(x_t + text.double().mean((1, 2))[:, None, None, None])


class Probe(ConditionalExpectation):
    """Remembers what it is told; its shift is a constant."""

    def __init__(self, shift=0.0, noise=0.0):
        super().__init__()
        self.shift, self.noise, self.told = shift, noise, []

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        self.told.append((x_t, float(t), condition, prediction))
        noise = torch.randn(x_t.shape)
        shift = self.shift + self.noise * noise + torch.zeros_like(x_t)
        log_h = shift.flatten(1).sum(1)
        return Estimate(prediction, log_h, shift, {"noise": noise.flatten(1)[:, 0]})


@pytest.mark.parametrize(
    ("name", "steps", "scale"),
    [(name, 3, 3.0) for name in (*VE, *VP, *FLOW)]
    + [("EulerAncestralDiscreteScheduler", 1, 0.0), ("LCMScheduler", 1, 0.0)]
    + [("FlowMatchEulerDiscreteScheduler", 1, 0.0)],
)
def test_without_effect_the_run_is_the_plain_one_bit_for_bit(name, steps, scale):
    if name in FLOW:
        pipe, keywords = with_scheduler(tiny("sd3"), name), TOKENS | SIZE
        part, network = pipe.transformer, flow_network
    else:
        pipe, keywords = sdxl_with(name, "epsilon", {}), SIZE
        part, network = pipe.unet, diffusion_network
    plain = None
    probe = Probe(shift=1.0)
    for other in (
        pipe,
        guide(pipe, None),
        guide(guide(pipe, probe), None),
        guide(pipe, probe, scale=0.0),
        guide(pipe, probe, window=(0.0, 0.0)),
        guide(pipe, probe, scale=lambda t: 0 * t),
    ):
        with replaced(part, network(other, cheap)):
            latents = run(other, steps, guidance_scale=scale, **keywords)
        plain = latents if plain is None else plain
        assert torch.equal(latents, plain)
    assert not probe.told


# The library's own loop, on networks of random weights

CASES = {
    "sdxl": ("sdxl", None, 0.0),
    "sdxl-cfg": ("sdxl", 5.0, 0.0),
    "sdxl-turbo": ("sdxl-turbo", None, 1.0),
    "sd3": ("sd3", 4.5, 0.0),
    "flux": ("flux", 3.5, 0.0),
    "flux-schnell": ("flux-schnell", None, 0.0),
}


class Network(torch.nn.Module):
    """Looks at the state, the time and the embeddings, which must be those of the backbone."""

    def __init__(self, scalar):
        super().__init__()
        self.scalar = scalar

    def forward(self, x_t, t, condition):
        text = condition.embeddings["text"].mean((1, 2)) + condition.embeddings["pooled"].mean(1)
        column = (text + t.float())[:, None, None, None]
        value = torch.sin(2 * x_t + column)
        return value.flatten(1).sum(1) if self.scalar else value


class Elsewhere(ConditionalExpectation):
    """Asks the model at the state, and again where some of state, time and prompts differ."""

    def __init__(self, *differ):
        super().__init__()
        self.differ = differ or ("state", "time", "prompts")

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        order = [1, 2, 0]
        other = model(
            0.9 * x_t[order] if "state" in self.differ else x_t,
            torch.tensor([1.0, 0.5, 0.5]) * t if "time" in self.differ else t,
            condition[order] if "prompts" in self.differ else condition,
        )
        shift = 0.3 * other.mean
        return Estimate(prediction, shift.flatten(1).sum(1), shift)


ESTIMATORS = {
    "importance": lambda shape: importance(shape, PROMPTS),
    "plug-in": lambda shape: PlugIn(Tilt(reward, 0.5), jacobian=False),
    "jacobian": lambda shape: PlugIn(Tilt(reward, 0.5)),
    "shift": lambda shape: LearnedShift(Network(scalar=False)),
    "log-h": lambda shape: LearnedExpectation(Network(scalar=True)),
    "elsewhere": lambda shape: Elsewhere(),
}
ONE_DIFFERS = {
    what: lambda shape, what=what: Elsewhere(what) for what in ("state", "time", "prompts")
}


def own_loop(key, pipe, estimator, steps, prompts=PROMPTS, **keywords):
    name, scale, eta = CASES[key]
    tokens = {} if "sdxl" in name else TOKENS
    backbone = backbones.from_pipeline(pipe, scale, **SIZE, **tokens)
    generator = torch.Generator().manual_seed(1)
    x_1 = backbone.draw_noise(len(prompts), generator)
    model = GuidedModel(backbone, estimator, **keywords)
    with torch.no_grad():
        condition, times = backbone.condition(prompts), backbone.times(steps)
        return sample(model, DDIM(eta), x_1, times, condition, generator)


def call_keywords(key):
    name, scale, _ = CASES[key]
    return {"guidance_scale": scale or 0.0, **SIZE, **({} if "sdxl" in name else TOKENS)}


def run_case(key, pipe, steps, prompts=PROMPTS, **keywords):
    latents = run(pipe, steps, prompts, **(call_keywords(key) | keywords))
    if "flux" in key:
        latents = pipe._unpack_latents(latents, *SIZE.values(), pipe.vae_scale_factor)
    return latents


@pytest.mark.parametrize(
    ("key", "estimator"),
    [(key, estimator) for key in ("sdxl-cfg", "sd3", "flux") for estimator in ESTIMATORS]
    + [("sdxl-cfg", estimator) for estimator in ONE_DIFFERS]
    + [("sdxl", "jacobian"), ("sdxl", "importance")]
    + [("sdxl-turbo", "jacobian"), ("sdxl-turbo", "importance")]
    + [("flux-schnell", "jacobian"), ("flux-schnell", "shift")],
)
def test_latents_are_those_of_the_librarys_own_loop(key, estimator):
    if estimator in ("jacobian", "log-h") and key in ("sd3", "flux", "flux-schnell"):
        window, steps = (0.0, 0.99), 3  # gradients vanish at the noise end of a straight path
    else:
        window, steps = (0.3, 1.0), 2
    pipe = tiny(CASES[key][0])
    made = (ESTIMATORS | ONE_DIFFERS)[estimator]((4 if "sdxl" in key else 16, 8, 12))
    truth = own_loop(key, pipe, made, steps, scale=0.7, window=window)
    plain = run_case(key, pipe, steps)
    guided = guide(pipe, made, scale=0.7, window=window)
    latents = run_case(key, guided, steps)
    assert distance(plain, truth) > 1e-2
    assert distance(latents, truth) <= 2e-5


@pytest.mark.parametrize("jacobian", [False, True])
def test_inference_mode_and_other_schedulers_reach_the_network_too(jacobian):
    pipe = with_scheduler(tiny("sdxl"), "DDIMScheduler", timestep_spacing="trailing")
    estimator = PlugIn(Tilt(reward, 0.5), jacobian)
    x_1 = randn(0, 3, 4, 8, 12, dtype=torch.float32)
    keywords = {"guidance_scale": 3.0, "latents": x_1, **SIZE}
    euler = with_scheduler(tiny("sdxl"), "EulerDiscreteScheduler")
    backbone = backbones.from_pipeline(euler, 3.0)
    with torch.no_grad():
        truth = GuidedModel(backbone, estimator)(x_1, 1.0, backbone.condition(PROMPTS)).mean
    pipe.scheduler.register_to_config(clip_sample=False)
    with torch.inference_mode():
        assert distance(run(guide(pipe, estimator), 1, **keywords), truth) <= 2e-5
    assert distance(run(pipe, 1, **keywords), truth) > 1e-2


def test_inference_mode_lets_estimators_ask_elsewhere():
    guided = guide(tiny("sdxl"), Elsewhere())
    truth = run_case("sdxl-cfg", guided, 2)
    with torch.inference_mode():
        # Sums of up to 576 products (the convolutions), forth and back, in two steps.
        assert_rounds_to(run_case("sdxl-cfg", guided, 2), truth, terms=2 * 2 * 40 * 576)


@pytest.mark.parametrize("estimator", ["importance", "plug-in", "shift", "log-h"])
@pytest.mark.parametrize("key", ["sdxl-cfg", "flux"])
def test_the_network_is_called_as_often_as_without_guidance(key, estimator):
    pipe = tiny(CASES[key][0])
    made = ESTIMATORS[estimator]((4 if "sdxl" in key else 16, 8, 12))
    part = pipe.unet if "sdxl" in key else pipe.transformer
    calls = []
    hook = part.register_forward_hook(lambda *_: calls.append(1))
    run_case(key, guide(pipe, made, window=(0.0, 0.99)), 4)
    hook.remove()
    assert len(calls) == 4


# What the estimator is told


@pytest.mark.parametrize("key", ["sdxl-cfg", "sd3", "flux"])
def test_images_of_one_prompt_are_neighbors(key):
    # Compared in the same call: some versions of SD3 pair the images with each other's pooled text.
    pipe = tiny(CASES[key][0])
    repeated = [prompt for prompt in PROMPTS[:2] for _ in range(2)]
    backbone = backbones.from_pipeline(pipe, CASES[key][1], **({} if "sdxl" in key else TOKENS))
    expected = backbone.condition(repeated).embeddings["text"]
    estimator = importance((4 if "sdxl" in key else 16, 8, 12), PROMPTS[:2])
    call = lambda *guidance, **keywords: run_case(
        key, guide(pipe, *guidance, **keywords), 2, PROMPTS[:2], num_images_per_prompt=2
    )
    assert torch.equal(call(estimator), call(estimator, condition=repeated))
    call(PlugIn(Tilt(reward, 0.5)), window=(0.0, 0.99))  # finds the network's own embeddings
    probe = Probe()
    call(probe)
    for _, _, condition, _ in probe.told:
        assert list(condition) == repeated
        assert_close(condition.embeddings["text"], expected)


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_states_times_and_conditions_are_those_of_the_adapter(key):
    pipe, probe = tiny(CASES[key][0]), Probe()
    run_case(key, guide(pipe, probe), 3)
    backbone = backbones.from_pipeline(pipe, CASES[key][1], **SIZE)
    times = [t for _, t, _, _ in probe.told]
    assert_close(torch.tensor(times).double(), backbone.times(3)[:-1], rtol=0, atol=1e-7)
    x_1 = backbone.draw_noise(3, torch.Generator().manual_seed(1))
    assert_close(probe.told[0][0], x_1, rtol=1e-6, atol=1e-6)
    expected = backbone.condition(PROMPTS)
    for x_t, t, condition, prediction in probe.told:
        assert x_t.dtype == torch.float32
        assert condition.prompts == expected.prompts
        truth = backbone(x_t, t, condition)  # the adapter takes it as its own
        assert_close(prediction.mean, truth.mean, rtol=1e-4, atol=1e-4)


def test_prompts_of_a_former_call_are_not_taken_for_those_of_this_one():
    pipe = tiny("sdxl")
    guided = guide(pipe, importance((4, 8, 12), PROMPTS))
    run_case("sdxl", guided, 2)
    with torch.no_grad():  # as in the pipeline
        text, _, pooled, _ = guided.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    embeds = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "guidance_scale": 0.0}
    unknown = r"bank holds several.*pass guide\(\.\.\., condition=\.\.\.\)"

    def call(pipe):
        generator = torch.Generator().manual_seed(1)
        options = {"num_inference_steps": 2, "output_type": "latent", "generator": generator}
        return pipe(**options, **embeds, **SIZE).images

    with pytest.raises(ValueError, match=unknown) as error:
        call(guided)
    assert isinstance(error.value.__cause__, ValueError)
    # Another pipeline that is lent the scheduler does not tell its prompts.
    other = diffusers.StableDiffusionXLPipeline(**guided.components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    run_case("sdxl", guided, 2)
    with pytest.raises(ValueError, match=unknown):
        run_case("sdxl", other, 2)
    other.scheduler = guide(pipe, PlugIn(Tilt(reward, 0.5))).scheduler
    with pytest.raises(ValueError, match=r"embeddings of this call are not known"):
        run_case("sdxl", other, 2)
    told = guide(pipe, importance((4, 8, 12), PROMPTS), condition=PROMPTS)
    assert torch.equal(call(told), run_case("sdxl", guided, 2))
    with pytest.raises((TypeError, AttributeError), match=r"NoneType.*pass guide"):
        call(guide(pipe, LearnedShift(Network(scalar=False))))


def test_embeddings_reach_the_network_without_their_prompts():
    pipe = tiny("sdxl")
    estimator = PlugIn(Tilt(reward, 0.5))
    truth = run_case("sdxl-cfg", guide(pipe, estimator), 2)
    encoded = pipe.encode_prompt(PROMPTS)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
    embeds = dict(zip((*names, "negative_pooled_prompt_embeds"), encoded, strict=True))
    latents = guide(pipe, estimator)(
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
        **embeds,
        **call_keywords("sdxl-cfg"),
    ).images
    assert distance(latents, truth) <= 1e-6


def test_negative_prompts_are_no_condition():
    pipe, probe = tiny("flux"), Probe()
    if "true_cfg_scale" not in inspect.signature(type(pipe).__call__).parameters:
        pytest.skip("this version of diffusers has no such option")
    expected = backbones.from_pipeline(pipe, 3.5, **TOKENS).condition(PROMPTS)
    run_case("flux", guide(pipe, probe), 1, negative_prompt=["y"] * 3, true_cfg_scale=3.0)
    for name, value in expected.embeddings.items():
        assert_close(probe.told[0][2].embeddings[name], value)


@pytest.mark.parametrize(("name", "calls"), [("HeunDiscreteScheduler", 5), ("PNDMScheduler", 4)])
def test_prompts_are_known_until_the_last_visit_of_the_last_timestep(name, calls):
    probe = Probe()
    guided = guide(sdxl_with(name, "epsilon", {}), probe)
    for _ in range(2):
        run_case("sdxl", guided, 3)
    assert [list(told[2]) for told in probe.told] == [PROMPTS] * 2 * calls


def test_an_explicit_condition_is_handed_on_as_it_is():
    pipe, probe, condition = tiny("sdxl"), Probe(), ["other", "keys", "here"]
    run_case("sdxl", guide(pipe, probe, condition=condition), 1)
    assert probe.told[0][2] is condition
    estimator = PlugIn(Tilt(reward, 0.5))  # asks the network, which is conditioned on the prompts
    truth = run_case("sdxl-cfg", guide(pipe, estimator), 2)
    latents = run_case("sdxl-cfg", guide(pipe, estimator, condition=condition), 2)
    assert torch.equal(latents, truth)


# Other pipelines


def test_image_to_image():
    pipe = tiny("sdxl")
    components = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    components.pop("feature_extractor")
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    keywords = {"image": image, "strength": 0.5, "guidance_scale": 3.0}
    plain = run(other, 4, **keywords)
    probe = Probe(shift=0.5)
    assert distance(run(guide(other, probe), 4, **keywords), plain) > 1e-2
    assert [len(told[2]) for told in probe.told] == [3, 3]
    assert probe.told[0][1] < 0.6
    assert probe.told[0][2].embeddings["text"].shape[0] == 3
    learned = LearnedShift(Network(scalar=False))
    assert distance(run(guide(other, learned), 4, **keywords), plain) > 1e-2
    with pytest.raises(TypeError, match=r"StableDiffusionXLPipeline, .*got StableDiffusionXLImg2"):
        run(guide(other, PlugIn(Tilt(reward, 0.5))), 4, **keywords)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("sdxl", "StableDiffusionXLAutoBlocks"), ("sd3", "StableDiffusion3AutoBlocks")],
)
def test_modular_pipelines(name, blocks):
    if not hasattr(diffusers, blocks):
        pytest.skip("this version of diffusers has no such modular pipeline")
    pipe = tiny(name)
    modular = getattr(diffusers, blocks)().init_pipeline()
    names = set(modular.component_names)
    modular.register_components(**{k: v for k, v in pipe.components.items() if k in names and v})
    modular.set_progress_bar_config(disable=True)

    def latents(pipe):
        with torch.random.fork_rng(devices=[]):
            return pipe(
                prompt=PROMPTS,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(1),
                output="latents",
                output_type="latent",
                **SIZE,
            )

    plain = latents(modular)
    shape = (4 if name == "sdxl" else 16, 8, 12)
    estimator = importance(shape, PROMPTS)
    guided = guide(modular, estimator, condition=PROMPTS)
    assert type(guided) is type(modular)
    truth = latents(guided)
    assert distance(truth, plain) > 1e-2
    assert torch.equal(latents(modular), plain)
    assert torch.equal(latents(guide(guided, None)), plain)
    lent = copy.copy(modular)
    lent.update_components(scheduler=guided.scheduler)
    assert torch.equal(latents(lent), truth)
    with pytest.raises(ValueError, match="pass guide"):
        latents(guide(modular, estimator))
    with pytest.raises(TypeError, match="Modular"):
        latents(guide(modular, PlugIn(Tilt(reward, 0.5))))


@pytest.mark.parametrize("offload", [offload_one_by_one, offload_whole_models])
def test_an_offloaded_network_is_reached_again(offload):
    pipe = backbones.tiny("sdxl")
    guided = [guide(pipe, estimator) for estimator in (PlugIn(Tilt(reward, 0.5)), Elsewhere())]
    truth = [run_case("sdxl-cfg", one, 2) for one in guided]
    with torch.random.fork_rng(devices=[]):
        offload(pipe)
        assert_close([run_case("sdxl-cfg", one, 2) for one in guided], truth)


# Calls that the adapter would not repeat


@pytest.mark.parametrize(
    ("key", "keywords"),
    [
        ("sdxl-cfg", {"guidance_rescale": 0.7}),
        ("sdxl-cfg", {"original_size": (1024, 1024)}),
        ("sd3", {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0}),
        ("flux", {"negative_prompt": ["y"] * 3, "true_cfg_scale": 3.0}),
    ],
    ids=["rescale", "size", "skip-layer", "true-cfg"],
)
def test_a_call_that_the_adapter_would_not_repeat_is_refused(key, keywords):
    pipe = tiny(CASES[key][0])
    known = inspect.signature(type(pipe).__call__).parameters
    if not set(keywords) <= set(known):
        pytest.skip("this version of diffusers has no such option")
    shape = (4 if "sdxl" in key else 16, 8, 12)
    run_case(key, guide(pipe, importance(shape, PROMPTS)), 2, **keywords)
    for estimator in (PlugIn(Tilt(reward, 0.5)), Elsewhere()):
        with pytest.raises(ValueError, match=r"differs by .* composes its predictions"):
            run_case(key, guide(pipe, estimator, window=(0.0, 0.99)), 2, **keywords)


@pytest.mark.parametrize(
    ("dtype", "error", "refused"),
    [
        (torch.float32, 0.9e-3, False),
        (torch.float32, 1.1e-3, True),
        (torch.bfloat16, 0.022, False),
        (torch.bfloat16, 0.042, True),
    ],
)
def test_no_image_may_differ_by_more_than_rounding_when_asked_again(dtype, error, refused):
    pipe = backbones.tiny("sdxl").to(dtype)
    other = torch.tensor([0, 1, 0])  # the size of the others must not hide one image
    size = torch.tensor([1000.0, 1.0, 1000.0])

    def forward(x, timestep, encoder_hidden_states, **_):
        factor = size * (1 + error * other * torch.is_grad_enabled())
        return ((torch.tanh(x) * factor[:, None, None, None]).to(x.dtype),)

    expected = (
        pytest.raises(ValueError, match="differs by") if refused else contextlib.nullcontext()
    )
    with replaced(pipe.unet, forward), expected:
        run_case("sdxl", guide(pipe, PlugIn(Tilt(reward, 0.5))), 1)


def test_a_network_that_says_zero_says_the_same_again():
    pipe = tiny("sdxl")
    with replaced(pipe.unet, lambda x, *_, **__: (0 * x,)):
        run_case("sdxl", guide(pipe, PlugIn(Tilt(reward, 0.5))), 1)


# Random numbers


@pytest.mark.parametrize("name", ["sdxl-turbo", "sd3"])
def test_the_estimators_random_numbers_are_its_own(name):
    pipe = tiny(name)
    if name == "sd3":  # takes noise from the global generator
        with_scheduler(pipe, "FlowMatchEulerDiscreteScheduler", stochastic_sampling=True)
        if not pipe.scheduler.config.get("stochastic_sampling"):
            pytest.skip("this version of diffusers has no stochastic flow scheduler")
    key = name
    plain = run_case(key, pipe, 4)
    quiet, loud = Probe(), Probe(noise=0.3)
    assert distance(run_case(key, guide(pipe, quiet), 4), plain) <= 1e-5
    latents = run_case(key, guide(pipe, loud), 4)
    assert distance(latents, plain) > 1e-2
    assert torch.equal(run_case(key, guide(pipe, loud), 4), latents)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        before = torch.random.get_rng_state()
        guide(pipe, loud)(
            PROMPTS, num_inference_steps=1, output_type="latent", **call_keywords(key)
        )
        pipe_state = torch.random.get_rng_state()
        torch.random.set_rng_state(before)
        pipe(PROMPTS, num_inference_steps=1, output_type="latent", **call_keywords(key))
        assert torch.equal(torch.random.get_rng_state(), pipe_state)


def test_every_step_draws_other_random_numbers():
    drawn = []

    class Drawing(Probe):
        def forward(self, model, x_t, t, condition=None):
            estimate = super().forward(model, x_t, t, condition)
            drawn.append(float(estimate.diagnostics["noise"][0]))
            return estimate

    run_case("sdxl", guide(tiny("sdxl"), Drawing()), 4)
    assert len(set(drawn)) == 4


# The pipeline and its scheduler stay what they are


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_class_the_weights_and_the_given_pipeline(name):
    pipe = tiny(name)
    before, scheduler = dict(vars(pipe)), str(vars(pipe.scheduler))
    guided = guide(pipe, importance((4 if name == "sdxl" else 16, 8, 12)))
    run_case(name, guided, 2)
    assert type(guided) is type(pipe)
    assert vars(pipe) == before
    assert str(vars(pipe.scheduler)) == scheduler
    assert all(
        value is guided.components[key]
        for key, value in pipe.components.items()
        if key != "scheduler"
    )
    cls = type(guided.scheduler)
    assert issubclass(cls, type(pipe.scheduler))
    assert (cls.__name__, cls.__module__) == (
        type(pipe.scheduler).__name__,
        type(pipe.scheduler).__module__,
    )
    assert type(guide(pipe, Probe()).scheduler) is cls, "one class for each scheduler class"
    assert guided.scheduler.config == pipe.scheduler.config
    assert guided.config == pipe.config
    assert inspect.signature(guided.scheduler.step) == inspect.signature(pipe.scheduler.step)
    plain = guide(guided, None)
    assert type(plain.scheduler) is type(pipe.scheduler)
    watched = {"check_inputs", "encode_prompt"}
    assert watched <= set(vars(guided))
    assert set(vars(plain)) == set(vars(guided)) - watched


def test_guiding_again_replaces():
    pipe = tiny("sdxl")
    first, second = Probe(shift=1.0), Probe(shift=0.5)
    truth = run_case("sdxl", guide(pipe, second), 2)
    again = guide(guide(pipe, first), second)
    assert torch.equal(run_case("sdxl", again, 2), truth)
    assert not first.told
    assert len(second.told) == 4
    assert type(again.scheduler).__mro__[1] is type(pipe.scheduler)


def test_saved_and_loaded_it_is_the_plain_pipeline(tmp_path):
    pipe = tiny("sd3")
    guided = guide(pipe, Probe(shift=1.0))
    truth = run_case("sd3", pipe, 2)
    assert distance(run_case("sd3", guided, 2), truth) > 1e-2
    guided.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert distance(run_case("sd3", loaded, 2), truth) <= 1e-5


def test_schedulers_can_be_copied_and_rebuilt():
    pipe, probe = tiny("sdxl"), Probe(shift=1.0)
    probe.register_buffer("bank", torch.zeros(3))
    probe.__deepcopy__ = lambda memo: pytest.fail("the bank was copied")
    guided = guide(pipe, probe)
    twin = copy.deepcopy(guided.scheduler)
    assert type(twin) is type(guided.scheduler)
    rebuilt = type(twin).from_config(twin.config)
    assert rebuilt.config == pipe.scheduler.config
    truth, plain = run_case("sdxl", guided, 2), run_case("sdxl", pipe, 2)
    guided.scheduler = twin
    assert torch.equal(run_case("sdxl", guided, 2), truth)
    assert list(probe.told[-1][2]) == PROMPTS, "a copy belongs to the same calls"
    guided.scheduler = rebuilt
    assert torch.equal(run_case("sdxl", guided, 2), plain)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_half_precision(name):
    with torch.random.fork_rng(devices=[]):
        pipe = copy.deepcopy(tiny(name))
    pipe.set_progress_bar_config(disable=True)
    shape = (4 if name == "sdxl" else 16, 8, 12)
    part, key = ("unet", "sdxl-cfg") if name == "sdxl" else ("transformer", "sd3")
    for estimator in (importance(shape, PROMPTS), PlugIn(Tilt(reward, 0.5))):
        kwargs = {"window": (0.0, 0.99)}
        truth = run_case(key, guide(pipe.to(torch.float32), estimator, **kwargs), 2)
        wide = run_case(key, pipe, 2)
        pipe.to(torch.bfloat16)
        assert getattr(pipe, part).dtype == torch.bfloat16
        latents = run_case(key, guide(pipe, estimator, **kwargs), 2)
        rounding = distance(run_case(key, pipe, 2).float(), wide)
        assert latents.dtype == torch.bfloat16
        assert distance(latents.float(), truth) <= 3 * rounding + 0.05


def test_unreliable_guidance_warns_once_per_run():
    pipe = tiny("sdxl")
    guided = guide(pipe, importance((4, 8, 12), kernel=None))
    for _ in range(2):
        with pytest.warns(UnreliableEstimate, match=r"meaningless at t=.*, t=") as record:
            run_case("sdxl", guided, 4)
        assert sum(issubclass(one.category, UnreliableEstimate) for one in record) == 1


def test_doubts_of_a_run_that_was_stopped_are_forgotten():
    pipe = tiny("sdxl")
    estimator = importance((4, 8, 12), kernel=None)
    guided, fresh = guide(pipe, estimator), guide(pipe, estimator)

    def stop(pipe, step, *_):
        if step == 3:  # late enough for doubts
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run_case("sdxl", guided, 5, callback_on_step_end=stop)
    messages = []
    for one in (guided, fresh):
        with pytest.warns(UnreliableEstimate) as record:
            run_case("sdxl", one, 2)
        messages += [str(one.message) for one in record if one.category is UnreliableEstimate]
    assert len(messages) == 2
    assert messages[0] == messages[1]


# Mistakes


def test_mistakes_are_explained_at_once():
    pipe, estimator = tiny("sdxl"), Probe()
    with pytest.raises(TypeError, match="pipe must be a pipeline with a scheduler, got Bank"):
        guide(Bank(torch.zeros(1, 1)), estimator)
    with pytest.raises(TypeError, match="estimator must be a ConditionalExpectation, got int"):
        guide(pipe, 3)
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        guide(pipe, estimator, scale=float("nan"))
    with pytest.raises(ValueError, match="window must be times"):
        guide(pipe, estimator, window=(0.5, 2.0))
    with pytest.raises(ValueError, match=r"states of shape \(4, 9, 9\), .*got \(4, 8, 12\)"):
        run_case("sdxl", guide(pipe, importance((4, 9, 9))), 1)


REFUSED = [
    ("EDMEulerScheduler", {}, r"understands the schedulers EulerDiscreteScheduler, .*got EDME"),
    ("IPNDMScheduler", {}, "got IPNDMScheduler"),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "got 'sample'"),
    ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "got 'flow_prediction'"),
    ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type='learned_range'"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
    (
        "UniPCMultistepScheduler",
        {**FLOW_SIGMAS, "use_karras_sigmas": True},
        "use_flow_sigmas=True, use_karras_sigmas=True",
    ),
    (
        "DPMSolverMultistepScheduler",
        {**FLOW_SIGMAS, "prediction_type": "v_prediction"},
        "with flow sigmas must have .*got 'v_prediction'",
    ),
]


@pytest.mark.parametrize(
    ("name", "config", "message"), [case for case in REFUSED if knows(case[0], case[1])]
)
def test_schedulers_that_are_not_understood_are_refused(name, config, message):
    pipe = tiny("sdxl")
    pipe.scheduler = getattr(diffusers, name)(**config)
    with pytest.raises(TypeError, match=message):
        guide(pipe, Probe())
    assert type(guide(pipe, None).scheduler) is type(pipe.scheduler)


def test_a_scheduler_with_steps_of_its_own_is_another_one():
    class Own(diffusers.EulerDiscreteScheduler):
        def step(self, *arguments, **keywords):
            return super().step(*arguments, **keywords)

    class Same(diffusers.EulerDiscreteScheduler):
        pass

    pipe = tiny("sdxl")
    pipe.scheduler = Own.from_config(pipe.scheduler.config)
    with pytest.raises(TypeError, match="got Own"):
        guide(pipe, Probe())
    pipe.scheduler = Same.from_config(pipe.scheduler.config)
    assert type(guide(pipe, Probe()).scheduler).__name__ == "Same"


def test_noise_beyond_the_networks_path_is_refused():
    pipe = tiny("sdxl")
    with_scheduler(pipe, "EulerDiscreteScheduler", use_karras_sigmas=True, sigma_max=80.0)
    with pytest.raises(ValueError, match="noise level 80, beyond"):
        run_case("sdxl", guide(pipe, Probe()), 2)


def test_the_size_of_packed_latents_must_be_known():
    pipe = tiny("flux")
    guided = guide(pipe, Probe())
    lent = copy.copy(pipe)
    lent.scheduler = guided.scheduler
    with pytest.raises(ValueError, match="height and width of the images"):
        run_case("flux", lent, 1)


def test_one_time_for_each_token_is_refused():
    pipe = tiny("sd3")
    guided = guide(pipe, Probe())
    guided.scheduler.set_timesteps(2)
    x = torch.zeros(1, 16, 2, 2)
    times = torch.zeros(1, 4)
    with pytest.raises(TypeError, match="got per_token_timesteps"):
        guided.scheduler.step(x, guided.scheduler.timesteps[0], x, per_token_timesteps=times)
    assert shift_norm(x).shape == (1,)
