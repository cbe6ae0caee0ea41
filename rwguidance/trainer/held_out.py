"""What a network is held against: draws of prompts that it has not seen, and how they tilt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..bank import Bank
from ..tilt import Tilt

__all__ = ["HeldOut"]


@dataclass(frozen=True)
class HeldOut:
    """Draws of held-out prompts, and what is needed to compare a network with them.

    Arguments:
        bank: The draws, with rewards.
        tilts: Tilts by strength.
        times: Times of a run, decreasing, with shape (steps + 1,).
        encode: A function from prompts to what model and network are conditioned on.
        seed: Seed of states and noise.
    """

    bank: Bank
    tilts: Mapping[float, Tilt]
    times: Tensor
    encode: Callable[[Sequence[Any]], Any]
    seed: int = 0

    def of(self, prompts: Sequence[Any]) -> "HeldOut":
        """Returns the same with the draws of some of the prompts."""

        places = [self.bank.rows[prompt] for prompt in prompts]
        rows = [i for place in places for i in range(place.start, place.stop)]
        owners = [
            prompt
            for prompt, place in zip(prompts, places, strict=True)
            for _ in range(place.start, place.stop)
        ]
        assert self.bank.rewards is not None
        return replace(self, bank=Bank(self.bank.x_0[rows], owners, self.bank.rewards[rows]))

    def with_draws(self, least: int) -> list[Any]:
        """Returns the prompts that have so many draws at least."""

        return [p for p, rows in self.bank.rows.items() if rows.stop - rows.start >= least]
