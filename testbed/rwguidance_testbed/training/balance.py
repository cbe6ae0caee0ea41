"""Gradients of two aims brought to one size, so that neither drowns the other."""

import torch
from torch import Tensor

__all__ = ["slope_of_size"]


def slope_of_size(loss: Tensor, where: Tensor, size: Tensor) -> Tensor:
    """Returns the gradient of a loss, scaled to have a given root mean square.

    Arguments:
        loss: The loss, a number.
        where: What it is differentiated by.
        size: Root mean square that is wanted.

    Returns:
        The scaled gradient, like `where`; zeros if the gradient is zero.
    """

    (slope,) = torch.autograd.grad(loss, where, retain_graph=True)
    return slope * (size / slope.square().mean().sqrt().clamp(min=1e-20))
