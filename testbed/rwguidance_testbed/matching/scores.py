r"""The velocities of the teacher and of the student's law, and a discriminator.

All are transformers of :mod:`rwguidance_testbed.flow` that see states
:math:`x_t = (1 - t) x_0 + t \epsilon` and a caption; the last two start as copies of the teacher's.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .. import flow
from ..training.attention import CountedAttention

__all__ = ["Discriminator", "GuidedVelocity", "Velocity", "trainable_copy"]


def trainable_copy(transformer: nn.Module) -> Any:
    """Returns a copy of a transformer to train, with attention of its own."""

    network: Any = copy.deepcopy(transformer).train().requires_grad_(True)
    network.set_attn_processor(CountedAttention())
    return network


class Velocity(nn.Module):
    """The velocity of a law of pictures given a caption.

    Arguments:
        transformer: Transformer of a flow.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Returns the velocity at states of times t with shape (B,), like the states."""

        once = torch.zeros_like(t)
        return flow.velocity(self.transformer, x_t, t, text, pooled, once)


class GuidedVelocity(Velocity):
    """The velocity of a teacher with classifier-free guidance.

    Arguments:
        transformer: Transformer of a flow.
        guidance: Scale of the guidance.
        empty: Embeddings of the empty caption, with shapes (1, L + 1, D) and (1, E).
    """

    def __init__(
        self, transformer: nn.Module, guidance: float, empty: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__(transformer)
        self.guidance, self.empty = guidance, empty

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Returns the guided velocity at states of times t with shape (B,), like the states."""

        count = len(x_t)
        both = [
            torch.cat((given, none.expand(count, *none.shape[1:])))
            for given, none in zip((text, pooled), self.empty, strict=True)
        ]
        v = super().forward(torch.cat((x_t, x_t)), torch.cat((t, t)), *both)
        with_caption, without = v.chunk(2)
        return without + self.guidance * (with_caption - without)


class Discriminator(Velocity):
    """The logits by which noisy real pictures of a caption are told from a student's.

    Its network starts as a teacher's, which knows what pictures of a caption look like, but for the
    last layer, which starts from zero.

    Arguments:
        transformer: Transformer of a flow, of which a copy is trained.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(trainable_copy(transformer))
        last: Any = self.transformer.proj_out
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Returns one logit for each position, with shape (B, H, W); positive is real."""

        return super().forward(x_t, t, text, pooled)[:, 0]
