"""Fixtures of the rewards' tests; helpers are in tests/*.py."""

from scored_folders import broken, folder, registered, run
from tiny_qwen import qwen, transformers

__all__ = ["broken", "folder", "qwen", "registered", "run", "transformers"]
