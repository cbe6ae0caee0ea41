r"""The decoder of the autoencoder, trained further against a discriminator.

.. code-block:: bash

    python -m rwguidance_testbed.decoder --data FOLDER --start FOLDER --out FOLDER

Errors alone make a decoder blur what it is unsure of. So a discriminator of patches learns to tell
decoded pictures from painted ones, and its gradient is added, as is that of the distance of both
pictures in its own features. The encoder stays as it is: latents, and generators of them, stay
valid.

References:
    | Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021),
      arXiv:2012.09841
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rwguidance.support.randomness import generator_for, seeded

from . import commands
from .data import Drawings, load_names
from .gold import sharpness
from .scenes import render, sample_pictures, sample_scenes
from .training.balance import slope_of_size
from .training.capture import captured
from .training.cards import write_figures
from .training.ema import ExponentialMovingAverage
from .training.options import compute_on
from .training.timed import TimedRun, adam, descend, rate_after, set_rate
from .vae import psnr, read

__all__ = [
    "OPTIONS",
    "DecoderOptions",
    "PatchDiscriminator",
    "Sharpening",
    "decode",
    "error",
    "sharpness_kept",
    "train",
]

_PART = 512  # pictures that are painted and encoded at a time


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """Options of the training.

    Arguments:
        minutes: Minutes of the run, after pictures are painted.
        batch: Pictures of a step.
        peak: Largest learning rate, of both networks.
        painted: Pictures that are painted and used again and again.
        adversarial: Size of the discriminator's gradient, that of the errors being one.
        device: Device of PyTorch.
        threads: Threads of PyTorch.
        seed: Seed of weights, pictures and noise.
    """

    minutes: float = 120.0
    batch: int = 128
    peak: float = 3e-4
    painted: int = 32_768
    adversarial: float = 0.6
    device: str = "cpu"
    threads: int = 1
    seed: int = 0


OPTIONS = DecoderOptions()
"""Default options of the training."""


class PatchDiscriminator(nn.Module):
    """The logits by which patches of painted pictures are told from decoded ones.

    Arguments:
        width: Channels of the first layer.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        sizes = [(3, width, 3, 1), (width, 2 * width, 4, 2), (2 * width, 4 * width, 4, 2)]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, size, stride, padding=1)
            for before, after, size, stride in sizes
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, after) for _, after, *_ in sizes)
        self.last = nn.Conv2d(4 * width, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns one logit for each patch, positive for painted ones, and all features.

        Arguments:
            pictures: Pictures in [-1, 1], with shape (B, 3, H, W).
        """

        x, features = pictures, []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.leaky_relu(norm(layer(x)), 0.2)
            features.append(x)
        return self.last(x), features


def error(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Returns absolute and squared error, and the error of differences of neighbors, a number."""

    off = decoded - pictures
    edges = off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()
    return off.abs().mean() + off.square().mean() + edges


class Sharpening:
    """The steps of the decoder and of its discriminator.

    Arguments:
        vae: The autoencoder, whose decoder is trained.
        discriminator: The discriminator.
        optimizers: Optimizers of "decoder" and "discriminator".
        pictures: Pictures of type uint8, with shape (N, 3, 64, 64).
        batch: Pictures of a step.
        adversarial: Size of the discriminator's gradient, that of the errors being one.
        generator: Source of all random numbers.
    """

    def __init__(
        self,
        vae: Any,
        discriminator: PatchDiscriminator,
        optimizers: dict[str, torch.optim.Optimizer],
        pictures: Tensor,
        batch: int,
        adversarial: float,
        generator: Generator,
    ) -> None:
        self.vae, self.discriminator, self.optimizers = vae, discriminator, optimizers
        self.pictures, self.generator = pictures, generator
        self.batch, self.adversarial = batch, adversarial
        names = ("error", "discriminator", "fooled")
        self.losses = {name: torch.zeros((), device=generator.device) for name in names}

    def step(self) -> None:
        """Takes a step of both networks."""

        size, device = (self.batch,), self.generator.device
        index = torch.randint(len(self.pictures), size, generator=self.generator, device=device)
        pictures = self.pictures[index].float() / 127.5 - 1
        decoded = decode(self.vae, pictures, self.generator)
        here = decoded.detach().requires_grad_()
        errors = error(here, pictures)
        logits, features = self.discriminator(here)
        with torch.no_grad():
            _, wanted = self.discriminator(pictures)
        near = [(x - y).abs().mean() for x, y in zip(features, wanted, strict=True)]
        fooled = -logits.mean() + torch.stack(near).sum()
        (slope,) = torch.autograd.grad(errors, here)
        slope = slope + self.adversarial * slope_of_size(fooled, here, slope.square().mean().sqrt())
        descend(self.optimizers["decoder"], (decoded * slope).sum())
        real, drawn = (self.discriminator(x)[0] for x in (pictures, here.detach()))
        hinge = F.relu(1 - real).mean() + F.relu(1 + drawn).mean()
        descend(self.optimizers["discriminator"], hinge)
        for name, value in (("error", errors), ("discriminator", hinge), ("fooled", fooled)):
            self.losses[name].copy_(value.detach())


def decode(vae: Any, pictures: Tensor, generator: Generator) -> Tensor:
    """Returns decoded draws of the latents of pictures in [-1, 1], with shape (B, 3, H, W)."""

    with torch.no_grad():
        law = vae.encode(pictures).latent_dist
        noise = torch.randn(law.mean.shape, generator=generator, device=generator.device)
        latents = law.mean + law.std * noise
    decoded: Tensor = vae.decode(latents).sample
    return decoded


@torch.no_grad()
def sharpness_kept(vae: Any, pictures: Tensor) -> float:
    """Returns the sharpness of decoded pictures over that of the pictures, means of both."""

    parts = []
    for part in pictures.split(32):
        again = vae.decode(vae.encode(2 * part - 1).latent_dist.mode()).sample / 2 + 0.5
        parts.append(torch.stack((sharpness(again.clamp(0, 1)), sharpness(part))))
    decoded, painted = torch.cat(parts, dim=1).mean(1).tolist()
    return decoded / painted


def train(
    data: Path = Path("out/testbed"),
    start: Path = Path("out/testbed/emoji-vae"),
    out: Path = Path("out/testbed/emoji-vae-sharp"),
    options: DecoderOptions = OPTIONS,
) -> None:
    """Trains the decoder further and writes the autoencoder to `out`.

    Arguments:
        data: Folder of the drawings.
        start: Folder of the autoencoder.
        out: Folder to write to; the state of the run lies beside it.
        options: Options of the training.
    """

    device = compute_on(options.device, options.threads)
    drawings, names = Drawings.load(data), load_names()
    others = {entry.name for entry in drawings.entries} - set(names["held_out"])
    own = drawings.where(names=others, encoded=True)
    vae = read(start).to(device)
    vae.decoder.train().requires_grad_(True)
    with seeded(options.seed):
        discriminator = PatchDiscriminator().to(device)
    trained = {"decoder": vae.decoder, "discriminator": discriminator}
    betas = {"decoder": (0.9, 0.99), "discriminator": (0.0, 0.99)}
    optimizers = {name: adam(m.parameters(), device, betas[name]) for name, m in trained.items()}
    average = ExponentialMovingAverage([vae.decoder], decay=0.998)
    pictures = _paint(own, options.painted, options.seed, device)
    generator = Generator(device).manual_seed(options.seed)
    run = TimedRun(
        out.with_suffix(".state"), {**trained, "average": average.modules[0]}, optimizers, generator
    )
    run.restore()
    sharpening = Sharpening(
        vae, discriminator, optimizers, pictures, options.batch, options.adversarial, generator
    )
    step = captured(sharpening.step, generator)
    for share in run.steps(options.minutes, sharpening.losses):
        for optimizer in optimizers.values():
            set_rate(optimizer, rate_after(share, options.peak))
        step()
        average.update(run.step)
    vae.decoder = average.modules[0]
    copy.deepcopy(vae).cpu().half().save_pretrained(out)
    _write_figures(out, vae.cpu(), drawings, run, options)


def _paint(drawings: Drawings, count: int, seed: int, device: torch.device) -> Tensor:
    """Returns random pictures of type uint8, with shape (count, 3, 64, 64)."""

    own = Drawings(drawings.entries, drawings.pixels.to(device))
    parts = []
    for start in range(0, count, _PART):
        scenes = sample_scenes(
            own, min(_PART, count - start), generator_for(seed, "decoder", start)
        )
        parts.append((255 * render(own, scenes)).round().byte())
    return torch.cat(parts)


def _write_figures(
    out: Path, vae: Any, drawings: Drawings, run: TimedRun, options: DecoderOptions
) -> None:
    names = load_names()
    others = {entry.name for entry in drawings.entries} - set(names["held_out"])
    parts = {
        "training_drawings": drawings.where("generator", names["train"]),
        "other_drawings": drawings.where("judge", others, encoded=False),
        "held_out_names": drawings.where(names=names["held_out"]),
    }
    check = Generator().manual_seed(options.seed + 1)
    figures: dict[str, float] = {}
    for name, part in parts.items():
        pictures, _ = sample_pictures(part, 256, check)
        figures[f"psnr_{name}"] = round(psnr(vae, pictures), 2)
        figures[f"sharpness_kept_{name}"] = round(sharpness_kept(vae, pictures), 3)
    figures |= {"steps": run.step, "pictures_seen": run.step * options.batch}
    figures["minutes"] = round(run.seconds / 60, 1)
    write_figures(out, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    commands.run(train)
