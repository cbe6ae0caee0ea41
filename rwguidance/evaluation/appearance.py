"""How pictures look, as numbers that need no model: what rises where a reward is exploited."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["APPEARANCE", "high_frequencies", "saturation"]


def saturation(images: Tensor) -> Tensor:
    """Returns the mean saturation of images: of a pixel, one less its smallest over its largest.

    Arguments:
        images: Images in [0, 1], sRGB, with shape (B, 3, H, W).

    Returns:
        Values in [0, 1], float64, with shape (B,): 0 for gray, 1 for pure colors.
    """

    low, high = images.double().clamp(0, 1).aminmax(dim=1)
    return torch.where(high > 0, 1 - low / high, 0.0).mean((1, 2))


def high_frequencies(images: Tensor) -> Tensor:
    """Returns the share of the power of images that lies above half the highest frequency.

    The power is that of the mean of the channels, without its mean. Noise without correlations has
    three quarters of its power there, a photograph a small part.

    Arguments:
        images: Images in [0, 1], with shape (B, 3, H, W).

    Returns:
        Shares in [0, 1], float64, with shape (B,): 0 for constant images.
    """

    gray = images.double().mean(1)
    power = torch.fft.fft2(gray - gray.mean((1, 2), keepdim=True)).abs().square()
    vertical, horizontal = (torch.fft.fftfreq(n, device=gray.device).abs() for n in gray.shape[1:])
    high = torch.maximum(vertical[:, None], horizontal) > 0.25
    total = power.sum((1, 2))
    share = (power * high.to(power)).sum((1, 2)) / total
    # What is left of a constant image is rounding.
    return torch.where(total > gray[0].numel() ** 2 * 1e-24, share, 0.0)


APPEARANCE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "saturation": saturation,
    "high frequencies": high_frequencies,
}
"""The numbers by name."""
