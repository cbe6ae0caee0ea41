"""What is pretrained: text-to-image models. Knows nothing of rewards."""

from .base import Backbone
from .registry import available, load, register

__all__ = ["Backbone", "available", "load", "register"]
