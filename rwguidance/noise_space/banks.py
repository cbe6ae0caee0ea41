"""Banks of what a generator makes, from which a temperature is chosen."""

from collections.abc import Sequence
from typing import Any

import torch

from ..bank import Bank
from ..support import checks
from ..support.conditions import take
from ..support.randomness import Generators
from .generators import Draw, Generate
from .tasks import check_batch

__all__ = ["draw_bank"]


def draw_bank(
    generate: Generate,
    draw: Draw,
    conditions: Sequence[Any],
    n: int,
    generator: Generators = None,
    batch_size: int | None = None,
) -> Bank:
    """Draws a bank of a generator, for :meth:`Tilt.for_kl` and its siblings.

    Arguments:
        generate: The generator.
        draw: A function that draws noise.
        conditions: Conditions, distinct, such as prompts.
        n: Number of draws of each, at least 2.
        generator: Source of randomness.
        batch_size: Number of states that are generated at once. None is `n`.

    Raises:
        TypeError: If noise or states are no batches of floating point.
        ValueError: If a number is out of range.
    """

    checks.function("generate", generate)
    checks.function("draw", draw)
    n = checks.integer("n", n, 2)
    size = checks.optional(checks.integer, "batch_size", batch_size, 1) or n
    rows = [i for i in range(len(conditions)) for _ in range(n)]
    parts = []
    with torch.no_grad():
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            noise = draw(len(part), generator)
            check_batch(noise, len(part), "draw must return noise")
            parts.append(generate(noise, take(conditions, part)))
            check_batch(parts[-1], len(part), "generate must return states")
    return Bank(torch.cat(parts), take(conditions, rows))
