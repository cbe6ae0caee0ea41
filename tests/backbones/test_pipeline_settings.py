"""Settings of pipelines and backbones: they hold, change a fingerprint, or save memory."""

import diffusers
import pytest
import torch
from torch.testing import assert_close

import backbones
from common import randn
from pipeline_cases import (
    PROMPTS,
    QUIET,
    SIZE,
    build,
    offload_one_by_one,
    offload_whole_models,
    run_backbone,
    run_pipeline,
)
from rwguidance.support.fingerprint import fingerprint

pytestmark = QUIET


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


# What is set on the pipeline


def tile(pipe):
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    pipe.vae.enable_tiling()


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
        # Compiling a network takes seconds.
        pytest.param(setting, key, marks=pytest.mark.slow if setting == "compile" else ())
        for setting in SETTINGS
        for key in ("sdxl-cfg", "sd3", "flux")
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
