"""Rewards of images: what is good. The package knows nothing of diffusion."""

from rwguidance.support.aliases import alias

alias(__name__, "rwguidance.rewards")  # under either name, it is one module

from .aesthetic import Aesthetic, AestheticV25
from .base import Reward, RewardFile, RewardSpec
from .clipscore import CLIPScore
from .composite import LowerConfidenceBound, Normalized, WeightedSum
from .constraints import ConstrainedTilt, constrained_tilt
from .hpsv2 import HPSv2, HPSv21
from .hpsv3 import HPSv3
from .imagereward import ImageReward
from .jpeg import JPEG
from .normalizers import Affine, Normalizer, Rank, ZScore
from .pickscore import PickScore
from .registry import available, load, register
from .remote import RemoteReward, serve
from .table import RewardTable
from .unified import UnifiedReward
from .vqascore import VQAScore

__all__ = [
    "JPEG",
    "Aesthetic",
    "AestheticV25",
    "Affine",
    "CLIPScore",
    "ConstrainedTilt",
    "HPSv2",
    "HPSv3",
    "HPSv21",
    "ImageReward",
    "LowerConfidenceBound",
    "Normalized",
    "Normalizer",
    "PickScore",
    "Rank",
    "RemoteReward",
    "Reward",
    "RewardFile",
    "RewardSpec",
    "RewardTable",
    "UnifiedReward",
    "VQAScore",
    "WeightedSum",
    "ZScore",
    "available",
    "constrained_tilt",
    "load",
    "register",
    "serve",
]
