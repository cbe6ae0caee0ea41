"""The guidance network of the test bed's model of one step.

:mod:`rwguidance_testbed.network.objective` says what the network gives, and what it does not give.
"""

from .banks import draw_bank, prompts_of
from .command import train
from .evaluation import agreement, gain
from .fitting import Settings, make
from .objective import BankMean, BankShift
from .storage import FILE, read

__all__ = [
    "FILE",
    "BankMean",
    "BankShift",
    "Settings",
    "agreement",
    "draw_bank",
    "gain",
    "make",
    "prompts_of",
    "read",
    "train",
]
