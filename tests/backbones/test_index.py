"""Folders of pipelines that name code, ask for absurd sizes or lack weights are refused."""

import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import backbones
from pipeline_cases import QUIET

pytestmark = QUIET

CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Mine: pass\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    backbones.tiny("sdxl-turbo").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.fixture(autouse=True)
def agreeing(monkeypatch):
    """A user who answers yes to whatever is asked."""

    monkeypatch.setattr(builtins, "input", lambda text="": "y")


def edit(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def refused(folder, match):
    with pytest.raises(ValueError, match=match) as found:
        backbones.load("sdxl-turbo", folder)
    assert "trust" not in str(found.value)
    assert "kernels==" not in str(found.value)


def test_code_beside_the_weights_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    code = CODE.format(str(ran))
    (folder / "text_encoder" / "mine.py").write_text(code)
    own = {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}
    edit(folder / "text_encoder" / "config.json", auto_map=own, model_type="mine")
    edit(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])
    refused(folder, r"model_index.json must name a class of .* for text_encoder, got .*AutoModel")
    edit(folder / "model_index.json", text_encoder=["mine", "Mine"])
    refused(folder, "code that comes with weights is never run")
    edit(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    (folder / "unet" / "diffusers.py").write_text(code)
    refused(folder, r"unet.diffusers\.py is code that comes with weights, which is never run")
    assert not ran.exists()


def test_the_configuration_of_a_single_file_is_held_to_the_same(folder, tmp_path):
    edit(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])
    (tmp_path / "one.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="code that comes with weights is never run"):
        backbones.load("sdxl-turbo", tmp_path / "one.safetensors", config=folder)


@pytest.mark.parametrize(
    "part",
    [[], 5, "x", ["transformers"], [None, "x"], ["transformers", None], ["os", "system"], ["", ""]],
)
def test_parts_that_are_no_classes(folder, part):
    edit(folder / "model_index.json", text_encoder=part)
    refused(folder, "must name a class of diffusers or transformers for text_encoder")


@pytest.mark.parametrize("part", [[None, "x"], ["transformers", None], ["os", "system"]])
def test_parts_without_a_folder_that_are_no_classes(folder, part):
    edit(folder / "model_index.json", image_encoder=part)
    refused(folder, "must name a class of diffusers or transformers for image_encoder")


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("text_encoder/config.json", {"attn_implementation": "who/what"}, "asks for code of the"),
        ("text_encoder/config.json", {"_attn_implementation": "who/what"}, "asks for code of the"),
        ("text_encoder/config.json", {"vocab_size": 10**10}, "absurd size: vocab_size"),
        ("unet/config.json", {"layers_per_block": 10**9}, "absurd size: layers_per_block"),
        ("unet/config.json", {"block_out_channels": [10**8, 32]}, "size: block_out_channels"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}, "num_train_timesteps"),
    ],
)
def test_configurations_that_ask_for_too_much(folder, file, changes, match):
    edit(folder / file, **changes)
    refused(folder, f"{Path(file).name} asks for .*{match}" if "size" in match else match)


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
def test_a_network_that_lacks_a_tensor_is_refused(folder, file):
    tensors = load_file(folder / file)
    lost = sorted(tensors)[5]
    save_file({k: v for k, v in tensors.items() if k != lost}, folder / file, {"format": "pt"})
    refused(folder, f"must hold all weights of a .* it lacks 1, such as .*{lost.split('.')[-1]}")


def test_an_autoencoder_of_its_own_folder_is_held_to_the_same(folder):
    vae = folder / "vae"
    load = lambda: backbones.load("sdxl-turbo", folder, vae=vae)
    edit(vae / "config.json", latent_channels=10**9)
    with pytest.raises(ValueError, match=r"config\.json asks for an absurd size: latent_channels"):
        load()
    edit(vae / "config.json", latent_channels=4)
    file = vae / "diffusion_pytorch_model.safetensors"
    save_file(dict(list(load_file(file).items())[1:]), file, {"format": "pt"})
    with pytest.raises(ValueError, match="must hold all weights of a AutoencoderKL"):
        load()


class Runs:
    def __reduce__(self):
        return exec, ("raise KeyboardInterrupt",)


def test_a_pickle_of_something_else_is_refused_without_advice(folder):
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"a": Runs()}, folder / "text_encoder" / "pytorch_model.bin")
    refused(folder, "text_encoder has a file that is damaged, or a pickle of something else")
