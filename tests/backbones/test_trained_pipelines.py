"""Trainings on a real pipeline, tiny: what was prepared is what they use."""

import pytest
import torch

import backbones
from preference_files import Light
from rwguidance import networks
from rwguidance.preparation import Preparation, prepare_draws
from rwguidance.trainer import PRESETS, Settings, Training, fit
from rwguidance.trainer.material import Encode

PROMPTS = ["a cat", "a dog", "an owl", "a key", "a red boat", "a blue hat"]
SMALL = {
    "network": "tiny",
    "batch_size": 4,
    "warm_up": 0,
    "nats": (0.2,),
    "steps": 2,
    "pictures": 4,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def backbone():
    return backbones.from_pipeline(backbones.tiny("sdxl")).requires_grad_(False)


@pytest.fixture(scope="module")
def data(backbone, tmp_path_factory):
    job = Preparation(
        backbone=backbone,
        out=tmp_path_factory.mktemp("data"),
        rewards={"light": Light()},
        validation=0.5,
    )
    return prepare_draws(job, PROMPTS, 6, 2)


@pytest.mark.parametrize("scale", [1.0, 6.0])  # without classifier-free guidance and with it
def test_conditions_are_restored(data, scale):
    backbone = backbones.from_pipeline(backbones.tiny("sdxl"), guidance_scale=scale)
    encode = Encode(data, backbone, PROMPTS)
    with torch.no_grad():
        found, exact = encode(["an owl", "a cat"]), backbone.condition(["an owl", "a cat"])
    assert list(found) == list(exact)
    assert (exact.negative is None) == (scale == 1.0)
    for part in ("embeddings", "negative"):
        for name, value in (getattr(exact, part) or {}).items():
            torch.testing.assert_close(getattr(found, part)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["recommended", "gradient"])
def test_presets_train(backbone, data, tmp_path, preset):
    settings = Settings(**{**vars(PRESETS[preset]), **SMALL})
    job = Training(
        data=data.folder, out=tmp_path, settings=settings, held_out=1, images=1, picture_batch=2
    )
    found = fit(job, backbone, {"light": Light()})
    assert found.losses.isfinite().all()
    network = networks.load(tmp_path)
    shown = backbone.condition(PROMPTS[:1]).embeddings
    assert (network.text, network.tokens) == (shown["pooled"].shape[-1], shown["text"].shape[-1])
    assert network.channels == data.bank("a cat").x_0.shape[1]
