"""Image-text towers, trained on painted scenes and their captions, then on preferences."""

from .accuracy import measure, top_one_accuracy
from .command import train
from .preference_pairs import Pairs

__all__ = ["Pairs", "measure", "top_one_accuracy", "train"]
