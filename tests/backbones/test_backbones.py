"""Adapters of diffusers pipelines give the pipelines' own latents, images and times."""

import copy

import diffusers
import pytest
import torch
from torch.testing import assert_close

import backbones
from common import randn
from law_pipelines import with_scheduler
from pipeline_cases import (
    CASES,
    EULER,
    PROMPTS,
    QUIET,
    SIZE,
    build,
    distance,
    run_backbone,
    run_pipeline,
)
from rwguidance import (
    DDIM,
    Bank,
    DiscreteSchedule,
    GuidedModel,
    ImportanceSampling,
    PlugIn,
    RectifiedSchedule,
    Tilt,
    sample,
)
from rwguidance.prediction import Prediction
from rwguidance.testing import check_model, check_schedule

pytestmark = QUIET


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """A pipeline, its backbone, the keywords that make the pipeline do the same, and eta."""

    return build(request.param)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_latents_are_those_of_the_pipeline(case, steps, n):
    pipe, backbone, keywords, eta = case
    truth = run_pipeline(pipe, keywords, n, steps)
    with torch.no_grad():
        x_0 = run_backbone(backbone, keywords, n, steps, eta)
    assert x_0.dtype == truth.dtype == torch.float32
    assert distance(x_0, truth) <= 1e-5


