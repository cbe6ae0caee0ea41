"""A critic of groups of noisy latents: small heads on what a frozen flow sees in them.

The flow knows what pictures of a caption look like, so that only the heads have to be learned. They
see groups of pictures of one name, and how much these differ: whether a law is too narrow shows in
a group at once, in single pictures only after many.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training.attention import CountedAttention

__all__ = ["GROUP", "Critic", "Features", "Trunk", "Words", "deviations"]

GROUP = 4
"""Pictures of a group."""

Words = tuple[Tensor, Tensor]
"""Embeddings of captions: of each token, with shape (B, L, D), and pooled, with shape (B, E)."""

_LEAST = 1e-4  # variance that is added: the slope of a root at zero has no bound


class Features(nn.Module):
    """What the first blocks of a flow make of states and captions.

    Arguments:
        transformer: Transformer of a flow, which is frozen.
        blocks: Number of blocks.
        empty: Embeddings of the empty caption, those of one row.
    """

    def __init__(self, transformer: Any, blocks: int, empty: Words) -> None:
        super().__init__()
        self.transformer = transformer.eval().requires_grad_(False)
        self.transformer.set_attn_processor(CountedAttention())
        self.blocks = list(self.transformer.transformer_blocks[:blocks])
        self.empty = empty

    def forward(
        self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns features of patches, normalized, and of times and captions.

        Arguments:
            x_t: Noisy latents, with shape (B, C, H, W).
            t: Times in [0, 1], with shape (B,).
            text: Embeddings of the tokens of captions, with shape (B, L, D).
            pooled: Embeddings of captions, with shape (B, E).

        Returns:
            Tensors with shapes (B, blocks, patches, width) and (B, width).
        """

        network = self.transformer
        patches, about = network.pos_embed(x_t), network.time_text_embed(1000 * t, pooled)
        words, found = network.context_embedder(text), []
        for block in self.blocks:
            words, patches = block(hidden_states=patches, encoder_hidden_states=words, temb=about)
            found.append(F.layer_norm(patches, patches.shape[-1:]))
        return torch.stack(found, dim=1), about

    def without_captions(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features of the same shapes under the empty caption.

        Arguments:
            x_t: Noisy latents, with shape (B, C, H, W).
            t: Times in [0, 1], with shape (B,).
        """

        text, pooled = (part.expand(len(x_t), *part.shape[1:]) for part in self.empty)
        return self.forward(x_t, t, text, pooled)


class Trunk(nn.Module):
    """Two convolutions over patches, of which the first is moved by times and captions.

    Arguments:
        width: Width of the features of patches.
        about: Width of what is known of times and captions.
        hidden: Width of what comes out.
    """

    def __init__(self, width: int, about: int, hidden: int) -> None:
        super().__init__()
        self.first, self.about = nn.Conv2d(width, hidden, 1), nn.Linear(about, hidden)
        self.second = nn.Conv2d(hidden, hidden, 3, padding=1)

    def forward(self, features: Tensor, about: Tensor) -> Tensor:
        """Returns features with shape (B, hidden, side, side).

        Arguments:
            features: Features of the patches of a square, with shape (B, width, patches).
            about: What is known of times and captions, with shape (B, about).
        """

        side = round(features.shape[2] ** 0.5)
        h = self.first(features.unflatten(2, (side, side)))
        h = F.leaky_relu(h + self.about(about)[:, :, None, None], 0.2)
        moved: Tensor = F.leaky_relu(self.second(h), 0.2) + h
        return moved


class _Fit(nn.Module):
    """A logit linear in features, by weights that are linear in captions; zero at first.

    Arguments:
        width: Width of the features.
        given: Width of what is known of captions.
    """

    def __init__(self, width: int, given: int) -> None:
        super().__init__()
        self.always, self.by_caption = nn.Linear(width, 1), nn.Linear(given, width)
        for layer in (self.always, self.by_caption):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        fitting = (x * self.by_caption(given)).sum(1) / x.shape[1] ** 0.5
        logit: Tensor = self.always(x)[:, 0] + fitting
        return logit


def deviations(h: Tensor) -> Tensor:
    """Returns how much the pictures of each group differ, with shape (B / GROUP, 2 width).

    The first half of the channels are deviations of means over positions; the others are means over
    positions of deviations.

    Arguments:
        h: Features, with shape (B, width, H, W); every `GROUP` rows are a group.
    """

    groups = h.unflatten(0, (-1, GROUP))
    deviation = lambda x: (x.var(dim=1) + _LEAST).sqrt()
    return torch.cat(
        (deviation(groups.mean(dim=(3, 4))), deviation(groups).mean(dim=(2, 3))), dim=1
    )


class _Head(nn.Module):
    """The logits of one block, undecided at first."""

    def __init__(self, width: int, pooled: int, hidden: int) -> None:
        super().__init__()
        self.trunk = Trunk(width, width, hidden)
        self.single = _Fit(hidden, width + pooled)
        self.spread = _Fit(2 * hidden, pooled)

    def forward(self, patches: Tensor, about: Tensor, pooled: Tensor) -> Tensor:
        h = self.trunk(patches.mT, about)
        captions = pooled.unflatten(0, (-1, GROUP)).mean(dim=1)
        single: Tensor = self.single(h.mean(dim=(2, 3)), torch.cat((about, pooled), dim=1))
        shared: Tensor = self.spread(deviations(h), captions)
        return single + shared.repeat_interleave(GROUP)


class Critic(nn.Module):
    """Logits by which pictures of a caption are told from a student's, one for each block.

    Arguments:
        blocks: Number of blocks of :class:`Features`.
        width: Width of the features.
        pooled: Width of the embeddings of captions.
        hidden: Width of the heads.
    """

    def __init__(self, blocks: int, width: int, pooled: int, hidden: int = 128) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(width, pooled, hidden) for _ in range(blocks))

    def forward(self, features: Tensor, about: Tensor, pooled: Tensor) -> Tensor:
        """Returns logits with shape (B, blocks), larger for pictures.

        Arguments:
            features: Features of patches, with shape (B, blocks, patches, width); every `GROUP`
                rows are a group.
            about: Features of times and captions, with shape (B, width).
            pooled: Embeddings of captions, with shape (B, E).
        """

        parts = zip(self.heads, features.unbind(1), strict=True)
        return torch.stack([head(part, about, pooled) for head, part in parts], dim=1)
