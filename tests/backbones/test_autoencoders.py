"""Autoencoders in the place of a pipeline's own: what they compute, in which units, what fits."""

import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

import backbones
from backbones.autoencoders import in_dtype, load_autoencoder
from common import randn
from pipeline_cases import QUIET, SIZE

pytestmark = QUIET

FAMILIES = {"sdxl": ("taesdxl", 4), "sd3": ("taesd3", 16), "flux": ("taef1", 16)}
REAL = Path(__file__).parents[3] / "shared" / "assets" / "tae"


# TAESD as it was published: one sequence of layers for each direction, on images in [0, 1].


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 64))

    def forward(self, x):
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def conv(a, b, **options):
    return nn.Conv2d(a, b, 3, padding=1, **options)


def three():
    return Block(), Block(), Block()


def original(channels, seed=0):
    down = lambda: conv(64, 64, stride=2, bias=False)
    up = lambda: (nn.Upsample(scale_factor=2), conv(64, 64, bias=False))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = nn.Sequential(
            *(conv(3, 64), Block(), down(), *three(), down(), *three(), down(), *three()),
            conv(64, channels),
        )
        decoder = nn.Sequential(
            *(Clamp(), conv(channels, 64), nn.ReLU(), *three(), *up(), *three(), *up()),
            *(*three(), *up(), Block(), conv(64, 3)),
        )
    return encoder.requires_grad_(False), decoder.requires_grad_(False)


def write(folder, name, encoder, decoder):
    save_file(encoder.state_dict(), folder / f"{name}_encoder.safetensors")
    save_file(decoder.state_dict(), folder / f"{name}_decoder.safetensors")


def tiny_autoencoder(channels=4, stages=2):
    """An AutoencoderTiny that fits the tiny pipelines, of which two pixels make a latent one."""

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return diffusers.AutoencoderTiny(
            latent_channels=channels,
            encoder_block_out_channels=(8,) * stages,
            decoder_block_out_channels=(8,) * stages,
            num_encoder_blocks=(1,) * stages,
            num_decoder_blocks=(1,) * stages,
        ).eval()


