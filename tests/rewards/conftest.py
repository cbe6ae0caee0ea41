"""Fixtures of the rewards' tests; helpers are in tests/*.py."""

from scored_folders import broken, folder, registered, run

__all__ = ["broken", "folder", "registered", "run"]
