"""Image-text towers, trained on painted scenes and their captions, then on preferences."""

from .accuracy import measure, top_one_accuracy
from .command import OPTIONS, train
from .preference_pairs import Pairs

__all__ = ["OPTIONS", "Pairs", "measure", "top_one_accuracy", "train"]
