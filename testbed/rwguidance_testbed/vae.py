"""The autoencoder of the test bed: 64 x 64 pixels to latents of 8 channels and 8 x 8 positions.

    python -m rwguidance_testbed.vae --data FOLDER --out FOLDER

trains it on half of the drawings of all names but the held out, and writes a folder that
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

from .data import Drawings, load_names
from .scenes import sample_pictures
from .training.loop import Run, learning_rate

__all__ = ["encode", "export", "new", "psnr", "train", "vae_loss"]

_WIDTHS = (24, 48, 96, 96)
_CHANNELS = 8


def new(smoke: bool = False, seed: int = 0) -> Any:
    """An AutoencoderKL of diffusers with random weights; `smoke` makes a tiny one."""

    diffusers = require("diffusers", "the test bed needs", "testbed")
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


def vae_loss(vae: Any, pictures: Tensor, generator: Generator, kl_weight: float = 1e-3) -> Tensor:
    r"""Absolute and squared error, error of the differences of neighbors, and a little KL.

    Arguments:
        vae: The autoencoder.
        pictures: In [0, 1], with shape (B, 3, 64, 64).
        generator: Draws the latents.
        kl_weight: Of the divergence from a standard normal law, per latent number.
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
    """Scaled latents of pictures in [0, 1]: the mean of their law, with mean 0 and variance 1.

    Arguments:
        vae: The autoencoder.
        pictures: With shape (B, 3, 64, 64).

    Returns:
        Latents with shape (B, 8, 8, 8).
    """

    latents: Tensor = vae.encode(2 * pictures - 1).latent_dist.mode().float()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def psnr(vae: Any, pictures: Tensor) -> float:
    """Mean over pictures in [0, 1] of the peak signal-to-noise ratio, in decibels."""

    errors = []
    for part in pictures.split(32):
        again = vae.decode(vae.encode(2 * part - 1).latent_dist.mode()).sample / 2 + 0.5
        errors.append((again.clamp(0, 1) - part).square().flatten(1).mean(1))
    return float((-10 * torch.cat(errors).log10()).mean())


def export(vae: Any, pictures: Tensor, folder: Path) -> None:
    """Writes half precision, with scaling and shift that give latents mean 0 and variance 1.

    Arguments:
        vae: The autoencoder; not changed.
        pictures: From whose latents mean and variance are taken.
        folder: To write ``config.json`` and the weights to.
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
    steps: int = 2500,
    batch: int = 32,
    peak: float = 1e-3,
    seed: int = 0,
    threads: int = 1,
    resume: bool = True,
    smoke: bool = False,
) -> None:
    """Trains the autoencoder and writes it to `out`.

    Arguments:
        data: Folder of the drawings.
        out: Folder to write to; the state of the run lies beside it.
        steps: In all.
        batch: Pictures of a step.
        peak: The largest learning rate.
        seed: Of weights, pictures and noise.
        threads: Of PyTorch.
        resume: Whether to go on where an earlier run was.
        smoke: A tiny model, for tests.
    """

    torch.set_num_threads(threads)
    drawings, names = Drawings.load(data), load_names()
    held_out = names["held_out"]
    others = {entry.name for entry in drawings.entries} - set(held_out)
    own = drawings.where(names=others, encoded=True)
    vae = new(smoke, seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    generator = Generator().manual_seed(seed)
    made_with = {"data": own, "weights": vae, "batch": batch, "peak": peak, "seed": seed}
    run = Run(out.with_suffix(".state"), {"vae": vae}, optimizer, generator, made_with=made_with)
    if resume and run.restore():
        print(f"going on at step {run.step}")

    def loss() -> Tensor:
        pictures, _ = sample_pictures(own, batch, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return vae_loss(vae, pictures, generator)

    run.train(steps, batch, lambda step: learning_rate(step, steps, peak), loss, printed=50)
    vae.eval()
    check = Generator().manual_seed(seed + 1)
    pictures = lambda part, count: sample_pictures(part, count, check)[0]
    count = 16 if smoke else 512
    export(vae, pictures(own.where(names=names["train"]), 2 * count), out)
    unseen = drawings.where("judge", others, encoded=False)
    figures = {
        "psnr_training_drawings": psnr(vae, pictures(own, count)),
        "psnr_other_drawings": psnr(vae, pictures(unseen, count)),
        "psnr_held_out_names": psnr(vae, pictures(drawings.where(names=held_out), count)),
        "steps": steps,
        "pictures_seen": run.seen,
        "minutes": round(run.seconds / 60, 1),
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    require("typer", "the command needs", "testbed").run(train)
