"""Levels instead of weights: the smallest tilt under which several rewards reach their levels."""

from .tilt import ConstrainedTilt, constrained_tilt

__all__ = ["ConstrainedTilt", "constrained_tilt"]
