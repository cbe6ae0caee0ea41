"""Offloaded or quantized parts of pipelines: drawn from, guided and adapted as they are."""

import warnings

import pytest
import torch

import backbones
from backbones import draw, guide
from pipeline_cases import QUIET, distance, offload_one_by_one, offload_whole_models
from rwguidance import DDIM, ImportanceSampling, PlugIn, TargetESS, Tilt, sample
from rwguidance.store import Store

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")]

CALL = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 0.0}


def brightness(images, prompts):
    return images.flatten(1).mean(1)


def quantize(pipe):
    """Turns linear layers into integers of 8 bits, by a way that every installation has."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in pipe.transformer.layers:
            block.feed_forward = torch.ao.quantization.quantize_dynamic(
                block.feed_forward, {torch.nn.Linear}, dtype=torch.qint8
            )


def images(pipe):
    generator = torch.Generator().manual_seed(1)
    return pipe(prompt="a cat", generator=generator, output_type="pt", **CALL).images


def everything(pipe, bank, jacobian=True):
    """The pictures of all that can be done with a pipeline."""

    estimator = ImportanceSampling(bank, Tilt(brightness, 0.01, bank.decode), TargetESS(0.7))
    made = {"guided": images(guide(pipe, estimator)), "decoded": bank.decode(bank.x_0)}
    if jacobian:
        plug_in = PlugIn(Tilt(brightness, 1.0, bank.decode))
        made["plug-in"] = images(guide(pipe, plug_in, window=(0.0, 0.99)))
    backbone = backbones.from_pipeline(pipe, height=16, width=16)
    x_1 = backbone.draw_noise(1, torch.Generator().manual_seed(1))
    with torch.no_grad():
        x_0 = sample(backbone, DDIM(), x_1, backbone.times(2), backbone.condition(["a cat"]))
    return {**made, "adapted": backbone.decode(x_0)}


@pytest.mark.parametrize("offload", [offload_one_by_one, offload_whole_models])
def test_offloaded_parts_do_what_they_did(offload, tmp_path):
    pipe = backbones.tiny("z-image")
    bank = draw(pipe, "a cat", 4, store=Store(tmp_path / "plain"), **CALL)
    plain, alone = everything(pipe, bank), images(pipe)
    offload(pipe)
    again = draw(pipe, "a cat", 4, store=Store(tmp_path / "offloaded"), **CALL)
    assert distance(again.x_0, bank.x_0) < 1e-5
    for name, value in everything(pipe, again).items():
        assert distance(value, plain[name]) < 1e-4, name
    assert distance(plain["adapted"], alone) < 1e-4
    assert distance(plain["guided"], alone) > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_quantized_parts_do_what_they_do_in_the_pipeline(tmp_path):
    pipe = backbones.tiny("z-image")
    unquantized = images(pipe)
    quantize(pipe)
    plain = images(pipe)
    assert distance(plain, unquantized) > 1e-6
    assert torch.equal(images(guide(pipe, None)), plain)
    bank = draw(pipe, "a cat", 4, store=Store(tmp_path), **CALL)
    made = everything(pipe, bank, jacobian=False)
    assert distance(made["adapted"], plain) < 1e-4
    assert distance(made["guided"], plain) > 1e-3
