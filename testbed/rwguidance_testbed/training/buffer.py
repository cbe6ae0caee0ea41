"""A buffer of encoded pictures, for the teachers."""

from typing import Any

import torch
from torch import Generator, Tensor

from ..data import Drawings
from ..scenes import sample_pictures
from ..tokenizer import tokenize
from ..vae import encode

__all__ = ["LatentBuffer"]


class LatentBuffer:
    """Latents and captions of many random pictures, of which some are replaced at every step.

    Encoding a picture costs a third of a training step on it. So every picture is used several
    times, each time with other noise, before another takes its place.

    Arguments:
        drawings: Drawings that the pictures show.
        vae: The autoencoder.
        tokenizer: Tokenizer of the captions.
        size: Number of pictures kept.
        generator: Source of the pictures.
    """

    def __init__(
        self, drawings: Drawings, vae: Any, tokenizer: Any, size: int, generator: Generator
    ) -> None:
        self.drawings, self.vae, self.tokenizer = drawings, vae, tokenizer
        self.generator = generator
        self.oldest = 0
        parts = [self._fresh(min(64, size - start)) for start in range(0, size, 64)]
        self.latents, self.tokens = (torch.cat(rows) for rows in zip(*parts, strict=True))

    def renew(self, count: int) -> None:
        """Replaces the oldest pictures, so many of them."""

        where = (self.oldest + torch.arange(count)) % len(self.latents)
        self.latents[where], self.tokens[where] = self._fresh(count)
        self.oldest = (self.oldest + count) % len(self.latents)

    def batch(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Returns latents, (count, 8, 8, 8), and tokens, (count, 16), chosen uniformly."""

        index = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[index], self.tokens[index]

    def _fresh(self, count: int) -> tuple[Tensor, Tensor]:
        pictures, captions = sample_pictures(self.drawings, count, self.generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = encode(self.vae, pictures)
        return latents, tokenize(self.tokenizer, captions)
