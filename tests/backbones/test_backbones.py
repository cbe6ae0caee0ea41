"""Adapters of diffusers pipelines give the pipelines' own latents, images and times."""

import copy
import inspect
import logging
import shutil
import socket

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import backbones
from common import assert_rounds_to, randn
from rwguidance import (
    DDIM,
    Bank,
    DiscreteSchedule,
    GuidedModel,
    ImportanceSampling,
    PlugIn,
    Tilt,
    sample,
)
from rwguidance.prediction import Prediction
from rwguidance.support.fingerprint import fingerprint
from rwguidance.testing import check_model, check_schedule

# Schedulers of diffusers hand tensors to numpy in a way that newer versions of it dislike.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a cat", "a watercolour of two dogs in a boat", "x"]
SIZE = {"height": 16, "width": 24}
TOKENS = {"max_sequence_length": 48}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a pipeline that is there must not need a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def with_scheduler(pipe, name, **config):
    scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    pipe.scheduler = scheduler
    return pipe


EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"

# name of the tiny pipeline, changes of its scheduler, guidance scale, options of the prompts, eta
CASES = {
    "sdxl": ("sdxl", None, None, {}, 0.0),
    "sdxl-cfg": ("sdxl", None, 5.0, {}, 0.0),
    "sdxl-negative": ("sdxl", None, 5.0, {"negative_prompt": ["fog", "", "a long rain"]}, 0.0),
    "sdxl-trailing": ("sdxl", (EULER, {"timestep_spacing": "trailing"}), 3.0, {}, 0.0),
    "sdxl-v": ("sdxl", (EULER, {"prediction_type": "v_prediction"}), 3.0, {}, 0.0),
    "sdxl-turbo": ("sdxl-turbo", None, None, {}, 1.0),
    "sdxl-turbo-euler": ("sdxl-turbo", (EULER, {}), None, {}, 0.0),
    "sdxl-ancestral-v": ("sdxl", (ANCESTRAL, {"prediction_type": "v_prediction"}), 3.0, {}, 1.0),
    "sd3": ("sd3", None, None, TOKENS, 0.0),
    "sd3-cfg": ("sd3", None, 4.5, TOKENS, 0.0),
    "sd3-negative": ("sd3", None, 4.5, TOKENS | {"negative_prompt": ["fog", "", "rain"]}, 0.0),
    "sd3-dynamic": ("sd3", (FLOW, {"use_dynamic_shifting": True}), None, TOKENS, 0.0),
    "flux": ("flux", None, 3.5, TOKENS, 0.0),
    "flux-scale": ("flux", None, 1.5, TOKENS, 0.0),
    "flux-schnell": ("flux-schnell", None, None, TOKENS, 0.0),
}
if "mu" not in inspect.signature(diffusers.StableDiffusion3Pipeline.__call__).parameters:
    del CASES["sd3-dynamic"]  # which older pipelines cannot run


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """A pipeline, its backbone, the keywords that make the pipeline do the same, and eta."""

    return build(request.param)


def build(key):
    name, scheduler, scale, options, eta = CASES[key]
    pipe = backbones.tiny(name)
    if scheduler is not None:
        pipe = with_scheduler(pipe, scheduler[0], **scheduler[1])
    backbone = backbones.from_pipeline(pipe, scale, **SIZE, **({} if "sdxl" in name else TOKENS))
    return pipe, backbone, options | SIZE | {"guidance_scale": scale or 0.0}, eta


def run_pipeline(pipe, keywords, n, steps, seed=0, output_type="latent"):
    keywords = dict(keywords)
    if "negative_prompt" in keywords:
        keywords["negative_prompt"] = keywords["negative_prompt"][:n]
    generator = torch.Generator().manual_seed(seed)
    images = pipe(
        PROMPTS[:n],
        num_inference_steps=steps,
        generator=generator,
        output_type=output_type,
        **keywords,
    ).images
    if output_type == "latent" and isinstance(pipe, diffusers.FluxPipeline):
        height, width = keywords["height"], keywords["width"]
        images = pipe._unpack_latents(images, height, width, pipe.vae_scale_factor)
    return images


def run_backbone(backbone, keywords, n, steps, eta, seed=0):
    negative = keywords.get("negative_prompt")
    arguments = () if negative is None else (negative[:n],)
    generator = torch.Generator().manual_seed(seed)
    x_1 = backbone.draw_noise(n, generator)
    condition = backbone.condition(PROMPTS[:n], *arguments)
    return sample(backbone, DDIM(eta), x_1, backbone.times(steps), condition, generator)


