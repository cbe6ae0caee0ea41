"""What an evaluation found, picture by picture: the one thing that tables and pages read.

A *cell* is a method at a strength. Every cell has the same prompts and, of each, the same number of
pictures, which start from the same noise as those of every other cell: so the difference of two
cells is that of pairs. Beside the cells are draws of the model that no method has seen; weighted by
the reward that is aligned to, they stand for the exactly tilted law
(:mod:`rwguidance.evaluation.targets`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .targets import Draws, Target, tilted

__all__ = ["BASE", "COSTS", "Cell", "Failure", "Pictures", "Results"]

COSTS = ("network", "decoder", "reward", "draws", "seconds", "memory")
"""Costs of a prompt's pictures, in this order.

States that the network saw, states decoded and pictures scored by the reward that is aligned to,
all of them without the draws of the model; number of these draws, whose costs come on top; seconds,
without the draws; and the largest memory in use, in bytes, NaN where it cannot be known.
"""


@dataclass(frozen=True)
class Cell:
    """A method at a strength.

    Arguments:
        method: Label of the method.
        nats: Strength, in nats; None for a method that has none.
    """

    method: str
    nats: float | None = None

    def __str__(self) -> str:
        return self.method if self.nats is None else f"{self.method} at {self.nats:g} nats"


BASE = Cell("base")
"""The model alone."""


@dataclass(frozen=True)
class Pictures:
    r"""The pictures of one cell, M of each of P prompts.

    Arguments:
        rewards: Rewards by name, in units of each, float64, with shape (P, M); NaN where there is
            none.
        embeddings: Embeddings by name, each with shape (P, M, D); NaN where there is none.
        costs: Costs of the M pictures of each prompt, by the names :data:`COSTS`, float64, with
            shape (P,); NaN where the cell failed.
        facts: Facts that the method states, a mapping for each prompt.
        files: Paths of the pictures that were kept, by number of the prompt.
    """

    rewards: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]
    costs: Mapping[str, Tensor]
    facts: Sequence[Mapping[str, Any]]
    files: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Something that could not be had.

    Arguments:
        prompt: The prompt.
        place: Description of what failed: a cell, or a reward in one.
        reason: Reason, in one line.
    """

    prompt: str
    place: str
    reason: str


@dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    Arguments:
        plan: Settings of the evaluation, in values that JSON can hold.
        prompts: The P prompts that are finished.
        aligned: Name of the reward that is aligned to.
        rewards: Names of all rewards, that one first.
        embeddings: Names of the embeddings.
        strengths: Strengths of the tilted law, in nats, ascending.
        cells: Pictures by cell; :data:`BASE` comes first.
        draws: Draws that stand for the tilted law, of each prompt; None for a prompt without any.
        failures: What could not be had.
    """

    plan: Mapping[str, Any]
    prompts: Sequence[str]
    aligned: str
    rewards: Sequence[str]
    embeddings: Sequence[str]
    strengths: Sequence[float]
    cells: Mapping[Cell, Pictures]
    draws: Sequence[Draws | None]
    failures: Sequence[Failure] = ()

    @cached_property
    def targets(self) -> Mapping[float, Target]:
        """The exactly tilted law by strength."""

        return {nats: tilted(self.draws, self.aligned, nats) for nats in self.strengths}

    @property
    def base(self) -> Pictures:
        """The pictures of the model alone."""

        return self.cells[BASE]

    def gains(self, cell: Cell, name: str) -> Tensor:
        """Returns the mean gain of a reward over the base in each prompt, in its unit, (P,).

        It is over the pictures that have both rewards, and NaN where there are none.

        Arguments:
            cell: One of the cells.
            name: Name of the reward.
        """

        gain = self.cells[cell].rewards[name] - self.base.rewards[name]
        return torch.where(gain.isfinite(), gain, math.nan).nanmean(1)

    def draw_means(self, name: str) -> Tensor:
        """Returns the mean of a reward over the draws of each prompt, NaN without draws, (P,).

        Arguments:
            name: Name of the reward.
        """

        means = [math.nan if one is None else float(one.rewards[name].mean()) for one in self.draws]
        return torch.tensor(means, dtype=torch.float64)
