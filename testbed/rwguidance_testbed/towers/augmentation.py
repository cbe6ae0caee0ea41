"""Augmentation: drawings and pictures changed in what their captions do not say."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..data import Drawing
from ..scenes import COLORS, Scene

__all__ = ["blur", "cutout", "deform", "jitter_colors", "jitter_hue"]

_BEND = 0.12


def jitter_colors(pixels: Tensor, generator: Generator) -> Tensor:
    """Drawings as other hands might draw them: other colors, other contrast, some with an outline.

    Arguments:
        pixels: Red, green, blue and alpha in [0, 1], premultiplied, with shape (B, 4, H, W).
        generator: Says how.
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
    color = color.clamp(min=0).minimum(alpha)
    outlined = torch.rand(count, 1, 1, 1, generator=generator) < 0.2
    alpha = torch.where(outlined, F.max_pool2d(alpha, 5, stride=1, padding=2), alpha)
    return torch.cat((color, alpha), dim=1)


def jitter_hue(scene: Scene, entry: Drawing, uniform: float) -> float:
    """The hue of a scene; of one in five turned by up to 90 degrees, if the name has no color.

    Arguments:
        scene: The scene.
        entry: What it shows.
        uniform: A random number in [0, 1].
    """

    if uniform > 0.2 or set(COLORS) & set(re.findall("[a-z]+", entry.name)):
        return scene.hue
    return scene.hue + 900.0 * (uniform - 0.1)


def blur(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures more or less blurred, as generators do, up to means over 5 x 5 pixels.

    Arguments:
        pictures: With shape (B, C, H, W).
        generator: Says by how much.
    """

    mix = 3 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    means = lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    once = means(pictures)
    x = torch.lerp(pictures, once, (mix / 2).clamp(max=1))
    return torch.lerp(x, means(once), (mix - 2).clamp(min=0))


def deform(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures sheared, stretched and bent, lighter or darker.

    Few drawings of a name are known, and those of other styles have other proportions. Areas stay
    as they are on average, for captions speak of sizes. What comes in from outside has the color of
    the border.

    Arguments:
        pictures: In [0, 1], with shape (B, 3, H, W).
        generator: Says by how much.
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
    pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    light = torch.rand(count, 1, 1, 1, generator=generator)
    return (pictures * (0.85 + 0.3 * light)).clamp(0, 1)


def cutout(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures with a square hole of their mean color, of at most 0.3 of the side, anywhere.

    Arguments:
        pictures: With shape (B, C, H, W).
        generator: Says where, and how large.
    """

    count, _, height, width = pictures.shape
    place = torch.rand(count, 2, generator=generator)
    size = 0.3 * torch.rand(count, 1, generator=generator)
    inside = lambda where, n: (torch.linspace(0, 1, n) - where[:, None]).abs() < size / 2
    hole = inside(place[:, 0], height)[:, None, :, None] & inside(place[:, 1], width)[:, None, None]
    return torch.where(hole, pictures.mean((2, 3), keepdim=True), pictures)
