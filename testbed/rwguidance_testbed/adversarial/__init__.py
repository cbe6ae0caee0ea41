"""The one-step model of the test bed, trained further against a critic, as a LoRA."""

from .command import OPTIONS, widen

__all__ = ["OPTIONS", "widen"]
