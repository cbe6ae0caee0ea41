"""The three kinds of towers by name, made anew or read.

All take pictures of 64 x 64 pixels. :class:`~rwguidance_testbed.encoders.judge.Judge` is stored as
this package pleases, :class:`~rwguidance_testbed.encoders.pick.Pick` as PickScore is, and
:class:`~rwguidance_testbed.encoders.hps.HPS` as HPSv2 is.
"""

from pathlib import Path

from rwguidance.support.randomness import seeded

from .base import Towers
from .hps import HPS
from .judge import Judge
from .pick import Pick

__all__ = ["KINDS", "new", "read"]

KINDS: dict[str, type[Towers]] = {"judge": Judge, "pick": Pick, "hps": HPS}
"""The classes by the name that the command takes."""


def new(kind: str, tokenizer: Path, smoke: bool = False, seed: int = 0) -> Towers:
    """Returns towers with random weights.

    Arguments:
        kind: One of `KINDS`.
        tokenizer: Folder of a tokenizer; "hps" has its own.
        smoke: Whether the towers are tiny, for tests.
        seed: Seed of the weights.
    """

    with seeded(seed):
        return KINDS[kind].new(tokenizer, smoke)


def read(kind: str, folder: Path) -> Towers:
    """Returns the towers that their `write` wrote, in single precision.

    Arguments:
        kind: One of `KINDS`.
        folder: Folder of the towers.
    """

    with seeded(0):  # what is read replaces random weights
        return KINDS[kind].read(folder)
