"""Teachers of a Gaussian law, whose paths have a closed form, and students of them."""

import contextlib
import functools
import math

import pytest
import torch

from rwguidance.support.randomness import seeded
from rwguidance_testbed import flow, turbo, vae
from rwguidance_testbed.data import SIZE, Drawing, Drawings, assign_roles, sources
from rwguidance_testbed.distill.students import FlowStudent, TurboStudent
from rwguidance_testbed.distill.teachers import FlowTeacher
from rwguidance_testbed.tokenizer import tokenize, train_tokenizer

NAMES = ("red apple", "pizza", "carrot", "lemon", "sun", "key", "cat")
SHIFT, SCALING = 0.25, 1.5
STD = 0.6  # of the Gaussian law of clean latents
MEANS = (0.5, -0.2)  # with a caption, without


def captions(pipe, count):
    return tokenize(pipe.tokenizer, [NAMES[i % len(NAMES)] for i in range(count)])


def gaussian_velocity(parts, x_t, t, tokens, log_count):
    """E[noise - x_0 | x_t] of a Gaussian law, whose mean a caption changes."""

    assert bool((log_count == 0).all())
    t = t[:, None, None, None]
    mean = torch.where((tokens[:, 1] == tokens[:, 2])[:, None, None, None], MEANS[1], MEANS[0])
    variance = (1 - t) ** 2 * STD**2 + t**2
    return (t - (1 - t) * STD**2) / variance * (x_t - (1 - t) * mean) - mean


def gaussian_noise(unet, x_t, step, text, pooled):
    """E[noise | x_t] of the same law, of latents without their shift."""

    alphas = teacher_alphas()[step][:, None, None, None]
    without = (text.abs().flatten(1).sum(1) == 0) & (pooled.abs().sum(1) == 0)
    mean = torch.where(without[:, None, None, None], MEANS[1], MEANS[0]) + SHIFT * SCALING
    variance = alphas * STD**2 + 1 - alphas
    return (1 - alphas).sqrt() / variance * (x_t - alphas.sqrt() * mean)


@functools.cache
def teacher_alphas():
    import diffusers

    return diffusers.EulerDiscreteScheduler(**turbo.SCHEDULE).alphas_cumprod


def guided_mean(guidance):
    """Guidance moves the mean, for both laws have the same variance."""

    return MEANS[1] + guidance * (MEANS[0] - MEANS[1])


def carry(x, upper, lower, guidance=3.0):
    """Along the exact flow of the guided law: what is standardized stays."""

    mean = guided_mean(guidance)
    std = lambda t: math.sqrt((1 - t) ** 2 * STD**2 + t**2)
    return (1 - lower) * mean + (x - (1 - upper) * mean) * std(lower) / std(upper)


@pytest.fixture(scope="session")
def distill_folder(tmp_path_factory):
    """Drawings, an autoencoder and both teachers, all tiny."""

    path = tmp_path_factory.mktemp("data")
    entries, pixels = [], []
    for i, name in enumerate(NAMES):
        roles = assign_roles(name, [row["name"] for row in sources()["styles"]])
        for style, role in roles.items():
            entries.append(Drawing(name, style, "x", "food-fruit", (), role))
            picture = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
            picture[0, 5 : 25 + 6 * i, 5:75] = picture[3, 5 : 25 + 6 * i, 5:75] = 255
            pixels.append(picture)
    Drawings(entries, torch.stack(pixels)).save(path)
    tokenizer = train_tokenizer([*NAMES, "on a blue background"] * 3, path / "words", 600)
    autoencoder = vae.new(smoke=True).eval()
    autoencoder.register_to_config(scaling_factor=SCALING, shift_factor=SHIFT)
    autoencoder.half().save_pretrained(path / "vae")
    autoencoder.float()
    pipe = flow.new(autoencoder, tokenizer, smoke=True)
    unet_pipe = turbo.new(pipe, smoke=True)
    noise = torch.Generator().manual_seed(0)
    for network in (pipe.transformer, unet_pipe.unet):
        for parameter in network.parameters():  # else captions would change nothing
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    flow.export(pipe, path / "words", path / "flow")
    flow.export(unet_pipe, path / "words", path / "unet")
    return path


@pytest.fixture
def distill_drawings(distill_folder):
    return Drawings.load(distill_folder)


@pytest.fixture
def distill_vae(distill_folder):
    import diffusers

    with seeded(0):
        return diffusers.AutoencoderKL.from_pretrained(distill_folder / "vae").float().eval()


@pytest.fixture
def teacher_flow(distill_folder, distill_vae):
    return flow.read(distill_folder / "flow", distill_vae)


@pytest.fixture
def teacher_unet(distill_folder, distill_vae):
    return turbo.read(distill_folder / "unet", distill_vae)


@pytest.fixture
def exact(monkeypatch):
    """Without half precision."""

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.fixture
def flow_student(teacher_flow, distill_drawings):
    teacher = FlowTeacher(teacher_flow, 3.0, gaussian_velocity)
    return FlowStudent(teacher, distill_drawings, 8, own=0.0)


@pytest.fixture
def turbo_student(teacher_flow, teacher_unet, distill_drawings):
    teacher = FlowTeacher(teacher_flow, 3.0, gaussian_velocity)
    return TurboStudent(teacher_unet, teacher, distill_drawings, 8)
