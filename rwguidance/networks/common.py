"""Features of the noise level, the size of a shift and a first output of zero, for all networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..schedules import Scales
from ..support import checks

FREQUENCIES = 16
"""Number of multiples of an angle whose sines and cosines a network sees."""


def posterior_variance(scales: Scales) -> Tensor:
    """Variance of a clean state given the noisy one, under a unit Gaussian prior."""

    return scales.sigma**2 / (scales.alpha**2 + scales.sigma**2)


def waves(angle: Tensor) -> Tensor:
    """Sines and cosines of angles in [0, pi / 2] and of their multiples, one row for each."""

    angles = angle[:, None] * torch.arange(1, FREQUENCIES + 1, device=angle.device)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Checks a shape, or sizes of layers.

    Raises:
        TypeError: If it is no sequence of integers.
        ValueError: If it is empty, or one of them is less than 1.
    """

    checks.instance(name, sizes, (list, tuple), "a list or tuple of integers")
    if not sizes:
        raise ValueError(f"{name} must hold one size at least, got none")
    for size in sizes:
        checks.integer(name, size, 1)


def silence(layer: nn.Conv2d | nn.Linear) -> None:
    """Sets the parameters of a last layer to zero, so that training starts from no guidance."""

    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
