"""Pipelines without a family of their own as models, made of the pipeline's own calls."""

import functools

import diffusers
import pytest
import torch
from torch.testing import assert_close

import backbones
from common import randn
from guided_pipelines import replaced
from law_pipelines import Exact, exactly, sprint_network, table_network, with_scheduler
from law_pipelines import tiny as shared
from pipeline_cases import QUIET, distance
from pipeline_table import CALL, SANA, SINCE, prediction_error, version
from problems import mixture, tilt_of
from rwguidance import DDIM, GuidedModel, PlugIn, Tilt, sample

pytestmark = QUIET

PROMPTS = ["a cat", "a watercolour of two dogs in a boat", "x"]
SIZE = {"height": 16, "width": 16}
WITH_SCALE = {
    "sd-turbo": {"guidance_scale": 3.0},
    "z-image": {"guidance_scale": 3.0},
    "flux2-klein": {},
    "qwen-image": {"guidance_scale": 3.0, "call": {"negative_prompt": "fog"}},
    "sana-sprint": {"steps": 2, "call": {k: v for k, v in SANA.items() if k not in SIZE}},
}


def skip_if_too_old(name, since=None):
    since = SINCE.get(name, "0.36") if since is None else since
    if version(diffusers.__version__) < version(since):
        pytest.skip(f"{name} takes diffusers {since} or later")


def adapted(name, **options):
    skip_if_too_old(name)
    pipe = shared(name)
    size = {"height": 32, "width": 32} if "sana" in name else SIZE
    options = {**size, **WITH_SCALE.get(name, {}), **options}
    return pipe, backbones.from_pipeline(pipe, **options)


def generators():
    return [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]


def own_run(backbone, steps, condition=None):
    noise = generators()
    x_1 = backbone.draw_noise(len(PROMPTS), noise)
    condition = backbone.condition(PROMPTS) if condition is None else condition
    with torch.no_grad():
        x_0 = sample(backbone, backbone.sampler, x_1, backbone.times(steps), condition, noise)
    return backbone.decode(x_0)


@pytest.mark.parametrize("name", WITH_SCALE)
def test_unguided_runs_are_those_of_the_pipeline(name):
    pipe, backbone = adapted(name)
    steps = 2 if name == "sana-sprint" else 3
    images = pipe(
        prompt=list(PROMPTS),  # which Z-Image writes over
        generator=generators(),
        num_inference_steps=steps,
        output_type="pt",
        **backbone.call,
    ).images
    assert_close(own_run(backbone, steps), images, rtol=0, atol=3e-5)


def test_without_a_scale_there_is_no_guidance():
    for name in ("sd-turbo", "z-image", "qwen-image"):
        _, backbone = adapted(name, guidance_scale=None)
        assert not backbone.guided
    assert not adapted("sd-turbo", guidance_scale=0.5)[1].guided
    sprint = adapted("sana-sprint")[1]  # whose network takes the scale
    assert (sprint.guidance_scale, sprint.guided) == (4.5, False)
    skip_if_too_old("z-image", "0.37")  # by a convention of its own, which it had not before
    assert adapted("z-image", guidance_scale=0.5)[1].guided


def test_the_scale_and_the_negative_prompts_matter():
    pipe, backbone = adapted("qwen-image")
    assert pipe.transformer.config.guidance_embeds is False
    assert (backbone.guided, backbone.call["true_cfg_scale"]) == (True, 3.0)
    images = own_run(backbone, 2)
    _, plain = adapted("qwen-image", guidance_scale=None, call={})
    assert not plain.guided
    assert distance(own_run(plain, 2), images) > 3e-4
    negative = ["fog", "", "a long rain"]
    asked = own_run(backbone, 2, backbone.condition(PROMPTS, negative))
    own = pipe(
        list(PROMPTS),
        generator=generators(),
        num_inference_steps=2,
        output_type="pt",
        **{**backbone.call, "negative_prompt": negative},
    ).images
    assert_close(asked, own, rtol=0, atol=3e-5)
    with pytest.raises(ValueError, match="negative_prompts take classifier-free guidance"):
        plain.condition(PROMPTS, "fog")


