"""Scores of many images: streamed, journaled, and resumed exactly."""

from ..prompt_files import plan
from .finished import record_path
from .journal import journal_path
from .run import Scores, check_output, score
from .summaries import Best, Failure, Summary

__all__ = [
    "Best",
    "Failure",
    "Scores",
    "Summary",
    "check_output",
    "journal_path",
    "plan",
    "record_path",
    "score",
]
