"""Batches of what is numbered from 0: a function of how many there are, never of what is done."""

__all__ = ["batches"]


def batches(n: int, size: int, start: int = 0) -> list[range]:
    """Returns numbers in batches that begin at multiples of their size after the start.

    Arguments:
        n: Number after the last one.
        size: Number of items in a batch, at most.
        start: The first number.
    """

    return [range(i, min(i + size, n)) for i in range(start, n, size)]
