"""A page in the browser: a prompt, a reward, a strength; base beside aligned from the same noise.

What it makes, it makes as `rwguidance generate` does, and it says with which lines.
"""

from .requests import Limits, Request
from .studio import Answer, Studio

__all__ = ["Answer", "Limits", "Request", "Studio"]
