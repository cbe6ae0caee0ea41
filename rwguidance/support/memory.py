"""Running out of memory: the error stays what it is and says what would help."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["advice", "is_shortage"]

# What allocators say: of GPUs; of the CPU on Linux; on macOS and Windows; of cuBLAS and cuDNN.
_PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


@contextmanager
def advice(hint: str) -> Iterator[None]:
    """Adds a sentence to errors of the block that mean that memory has run out.

    The error keeps its type, and what else it says, for those who catch it. Other errors pass.

    Arguments:
        hint: What ran, and what to change.
    """

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_shortage(error):
            error.args = (f"{error}\n{hint}",)
        raise


def is_shortage(error: Exception) -> bool:
    """Whether an error means that memory has run out."""

    # Newer versions of torch have the first name as well, but not the oldest ones.
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)
