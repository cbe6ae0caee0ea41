"""The few-step models of the test bed, distilled from teachers of many steps."""

from .command import OPTIONS, train
from .fidelity import measure

__all__ = ["OPTIONS", "measure", "train"]