@pytest.mark.parametrize("name", ["sd-turbo", "qwen-image", "z-image"])
def test_states_at_several_times_and_in_any_order_are_predicted_alike(name):
    if name == "qwen-image":  # which before counts the longest prompt of a batch, not its padding
        skip_if_too_old(name, "0.37")
    _, backbone = adapted(name)
    x_t = backbone.draw_noise(3, generators())
    condition = backbone.condition(PROMPTS)
    times = torch.tensor([0.8, 0.2, 0.5], dtype=torch.float64)
    with torch.no_grad():
        together = backbone(x_t, times, condition)
        order = [2, 0, 1]
        again = backbone(x_t[order], times[order], condition[order])
        alone = backbone(x_t[1:2], 0.2, backbone.condition(PROMPTS[1:2]))
        later = backbone(x_t[1:2], 0.8, condition[1:2])
    assert_close(again.mean, together.mean[order], rtol=1e-4, atol=1e-4)
    assert_close(alone.mean, together.mean[1:2], rtol=1e-4, atol=1e-4)
    assert distance(later.mean, alone.mean) > 1e-3


ORACLES = {
    "sd1.5": ("sd1.5", "unet", table_network, {}),
    "sd-turbo": ("sd-turbo", "unet", table_network, {}),
    "v-prediction": ("sd1.5", "unet", table_network, {"prediction_type": "v_prediction"}),
    "sana-sprint": ("sana-sprint", "transformer", sprint_network, {}),
}


@pytest.mark.parametrize("key", ORACLES)
def test_the_exact_shift_gives_the_run_of_the_tilted_law(key):
    name, part, network, config = ORACLES[key]
    pipe, backbone = adapted(name, guidance_scale=4.5 if "sana" in name else None, steps=2)
    if config:
        pipe = with_scheduler(pipe, "DDIMScheduler", clip_sample=False, **config)
        backbone = backbones.from_pipeline(pipe, **SIZE)
    law, tilt = mixture(3, 64), tilt_of("quadratic", 5, 64)
    module, x_1 = getattr(pipe, part), randn(4, 3, 4, 4, 4, dtype=torch.float32)
    condition = backbone.condition(PROMPTS)
    runs = []
    for model, of in (
        (GuidedModel(backbone, Exact(law, tilt)), law),
        (backbone, law.tilted(tilt)),
        (backbone, law),
    ):
        with torch.no_grad(), replaced(module, network(pipe, exactly(of))):
            runs.append(sample(model, DDIM(), x_1, backbone.times(4), condition))
    assert distance(runs[0], runs[1]) <= 2e-4
    assert distance(runs[0], runs[2]) > 1e-2


def test_gradients_reach_the_state_through_the_network_and_the_decoder():
    _, backbone = adapted("sd-turbo")
    x_t = backbone.draw_noise(3, generators())
    condition = backbone.condition(PROMPTS)
    assert not any(part.requires_grad for part in condition.embeddings.values())
    weights = torch.linspace(-1, 1, 16)

    def value(x):
        images = backbone.decode(backbone(x, 0.6, condition).mean)
        return (images * weights).sum()

    x = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step = 3e-3 * gradient / gradient.norm()
    with torch.no_grad():
        slope = (value(x_t + step) - value(x_t - step)) / 2
    assert_close(slope, (gradient * step).sum(), rtol=2e-2, atol=0)
    shift = PlugIn(Tilt(lambda x, prompts: (x * weights).sum((1, 2, 3)), 1.0, backbone.decode))
    assert float(shift(backbone, x_t, 0.6, condition).shift.norm()) > 0


