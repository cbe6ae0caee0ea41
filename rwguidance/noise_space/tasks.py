"""What all methods of noise space share: their arguments, and the states they return."""

import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..support import checks
from ..support.conditions import condition_keys, describe_keys, take
from ..support.randomness import Generators
from ..tilt import Tilt
from .generators import Draw, Generate

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    r"""Clean states, one per output, and the noise they come from.

    Arguments:
        x_0: Clean states, with shape (B, \*event).
        noise: The noise that they were generated from, with shape (B, \*shape of the noise).
        log_w: Log-weights of the clean states, in nats, with shape (B,).
        evaluations: Number of clean states that were generated and scored for each output.
        diagnostics: Measures of how far to trust the states, each with shape (B,).
    """

    x_0: Tensor
    noise: Tensor
    log_w: Tensor
    evaluations: int
    diagnostics: dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """The arguments that all methods share, and their use: draw noise, generate and score it."""

    generate: Generate
    tilt: Tilt
    draw: Draw
    outputs: int
    condition: Any
    generator: Generators
    batch_size: int | None

    def __post_init__(self) -> None:
        checks.function("generate", self.generate)
        checks.instance("tilt", self.tilt, Tilt, "a Tilt")
        checks.function("draw", self.draw)
        checks.integer("outputs", self.outputs, 1)
        checks.generator("generator", self.generator)
        checks.optional(checks.integer, "batch_size", self.batch_size, 1)
        lengths = {"generator": self.generator, "condition": self.condition}
        for name, value in lengths.items():
            counted = isinstance(value, Sized) and not isinstance(value, Mapping | str | bytes)
            if counted and len(value) != self.outputs:
                raise ValueError(
                    f"{name} must hold one item per output, {self.outputs}, got {len(value)}"
                )

    @property
    def size(self) -> int:
        return self.batch_size or self.outputs

    def groups(self) -> list[list[int]]:
        """The outputs, split into those that run at once."""

        return [
            list(range(self.outputs))[first : first + self.size]
            for first in range(0, self.outputs, self.size)
        ]

    def generators(self, rows: list[int]) -> Generators:
        """Sources of randomness for the outputs `rows`."""

        if self.generator is None or isinstance(self.generator, torch.Generator):
            return self.generator
        return [self.generator[row] for row in rows]

    def noise(self, rows: list[int]) -> Tensor:
        """Fresh noise for the outputs `rows`, which may repeat."""

        noise = self.draw(len(rows), self.generators(rows))
        check_batch(noise, len(rows), "draw must return noise")
        return noise

    def evaluate(self, noise: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Clean states of the outputs `rows`, and their log-weights."""

        condition = take(self.condition, rows)
        x_0 = self.generate(noise, condition)
        check_batch(x_0, len(rows), "generate must return states")
        return x_0, self.tilt(x_0, condition)

    def check_weights(self, log_w: Tensor, rows: list[int], what: str) -> None:
        """Raises for outputs of `rows` whose log-weights, with shape (len(rows), n), are -inf."""

        bad = [row for row, zero in zip(rows, (log_w == -math.inf).all(1), strict=True) if zero]
        if bad:
            raise ValueError(
                f"the tilt must leave a weight to {what} of every output, but it is zero for "
                f"outputs {describe_keys(bad)}{self._named(bad)}"
            )

    def _named(self, rows: list[int]) -> str:
        try:
            keys = condition_keys(take(self.condition, rows), len(rows))
        except (TypeError, ValueError):  # a condition that only the generator understands
            return ""
        return "" if keys is None else f" (conditions {describe_keys(keys)})"


def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where the mask, with shape (B,), is true, else of `b`."""

    return torch.where(mask.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), a, b)


def check_batch(x: Tensor, n: int, what: str) -> None:
    good = isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and len(x) == n
    if not good:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{what} of floating point with shape ({n}, *event), got {got}")
