"""Guided pipelines: the plain ones where nothing is guided, the library's own loop elsewhere."""

import copy
import inspect

import diffusers
import pytest
import torch
from torch.testing import assert_close

import backbones
from backbones import guide
from common import assert_rounds_to, randn
from guided_pipelines import (
    CASES,
    Elsewhere,
    Network,
    Probe,
    call_keywords,
    importance,
    replaced,
    reward,
    run,
    run_case,
    sdxl_with,
)
from law_pipelines import FLOW, VE, VP, diffusion_network, flow_network, tiny, with_scheduler
from pipeline_cases import PROMPTS, QUIET, SIZE, TOKENS, distance
from rwguidance import (
    DDIM,
    Bank,
    GuidedModel,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
    Tilt,
    sample,
)

pytestmark = QUIET


# Without guidance


def cheap(x_t, t, schedule, text):
    return torch.tanh(x_t + text.double().mean((1, 2))[:, None, None, None])


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
        return sample(model.starting(times[0]), DDIM(eta), x_1, times, condition, generator)


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


def test_the_size_of_packed_latents_must_be_known():
    pipe = tiny("flux")
    guided = guide(pipe, Probe())
    lent = copy.copy(pipe)
    lent.scheduler = guided.scheduler
    with pytest.raises(ValueError, match="height and width of the images"):
        run_case("flux", lent, 1)