def eightfold(name):
    """A tiny pipeline whose VAE maps 8 pixels to one, as the published ones do."""

    pipe = backbones.tiny(name)
    config = pipe.vae.config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        pipe.vae = diffusers.AutoencoderKL(
            **{key: config[key] for key in ("latent_channels", "scaling_factor", "shift_factor")},
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
        ).eval()
    options = {"add_watermarker": False} if name == "sdxl" else {}
    return type(pipe)(**pipe.components, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_original_layout_is_what_it_was(name, tmp_path):
    prefix, channels = FAMILIES[name]
    encoder, decoder = original(channels)
    write(tmp_path, prefix, encoder, decoder)
    backbone = backbones.from_pipeline(eightfold(name), height=32, width=48, vae=tmp_path)
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    latents = randn(0, 2, channels, 4, 6, dtype=torch.float32)
    # In [0, 1] on the one side, in the units of the network on the other: no scale and no shift.
    assert backbone.pipe.vae.config.scaling_factor != 1
    assert_close(backbone.encode(images), encoder(images), rtol=1e-5, atol=1e-6)
    expected = decoder(latents)
    assert float(((expected > 0) & (expected < 1)).float().mean()) > 0.1
    assert_close(backbone.decode(latents), expected.clamp(0, 1), rtol=1e-5, atol=1e-6)


def test_the_original_layout_in_the_precision_of_the_pipeline(tmp_path):
    write(tmp_path, "taesd3", *(part.bfloat16() for part in original(16)))
    for dtype in (torch.float32, torch.float16):
        vae = load_autoencoder(tmp_path, "taesd3", dtype)
        assert {p.dtype for p in vae.parameters()} == {dtype}
        assert not vae.training
        assert not any(p.requires_grad or p.is_meta for p in vae.parameters())
    pipe = eightfold("sd3").to(torch.float16)
    assert backbones.from_pipeline(pipe, vae=tmp_path).vae.dtype == torch.float16


@pytest.mark.parametrize(
    ("version", "word"),
    [
        ("0.9.0", "torch_dtype"),
        ("0.41.2", "torch_dtype"),
        ("0.41.0.dev0", "torch_dtype"),
        ("0.42.0", "dtype"),
        ("0.42.0rc1", "dtype"),
        ("0.43.0.dev0", "dtype"),
        ("1.0.0", "dtype"),
    ],
)
def test_the_word_for_the_precision_is_that_of_the_version(version, word, monkeypatch):
    monkeypatch.setattr(diffusers, "__version__", version)
    assert in_dtype(torch.float16) == {word: torch.float16}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_or_its_folder_takes_the_place_of_the_vae(name, tmp_path):
    pipe = backbones.tiny(name)
    own = pipe.vae
    tiny = tiny_autoencoder(FAMILIES[name][1])
    tiny.save_pretrained(tmp_path)
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    latents = randn(0, 3, FAMILIES[name][1], 8, 12, dtype=torch.float32)
    with torch.no_grad():
        expected = (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        encoded = tiny.encode(2 * images - 1).latents
        before = backbones.from_pipeline(pipe, **SIZE).decode(latents)
    for vae in (tiny, tmp_path, str(tmp_path)):
        backbone = backbones.from_pipeline(pipe, **SIZE, vae=vae, decode_batch=2)
        with torch.no_grad():
            assert_close(backbone.decode(latents), expected)
            assert_close(backbone.encode(images), encoded)
    assert pipe.vae is own
    assert pipe.components["vae"] is own
    assert_close(backbones.from_pipeline(pipe, **SIZE).decode(latents), before, rtol=0, atol=0)
    assert not torch.allclose(before, expected, atol=1e-2)


def test_another_vae_decodes_in_its_own_units():
    pipe = backbones.tiny("sdxl")
    other = backbones.tiny("sdxl", seed=1).vae
    other.register_to_config(scaling_factor=0.5)
    backbone = backbones.from_pipeline(pipe, **SIZE, vae=other)
    latents = 0.3 * randn(0, 2, 4, 8, 12, dtype=torch.float32)
    with torch.no_grad():
        expected = (other.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
        assert_close(backbone.decode(latents), expected)
        images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        mean = other.encode(2 * images - 1).latent_dist.mean
        assert_close(backbone.encode(images), 0.5 * mean)


def test_the_other_autoencoder_moves_with_the_backbone_and_lets_gradients_through():
    pipe, tiny = backbones.tiny("sdxl"), tiny_autoencoder()
    backbone = backbones.from_pipeline(pipe, **SIZE, vae=tiny)
    assert {id(p) for p in tiny.parameters()} <= {id(p) for p in backbone.parameters()}
    latents = randn(0, 2, 4, 8, 12, dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(backbone.decode(latents).sum(), latents)
    assert float(gradient.abs().max()) > 0
    backbone.to("meta")
    assert {p.device.type for p in tiny.parameters()} == {"meta"}


def test_a_vae_that_overflows_does_not_matter_if_another_one_decodes():
    pipe = backbones.tiny("sdxl")
    pipe.vae.half()
    assert pipe.vae.config.force_upcast
    backbone = backbones.from_pipeline(pipe, **SIZE, vae=tiny_autoencoder())
    latents = randn(0, 2, 4, 8, 12, dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(backbone.decode(latents).sum(), latents)
    assert float(gradient.abs().max()) > 0


def test_it_follows_to_where_the_pipeline_computes():
    backbone = backbones.from_pipeline(backbones.tiny("sdxl"), **SIZE, vae=tiny_autoencoder())
    assert backbone.vae.device.type == "cpu"
    backbone.pipe.to("meta")
    assert backbone.vae.device.type == "meta"


def test_by_name_with_another_autoencoder(tmp_path):
    backbones.tiny("sdxl-turbo").save_pretrained(tmp_path / "pipe")
    tiny = tiny_autoencoder()
    tiny.save_pretrained(tmp_path / "vae")
    backbone = backbones.load("sdxl-turbo", tmp_path / "pipe", vae=tmp_path / "vae", **SIZE)
    latents = randn(0, 1, 4, 8, 12, dtype=torch.float32)
    with torch.no_grad():
        assert_close(backbone.decode(latents), (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1))
    assert not any(p.requires_grad for p in backbone.parameters())
    half = backbones.load(
        "sdxl-turbo", tmp_path / "pipe", dtype=torch.bfloat16, vae=tmp_path / "vae"
    )
    assert half.vae.dtype == torch.bfloat16


def test_latents_that_do_not_fit(monkeypatch, tmp_path):
    pipe = backbones.tiny("sdxl")
    four = r"vae must have latents of 4 channels.*, got 16: it belongs to another family"
    with pytest.raises(ValueError, match=four):
        backbones.from_pipeline(pipe, vae=tiny_autoencoder(16))
    with pytest.raises(ValueError, match=r"vae must map 2 pixels to one latent pixel.*, got 4"):
        backbones.from_pipeline(pipe, vae=tiny_autoencoder(4, stages=3))
    with pytest.raises(ValueError, match=r"vae must have latents of 16 channels.*, got 4"):
        backbones.from_pipeline(backbones.tiny("flux"), vae=tiny_autoencoder(4))
    # By name that is found out before the pipeline, which is large, is read.
    pipe.save_pretrained(tmp_path)
    monkeypatch.delattr(diffusers.DiffusionPipeline, "from_pretrained")
    with pytest.raises(ValueError, match=four):
        backbones.load("sdxl", tmp_path, vae=tiny_autoencoder(16))
    with pytest.raises(FileNotFoundError, match="vae must be a local folder with"):
        backbones.load("sdxl", tmp_path, vae=tmp_path / "absent")


def test_what_is_no_autoencoder(tmp_path):
    load = lambda source: load_autoencoder(source, "taesdxl", torch.float32)
    with torch.random.fork_rng(devices=[]):
        other = nn.Linear(1, 1)
    with pytest.raises(
        TypeError, match=r"AutoencoderTiny or AutoencoderKL of diffusers, .* Linear"
    ):
        load(other)
    with pytest.raises(TypeError, match="vae must be an autoencoder or a folder, got int"):
        load(3)
    hint = "hf download madebyollin/taesdxl --local-dir"
    with pytest.raises(FileNotFoundError, match=f"is no folder, or is empty; fetch .*{hint}"):
        load("hf://madebyollin/taesdxl")
    encoder, decoder = original(16)
    write(tmp_path, "taesd3", encoder, decoder)
    held = "holds taesd3_decoder.safetensors, taesd3_encoder.safetensors"
    with pytest.raises(FileNotFoundError, match=f"with taesdxl_encoder.* and taesdxl.*{held}"):
        load(tmp_path)
    write(tmp_path, "taesdxl", decoder, encoder)
    (tmp_path / "half").mkdir()
    shutil.copy(tmp_path / "taesdxl_encoder.safetensors", tmp_path / "half")
    with pytest.raises(FileNotFoundError, match=r"half holds taesdxl_encoder\.safetensors;"):
        load(tmp_path / "half")
    with pytest.raises(ValueError, match=r"do not hold a tiny autoencoder in its original layout"):
        load(tmp_path)
    backbones.tiny("sdxl").unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"AutoencoderKL, .* has UNet2DConditionModel"):
        load(tmp_path)


# The published weights, where they are


def pictures():
    """Two photographs and a drawing, of 256 pixels, in [0, 1]."""

    datasets = pytest.importorskip("sklearn.datasets")
    photos = []
    for photo in datasets.load_sample_images().images:
        photo = torch.tensor(photo).permute(2, 0, 1)[None].float() / 255
        width = (photo.shape[3] - photo.shape[2]) // 2
        photo = photo[..., width : width + photo.shape[2]]
        photos.append(nn.functional.interpolate(photo, size=(256, 256), mode="area"))
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    drawing = torch.stack([0.95 - y / 1280, 0.95 - y / 2560, torch.full_like(y, 0.9)])
    shapes = {
        (0.85, 0.2, 0.15): (x - 90) ** 2 + (y - 100) ** 2 < 50**2,
        (0.15, 0.35, 0.75): ((x - 180).abs() < 40) & ((y - 170).abs() < 50),
        (0.2, 0.55, 0.25): y > 220,
        (0.05, 0.05, 0.05): (y - x / 2 - 60).abs() < 2,
    }
    for color, where in shapes.items():
        drawing = torch.where(where, torch.tensor(color).reshape(3, 1, 1), drawing)
    return torch.cat([*photos, drawing[None]])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the published weights of TAESD")
@pytest.mark.parametrize(
    ("name", "least"), [("sdxl", (22, 25, 28)), ("sd3", (25.5, 31.5, 30.5))], ids=["xl", "3"]
)
def test_the_published_weights_keep_pictures(name, least):
    images = pictures()
    backbone = backbones.from_pipeline(eightfold(name), height=256, width=256, vae=REAL)
    latents = backbone.encode(images)
    assert latents.shape == (3, backbone.channels, 32, 32)
    # In the units of the network latents of pictures have variance one, about.
    assert all(0.7 < float(std) < 1.5 for std in latents.std((1, 2, 3)))
    restored = backbone.decode(latents)
    psnr = -10 * (restored - images).square().mean((1, 2, 3)).log10()
    assert bool((psnr > torch.tensor(least)).all()), psnr
    assert bool((psnr < 40).all()), "too good to be true: has anything been encoded?"
