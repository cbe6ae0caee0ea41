"""The autoencoder of the test bed: 64 x 64 pixels to latents of 8 channels and 8 x 8 positions.

.. code-block:: bash

    python -m rwguidance_testbed.vae --data FOLDER --out FOLDER

trains it on half of the drawings of all names but the held-out ones, and writes a folder that
``diffusers.AutoencoderKL.from_pretrained`` reads. An interrupted run goes on where it was.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from rwguidance.support.outside import require
from rwguidance.support.randomness import seeded

from . import commands
from .data import Drawings, load_names
from .scenes import sample_pictures
from .training.cards import write_figures
from .training.loop import Run, learning_rate
from .training.options import Options

__all__ = ["OPTIONS", "encode", "export", "new", "psnr", "read", "train", "vae_loss"]

OPTIONS = Options(steps=2500, batch=32, peak=1e-3)
"""Default options of the training."""

_WIDTHS = (24, 48, 96, 96)
_CHANNELS = 8


def new(smoke: bool = False, seed: int = 0) -> Any:
    """Returns an AutoencoderKL of diffusers with random weights; `smoke` makes a tiny one."""

    diffusers = require("diffusers", "the test bed needs", "backbones")
    with seeded(seed):
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8) if smoke else _WIDTHS,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=_CHANNELS,
            norm_num_groups=8,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            sample_size=64,
        )


def read(folder: Path) -> Any:
    """Returns the AutoencoderKL in a folder, frozen, in single precision."""

    diffusers = require("diffusers", "the test bed needs", "backbones")
    return diffusers.AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


def vae_loss(vae: Any, pictures: Tensor, generator: Generator, kl_weight: float = 1e-3) -> Tensor:
    r"""Returns absolute and squared error, error of differences of neighbors, and a little KL.

    Arguments:
        vae: The autoencoder.
        pictures: Pictures in [0, 1], with shape (B, 3, 64, 64).
        generator: Source of the noise of the latents.
        kl_weight: Weight of the divergence from a standard normal law, per latent number.
    """

    x = 2 * pictures - 1
    law = vae.encode(x).latent_dist
    mean, logvar = law.mean.float(), law.logvar.float()
    noise = torch.randn(mean.shape, generator=generator)
    error = vae.decode(mean + (0.5 * logvar).exp() * noise).sample.float() - x
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + error.square().mean() + edges + kl_weight * divergence


@torch.no_grad()
def encode(vae: Any, pictures: Tensor) -> Tensor:
    """Returns scaled latents of pictures: the means of their laws, with mean 0 and variance 1.

    Arguments:
        vae: The autoencoder.
        pictures: Pictures in [0, 1], with shape (B, 3, 64, 64).

    Returns:
        Latents with shape (B, 8, 8, 8).
    """

    latents: Tensor = vae.encode(2 * pictures - 1).latent_dist.mode().float()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def psnr(vae: Any, pictures: Tensor) -> float:
    """Returns the peak signal-to-noise ratio in decibels, mean over pictures in [0, 1]."""

    errors = []
    for part in pictures.split(32):
        again = vae.decode(vae.encode(2 * part - 1).latent_dist.mode()).sample / 2 + 0.5
        errors.append((again.clamp(0, 1) - part).square().flatten(1).mean(1))
    return float((-10 * torch.cat(errors).log10()).mean())


def export(vae: Any, pictures: Tensor, folder: Path) -> None:
    """Writes an autoencoder in half precision, with the scaling and shift that standardize latents.

    Arguments:
        vae: The autoencoder; not changed.
        pictures: Pictures from whose latents mean and variance are taken.
        folder: Folder of ``config.json`` and the weights.
    """

    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(2 * part - 1).latent_dist.mode() for part in pictures.split(64)]
        )
    half = copy.deepcopy(vae).half()
    half.register_to_config(
        scaling_factor=round(1 / float(latents.std()), 4),
        shift_factor=round(float(latents.mean()), 4),
    )
    half.save_pretrained(folder)


def train(
    data: Path = Path("out/testbed"),
    out: Path = Path("out/testbed/emoji-vae"),
    seed: int = 0,
    options: Options = OPTIONS,
) -> None:
    """Trains the autoencoder and writes it to `out`.

    Arguments:
        data: Folder of the drawings.
        out: Folder to write to; the state of the run lies beside it.
        seed: Seed of weights, pictures and noise.
        options: Options of the training.
    """

    torch.set_num_threads(options.threads)
    drawings, names = Drawings.load(data), load_names()
    others = {entry.name for entry in drawings.entries} - set(names["held_out"])
    own = drawings.where(names=others, encoded=True)
    vae = new(options.smoke, seed)
    settings: Any = {"lr": options.peak, "betas": (0.9, 0.99), "weight_decay": 1e-4}
    optimizer = torch.optim.AdamW(vae.parameters(), **settings)
    generator = Generator().manual_seed(seed)
    made_with = {"data": own, "weights": vae, "seed": seed, **options.deciding}
    run = Run(out.with_suffix(".state"), {"vae": vae}, optimizer, generator, made_with)
    if options.resume:
        run.restore()

    def loss() -> Tensor:
        pictures, _ = sample_pictures(own, options.batch, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return vae_loss(vae, pictures, generator)

    rate = lambda step: learning_rate(step, options.steps, options.peak)
    run.train(options.steps, options.batch, rate, loss, printed=50)
    check = Generator().manual_seed(seed + 1)
    pictures = lambda part, count: sample_pictures(part, count, check)[0]
    count = 16 if options.smoke else 512
    export(vae.eval(), pictures(own.where(names=names["train"]), 2 * count), out)
    parts = {
        "psnr_training_drawings": own,
        "psnr_other_drawings": drawings.where("judge", others, encoded=False),
        "psnr_held_out_names": drawings.where(names=names["held_out"]),
    }
    figures = {name: psnr(vae, pictures(part, count)) for name, part in parts.items()}
    figures |= run.figures()
    write_figures(out, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    commands.run(train)
