"""SHA-256 of tensors and arrays, of large ones by evenly spaced entries; none is ever copied whole.

Devices do not enter, and neither does the order in which entries lie in memory.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["WHOLE", "Numbers", "digest_of"]

WHOLE = 64 * 2**20
"""Bytes of which every one counts; of more than that, entries at even distances do."""

_BLOCK = 2**20
"""Number of entries that are picked at once."""


class Numbers:
    """A tensor or an array of numpy in a description, whose digest is taken when the rest is known.

    Arguments:
        values: The tensor or the array, or a tensor on the device meta in place of one.
        load: A function that returns the tensor in whose place it is; None if it is itself.
    """

    def __init__(self, values: Any, load: Callable[[], Tensor] | None = None) -> None:
        self.values = values
        self.load = load

    @property
    def shape(self) -> str:
        """Shape and dtype."""

        return f"{tuple(self.values.shape)} {self.values.dtype}"

    @property
    def nbytes(self) -> int:
        """Number of bytes of all entries."""

        return int(self.values.nbytes)

    def digest(self, stride: int) -> str:
        """Returns shape, dtype and the SHA-256 of every `stride`-th entry and of the last one."""

        values = self.values if self.load is None else self.load()
        digest = hashlib.sha256()
        for block in (_of_tensor if isinstance(values, Tensor) else _of_array)(values, stride):
            digest.update(block)
        unknown = " of unknown values" if isinstance(values, Tensor) and values.is_meta else ""
        return f"{tuple(values.shape)} {values.dtype}{unknown} {digest.hexdigest()}"


def digest_of(description: Any, numbers: Sequence[Numbers], values: bool = True) -> str:
    """Returns the SHA-256 of a description that holds tensors and arrays, 64 hexadecimal digits.

    If they have at most 64 MiB together, every byte of them counts. If they have more, the entries
    0, k, 2k, ... and the last one of each of them count, with k the number of all bytes divided by
    64 MiB, rounded up; and all shapes and dtypes.

    Arguments:
        description: Nested tuples of strings, numbers and members of `numbers`.
        numbers: The tensors and arrays in it, once for every place where they occur.
        values: Whether their entries count, not only shapes and dtypes.
    """

    stride = max(1, -(-sum(part.nbytes for part in numbers) // WHOLE))
    known = {} if values else {id(part.values): part.shape for part in numbers}

    def text(part: Any) -> Any:
        if isinstance(part, Numbers):
            if id(part.values) not in known:
                known[id(part.values)] = part.digest(stride)
            return known[id(part.values)]
        return tuple(text(item) for item in part) if isinstance(part, tuple) else part

    # Lone surrogates occur in prompts, and in no encoding.
    return hashlib.sha256(
        repr((stride, text(description))).encode("ascii", "backslashreplace")
    ).hexdigest()


def _of_tensor(tensor: Tensor, stride: int) -> Iterator[Any]:
    n = tensor.numel()
    if tensor.is_meta or n == 0:
        return
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_contiguous():
        flat = tensor.view(-1)
        picks = (
            flat[start : start + stride * _BLOCK : stride] for start in range(0, n, stride * _BLOCK)
        )
        for part in picks:
            yield _bytes(part)
        if stride > 1:
            yield _bytes(flat[-1:])
        return
    for start in range(0, n, stride * _BLOCK):
        index = torch.arange(start, min(n, start + stride * _BLOCK), stride, device=tensor.device)
        yield _bytes(tensor[torch.unravel_index(index, tensor.shape)])
    if stride > 1:
        yield _bytes(tensor[tuple(size - 1 for size in tensor.shape)].reshape(1))


def _bytes(entries: Tensor) -> Any:
    # A single entry may keep the stride it was picked at, which its bytes cannot have.
    return entries.cpu().contiguous().as_strided((len(entries),), (1,)).view(torch.uint8).numpy()


def _of_array(array: Any, stride: int) -> Iterator[Any]:
    if array.size == 0:
        return
    for start in range(0, array.size, stride * _BLOCK):
        yield array.flat[start : start + stride * _BLOCK : stride].tobytes()
    if stride > 1:
        yield array.flat[-1:].tobytes()
