"""LoRAs that belong to published models: their sums are the weights of the model."""

import sys

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import backbones
from backbones import SDXL, Published
from backbones.lora import fuse_lora
from common import randn
from pipeline_cases import QUIET, SIZE

pytestmark = QUIET

PLACES = ("attn1.to_q", "conv_in", "time_embedding.linear_1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline, a LoRA for it, and the weights that the two make."""

    base, lora = (tmp_path_factory.mktemp(name) for name in ("base", "lora"))
    pipe = backbones.tiny("sdxl-turbo")
    pipe.save_pretrained(base)
    layers, sums = {}, {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(PLACES):
            weight = module.weight.detach()
            down = randn(1, 2, *weight.shape[1:], dtype=torch.float32)
            up = randn(2, len(weight), 2, dtype=torch.float32)
            sums[f"{name}.weight"] = weight + (up @ down.flatten(1)).view_as(weight)
            layers[f"{name}.lora_A.weight"] = down
            layers[f"{name}.lora_B.weight"] = up.reshape(len(weight), 2, *(1,) * (weight.ndim - 2))
    assert len(sums) > len(PLACES)
    diffusers.StableDiffusionXLPipeline.save_lora_weights(lora, unet_lora_layers=layers)
    return base, lora, sums


def published(lora, **changes):
    return Published("mine", SDXL, "hf://me/mine", {"steps": 1}, True, lora=str(lora), **changes)


def test_the_weights_are_those_of_the_sums(folders, caplog):
    base, lora, sums = folders
    loggers = diffusers.utils.logging
    before = loggers.get_verbosity()
    loggers.enable_propagation()
    backbone = published(lora)(base, **SIZE)
    loggers.disable_propagation()
    assert "No LoRA keys" not in caplog.text  # of networks that a LoRA leaves as they are
    assert loggers.get_verbosity() == before
    plain = backbones.load("sdxl-turbo", base, **SIZE)
    state, before = backbone.pipe.unet.state_dict(), plain.pipe.unet.state_dict()
    assert set(state) == set(before)  # nothing is left of adapters
    for name, weight in state.items():
        assert_close(weight, sums.get(name, before[name]), rtol=1e-5, atol=1e-5)
    assert type(backbone.pipe.unet) is type(plain.pipe.unet)


def test_the_precision_is_that_asked_for(folders):
    base, lora, _ = folders
    backbone = published(lora)(base, dtype=torch.bfloat16, **SIZE)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}


def test_what_is_no_lora_is_refused(folders, tmp_path):
    base, *_ = folders
    with pytest.raises(FileNotFoundError, match=r"no pytorch_lora_weights\.safetensors of a LoRA"):
        published(tmp_path)(base, **SIZE)
    with pytest.raises(TypeError, match="lora must be a string, got int"):
        Published("mine", SDXL, "hf://me/mine", lora=3)
    of_another = {f"transformer.to_q.lora_{name}.weight": torch.ones(2, 2) for name in "AB"}
    save_file(of_another, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="holds no weights of a StableDiffusionXLPipeline"):
        published(tmp_path)(base, **SIZE)


@pytest.mark.parametrize(
    ("source", "place", "revision", "local"),
    [
        ("hf://me/mine@v2", "me/mine", "v2", False),
        ("hf://me/mine", "me/mine", None, False),
        ("here", "here", None, True),
    ],
)
def test_the_hub_is_asked_for_what_is_on_it_alone(source, place, revision, local, monkeypatch):
    asked = []
    pipe = backbones.tiny("sdxl-turbo")

    def load_lora_weights(where, **options):
        assert options["use_safetensors"] is True  # a pickle could run code, too
        assert options["weight_name"] == "pytorch_lora_weights.safetensors"
        asked.append((where, options["revision"], options["local_files_only"]))
        raise OSError("is not there")

    monkeypatch.setattr(pipe, "load_lora_weights", load_lora_weights, raising=False)
    with pytest.raises(FileNotFoundError, match=f"of a LoRA in {source}: is not there"):
        fuse_lora(pipe, source)
    assert asked == [(place, revision, local)]


def test_without_peft_it_says_what_to_install(folders, monkeypatch):
    base, lora, _ = folders
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"a LoRA needs .*peft.*rwguidance\[backbones\]"):
        published(lora)(base, **SIZE)
