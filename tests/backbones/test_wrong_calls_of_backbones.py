"""Wrong calls of backbones end in one error that names the argument, before the network runs."""

import json

import pytest
import torch

import backbones
from pipeline_cases import QUIET
from rwguidance import rewards

pytestmark = QUIET


@pytest.fixture(scope="module", params=["sdxl", "sd3", "flux"])
def backbone(request):
    pipe = backbones.tiny(request.param)
    return backbones.from_pipeline(pipe, height=16, width=16)


def latents(backbone, *shape):
    return torch.zeros(*shape) if shape else backbone.draw_noise(1, torch.Generator())


@pytest.mark.parametrize("what", ["decode", "forward"])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda x: x[0], ValueError),
        (lambda x: x[:, :2], ValueError),
        (lambda x: x.long(), TypeError),
        (lambda x: x.tolist(), TypeError),
        (lambda x: x.to_sparse(), ValueError),
        pytest.param(lambda x: x.to("meta"), ValueError, id="meta"),
        (lambda x: None, TypeError),
    ],
)
def test_what_is_no_batch_of_latents(backbone, what, make, error):
    x = make(backbone.draw_noise(1, torch.Generator()))
    name = "latents" if what == "decode" else "x_t"
    call = backbone.decode if what == "decode" else lambda x: backbone(x, 0.5, condition)
    condition = backbone.condition(["a cat"])
    with pytest.raises(error, match=f"^{name} (must|and condition must)"):
        call(x)


def test_sides_that_the_network_cannot_cut_into_patches(backbone):
    condition = backbone.condition(["a cat"])
    for height, width in ((7, 8), (8, 7)):
        x = torch.zeros(1, backbone.channels, height, width)
        if backbone.patch_size == 1:
            assert backbone(x, 0.5, condition).mean.shape == x.shape
            continue
        message = rf"^x_t must have shape .*multiples of 2,.* got \(1, \d+, {height}, {width}\)"
        with pytest.raises(ValueError, match=message):
            backbone(x, 0.5, condition)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: b.draw_noise(-1), ValueError, r"^n must be at least 0, got -1"),
        (lambda b: b.draw_noise("1"), TypeError, r"^n must be an integer, got str '1'"),
        (lambda b: b.times(2.5), TypeError, r"^steps must be an integer, got float 2\.5"),
        (lambda b: b.times("2"), TypeError, r"^steps must be an integer, got str '2'"),
        (lambda b: b.times(0), ValueError, r"^steps must be at least 1, got 0"),
        (lambda b: b.condition(["a", "\ud800"]), ValueError, r"half of a surrogate pair"),
        (lambda b: b.condition({"a", "b"}), TypeError, r"prompts"),
        (lambda b: b.condition("a cat"), TypeError, r"prompts must"),
    ],
)
def test_wrong_arguments(backbone, call, error, message):
    with pytest.raises(error, match=message):
        call(backbone)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cudaX"}, ValueError, r"^device 'cudaX' cannot be used"),
        ({"device": 3.5}, TypeError, r"^device must be a torch\.device or a string"),
        ({"dtype": "int8"}, ValueError, r"^dtype must be floating point.* got 'int8'"),
        ({"dtype": torch.int8}, ValueError, r"^dtype must be floating point"),
        ({"dtype": "bfloat"}, ValueError, r"^dtype must be floating point.* got 'bfloat'"),
        ({"dtype": 16}, TypeError, r"^dtype must be a torch\.dtype or its name"),
    ],
)
def test_devices_and_dtypes_before_weights_are_read(options, error, message, tmp_path):
    for load, name in ((backbones.load, "sdxl-turbo"), (rewards.load, "jpeg")):
        with pytest.raises(error, match=message):
            load(name, **options)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_dtype_may_be_named(dtype, tmp_path):
    backbones.tiny("sd3").save_pretrained(tmp_path)
    backbone = backbones.load("sd3.5-medium", tmp_path, device="cpu", dtype=dtype)
    assert backbone.dtype == torch.bfloat16
    assert repr(backbone) == (
        "SD3(pipe=StableDiffusion3Pipeline, steps=40, guidance_scale=4.5, "
        f"size={backbone.height} x {backbone.width}, device=cpu, dtype=torch.bfloat16)"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000])
def test_an_index_that_is_none_is_named(content, tmp_path):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model_index\.json must"):
        backbones.load("sdxl-turbo", tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X"}))
    with pytest.raises(ValueError, match="holds a X, but sdxl-turbo is a Stable"):
        backbones.load("sdxl-turbo", tmp_path)