def test_prompts_are_encoded_without_a_graph(monkeypatch):
    pipe, backbone = adapted("sd-turbo")
    encode, graphs = type(pipe).encode_prompt, []

    @functools.wraps(encode)
    def watched(*args, **kwargs):
        graphs.append(torch.is_grad_enabled())
        return encode(*args, **kwargs)

    monkeypatch.setattr(type(pipe), "encode_prompt", watched)
    backbone.condition(PROMPTS)
    assert graphs == [False]
    x_0 = backbone.draw_noise(3, generators()).requires_grad_()
    assert backbone.decode(x_0).requires_grad
    assert not any(graphs)


def test_images_are_in_single_precision_whatever_the_pipeline():
    skip_if_too_old("sd-turbo")
    pipe = backbones.tiny("sd-turbo").to(torch.bfloat16)
    backbone = backbones.from_pipeline(pipe, **SIZE)
    assert backbone.decode(backbone.draw_noise(1, generators()[0])).dtype == torch.float32


@pytest.mark.parametrize("n", [0, 1, 2])
def test_as_many_states_are_drawn_as_are_asked_for(n):
    skip_if_too_old("sd-turbo")
    backbone = backbones.from_pipeline(backbones.tiny("sd-turbo"), **SIZE)
    assert len(backbone.draw_noise(n, torch.Generator())) == n


def test_every_prediction_of_a_run_is_that_of_the_pipeline():
    for name in ("sd1.5", "qwen-image"):
        assert prediction_error(backbones.tiny(name), {**CALL, "num_inference_steps": 2}) < 1e-4


def test_times_that_a_scheduler_rounds_are_those_of_its_states():
    skip_if_too_old("sd1.5")
    pipe = backbones.tiny("sd1.5")
    karras = with_scheduler(pipe, "EulerDiscreteScheduler", use_karras_sigmas=True)
    found = []
    for each in (pipe, karras):  # whose timesteps are no integers
        backbone = backbones.from_pipeline(each, **SIZE)
        condition = backbone.condition(["a"])
        with torch.no_grad():
            found.append(backbone(randn(0, 1, 4, 4, 4).float(), 0.5, condition).mean)
    assert_close(found[1], found[0], rtol=0, atol=1e-2)


def test_pipelines_that_cannot_be_models():
    backbone = backbones.from_pipeline(backbones.tiny("cogview4"), **SIZE)
    with pytest.raises(TypeError, match="CogView4Pipeline is asked at timesteps that are not"):
        backbone(backbone.draw_noise(1, torch.Generator()), 0.5, backbone.condition(["a"]))
    skip_if_too_old("ernie-image")
    with pytest.raises(TypeError, match=r"must be a pipeline of diffusers that .* got ErnieImageP"):
        backbones.from_pipeline(backbones.tiny("ernie-image"))


def test_wrong_calls():
    _, backbone = adapted("z-image")
    x_t, condition = backbone.draw_noise(2, torch.Generator()), backbone.condition(["a", "b"])
    for call, error, message in (
        (lambda: backbone(x_t, 0.5), TypeError, "condition must be what backbone.condition"),
        (lambda: backbone(x_t[:1], 0.5, condition), ValueError, "one prompt per sample, 1, got 2"),
        (lambda: backbone(None, 0.5, condition), TypeError, "x_t must be a floating-point tensor"),
        (lambda: backbone.condition("a cat"), TypeError, "prompts"),
        (lambda: adapted("z-image", steps=0), ValueError, "steps must be at least 1"),
        (lambda: adapted("z-image", guidance_scale=-1.0), ValueError, "guidance_scale must be at"),
        (lambda: adapted("z-image", call={"prompt": "a"}), ValueError, "call must leave prompt"),
        (lambda: adapted("z-image", call={"colour": 1}), TypeError, "takes no colour, it takes"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert "AnyPipeline(pipe=ZImagePipeline, steps=50" in repr(backbone)
