"""What an evaluation needs by name: sets of prompts, and embeddings of images for metrics."""

from . import embeddings, prompts
from .prompt_sets import PromptSet
from .published import PublishedPrompts

__all__ = ["PromptSet", "PublishedPrompts", "embeddings", "prompts"]
