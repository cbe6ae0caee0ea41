"""The file for `custom_pipeline=`: a guided pipeline of any class from a bank or a network."""

import inspect

import diffusers
import pytest
import torch

import backbones
from backbones import draw, guide, guided_pipeline
from pipeline_cases import QUIET, distance
from rwguidance import ImportanceSampling, RectifiedSchedule, Tilt
from rwguidance.estimators import LearnedShift
from rwguidance.networks import LatentShift
from rwguidance.store import Store

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")]

CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "guidance_scale": 0.0}


def brightness(images, prompts):
    return images.flatten(1).mean(1)


def test_its_options_have_the_defaults_of_guide():
    ours, theirs = (
        inspect.signature(function).parameters
        for function in (guided_pipeline.GuidedPipeline.__init__, guide)
    )
    for name in ("scale", "window"):
        assert ours[name].default == theirs[name].default


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("z-image")


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = backbones.tiny("z-image")
    pipe.save_pretrained(folder)
    return pipe


@pytest.fixture
def load(folder, pipe, tmp_path, monkeypatch):
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def load(source=folder, **keywords):
        with torch.random.fork_rng(devices=[]):  # by which parts are made before they are read
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                source,
                custom_pipeline=guided_pipeline.__file__,
                trust_remote_code=True,
                **keywords,
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def images(pipe):
    generator = torch.Generator().manual_seed(1)
    return pipe(prompt="a cat", generator=generator, output_type="pt", **CALL).images


def test_a_bank_guides_as_guide_does(load, pipe, tmp_path):
    bank = draw(pipe, "a cat", 8, store=Store(tmp_path / "store"), **CALL)
    tilt = Tilt.for_kl(brightness, bank, nats=0.5)
    bank.scored(tilt).save(tmp_path / "bank.safetensors")
    loaded = load(bank=tmp_path / "bank.safetensors", nats=0.5)
    assert type(loaded).__name__ == "ZImagePipeline"
    assert isinstance(loaded, diffusers.ZImagePipeline)
    truth = images(guide(pipe, ImportanceSampling(bank, tilt)))
    assert distance(images(loaded), truth) < 1e-4
    assert distance(truth, images(pipe)) > 1e-2
    with pytest.raises(ValueError, match=r"guidance_scale must be that of .* bank, 0\.0, got 3\.0"):
        loaded(prompt="a cat", **{**CALL, "guidance_scale": 3.0})
    window = load(bank=tmp_path / "bank.safetensors", nats=0.5, window=(0.0, 0.1))
    assert distance(images(window), images(pipe)) < 1e-4


def test_a_network_guides_as_guide_does(load, pipe, tmp_path):
    network = LatentShift(16, RectifiedSchedule(), widths=(8, 8))
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter += 0.1 * torch.sin(torch.arange(parameter.numel()) + i).view_as(parameter)
    network.save(tmp_path / "network.safetensors")
    truth = images(guide(pipe, LearnedShift(network), scale=2.0))
    assert distance(truth, images(pipe)) > 1e-3
    loaded = load(network=tmp_path / "network.safetensors", scale=2.0)
    assert distance(images(loaded), truth) < 1e-4


def test_any_class_of_pipelines(load, tmp_path):
    pipe = backbones.tiny("sd1.5")  # which has parts and settings that may be missing
    pipe.save_pretrained(tmp_path / "sd")
    bank = draw(pipe, "a cat", 4, store=Store(tmp_path / "store"), **CALL)
    bank = bank.scored(Tilt(brightness, 1.0))
    loaded = load(tmp_path / "sd", bank=bank, nats=0.3)
    assert type(loaded.scheduler).__name__ == "PNDMScheduler"
    assert loaded.config.requires_safety_checker == pipe.config.requires_safety_checker
    assert distance(images(loaded), images(pipe)) > 1e-3


def test_wrong_arguments(load, pipe, tmp_path):
    bank = draw(pipe, "a cat", 2, store=Store(tmp_path / "store"), **CALL)
    for keywords, message in (
        ({}, "either bank= or network="),
        ({"bank": bank, "network": bank}, "either bank= or network="),
        ({"bank": bank}, "a bank takes nats="),
        ({"bank": bank, "nats": 0.3}, "the bank must hold rewards"),
        ({"network": torch.nn.Identity(), "nats": 1.0}, "nats is for a bank"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**keywords)
