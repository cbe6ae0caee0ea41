r"""The losses of towers: contrastive ones, and that of Bradley and Terry on preferences.

References:
    | Learning Transferable Visual Models From Natural Language Supervision
      (Radford et al., 2021), arXiv:2103.00020
    | Supervised Contrastive Learning (Khosla et al., 2020), arXiv:2004.11362
    | Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation
      (Kirstain et al., 2023), arXiv:2305.01569
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AlignmentHead", "contrastive_loss", "preference_loss"]

_LARGEST_SCALE = 100.0  # CLIP's bound, against instability


def contrastive_loss(
    pictures: Tensor,
    captions: Tensor,
    others: Tensor,
    log_scale: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    r"""Returns the cross-entropy of pictures' own captions, and of captions' own pictures.

    The logits are :math:`e^s \cos(x_i, y_j)`, the factor at most 100.

    Arguments:
        pictures: Embeddings with shape (B, D).
        captions: Embeddings of the captions of these pictures, in the same order.
        others: Embeddings of captions that are true of none of the pictures, with shape (M, D).
        log_scale: The scalar s.
        smoothing: Share of the target that all candidates get alike.

    Returns:
        The mean of both, in float32.
    """

    x, y = (F.normalize(e.float(), dim=-1) for e in (pictures, torch.cat((captions, others))))
    logits = _factor(log_scale) * x @ y.T
    right = torch.arange(len(x))
    backward = F.cross_entropy(logits[:, : len(x)].T, right, label_smoothing=smoothing)
    return (F.cross_entropy(logits, right, label_smoothing=smoothing) + backward) / 2


def preference_loss(
    first: Tensor, second: Tensor, captions: Tensor, label: Tensor, log_scale: Tensor
) -> Tensor:
    r"""Returns the loss :math:`-\log \sigma(e^s (\cos(x_0, y) - \cos(x_1, y)))`.

    It is that of Bradley and Terry.

    Arguments:
        first: Embeddings of the first picture of each pair, with shape (B, D).
        second: Embeddings of the second picture.
        captions: Embeddings of the caption that both were drawn for.
        label: 1 if the first is preferred, 0 if the second is, 0.5 for a tie, with shape (B,).
        log_scale: The scalar s.

    Returns:
        The mean of the cross-entropy, in float32.
    """

    x, z, y = (F.normalize(e.float(), dim=-1) for e in (first, second, captions))
    difference = _factor(log_scale) * ((x - z) * y).sum(-1)
    return F.binary_cross_entropy_with_logits(difference, label.float())


class AlignmentHead(nn.Module):
    """A linear head in whose projection two pictures of the same name are aligned.

    Arguments:
        dimension: Length of the embeddings.
    """

    depends_on = ()

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.project = nn.Linear(dimension, dimension // 2, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the contrastive loss between both pictures of each pair."""

        first, second = self.project(first.float()), self.project(second.float())
        return contrastive_loss(first, second, second[:0], self.log_scale)


def _factor(log_scale: Tensor) -> Tensor:
    return log_scale.float().exp().clamp(max=_LARGEST_SCALE)
