"""Processes that share one run: who they are, what each of them does, and how they meet.

``accelerate launch`` and ``torchrun`` start the same command several times, and say in environment
variables which of them a process is. Work is dealt by number, so that what a process does follows
from its rank alone. The processes meet over gloo, also where they compute on accelerators, for they
tell each other no more than facts that JSON can hold.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["ALONE", "Processes", "joined"]

_JOINING = timedelta(minutes=10)
"""Time until all processes must have begun; before they have met, nobody notices that one ended."""

_PATIENCE = timedelta(days=7)
"""Time that processes wait for the slowest one; one that ends is noticed at once."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Arguments:
        rank: Number of this process.
        size: Number of processes.
        group: The group in which they meet; None is the default one.
    """

    rank: int = 0
    size: int = 1
    group: Any = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is process 0, which speaks for all."""

        return self.rank == 0

    def deal(self, n: int) -> range:
        """Returns the numbers below `n` that are this process's, in order."""

        return range(self.rank, n, self.size)

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes by rank, once all of them have called it.

        Arguments:
            value: What this process tells the others, in values that JSON can hold.

        Raises:
            ConnectionError: If another process has ended.
        """

        if self.size == 1:
            return [json.loads(json.dumps(value))]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with _together():
            sizes = self._exchanged(torch.tensor([len(text)]))
            most = max(int(size) for size in sizes)
            texts = self._exchanged(torch.nn.functional.pad(text, (0, most - len(text))))
        return [
            json.loads(bytes(text[: int(size)].tolist()))
            for text, size in zip(texts, sizes, strict=True)
        ]

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of tensors of all processes, the same bits in each of them.

        Arguments:
            values: The tensor of this process, of one shape and dtype in all of them, which
                carries no gradient.

        Raises:
            ConnectionError: If another process has ended.
        """

        if self.size == 1:
            return values
        total = values.clone()
        with _together():
            distributed.all_reduce(total, group=self.group)
        return total

    def wait(self) -> None:
        """Returns once all processes have called it.

        Raises:
            ConnectionError: If another process has ended.
        """

        self.gather(None)

    def _exchanged(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor, group=self.group)
        return parts


ALONE = Processes()
"""A single process."""


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the processes that a launcher has started, for as long as the block lasts.

    Without a launcher there is one process, and nothing is initialized. Each process takes the GPU
    of its local rank as the current one, which ``cuda`` without a number means.

    Raises:
        ValueError: If the launcher's variables are incomplete.
        ConnectionError: If not all processes have begun within ten minutes.
    """

    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    try:
        distributed.init_process_group("gloo", timeout=_JOINING)
        group = distributed.new_group(timeout=_PATIENCE)
    except RuntimeError as error:
        raise ConnectionError(
            f"not all of the {size} processes of this run have begun within "
            f"{_JOINING.total_seconds():g} seconds: start all of them again"
        ) from error
    try:
        yield Processes(distributed.get_rank(), size, group)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Says what it means if processes do not meet."""

    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this run has ended, see its message; what is finished is kept, "
            "and the same command goes on"
        ) from error
