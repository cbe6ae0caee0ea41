"""Fixtures of every test, those of the library; helpers are in ../../tests/common.py."""

from common import generator, global_state_is_untouched

__all__ = ["generator", "global_state_is_untouched"]
