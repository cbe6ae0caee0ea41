"""Evaluation: methods on prompts against the exactly tilted law, and what that needs by name."""

from . import embeddings, prompts
from .engine import evaluate, load_results
from .page import write_page
from .plan import Plan, TargetSize
from .prompt_sets import PromptSet
from .published import PublishedPrompts
from .results import BASE, Cell, Results
from .table import write_table

__all__ = [
    "BASE",
    "Cell",
    "Plan",
    "PromptSet",
    "PublishedPrompts",
    "Results",
    "TargetSize",
    "embeddings",
    "evaluate",
    "load_results",
    "prompts",
    "write_page",
    "write_table",
]
