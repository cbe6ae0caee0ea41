"""What an evaluation needs by name: sets of prompts, and embeddings of images for metrics."""

from . import embeddings, prompts
from .prompts import PromptSet

__all__ = ["PromptSet", "embeddings", "prompts"]