def distance(x, truth):
    return float((x - truth).abs().max() / truth.abs().max())


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


# Conditions


def counted(monkeypatch, pipe):
    calls = []
    original = type(pipe).encode_prompt

    def encode_prompt(self, *args, **kwargs):
        calls.append(args[0] if args else kwargs["prompt"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "encode_prompt", encode_prompt)
    return calls


def equal(a, b):
    return a.prompts == b.prompts and all(
        torch.equal(v, b.stacked()[k]) for k, v in a.stacked().items()
    )


@pytest.mark.parametrize("key", ["sdxl-cfg", "sd3-cfg", "flux"])
def test_a_condition_is_a_sequence_of_prompts_with_their_embeddings(key, monkeypatch):
    pipe, backbone, _, _ = build(key)
    calls = counted(monkeypatch, pipe)
    condition = backbone.condition(["a", "bc", "a", "a"])
    assert calls == [["a", "bc"]]  # once, and each prompt once
    assert list(condition) == ["a", "bc", "a", "a"]
    assert len(condition) == 4
    for name, value in condition.stacked().items():
        value = value[-4:]
        assert torch.equal(value[0], value[2])
        assert not torch.equal(value[0], value[1]), name
    assert equal(condition[[1, 3]], condition[1::2])
    assert equal(backbones.TextCondition.cat([condition[:1], condition[1:]]), condition)
    assert equal(condition[[-1]], condition[3:])
    assert list(condition[[]]) == []
    with pytest.raises(TypeError, match="index must be a slice or a sequence of integers, got 1"):
        condition[1]


@pytest.mark.parametrize("key", ["sdxl-cfg", "sd3-cfg"])
def test_negative_prompts_belong_to_their_prompts(key):
    _, backbone, _, _ = build(key)
    both = backbone.condition(["a", "a", "b"], ["x", "y", "x"])
    for name, value in both.negative.items():
        # Encoded in two rows of a batch, by sums of 32 to 128 products, some ten after another.
        assert_rounds_to(value[0], value[2], terms=1024)
        assert float((value[0] - value[1]).abs().max()) > 1e-3, name
    one = backbone.condition(["a", "b"], "x")
    assert_close(one.negative["text"], both.negative["text"][[0, 2]])
    assert_close(one.embeddings["text"], both.embeddings["text"][[0, 2]])


def test_conditions_that_do_not_fit():
    pipe = backbones.tiny("sdxl-turbo")
    plain, guided = (backbones.from_pipeline(pipe, scale) for scale in (None, 3.0))
    x_t = torch.zeros(2, 4, 8, 8)
    with pytest.raises(TypeError, match=r"backbone\.condition\(prompts\) returns, got NoneType"):
        plain(x_t, 0.5)
    with pytest.raises(TypeError, match="returns, got list"):
        plain(x_t, 0.5, ["a", "b"])
    with pytest.raises(ValueError, match="one prompt per sample, 2, got 1"):
        plain(x_t, 0.5, plain.condition(["a"]))
    with pytest.raises(ValueError, match=r"has no classifier-free guidance, but .* encoded with;"):
        plain(x_t, 0.5, guided.condition(["a", "b"]))
    with pytest.raises(ValueError, match=r"has classifier-free guidance, but .* encoded without;"):
        guided(x_t, 0.5, plain.condition(["a", "b"]))
    with pytest.raises(ValueError, match=r"negative_prompts take classifier-free .*_scale=None\)"):
        plain.condition(["a"], "b")
    with pytest.raises(ValueError, match="negative_prompts must hold one item per sample, 1, got"):
        guided.condition(["a"], ["b", "c"])
    with pytest.raises(TypeError, match=r"prompts must hold one hashable item per sample.*got str"):
        plain.condition("a cat")
    with pytest.raises(TypeError, match="prompts must be strings, got int"):
        plain.condition([1])
    with pytest.raises(ValueError, match="prompts must hold at least one string"):
        plain.condition([])
    with pytest.raises(ValueError, match=r"at least one condition, all with .* got 2, 1 of them"):
        backbones.TextCondition.cat([plain.condition(["a"]), guided.condition(["a"])])
    with pytest.raises(
        ValueError, match=r"embeddings\['x'\] must have one entry per prompt, 1, go"
    ):
        backbones.TextCondition(("a",), {"x": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="negative must hold tensors like those of embeddings"):
        backbones.TextCondition(("a",), {"x": torch.zeros(1, 3)}, {"y": torch.zeros(1, 3)})


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_the_pipeline_warns_of_what_it_cuts(key):
    pipe, backbone, _, _ = build(key)
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger(type(pipe).__module__)
    logger.addHandler(handler)
    try:
        backbone.condition(["a cat"])
        assert heard == []
        backbone.condition(["a" * 75 + "THE END"])
    finally:
        logger.removeHandler(handler)
    assert any("truncated" in message and "THE END" in message for message in heard)


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


# Images


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_decoding_in_chunks_changes_nothing(key):
    pipe, backbone, _, _ = build(key)
    latents = 0.3 * randn(0, 5, backbone.channels, 8, 12, dtype=torch.float32)
    sizes = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    chunked = backbones.from_pipeline(pipe, decode_batch=2, **SIZE)
    with torch.no_grad():
        assert_close(chunked.decode(latents), backbone.decode(latents))
        images = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        assert_close(chunked.encode(images), backbone.encode(images))
    hook.remove()
    assert sizes == [2, 2, 1, 5]


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_decode_is_differentiable(key):
    pipe, backbone, _, _ = build(key)
    pipe.vae.double()
    latents, direction = (0.3 * randn(i, 2, backbone.channels, 4, 4) for i in (0, 1))
    weight = randn(2, 2, 3, 8, 8)
    value = lambda z: (weight * backbone.decode(z)).sum()
    latents.requires_grad_()
    slope = (torch.autograd.grad(value(latents), latents)[0] * direction).sum()
    with torch.no_grad():
        images = backbone.decode(latents)
        h = 1e-5
        finite = (value(latents + h * direction) - value(latents - h * direction)) / (2 * h)
    assert images.dtype == torch.float64
    assert float(((images > 0) & (images < 1)).double().mean()) > 0.9  # the gradient is not zero
    assert abs(float(slope)) > 1e-3
    assert_close(slope, finite, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_encode_is_the_scaled_mean_of_the_posterior(key):
    pipe, backbone, _, _ = build(key)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    config = pipe.vae.config
    with torch.no_grad():
        mean = pipe.vae.encode(2 * images - 1).latent_dist.mean
        latents = backbone.encode(images)
    shift = config.shift_factor or 0.0
    assert latents.shape == (2, backbone.channels, 8, 12)
    assert_close(latents, (mean - shift) * config.scaling_factor)
    # The units in which decode takes them are those in which encode gives them.
    with torch.no_grad():
        assert_close(
            backbone.decode(latents),
            (pipe.vae.decode(mean, return_dict=False)[0] / 2 + 0.5).clamp(0, 1),
        )
    with pytest.raises(TypeError, match=r"float tensor of shape \(B, 3, H, W\), got torch.uint8"):
        backbone.encode(images.byte())


def test_statistics_of_the_latents_are_honoured():
    pipe = backbones.tiny("sdxl")
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 1.5, 2.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    backbone = backbones.from_pipeline(pipe, **SIZE)
    keywords = SIZE | {"guidance_scale": 0.0}
    with torch.no_grad():
        images = backbone.decode(run_backbone(backbone, keywords, 2, 1, 0.0))
    assert_close(images, run_pipeline(pipe, keywords, 2, 1, output_type="pt"), rtol=0, atol=2e-5)
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = pipe.vae.encode(2 * pixels - 1).latent_dist.mean
        column = lambda values: torch.tensor(values).reshape(1, 4, 1, 1)
        expected = (z - column(mean)) / column(std) * pipe.vae.config.scaling_factor
        assert_close(backbone.encode(pixels), expected)


def test_a_tiny_autoencoder_takes_the_place_of_the_vae():
    pipe = backbones.tiny("sdxl")
    with torch.random.fork_rng(devices=[]):
        pipe.vae = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    backbone = backbones.from_pipeline(pipe, **SIZE)
    keywords = SIZE | {"guidance_scale": 0.0}
    with torch.no_grad():
        images = backbone.decode(run_backbone(backbone, keywords, 2, 1, 0.0))
        latents = backbone.encode(images)
    assert_close(images, run_pipeline(pipe, keywords, 2, 1, output_type="pt"), rtol=0, atol=2e-5)
    assert latents.shape == (2, 4, 8, 12)


def test_a_vae_that_overflows_in_float16_is_widened_while_it_decodes():
    pipe = backbones.tiny("sdxl")
    backbone = backbones.from_pipeline(pipe, **SIZE)
    pipe.vae.half()
    assert pipe.vae.config.force_upcast
    latents = 0.3 * randn(0, 2, 4, 8, 12, dtype=torch.float32)
    wide = copy.deepcopy(pipe.vae).float()
    with torch.no_grad():
        images = backbone.decode(latents)
        expected = wide.decode(latents / wide.config.scaling_factor, return_dict=False)[0]
    assert pipe.vae.dtype == torch.float16
    assert images.dtype == torch.float32
    assert_close(images, (expected / 2 + 0.5).clamp(0, 1))
    with pytest.raises(ValueError, match="not differentiable through this VAE, which overflows"):
        backbone.decode(latents.requires_grad_())


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


# From a name, a folder, a file, a pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    saved = {}
    for name in ("sdxl-turbo", "sdxl", "sd3", "flux-schnell", "flux"):
        saved[name] = tmp_path_factory.mktemp(name)
        backbones.tiny(name).save_pretrained(saved[name])
    return saved


NAMES = {
    "sdxl": ("sdxl", 50, 5.0),
    "sdxl-turbo": ("sdxl-turbo", 4, None),
    "sd3.5-medium": ("sd3", 40, 4.5),
    "sd3.5-large": ("sd3", 28, 3.5),
    "sd3.5-large-turbo": ("sd3", 4, None),
    "flux-schnell": ("flux-schnell", 4, None),
    "flux-dev": ("flux", 50, 3.5),
}


def test_the_published_names():
    assert set(NAMES) <= set(backbones.available())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_a_folder_make_a_backbone(name, folders):
    folder, steps, scale = NAMES[name]
    backbone = backbones.load(name, folders[folder], **SIZE)
    assert (backbone.steps, backbone.guidance_scale) == (steps, scale)
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())
    twin = backbones.from_pipeline(backbones.tiny(folder), scale, **SIZE)
    x_t = randn(0, 2, backbone.channels, 8, 12, dtype=torch.float32)
    with torch.no_grad():
        loaded, fresh = (b(x_t, 0.5, b.condition(["a", "b"])) for b in (backbone, twin))
    if name != "flux-schnell":  # of which the published one sees fewer tokens
        assert_close(loaded.mean, fresh.mean, rtol=1e-4, atol=1e-4)


def test_weights_are_read_in_the_precision_asked_for(folders):
    backbone = backbones.load("sdxl-turbo", folders["sdxl-turbo"], "cpu", torch.bfloat16)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert backbone.dtype == torch.bfloat16


def test_guidance_that_a_model_does_not_have(folders):
    for name, folder in (("sdxl-turbo", "sdxl-turbo"), ("sd3.5-large-turbo", "sd3")):
        with pytest.raises(ValueError, match=f"{name} was distilled to run without .*, got 5"):
            backbones.load(name, folders[folder], guidance_scale=5.0)
        assert not backbones.load(name, folders[folder], guidance_scale=0.0).guided
    with pytest.raises(ValueError, match="flux-schnell was distilled to run without"):
        backbones.load("flux-schnell", folders["flux-schnell"], guidance_scale=3.5)
    with pytest.raises(ValueError, match=r"guidance_scale must be None, .*schnell.* got 3\.5"):
        backbones.from_pipeline(backbones.tiny("flux-schnell"), 3.5)
    with pytest.raises(ValueError, match="holds a model that takes a guidance scale, so it is not"):
        backbones.load("flux-schnell", folders["flux"])
    with pytest.raises(ValueError, match=r"guidance_scale must be at least 0, got -1"):
        backbones.from_pipeline(backbones.tiny("sdxl"), -1.0)


def test_folders_that_hold_something_else(folders, tmp_path):
    with pytest.raises(
        ValueError, match="holds a FluxPipeline, but sdxl is a StableDiffusionXLPipeline"
    ):
        backbones.load("sdxl", folders["flux"])
    with pytest.raises(
        FileNotFoundError, match=r"no model_index\.json in .*hf download stabilityai"
    ):
        backbones.load("sdxl", tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or directory with the backbone 'sdxl' at"):
        backbones.load("sdxl", tmp_path / "absent")
    with pytest.raises(ValueError, match="config is for single-file checkpoints, but path is"):
        backbones.load("sdxl", folders["sdxl"], config=tmp_path)
    with pytest.raises(TypeError, match=r"takes \(.*guidance_scale=5\.0.*\): .*'guidance'"):
        backbones.load("sdxl", folders["sdxl"], guidance=5.0)


@pytest.mark.parametrize("name", ["sdxl-turbo", "sd3.5-large-turbo", "flux-schnell"])
def test_a_variant_is_read_where_it_is_asked_for(name, tmp_path):
    pipe = backbones.tiny(NAMES[name][0])
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    backbone = backbones.load(name, tmp_path, variant="fp16", **SIZE)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    half = backbones.load(name, tmp_path, dtype=torch.float16, variant="fp16", **SIZE)
    weights = {key: p.clone() for key, p in half.named_parameters()}
    assert all(torch.equal(p.half(), weights[key]) for key, p in backbone.named_parameters())
    for asked in (None, "bf16"):
        message = f"holds weights of variant='fp16', got variant={asked!r}; pass one"
        with pytest.raises(FileNotFoundError, match=message):
            backbones.load(name, tmp_path, variant=asked)
    backbones.tiny(NAMES[name][0], seed=1).save_pretrained(tmp_path)
    plain = dict(backbones.load(name, tmp_path, **SIZE).named_parameters())
    again = dict(backbones.load(name, tmp_path, variant="fp16", **SIZE).named_parameters())
    assert not all(torch.equal(p.half(), weights[key]) for key, p in plain.items())
    assert all(torch.equal(p.half(), weights[key]) for key, p in again.items())
    with pytest.raises(
        FileNotFoundError, match=r"of variant=None and variant='fp16', got .*'int8'"
    ):
        backbones.load(name, tmp_path, variant="int8")


def test_the_variants_of_a_folder(tmp_path):
    (tmp_path / "unet").mkdir()
    names = ("model.a.safetensors", "model.b-00001-of-00002.safetensors", "model.json.b.index")
    for name in (*names, "model-00001-of-00002.c.bin"):
        (tmp_path / "unet" / name).touch()
    assert backbones.published._variants(tmp_path) == {"a", "b", "c"}
    (tmp_path / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").touch()
    assert backbones.published._variants(tmp_path) == {"a", "b", "c", None}


@pytest.fixture
def downloads(monkeypatch, folders):
    """What was asked of the hub, which has one repository, whatever its name."""

    asked = []

    def download(source, **keywords):
        asked.append((source, keywords))
        return folders["sd3"]

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    return asked


def test_a_variant_of_a_repository_or_of_a_file(downloads, tmp_path):
    backbones.load("sd3.5-large-turbo")
    with pytest.raises(FileNotFoundError, match="weights of variant=None, got variant='fp16'"):
        backbones.load("sd3.5-large-turbo", "hf://someone/tuned", variant="fp16")
    assert [keywords["variant"] for _, keywords in downloads] == [None, "fp16"]
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="variant is for folders and repositories, got 'fp16'"):
        backbones.load("sd3.5-large-turbo", file, config=tmp_path, variant="fp16")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hint = "hf download stabilityai/sdxl-turbo --local-dir DIRECTORY"
    with pytest.raises(FileNotFoundError, match=f"sdxl-turbo cannot be loaded from .*{hint}"):
        backbones.load("sdxl-turbo", "hf://example/no-such-repository")


def test_a_repository_is_asked_for_by_name_and_revision(downloads):
    single = backbones.load("sd3.5-large-turbo")
    half = backbones.load("sd3.5-medium", "hf://someone/tuned@v2", dtype=torch.float16)
    assert [(source, keywords["revision"]) for source, keywords in downloads] == [
        ("stabilityai/stable-diffusion-3.5-large-turbo", None),
        ("someone/tuned", "v2"),
    ]
    for backbone, dtype in ((single, torch.float32), (half, torch.float16)):
        assert {p.dtype for p in backbone.pipe.transformer.parameters()} == {dtype}
    with pytest.raises(ValueError, match="holds a StableDiffusion3Pipeline, but sdxl is a Stable"):
        backbones.load("sdxl", "hf://someone/other")


@pytest.mark.parametrize("key", ["sdxl", "sd3"])
def test_a_text_encoder_that_lacks_weights_is_refused(key, folders, tmp_path):
    """Such as one whose names of weights this version of transformers does not know."""

    folder = tmp_path / key
    shutil.copytree(folders[key], folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = {name.replace("layers.0", "blocks.0"): w for name, w in load_file(file).items()}
    file.unlink()  # it is mapped
    save_file(weights, file, {"format": "pt"})
    message = r"text_encoder must hold all weights of a CLIPText.* lacks 16, .*layers\.0"
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match=message):
        backbones.load("sdxl" if key == "sdxl" else "sd3.5-medium", folder)


def test_a_folder_is_read_without_the_hub(monkeypatch, folders):
    asked = []
    pipe = backbones.tiny("sd3")

    def from_pretrained(source, **keywords):
        asked.append(keywords["local_files_only"])
        return pipe

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
    backbones.load("sd3.5-large-turbo", folders["sd3"])
    assert asked == [True]


def test_a_single_file_is_read_without_the_hub(monkeypatch, tmp_path, folders):
    asked = []
    pipe = backbones.tiny("sdxl")

    def from_single_file(source, **keywords):
        asked.append((source, keywords))
        return pipe

    monkeypatch.setattr(type(pipe), "from_single_file", from_single_file)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert backbones.load("sdxl", file, config=folders["sdxl"]).pipe is pipe
    for config in (None, tmp_path / "absent"):
        with pytest.raises(
            ValueError, match=r"config must be a local folder .*, got .*hf download"
        ):
            backbones.load("sdxl", file, config=config)
    ((source, keywords),) = asked
    assert source == str(file)
    assert keywords["local_files_only"]
    assert keywords["config"] == str(folders["sdxl"])


def test_pipelines_that_are_not_supported():
    message = (
        "one of the classes StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline, "
        "got Linear"
    )
    with torch.random.fork_rng(devices=[]):
        other = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match=message):
        backbones.from_pipeline(other)
    pipe = with_scheduler(backbones.tiny("sdxl"), "DPMSolverMultistepScheduler")
    with pytest.raises(TypeError, match=r"EulerDiscreteScheduler or .*has DPMSolverMultistepSch"):
        backbones.from_pipeline(pipe)
    with pytest.raises(
        TypeError, match="SD3 adapts StableDiffusion3Pipeline of diffusers, got Sta"
    ):
        backbones.sd3.SD3(pipe)
    pipe = with_scheduler(backbones.tiny("sdxl"), EULER, prediction_type="sample")
    with pytest.raises(
        ValueError, match="prediction_type must be 'epsilon' or 'v_prediction', got"
    ):
        backbones.from_pipeline(pipe)
    pipe = with_scheduler(backbones.tiny("sdxl"), EULER, timestep_type="continuous")
    with pytest.raises(ValueError, match="timestep_type must be 'discrete', got 'continuous'"):
        backbones.from_pipeline(pipe)
    with pytest.raises(ValueError, match="height must be a multiple of 4 pixels, got 18"):
        backbones.from_pipeline(backbones.tiny("flux"), height=18)
    with pytest.raises(ValueError, match="decode_batch must be at least 1, got 0"):
        backbones.from_pipeline(backbones.tiny("flux"), decode_batch=0)
    with pytest.raises(ValueError, match=r"max_sequence_length must lie in \[1, 512\], got 513"):
        backbones.from_pipeline(backbones.tiny("flux"), max_sequence_length=513)
    with pytest.raises(ValueError, match=r"with a T5 encoder, .*XLPipeline has not, got 77"):
        backbones.from_pipeline(backbones.tiny("sdxl"), max_sequence_length=77)


def test_a_function_may_be_registered_but_must_return_a_backbone(monkeypatch):
    from rwguidance.support.registry import Registry

    registry = Registry("backbone", "rwguidance.backbones", backbones.registry._check)
    monkeypatch.setattr(backbones.registry, "_registry", registry)
    backbones.register("good")(lambda: backbones.from_pipeline(backbones.tiny("sd3")))
    backbones.register("bad")(lambda: torch.nn.Identity())
    assert backbones.load("good").default_steps == 28
    with pytest.raises(TypeError, match=r"'bad' must return a backbones\.Backbone, got Identity"):
        backbones.load("bad")


# Memory


def saved_bytes(function):
    """Bytes of the distinct tensors that autograd keeps for the gradient of a function's value."""

    kept = {}

    def pack(x):
        kept[x.data_ptr()] = max(kept.get(x.data_ptr(), 0), x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = function()
    return value, sum(kept.values())


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_recomputed_gradients_are_the_gradients_and_keep_only_the_latents(key):
    pipe, backbone, _, _ = build(key)
    backbone.requires_grad_(False)
    latents = 0.3 * randn(0, 4, backbone.channels, 8, 12, dtype=torch.float32)
    weight = randn(1, 4, 3, 16, 24, dtype=torch.float32)
    calls, images, gradients, kept = [], [], [], []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    for options in ({}, {"decode_batch": 1}, {"decode_batch": 1, "checkpoint_decode": True}):
        z = latents.clone().requires_grad_()
        model = backbones.from_pipeline(pipe, **SIZE, **options)
        decoded, size = saved_bytes(lambda model=model, z=z: model.decode(z))
        kept.append(size)
        gradients.append(torch.autograd.grad((weight * decoded).sum(), z)[0])
        images.append(decoded.detach())
    hook.remove()
    assert calls == [4, *(1,) * 4, *(1,) * 8]
    for i in (1, 2):
        assert_close(images[i], images[0])
        assert_close(gradients[i], gradients[0], rtol=1e-4, atol=1e-5 * gradients[0].abs().max())
    assert float(gradients[0].abs().max()) > 0
    # What is left are the latents themselves; chunks alone save nothing.
    assert kept[2] <= latents.numel() * latents.element_size()
    assert kept[0] > 30 * kept[2]
    assert kept[1] > 30 * kept[2]


def test_nothing_is_decoded_twice_where_no_gradient_flows():
    pipe = backbones.tiny("sdxl")
    backbone = backbones.from_pipeline(pipe, **SIZE, checkpoint_decode=True)
    calls = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    latents = torch.zeros(2, 4, 8, 12)
    backbone.decode(latents)
    with torch.no_grad():
        backbone.decode(latents.requires_grad_())
    hook.remove()
    assert calls == [2, 2]


def test_what_saves_memory_alone_is_incidental():
    pipe = backbones.tiny("sdxl")
    key = lambda **options: fingerprint(
        backbones.from_pipeline(pipe, 3.0, **SIZE, **options), backbones.PipelineBackbone.incidental
    )
    assert key() == key(decode_batch=2) == key(checkpoint_decode=True)
    assert key() != key(steps=3)
    assert key() != key(vae=backbones.tiny("sdxl", seed=1).vae)


def test_settings_that_are_in_no_weights_change_the_fingerprint():
    pipe = backbones.tiny("sdxl")
    backbone = backbones.from_pipeline(pipe)
    keys = [fingerprint(backbone)]
    for part, change in (
        (pipe.scheduler, {"prediction_type": "v_prediction"}),
        (pipe.vae, {"scaling_factor": 0.5}),
        (pipe, {"force_zeros_for_empty_prompt": False}),
    ):
        part.register_to_config(**change)
        keys.append(fingerprint(backbone))
    assert len(set(keys)) == 4


def test_the_folder_of_the_weights_does_not_change_the_fingerprint(tmp_path):
    keys = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        backbones.tiny("sd3.5-turbo").save_pretrained(folder)
        keys.append(fingerprint(backbones.load("sd3.5-large-turbo", folder)))
    assert keys[0] == keys[1]


def out_of_memory(error):
    def fail(*args, **kwargs):
        raise error

    return fail


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    MemoryError("no room"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_running_out_of_memory_says_what_would_help(error, monkeypatch):
    pipe = backbones.tiny("sdxl")
    backbone = backbones.from_pipeline(pipe, 3.0, **SIZE, decode_batch=2)
    x_t, said = torch.zeros(3, 4, 8, 12), str(error)
    fresh = lambda: out_of_memory(type(error)(said))
    condition = backbone.condition(["a"] * 3)
    monkeypatch.setattr(pipe.unet, "forward", fresh())
    with pytest.raises(type(error), match=r"had a batch of 6: sample fewer .*bfloat16") as caught:
        backbone(x_t, 0.5, condition)
    assert str(caught.value).startswith(said)
    monkeypatch.setattr(pipe.vae.decoder, "forward", fresh())
    knobs = r"had 2 images at once: lower decode_batch.*vae=.*enable_vae_tiling.*cpu_offload\(\)"
    with pytest.raises(type(error), match=f"{knobs}$"):
        backbone.decode(x_t)
    with pytest.raises(type(error), match=f"{knobs};.*as here, set checkpoint_decode=True$"):
        backbone.decode(x_t.requires_grad_())
    monkeypatch.setattr(pipe.vae.encoder, "forward", fresh())
    with pytest.raises(type(error), match=knobs):
        backbone.encode(torch.zeros(3, 3, 16, 24))


def test_other_errors_get_no_advice(monkeypatch):
    backbone = backbones.from_pipeline(backbones.tiny("sdxl"), **SIZE)
    monkeypatch.setattr(backbone.pipe.unet, "forward", out_of_memory(RuntimeError("sizes differ")))
    with pytest.raises(RuntimeError, match=r"^sizes differ$"):
        backbone(torch.zeros(1, 4, 8, 12), 0.5, backbone.condition(["a"]))


# Devices


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_everything_is_on_the_device_of_the_backbone(name):
    backbone = backbones.from_pipeline(backbones.tiny(name), **SIZE)
    x_t, condition = torch.zeros(1, backbone.channels, 8, 12), backbone.condition(["a"])
    away = backbones.TextCondition(
        condition.prompts, {key: value.to("meta") for key, value in condition.embeddings.items()}
    )
    with pytest.raises(ValueError, match=r"x_t on meta, condition on cpu, the backbone on cpu$"):
        backbone(x_t.to("meta"), 0.5, condition)
    with pytest.raises(ValueError, match=r"x_t on cpu, condition on meta, the backbone on cpu$"):
        backbone(x_t, 0.5, away)
    with pytest.raises(ValueError, match="x_t on meta, condition on meta, the backbone on cpu"):
        backbone(x_t.to("meta"), 0.5, away)
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


# What is set on the pipeline


def tile(pipe):
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    pipe.vae.enable_tiling()


def offload_one_by_one(pipe):
    from accelerate import cpu_offload

    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name not in pipe._exclude_from_cpu_offload:
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert next(pipe.vae.parameters()).is_meta


def offload_whole_models(pipe):
    from accelerate import cpu_offload_with_hook

    hook = None
    for name in pipe.model_cpu_offload_seq.split("->"):
        part = pipe.components.get(name)
        if isinstance(part, torch.nn.Module):
            _, hook = cpu_offload_with_hook(part, torch.device("cpu"), prev_module_hook=hook)


def compile_network(pipe):
    for name in ("unet", "transformer"):
        if name in pipe.components:
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))


def own_attention(pipe):
    attention = diffusers.models.attention_processor
    if "unet" in pipe.components:
        pipe.unet.set_attn_processor(attention.AttnProcessor())
    else:
        pipe.transformer.set_attn_processor(dict(pipe.transformer.attn_processors))


SETTINGS = {
    "slicing": lambda pipe: pipe.vae.enable_slicing(),
    "tiling": tile,
    "sequential-offload": offload_one_by_one,
    "model-offload": offload_whole_models,
    "attention": own_attention,
    "compile": compile_network,
}


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        # Compiling the network of one family takes seconds, those of the others longer.
        pytest.param(setting, key, marks=pytest.mark.slow if slow else ())
        for setting in SETTINGS
        for key in ("sdxl-cfg", "sd3", "flux")
        for slow in [setting == "compile" and key != "sd3"]
    ],
)
def test_what_is_set_on_the_pipeline_holds_for_the_backbone(key, setting):
    pipe, backbone, keywords, eta = build(key)
    plain = run_pipeline(pipe, keywords, 2, 2, output_type="pt")
    with torch.random.fork_rng(devices=[]):
        SETTINGS[setting](pipe)
        truth = run_pipeline(pipe, keywords, 2, 2, output_type="pt")
        with torch.no_grad():
            images = backbone.decode(run_backbone(backbone, keywords, 2, 2, eta))
            after = backbones.from_pipeline(pipe, backbone.guidance_scale, **SIZE)
            condition = backbone.condition(PROMPTS[:1])
            x_t = randn(0, 1, backbone.channels, 8, 12, dtype=torch.float32)
            assert_close(after(x_t, 0.5, condition).mean, backbone(x_t, 0.5, condition).mean)
    assert_close(images, truth, rtol=0, atol=2e-5)
    if setting == "tiling":
        assert not torch.allclose(truth, plain, atol=1e-4)  # tiles are seen
