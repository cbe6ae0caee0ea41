"""Fixtures of every test; helpers are in common.py."""

from common import generator, global_state_is_untouched, schedule

__all__ = ["generator", "global_state_is_untouched", "schedule"]
