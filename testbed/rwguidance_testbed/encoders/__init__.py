"""The three pairs of an image tower and a text tower: the judge, and two in published formats."""

from .base import Towers
from .hps import HPS, copy_image_tower
from .judge import Judge
from .kinds import KINDS, new, read
from .pick import Pick

__all__ = ["HPS", "KINDS", "Judge", "Pick", "Towers", "copy_image_tower", "new", "read"]
