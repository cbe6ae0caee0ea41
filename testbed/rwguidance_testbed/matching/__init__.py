"""The few-step models of the test bed, matched to the law of their teacher."""

from .command import MATCHING, MatchingOptions, match, walk

__all__ = ["MATCHING", "MatchingOptions", "match", "walk"]
