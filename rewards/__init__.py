"""What is good: rewards of images. Knows nothing of diffusion."""

from .base import Reward, RewardSpec
from .registry import available, load, register

__all__ = ["Reward", "RewardSpec", "available", "load", "register"]
