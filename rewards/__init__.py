"""What is good: rewards of images. Knows nothing of diffusion."""

from .aesthetic import Aesthetic, AestheticV25
from .base import Reward, RewardFile, RewardSpec
from .clipscore import CLIPScore
from .hpsv2 import HPSv2, HPSv21
from .imagereward import ImageReward
from .jpeg import JPEG
from .pickscore import PickScore
from .registry import available, load, register

__all__ = [
    "JPEG",
    "Aesthetic",
    "AestheticV25",
    "CLIPScore",
    "HPSv2",
    "HPSv21",
    "ImageReward",
    "PickScore",
    "Reward",
    "RewardFile",
    "RewardSpec",
    "available",
    "load",
    "register",
]
