"""Paths of the teacher from noise, and the file of them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from rwguidance.support.files import replacing

from ..distill.teachers import euler
from .pool import Captions, Pool
from .scores import Velocity

__all__ = ["follow", "load", "save", "walk"]

_WINDOW_STEPS = (4, 6, 10, 2)
"""Steps of the teacher between two levels of the flow, more where these are far apart."""


@torch.no_grad()
def follow(
    velocity: Velocity, noise: Tensor, sigmas: Sequence[float], text: Tensor, pooled: Tensor
) -> Tensor:
    """Returns the states of paths at all levels, with shape (B, levels, C, H, W).

    Arguments:
        velocity: Velocity of the paths.
        noise: Noise that they start from, with shape (B, C, H, W).
        sigmas: Levels, falling from 1, one more than there are windows.
        text: Embeddings of the tokens of captions, with shape (B, L, D).
        pooled: Embeddings of captions, with shape (B, E).
    """

    states = [noise]
    windows = zip(sigmas, sigmas[1:], _WINDOW_STEPS, strict=False)
    for upper, lower, count in windows:
        levels = torch.linspace(upper, lower, count + 1).tolist()
        slope = lambda x, i, levels=levels: velocity(
            x, x.new_full((len(x),), levels[i]), text, pooled
        )
        states.append(euler(slope, states[-1], levels))
    return torch.stack(states, dim=1)


def walk(
    velocity: Velocity,
    captions: Captions,
    shape: Sequence[int],
    sigmas: Sequence[float],
    generator: Generator,
    part: int = 2048,
) -> Tensor:
    """Returns one path for each caption, in half precision.

    Arguments:
        velocity: Velocity of the paths.
        captions: N captions.
        shape: Shape of latents, (C, H, W).
        sigmas: Levels, as those of :func:`follow`.
        generator: Source of the noise, on the device of the captions.
        part: Number of paths followed at once.

    Returns:
        States with shape (N, levels, C, H, W).
    """

    device = generator.device
    paths = []
    for index in torch.arange(len(captions.pooled), device=device).split(part):
        noise = torch.randn((len(index), *shape), generator=generator, device=device)
        paths.append(follow(velocity, noise, sigmas, *captions(index)).half())
    return torch.cat(paths)


def save(file: Path, pool: Pool, paths: Tensor) -> None:
    """Writes painted pictures and one path for each of their captions."""

    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        save_file({"latents": pool.latents, "tokens": pool.tokens, "paths": paths}, partial)


def load(file: Path, device: torch.device) -> tuple[Pool, Tensor]:
    """Returns what :func:`save` wrote, on a device."""

    from safetensors.torch import load_file

    parts = load_file(file, device=str(device))
    return Pool(parts["latents"], parts["tokens"]), parts["paths"]
