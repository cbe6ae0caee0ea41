"""Layers of the networks for latents: an encoder, a decoder, and their blocks."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .common import FREQUENCIES

GROUPS = 8
"""Groups of channels that are normalized together."""


@dataclass(frozen=True)
class Given:
    """What a network is conditioned on, each with a row per state.

    Arguments:
        level: Features of the noise level, with shape (B, 2 FREQUENCIES).
        text: Pooled embeddings of the text, with shape (B, text).
        tokens: States of its tokens, with shape (B, L, tokens); None without.
        mask: Which tokens are there, with shape (B, L); None if all are.
        strength: Features of the strength of the tilt, with shape (B, 2 FREQUENCIES); None without.
    """

    level: Tensor
    text: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    strength: Tensor | None = None


class Encoder(nn.Module):
    """The stages from fine to coarse, with attention in the last, and the embedding for them."""

    depends_on = ()

    def __init__(
        self,
        channels: int,
        text: int,
        widths: Sequence[int],
        depth: int,
        tokens: int = 0,
        strength: bool = False,
    ) -> None:
        super().__init__()
        size = _embedding_size(widths)
        self.level = nn.Linear(2 * FREQUENCIES, size)
        self.text = nn.Sequential(nn.LayerNorm(text), nn.Linear(text, size)) if text else None
        self.embedding = nn.Linear(size, size)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(above, width, 3, stride=2, padding=1)
            for above, width in itertools.pairwise(widths)
        )
        self.stages = nn.ModuleList(_Stage(width, width, size, depth) for width in widths)
        self.attention = _Attention(widths[-1])
        self.last = _Stage(widths[-1], widths[-1], size, depth)
        # Last, so that networks without them start from the weights that they always had.
        self.strength = nn.Linear(2 * FREQUENCIES, size) if strength else None
        self.tokens = _CrossAttention(widths[-1], tokens) if tokens else None

    def forward(self, x: Tensor, given: Given) -> tuple[list[Tensor], Tensor]:
        silu = nn.functional.silu
        embedding = self.level(given.level)
        if self.text is not None:
            embedding = embedding + self.text(given.text)
        if self.strength is not None:
            embedding = embedding + self.strength(given.strength)
        embedding = silu(self.embedding(silu(embedding)))
        hidden, outputs = self.first(x), []
        for down, stage in zip((nn.Identity(), *self.down), self.stages, strict=True):
            hidden = stage(down(hidden), embedding)
            outputs.append(hidden)
        hidden = self.attention(hidden)
        if self.tokens is not None:
            hidden = self.tokens(hidden, given.tokens, given.mask)
        outputs[-1] = self.last(hidden, embedding)
        return outputs, embedding


class Decoder(nn.Module):
    """The way back up, with the outputs of the encoder's stages at its side."""

    depends_on = ()

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        size = _embedding_size(widths)
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.Conv2d(below, width, 3, padding=1) for width, below in pairs)
        self.stages = nn.ModuleList(_Stage(2 * width, width, size, depth) for width, _ in pairs)

    def forward(self, outputs: Sequence[Tensor], embedding: Tensor) -> Tensor:
        *finer, hidden = outputs
        for up, stage, beside in zip(self.up, self.stages, reversed(finer), strict=True):
            # To the size of what lies beside, which need not be twice this one.
            hidden = nn.functional.interpolate(hidden, size=beside.shape[-2:])
            hidden = stage(torch.cat((up(hidden), beside), dim=1), embedding)
        return hidden


class _Stage(nn.Module):
    """Residual blocks of one resolution."""

    depends_on = ()

    def __init__(self, inputs: int, outputs: int, embedding: int, depth: int) -> None:
        super().__init__()
        sizes = (inputs, *(outputs,) * (depth - 1))
        self.blocks = nn.ModuleList(_Block(size, outputs, embedding) for size in sizes)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class _Block(nn.Module):
    """Two convolutions beside an identity; the embedding modulates the norm between them."""

    depends_on = ()

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulated = nn.GroupNorm(GROUPS, outputs, affine=False)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.beside = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        silu = nn.functional.silu
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.modulated(self.first(silu(self.norm(x))))
        return self.beside(x) + self.second(silu((1 + scale) * hidden + shift))


class _Attention(nn.Module):
    """Attention between the pixels, with one head."""

    depends_on = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.project = nn.Conv2d(width, 3 * width, 1)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(self.norm(x)).flatten(2).chunk(3, dim=1)
        # Written out: the fused kernels have no second derivative, which regularizers need.
        weight = (query.mT @ key / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.last((value @ weight.mT).reshape(x.shape))


class _CrossAttention(nn.Module):
    """Attention of the pixels to the tokens of a text, and to one more, so that it has always one.

    That one is a parameter, for what the text says nothing of.
    """

    depends_on = ()

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.query = nn.Conv2d(width, width, 1)
        self.text = nn.Sequential(nn.LayerNorm(tokens), nn.Linear(tokens, width))
        self.nothing = nn.Parameter(torch.zeros(1, 1, width))
        self.project = nn.Linear(width, 2 * width)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        states = torch.cat((self.nothing.expand(len(x), 1, -1), self.text(tokens)), dim=1)
        heads = lambda value: value.unflatten(-1, (GROUPS, -1)).transpose(1, 2)  # (B, heads, L, w)
        query = heads(self.query(self.norm(x)).flatten(2).mT)
        key, value = map(heads, self.project(states).chunk(2, dim=-1))
        # Written out: the fused kernels have no second derivative, which regularizers need.
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if mask is not None:
            there = torch.cat((mask.new_ones(len(mask), 1), mask), dim=1)
            scores = scores.masked_fill(~there[:, None, None], -math.inf)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return x + self.last(mixed.mT.reshape(x.shape))


def _embedding_size(widths: Sequence[int]) -> int:
    return 8 * widths[0]
