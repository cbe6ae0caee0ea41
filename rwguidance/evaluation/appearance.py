r"""How pictures look, as numbers that need no model: what changes where a reward is exploited.

Guidance that exploits a reward often shows here first: noise and sharp edges, values driven to the
ends of their range, garish colors. None of these is better for being larger; they are held against
those of the model and of the tilted law.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["APPEARANCE", "chroma", "clipped", "high_frequency"]

_LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of R, G and B in the luma of ITU-R BT.709."""

_CUTOFF = 0.25
"""Cycles per pixel, half of what pixels can carry along an axis."""

_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
"""Tristimulus values of linear sRGB; the sums of its rows are those of white, D65."""


def high_frequency(images: Tensor) -> Tensor:
    r"""Returns the share of the spectral energy of images above a quarter of a cycle per pixel.

    The spectrum is that of luma without its mean, continued by reflection so that borders are no
    edges; a frequency is the length of its vector. Noise without correlations has a share of
    :math:`1 - \pi / 16 \approx 0.80`. Compare images of one size.

    Arguments:
        images: Images in [0, 1], sRGB, with shape (B, 3, H, W).

    Returns:
        Shares in [0, 1], float64, with shape (B,): 0 for constant images.

    References:
        | Watch your Up-Convolution: CNN Based Generative Deep Neural Networks are Failing to
          Reproduce Spectral Distributions (Durall et al., 2020), arXiv:2003.01826
    """

    luma = _mix(images.double(), (_LUMA,))[:, 0]
    luma = luma - luma.mean((1, 2), keepdim=True)
    wide = torch.cat([luma, luma.flip(2)], 2)
    power = torch.fft.rfft2(torch.cat([wide, wide.flip(1)], 1)).abs().square()
    across = torch.fft.rfftfreq(wide.shape[2], device=images.device)
    down = torch.fft.fftfreq(power.shape[1], device=images.device)
    # Every frequency but those of the first and the last column stands for its mirror image, too.
    twice = torch.where((across > 0) & (across < 0.5), 2.0, 1.0)
    high = torch.hypot(down[:, None], across) > _CUTOFF
    total = (power * twice).sum((1, 2))
    share = (power * twice * high).sum((1, 2)) / total
    # What is left of a constant image is rounding.
    return torch.where(total > (1e-12 * wide[0].numel()) ** 2, share, 0.0)


def clipped(images: Tensor) -> Tensor:
    """Returns the share of the values of images, over pixels and channels, at the ends of 8 bits.

    Arguments:
        images: Images in [0, 1], with shape (B, 3, H, W).

    Returns:
        Shares in [0, 1], float64, with shape (B,).
    """

    levels = (255 * images.double()).round()
    return ((levels <= 0) | (levels >= 255)).double().mean((1, 2, 3))


def chroma(images: Tensor) -> Tensor:
    r"""Returns the mean over pixels of the chroma :math:`\sqrt{a^{*2} + b^{*2}}` in CIELAB.

    Arguments:
        images: Images in [0, 1], sRGB, with shape (B, 3, H, W).

    Returns:
        Chroma in units of CIELAB under the white D65, float64, with shape (B,): 0 for gray, 104.6
        for the red of sRGB.

    References:
        | Colorimetry, Part 4: CIE 1976 L*a*b* Colour Space (ISO/CIE 11664-4)
    """

    images = images.double()
    curve = ((images + 0.055) / 1.055).clamp_min(0).pow(2.4)
    linear = torch.where(images <= 0.04045, images / 12.92, curve)
    white = images.new_tensor(_XYZ).sum(1)[:, None, None]
    x, y, z = _compressed(_mix(linear, _XYZ) / white).unbind(1)
    return torch.hypot(500 * (x - y), 200 * (y - z)).mean((1, 2))


APPEARANCE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "high frequency": high_frequency,
    "clipped": clipped,
    "chroma": chroma,
}
"""The numbers by name."""


def _mix(images: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Returns weighted sums of the channels, with shape (B, K, H, W)."""

    return torch.einsum("kc,bchw->bkhw", images.new_tensor(weights), images)


def _compressed(x: Tensor) -> Tensor:
    """Returns the cube root of CIELAB, which is linear near zero."""

    knee = 6 / 29
    return torch.where(x > knee**3, x.clamp_min(knee**3).pow(1 / 3), x / (3 * knee**2) + 4 / 29)