@pytest.mark.parametrize("n", [1, 3])
def test_images_are_those_of_the_pipeline(case, n):
    pipe, backbone, keywords, eta = case
    truth = run_pipeline(pipe, keywords, n, 2, output_type="pt")
    with torch.no_grad():
        images = backbone.decode(run_backbone(backbone, keywords, n, 2, eta))
    assert images.shape == (n, 3, 16, 24)
    assert float(truth.std()) > 0.01
    assert_close(images, truth, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_times_are_those_of_the_pipeline(case, steps):
    pipe, backbone, keywords, _ = case
    run_pipeline(pipe, keywords, 1, steps)
    times = backbone.times(steps)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert float(times[-1]) == 0
    visited = pipe.scheduler.timesteps.double()
    is_sdxl = isinstance(pipe, diffusers.StableDiffusionXLPipeline)
    assert_close(1000 * times[:-1] - int(is_sdxl), visited, rtol=0, atol=1e-9 if is_sdxl else 1e-4)
    sigma = backbone.schedule.sigma(times) / (backbone.schedule.alpha(times) if is_sdxl else 1)
    assert_close(sigma, pipe.scheduler.sigmas.double(), rtol=1e-6, atol=0)


def test_the_published_turbo_times():
    turbo = backbones.from_pipeline(backbones.tiny("sdxl-turbo"))
    assert turbo.times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    sd3 = backbones.from_pipeline(backbones.tiny("sd3.5-turbo"))
    assert_close(
        sd3.times(4), torch.tensor([1, 0.8577, 0.6022, 0.0089, 0]).double(), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize(
    "config",
    [{"timestep_spacing": "linspace"}, {"use_karras_sigmas": True}],
    ids=["linspace", "karras"],
)
def test_times_between_the_entries_of_the_table_keep_the_noise_levels(config):
    # The path between two entries is interpolated in another variable: the sigmas agree exactly,
    # the timestep that the network is told differs by less than a hundredth.
    pipe = with_scheduler(backbones.tiny("sdxl"), EULER, **config)
    backbone = backbones.from_pipeline(pipe, **SIZE)
    pipe.scheduler.set_timesteps(7)
    times = backbone.times(7)
    assert bool(((1000 * times - (1000 * times).round()).abs() > 1e-2).any())
    sigma = backbone.schedule.sigma(times) / backbone.schedule.alpha(times)
    assert_close(sigma, pipe.scheduler.sigmas.double(), rtol=1e-5, atol=0)
    assert_close(1000 * times[:-1] - 1, pipe.scheduler.timesteps.double(), rtol=0, atol=1e-2)
    keywords = {**SIZE, "guidance_scale": 0.0}
    truth = run_pipeline(pipe, keywords, 2, 7)
    assert distance(run_backbone(backbone, keywords, 2, 7, 0.0).detach(), truth) <= 1e-2


def test_without_a_number_the_times_are_those_of_the_constructor():
    backbone = backbones.from_pipeline(backbones.tiny("sd3"), steps=3)
    assert_close(backbone.times(), backbone.times(3), rtol=0, atol=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        backbone.times(0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        backbones.from_pipeline(backbones.tiny("flux")).times(0)


def test_the_pipeline_is_left_as_it_is(case):
    pipe, backbone, keywords, eta = case
    before = run_pipeline(pipe, keywords, 2, 2)
    scheduler = copy.deepcopy(pipe.scheduler.__dict__)
    trainable = [p.requires_grad for p in backbone.parameters()]
    again = backbones.from_pipeline(pipe, backbone.guidance_scale)
    again.times(5)
    run_backbone(backbone, keywords, 2, 3, eta)
    assert [p.requires_grad for p in again.parameters()] == trainable
    assert str(pipe.scheduler.__dict__) == str(scheduler)
    assert torch.equal(run_pipeline(pipe, keywords, 2, 2), before)
    assert next(again.parameters()).data_ptr() == next(backbone.parameters()).data_ptr()


def test_contract_of_a_model(case):
    _, backbone, keywords, _ = case
    negative = keywords.get("negative_prompt")
    condition = backbone.condition(PROMPTS, *(() if negative is None else (negative,)))
    select = lambda condition, index: condition[index]
    backbone.requires_grad_(False)
    check_model(backbone, (3, backbone.channels, 8, 12), condition, select=select)
    check_schedule(
        backbone.schedule, n=1000 if isinstance(backbone.schedule, DiscreteSchedule) else 64
    )


def test_a_condition_keeps_no_graph_of_texts():
    for name in ("sdxl", "sd3", "flux"):
        pipe = backbones.tiny(name)
        assert all(p.requires_grad for p in pipe.text_encoder_2.parameters())
        embeddings = backbones.from_pipeline(pipe, **SIZE).condition(PROMPTS).embeddings
        assert not any(part.requires_grad for part in embeddings.values())


def test_the_gradient_of_a_prediction_is_its_slope(case):
    _, backbone, keywords, _ = case
    negative = keywords.get("negative_prompt")
    condition = backbone.condition(PROMPTS, *(() if negative is None else (negative,)))
    x_t, weights = (randn(i, 3, backbone.channels, 8, 12, dtype=torch.float32) for i in range(2))
    is_flow = isinstance(backbone.schedule, RectifiedSchedule)

    def value(x):
        prediction = backbone(x, 0.6, condition)
        output = prediction.noise - prediction.mean if is_flow else prediction.noise
        return (output * weights).sum().double()

    x = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step = 0.02 * gradient / gradient.norm()
    with torch.no_grad():
        slope = (value(x_t + step) - value(x_t - step)) / 2
    assert_close(slope, (gradient.double() * step).sum(), rtol=2e-2, atol=0)


def test_every_sample_has_its_own_prompt_time_and_embeddings(case):
    _, backbone, keywords, _ = case
    negative = keywords.get("negative_prompt")
    condition = backbone.condition(PROMPTS, *(() if negative is None else (negative,)))
    x_t = randn(0, 3, backbone.channels, 8, 12, dtype=torch.float32)
    t = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    order = [2, 0, 1]
    with torch.no_grad():
        straight = backbone(x_t, t, condition).noise
        permuted = backbone(x_t[order], t[order], condition[order]).noise
        other = backbone(x_t, t, condition[order]).noise
        later = backbone(x_t, t - 0.001, condition).noise
    assert_close(permuted, straight[order])
    # What these tests rest on: prompts and times matter, by far more than the tolerances.
    assert distance(other, straight) > 1e-3
    assert distance(later, straight) > 1e-3


@pytest.mark.parametrize("key", ["sdxl-cfg", "sd3-cfg"])
def test_classifier_free_guidance_is_linear_in_its_scale(key):
    pipe, _, _, _ = build(key)
    outputs = []
    x_t = randn(0, 1, pipe.vae.config.latent_channels, 8, 8, dtype=torch.float32)
    for scale in (None, 1.0, 2.0, 4.0):
        backbone = backbones.from_pipeline(pipe, scale)
        assert backbone.guided == (scale is not None and scale > 1)
        with torch.no_grad():
            outputs.append(backbone(x_t, 0.5, backbone.condition(["a"])).noise)
    plain, one, two, four = outputs
    assert torch.equal(plain, one)
    assert distance(two, plain) > 1e-3
    assert_close(four - plain, 3 * (two - plain), rtol=1e-3, atol=1e-4)


def test_its_parts_are_those_of_the_pipeline_and_what_it_is_set_to():
    pipe = backbones.tiny("sdxl-turbo")
    pipe.register_to_config(_name_or_path="/home/me/sdxl")  # as of a pipeline that was loaded
    parts = backbones.from_pipeline(pipe).parts
    assert parts.pop("pipeline") == {"force_zeros_for_empty_prompt": True}
    assert parts == pipe.components
    assert "unet" in parts


def test_guidance_reaches_the_dev_model():
    pipe = backbones.tiny("flux")
    default = backbones.from_pipeline(pipe)
    assert default.guidance_scale == 3.5
    assert not default.guided
    condition = default.condition(PROMPTS[:1])
    x_t = randn(0, 1, 16, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        a = default(x_t, 0.5, condition).noise
        b = backbones.from_pipeline(pipe, 3.0)(x_t, 0.5, condition).noise
    assert distance(b, a) > 1e-4


def test_noise_is_that_of_the_pipeline_on_average(generator):
    for name, scale in (("sdxl-turbo", 14.6146 / 14.6488), ("sdxl", 1.0), ("sd3", 1.0)):
        backbone = backbones.from_pipeline(backbones.tiny(name), **SIZE)
        noise = backbone.draw_noise(500, generator)
        assert noise.shape == (500, backbone.channels, 8, 12)
        assert abs(float(noise.std()) / scale - 1) < 5 / (2 * noise.numel()) ** 0.5
        assert abs(backbone.noise_scale - scale) < 1e-5


# Precision


@pytest.mark.parametrize("key", ["sdxl-cfg", "sdxl-v", "sd3-cfg", "flux-schnell"])
def test_arithmetic_around_a_half_precision_network_is_in_float32(key):
    pipe, backbone, _, _ = build(key)
    condition = backbone.condition(PROMPTS[:2])
    pipe.to(torch.bfloat16)
    assert backbone.dtype == torch.bfloat16
    assert backbone.draw_noise(2, torch.Generator()).dtype == torch.bfloat16
    outputs = []
    backbone_network = backbone.network

    def network(x_t, t, embeddings):
        assert x_t.dtype == torch.bfloat16
        assert t.dtype == torch.float64
        assert {value.dtype for value in embeddings.values()} == {torch.bfloat16}
        outputs.append(backbone_network(x_t, t, embeddings))
        return outputs[-1]

    backbone.network = network
    x_t = randn(0, 2, backbone.channels, 8, 12, dtype=torch.float32)
    with torch.no_grad():
        prediction = backbone(x_t, 0.5, condition)
    (output,) = outputs
    assert output.dtype == torch.bfloat16
    output = output.float()
    if backbone.guided:
        negative, positive = output[:2], output[2:]
        output = negative + backbone.guidance_scale * (positive - negative)
    scales = backbone.schedule.at(0.5, like=x_t)
    prediction_type = pipe.scheduler.config.get("prediction_type", "flow_prediction")
    if prediction_type == "flow_prediction":
        expected = Prediction.from_velocity(output, x_t, scales)
    elif prediction_type == "v_prediction":
        mean = scales.alpha * x_t - scales.sigma * output
        expected = Prediction.from_mean(mean, x_t, scales)
    else:
        expected = Prediction.from_noise(output, x_t, scales)
    assert prediction.mean.dtype == torch.float32
    assert_close(prediction.mean, expected.mean)
    assert_close(prediction.noise, expected.noise)


# Not the ancestral scheduler, which older versions of diffusers let calculate in bfloat16.
@pytest.mark.parametrize("key", ["sdxl", "sd3-cfg", "flux"])
def test_a_half_precision_pipeline_is_followed_to_its_own_precision(key):
    pipe, backbone, keywords, eta = build(key)
    pipe.to(torch.bfloat16)
    truth = run_pipeline(pipe, keywords, 2, 2).float()
    with torch.no_grad():
        x_0 = run_backbone(backbone, keywords, 2, 2, eta).float()
    assert float((x_0 - truth).square().mean().sqrt() / truth.square().mean().sqrt()) < 0.03


# With the core


@pytest.mark.parametrize("key", ["sdxl-turbo", "sd3-cfg", "flux-schnell"])
def test_estimators_of_the_core_work_unchanged(key):
    _, backbone, _, _ = build(key)
    backbone.requires_grad_(False)
    condition = backbone.condition(["a", "bc"])
    bank_prompts = ["a"] * 8 + ["bc"] * 8
    draws = randn(1, 16, backbone.channels, 8, 12, dtype=torch.float32)
    bank = Bank(0.2 * draws, bank_prompts)
    reward = lambda images, prompts: images[:, 0].mean((1, 2))
    tilt = Tilt(reward, 0.2, backbone.decode)
    x_1 = backbone.draw_noise(2, torch.Generator().manual_seed(0))
    scaled = lambda estimator, scale: GuidedModel(backbone, estimator, scale, (0.6, 1.0))
    run = lambda model: sample(model, DDIM(), x_1, backbone.times(2), condition)
    base = run(backbone)
    importance, plug_in = ImportanceSampling(bank, tilt), PlugIn(tilt, jacobian=False)
    assert_close(run(scaled(importance, 0.0)), base)
    for estimator in (importance, plug_in):
        assert not torch.allclose(run(scaled(estimator, 1.0)), base, atol=1e-4)


# Devices


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_everything_is_on_the_device_of_the_backbone(name):
    backbone = backbones.from_pipeline(backbones.tiny(name), **SIZE)
    x_t, condition = torch.zeros(1, backbone.channels, 8, 12), backbone.condition(["a"])
    away = backbones.TextCondition(
        condition.prompts, {key: value.to("meta") for key, value in condition.embeddings.items()}
    )
    with pytest.raises(ValueError, match=r"x_t must .* holds values, got one of the meta device"):
        backbone(x_t.to("meta"), 0.5, condition)
    with pytest.raises(ValueError, match=r"x_t on cpu, condition on meta, the backbone on cpu$"):
        backbone(x_t, 0.5, away)
    backbone.to("meta")
    with pytest.raises(ValueError, match="must be on the device of the backbone, got x_t on cpu"):
        backbone(x_t, 0.5, condition)


# The precision of timesteps


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_the_network_is_told_the_times_that_the_pipeline_tells_it(key):
    pipe, backbone, keywords, eta = build(key)
    pipe.to(torch.bfloat16)
    told = []

    def record(module, args, kwargs):
        told.append((kwargs["timestep"] if "timestep" in kwargs else args[1]).clone())

    network = getattr(pipe, backbone.denoiser)
    hook = network.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        run_pipeline(pipe, keywords, 1, 5)
        theirs, told = told, []
        run_backbone(backbone, keywords, 1, 5, eta)
    hook.remove()
    assert len(theirs) == len(told) == 5
    for one, other in zip(theirs, told, strict=True):
        one, other = (x.double().flatten() for x in (one, other))
        if key == "flux":  # in bfloat16: equal or off by a hundredth
            assert torch.equal(one, other)
        else:
            assert_close(one, other, rtol=1e-6, atol=0)
    if key == "flux":
        exact = backbone.times(5)[:-1]
        assert bool(((torch.cat(told).double() - exact).abs() > 1e-4).any())  # rounding matters


def test_the_network_is_told_times_between_the_steps_of_its_training():
    pipe, backbone, _, _ = build("sdxl")
    told = []
    x_t, condition = backbone.draw_noise(1, torch.Generator()), backbone.condition(["a cat"])
    note = lambda module, args: told.append(args[1].double())
    with pipe.unet.register_forward_pre_hook(note), torch.no_grad():
        backbone(x_t, 0.70033, condition)
    assert_close(told, [torch.tensor([699.33], dtype=torch.float64)], rtol=1e-6, atol=0)
