"""What guidance networks share: how they see time, the size of a shift, a last layer of zero."""

import torch
from torch import Tensor, nn

from ..schedules import Scales

FREQUENCIES = 16


def posterior_variance(scales: Scales) -> Tensor:
    """That of a clean state under a unit Gaussian prior."""

    return scales.sigma**2 / (scales.alpha**2 + scales.sigma**2)


def waves(angle: Tensor) -> Tensor:
    """Sines and cosines of angles in [0, pi / 2] and of their multiples, one row for each."""

    angles = angle[:, None] * torch.arange(1, FREQUENCIES + 1, device=angle.device)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def silence(layer: nn.Conv2d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
