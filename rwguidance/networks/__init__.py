r"""Guidance networks: perceptrons for vectors and small images, convolutional ones for latents.

A guidance network is any module (x_t, t, condition), with t of shape (B,) and float64. It returns
:math:`\log h_t` of shape (B,), or a shift of the shape of x_t. The last layer starts at zero, so
that training starts from no guidance.
"""

from .guidance import PRESETS, AtStrength, GuidanceNetwork
from .latents import LatentExpectation, LatentShift
from .perceptrons import ExpectationMLP, ShiftMLP
from .registry import PublishedNetwork, available, load, published, register

__all__ = [
    "PRESETS",
    "AtStrength",
    "ExpectationMLP",
    "GuidanceNetwork",
    "LatentExpectation",
    "LatentShift",
    "PublishedNetwork",
    "ShiftMLP",
    "available",
    "load",
    "published",
    "register",
]
