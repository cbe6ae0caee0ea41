"""Painted pictures as latents and tokens, encoded once and kept on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rwguidance.support.randomness import generator_for

from ..data import Drawings
from ..scenes import render, sample_scenes
from ..tokenizer import tokenize
from ..vae import encode

__all__ = ["Captions", "Pool", "paint"]

_PART = 1024  # pictures that are painted and encoded at a time


@dataclass(frozen=True)
class Pool:
    """Latents of painted pictures and the tokens of their captions.

    Arguments:
        latents: Scaled latents with shape (N, C, H, W).
        tokens: Tokens with shape (N, L).
    """

    latents: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.latents)


def paint(drawings: Drawings, vae: Any, tokenizer: Any, count: int, seed: int) -> Pool:
    """Paints random pictures, and encodes them where the autoencoder is.

    Arguments:
        drawings: Drawings that the pictures show.
        vae: The autoencoder.
        tokenizer: Tokenizer of the captions.
        count: Number of pictures.
        seed: Seed of the pictures.
    """

    own = Drawings(drawings.entries, drawings.pixels.to(vae.device))
    latents, tokens = [], []
    for start in range(0, count, _PART):
        some = min(_PART, count - start)
        scenes = sample_scenes(own, some, generator_for(seed, "pool", start))
        latents.append(encode(vae, render(own, scenes)))
        tokens.append(tokenize(tokenizer, [scene.caption for scene in scenes]))
    return Pool(torch.cat(latents), torch.cat(tokens).to(vae.device))


class Captions(nn.Module):
    """The embeddings of captions, kept in half precision.

    Arguments:
        embed: Function that embeds tokens, such as :func:`rwguidance_testbed.flow.embed_captions`.
        encoders: Text encoders that it is given.
        tokens: Tokens of the captions, with shape (N, L).
    """

    text: Tensor
    pooled: Tensor

    def __init__(self, embed: Any, encoders: Sequence[nn.Module], tokens: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            rows = [embed(encoders, part) for part in tokens.split(_PART)]
        text, pooled = (torch.cat([row[i].half() for row in rows]) for i in range(2))
        self.register_buffer("text", text)
        self.register_buffer("pooled", pooled)

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the embeddings of some captions in single precision, of each token and pooled."""

        return self.text[index].float(), self.pooled[index].float()
