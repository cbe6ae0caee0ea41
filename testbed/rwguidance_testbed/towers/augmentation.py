"""Augmentation: drawings and pictures changed in what their captions do not say.

Few drawings of a name are known. Others have other colors, outlines and proportions.

References:
    | Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis
      (Simard et al., 2003) (elastic deformation)
    | Improved Regularization of Convolutional Neural Networks with Cutout
      (DeVries and Taylor, 2017), arXiv:1708.04552
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..data import Drawing
from ..scenes import COLORS, Scene

__all__ = [
    "add_outlines",
    "blur",
    "cutout",
    "deform",
    "jitter_brightness",
    "jitter_colors",
    "jitter_hue",
]

_BEND = 0.12
"""Largest elastic displacement, in half sides: 4 of 64 pixels, less than a tenth of a drawing."""


def jitter_colors(pixels: Tensor, generator: Generator) -> Tensor:
    """Returns drawings with other saturation, brightness and contrast, one in ten of them gray.

    Arguments:
        pixels: Red, green, blue and alpha in [0, 1], premultiplied, with shape (B, 4, H, W).
        generator: Source of the random numbers.
    """

    count = len(pixels)
    color, alpha = pixels[:, :3], pixels[:, 3:]
    saturation, contrast, light, gray = torch.rand(4, count, 1, 1, 1, generator=generator)
    saturation = torch.where(gray < 0.1, 0.0, 0.5 + saturation)
    mean = color.mean(1, keepdim=True)
    color = mean + (color - mean) * saturation
    middle = color.sum((1, 2, 3)) / (3 * alpha.sum((1, 2, 3))).clamp(min=1.0)
    middle = middle[:, None, None, None] * alpha
    color = middle * (0.8 + 0.4 * light) + (color - middle) * (0.6 + 0.8 * contrast)
    return torch.cat((color.clamp(min=0).minimum(alpha), alpha), dim=1)


def add_outlines(pixels: Tensor, generator: Generator) -> Tensor:
    """Returns drawings of which one in five has a black outline of two pixels.

    Arguments:
        pixels: Red, green, blue and alpha in [0, 1], premultiplied, with shape (B, 4, H, W).
        generator: Source of the random numbers.
    """

    color, alpha = pixels[:, :3], pixels[:, 3:]
    outlined = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.2
    alpha = torch.where(outlined, F.max_pool2d(alpha, 5, stride=1, padding=2), alpha)
    return torch.cat((color, alpha), dim=1)


def jitter_hue(scene: Scene, entry: Drawing, uniform: float) -> float:
    """Returns the hue of a scene, in one of five turned by up to 90 degrees if no name has a color.

    Arguments:
        scene: The scene.
        entry: The drawing that it shows.
        uniform: A random number in [0, 1].

    Returns:
        The hue, in degrees.
    """

    if uniform > 0.2 or set(COLORS) & set(re.findall("[a-z]+", entry.name)):
        return scene.hue
    return scene.hue + 900.0 * (uniform - 0.1)


def blur(pictures: Tensor, generator: Generator) -> Tensor:
    """Returns pictures more or less blurred, as generators do, up to means over 5 x 5 pixels.

    Arguments:
        pictures: Pictures with shape (B, C, H, W).
        generator: Source of the random numbers.
    """

    mix = 3 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    means = lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    once = means(pictures)
    x = torch.lerp(pictures, once, (mix / 2).clamp(max=1))
    return torch.lerp(x, means(once), (mix - 2).clamp(min=0))


def deform(pictures: Tensor, generator: Generator) -> Tensor:
    """Returns pictures after a random affine map and an elastic deformation.

    Areas stay as they are on average, for captions speak of sizes. Pixels from outside have the
    color of the border.

    Arguments:
        pictures: Pictures with shape (B, C, H, W).
        generator: Source of the random numbers.
    """

    count, _, height, width = pictures.shape
    stretch, shear, angle = 2 * torch.rand(3, count, generator=generator) - 1
    longer, angle, shear = (0.25 * stretch).exp(), math.pi / 15 * angle, 0.25 * shear
    zero = torch.zeros(count)
    triangle = torch.stack((longer, shear, zero, 1 / longer), dim=1).unflatten(1, (2, 2))
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack((cos, -sin, sin, cos), dim=1).unflatten(1, (2, 2))
    matrix = torch.cat((turn @ triangle, torch.zeros(count, 2, 1)), dim=2)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    bend = _BEND * (2 * torch.rand(count, 2, 4, 4, generator=generator) - 1)
    bend = F.interpolate(bend, (height, width), mode="bilinear", align_corners=True)
    grid += bend.permute(0, 2, 3, 1)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def jitter_brightness(pictures: Tensor, generator: Generator) -> Tensor:
    """Returns pictures up to 15 % lighter or darker.

    Arguments:
        pictures: Pictures in [0, 1], with shape (B, C, H, W).
        generator: Source of the random numbers.
    """

    light = torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return (pictures * (0.85 + 0.3 * light)).clamp(0, 1)


def cutout(pictures: Tensor, generator: Generator) -> Tensor:
    """Returns pictures with a square hole of their mean color anywhere, at most 0.3 of the side.

    Arguments:
        pictures: Pictures with shape (B, C, H, W).
        generator: Source of the random numbers.
    """

    count, _, height, width = pictures.shape
    place = torch.rand(count, 2, generator=generator)
    size = 0.3 * torch.rand(count, 1, generator=generator)
    inside = lambda where, n: (torch.linspace(0, 1, n) - where[:, None]).abs() < size / 2
    hole = inside(place[:, 0], height)[:, None, :, None] & inside(place[:, 1], width)[:, None, None]
    return torch.where(hole, pictures.mean((2, 3), keepdim=True), pictures)
