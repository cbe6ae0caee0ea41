"""Matrices of pairs, block by block; and blocks of units, for the jackknife of what is costly."""

import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence

from torch import Tensor

from .samples import Sample

BLOCK = 1024
"""Rows of both sets whose pairs are in memory at once: 8 MiB for each number of a pair."""


def in_blocks(
    x: Tensor, y: Tensor, function: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields the values of a function of pairs, in blocks of at most `BLOCK` rows and columns.

    Arguments:
        x: Features with shape (N, D).
        y: Features with shape (M, D).
        function: Function of float64 features (n, D) and (m, D) that returns numbers (n, m).

    Yields:
        The rows, the columns and the values of a block.

    Raises:
        ValueError: If the function returns another shape.
    """

    for i in range(0, len(x), BLOCK):
        rows = slice(i, min(i + BLOCK, len(x)))
        one = x[rows].double()
        for j in range(0, len(y), BLOCK):
            columns = slice(j, min(j + BLOCK, len(y)))
            values = function(one, y[columns].double())
            shape = (len(one), columns.stop - columns.start)
            if tuple(values.shape) != shape:
                raise ValueError(
                    f"a kernel or distance must return one number per pair, shape {shape}, "
                    f"got {tuple(values.shape)}"
                )
            yield rows, columns, values


def unit_blocks(units: Sequence[Hashable], blocks: int) -> dict[Hashable, int]:
    """Returns the block that each unit belongs to, at random but the same wherever it is asked.

    Blocks are as equally large as can be, so that a set merged of parts has those of the whole.

    Arguments:
        units: The units, which may repeat. Their order does not matter, their `repr` does.
        blocks: Number of blocks; with fewer units, each is a block of its own.
    """

    every = sorted(
        dict.fromkeys(units), key=lambda unit: (zlib.crc32(repr(unit).encode()), repr(unit))
    )
    blocks = min(blocks, len(every))
    return {unit: i * blocks // len(every) for i, unit in enumerate(every)}


def units_of(sample: Sample) -> list[Hashable]:
    """Returns the unit of each row: its group, or a key of its values for rows without groups."""

    return list(row_keys(sample.features) if sample.groups is None else sample.groups)


def row_keys(features: Tensor) -> list[int]:
    """Returns a number for each row that depends on its values alone, not on where it stands."""

    return [zlib.crc32(row.tobytes()) for row in features.numpy()]
