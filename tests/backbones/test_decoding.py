"""Decoding and encoding: units, chunks, gradients, and what the gradients keep in memory."""

import copy
from functools import partial
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch.testing import assert_close

import backbones
from backbones.latents import LatentCodec
from backbones.states import grid_of_latents, packed, replaced, state_after, unpacked
from common import randn
from pipeline_cases import QUIET, SIZE, build, run_backbone, run_pipeline

pytestmark = QUIET


def test_states_take_the_precision_of_those_that_they_replace():
    prepared, states = torch.zeros(2, dtype=torch.bfloat16), torch.ones(2)
    assert replaced(prepared, states).dtype == torch.bfloat16
    latents, rest = replaced((prepared, "ids"), states)
    assert (latents.dtype, rest) == (torch.bfloat16, "ids")


def test_a_step_returns_its_state_first():
    state, clean = torch.zeros(2), torch.ones(2)  # Euler's step returns both
    assert state_after((state, clean)) is state
    assert state_after(SimpleNamespace(prev_sample=state, pred_original_sample=clean)) is state


def test_tokens_of_flux_are_its_latents_in_2_by_2_patches():
    latents, (pipe, *_) = randn(0, 3, 16, 4, 10), build("flux")
    grid = grid_of_latents(pipe, latents)
    assert grid == (2, 5)
    tokens = packed(latents, grid)
    assert torch.equal(tokens, pipe._pack_latents(latents, 3, 16, 4, 10))
    assert torch.equal(unpacked(tokens, grid), latents)


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


def test_latents_of_a_vae_in_half_precision_are_scaled_in_single():
    pipe, backbone, _, _ = build("sd3")
    pipe.vae.bfloat16()
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipe.vae.encode((2 * images - 1).bfloat16()).latent_dist.mean
        latents = backbone.encode(images)
    config = pipe.vae.config
    assert_close(latents, (mean.float() - config.shift_factor) * config.scaling_factor)


class Identity:
    """A VAE whose latents are its images, which are told in the precision of its weights."""

    def __init__(self, dtype, **config):
        self.dtype, self.config, self.seen = dtype, SimpleNamespace(**config), None

    def decode(self, z, return_dict):
        self.seen = z
        return (z,)

    def encode(self, images):
        self.seen = images
        return SimpleNamespace(latents=images)


UNITS = {
    "shift": ({"scaling_factor": 0.13025, "shift_factor": 0.0609}, 1.0, 0.0609),
    "statistics": (
        {"scaling_factor": 0.7, "latents_mean": [0.1, 0.2, 0.3], "latents_std": [0.6, 1.7, 2.3]},
        torch.tensor([0.6, 1.7, 2.3], dtype=torch.float64).reshape(3, 1, 1),
        torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).reshape(3, 1, 1),
    ),
}


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_units_are_changed_in_single_precision_or_wider(units, dtype):
    config, std, mean = UNITS[units]
    vae = Identity(dtype, **config)
    codec = LatentCodec(vae, torch.device("cpu"), shifted=True)
    wide = torch.promote_types(dtype, torch.float32)
    near = partial(assert_close, rtol=4 * torch.finfo(wide).eps, atol=4 * torch.finfo(wide).eps)
    latents = (0.1 * randn(0, 2, 3, 4, 5)).to(wide)
    images = codec.decode(latents)
    z = latents.double() * std / config["scaling_factor"] + mean
    assert_close(vae.seen, z.to(dtype))
    assert float(((images > 0) & (images < 1)).double().mean()) > 0.5
    near(images, (vae.seen.to(wide) / 2 + 0.5).clamp(0, 1))
    if dtype == wide:
        near(vae.seen, z.to(wide))
    pixels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = codec.encode(pixels)
    assert vae.seen.dtype == dtype
    near(found, ((vae.seen.double() - mean) / std * config["scaling_factor"]).to(wide))


@pytest.mark.parametrize("units", UNITS)
def test_units_are_changed_where_the_latents_are(units):
    codec = LatentCodec(Identity(torch.float32, **UNITS[units][0]), torch.device("meta"), True)
    for change in (codec.decode, codec.encode):
        assert change(torch.zeros(1, 3, 2, 2)).is_meta


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
