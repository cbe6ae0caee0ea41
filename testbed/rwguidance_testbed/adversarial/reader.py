"""A reader that names what noisy latents show, from what a frozen flow sees without a caption.

A critic says whether pictures look like those of a caption, but it moves with its student. The
reader is trained before and then stays as it is, so that its names hold a student where what it
draws can be told. Names are compared with pictures as embeddings, those of names that no drawing
has as well.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rwguidance.support.randomness import seeded

from .critic import Features, Trunk
from .examples import Examples, noisy

__all__ = ["NOISIEST_READ", "Reader", "train_reader"]

NOISIEST_READ = 0.6
"""Largest time of the states that are read: what noisier ones show has no certain name."""

_BATCH = 128
_PEAK, _RISE = 2e-3, 20  # learning rate, and the steps in which it rises
_DECAY = 0.02  # of the weights
_DROPOUT = 0.2
_SMOOTHING = 0.05  # share of the labels that goes to all names


class Reader(nn.Module):
    """Logits of names, from features of :class:`.critic.Features` and embeddings of names.

    Arguments:
        blocks: Number of blocks.
        width: Width of the features.
        patches: Number of patches, a square.
        pooled: Width of the embeddings of names.
        hidden: Width of what both are compared in.
    """

    def __init__(
        self, blocks: int, width: int, patches: int, pooled: int, hidden: int = 128
    ) -> None:
        super().__init__()
        self.trunk = Trunk(blocks * width, width, hidden)
        self.last = nn.Linear(patches * hidden, hidden)
        self.names = nn.Sequential(
            nn.Linear(pooled, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, features: Tensor, about: Tensor, table: Tensor) -> Tensor:
        """Returns logits with shape (B, N): scaled cosines of pictures and names.

        Arguments:
            features: Features of patches, with shape (B, blocks, patches, width).
            about: Features of times, with shape (B, width).
            table: Embeddings of names, with shape (N, E).
        """

        names = F.normalize(self.names(table), dim=1)
        return self.log_scale.exp() * self.seen(features, about) @ names.T

    def seen(self, features: Tensor, about: Tensor) -> Tensor:
        """Returns what pictures show, vectors of length 1, with shape (B, hidden)."""

        h = self.trunk(features.mT.flatten(1, 2), about)
        return F.normalize(self.last(F.dropout(h.flatten(1), _DROPOUT, self.training)), dim=1)


def train_reader(
    reader: Reader, features: Features, examples: Examples, steps: int, seed: int
) -> None:
    """Trains a reader on all pictures of examples; it is to be frozen then.

    Arguments:
        reader: The reader.
        features: The function of its features.
        examples: Pictures, painted and by the flow, and their names.
        steps: Number of steps.
        seed: Seed of choices, noise and what is dropped.
    """

    optimizer = torch.optim.AdamW(reader.parameters(), lr=_PEAK, weight_decay=_DECAY)
    generator = Generator().manual_seed(seed)
    reader.train()
    with seeded(seed):  # for dropout
        for step in range(steps):
            rate = _PEAK * min(1, (step + 1) / _RISE, 2 * (steps - step) / steps)
            optimizer.param_groups[0]["lr"] = rate
            index = torch.randint(len(examples.latents), (_BATCH,), generator=generator)
            latents = examples.latents[index].float()
            t = NOISIEST_READ * torch.rand(_BATCH, generator=generator)
            noise = torch.randn(latents.shape, generator=generator)
            with torch.no_grad():
                found = features.without_captions(noisy(latents, noise, t), t)
            loss = F.cross_entropy(
                reader(*found, examples.table),
                examples.names[index],
                label_smoothing=_SMOOTHING,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                print(f"reader at step {step}: {loss.item():.3f}", flush=True)
