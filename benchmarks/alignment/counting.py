"""What a computation takes: operations, seconds, and the peak of the memory it allocates."""

import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Spent", "Watched", "spent"]


_LARGE, _MORE = 5e8, 1.05
"""Bytes from which on garbage is collected, and by how much more each time."""


@dataclass(frozen=True)
class Spent:
    """What was spent.

    Arguments:
        operations: Floating-point operations of products of matrices and of convolutions, forward
            and backward, a multiplication and an addition being two.
        seconds: Processor time, in seconds.
        memory: Peak of what was allocated beyond what there was before, in bytes.
    """

    operations: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.operations + other.operations,
            self.seconds + other.seconds,
            max(self.memory, other.memory),
        )

    def __mul__(self, factor: float) -> "Spent":
        return Spent(self.operations * factor, self.seconds * factor, self.memory)


class Watched(TorchDispatchMode):
    """Counts operations, and the bytes of the storages that they make, until these are freed.

    Operations are by the formulas of :mod:`torch.utils.flop_counter`, whose own mode cannot watch
    gradients in a single tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.peak = self._collected = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = {s._cdata for s in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        for storage in _storages(result):
            if storage._cdata not in given | self._seen:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        self._seen.add(key)
        self.bytes += size
        if self.bytes > max(_LARGE, _MORE * self._collected):
            gc.collect()  # what is computed again is held by cycles, which is no memory in need
            self._collected = self.bytes
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def spent(work: Callable[[], object]) -> Spent:
    """Does some work and returns what it took; counting makes the seconds some tenths too many."""

    watched, began = Watched(), time.process_time()
    with watched:
        work()
    seconds = time.process_time() - began
    return Spent(float(watched.operations), seconds, float(watched.peak))
