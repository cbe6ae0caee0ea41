"""The processes that share a run, as `accelerate launch` or `torchrun` start them."""

import os
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Processes"]

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run; one by default.

    Arguments:
        index: Number of this one, from 0.
        count: Number of all.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> "Processes":
        """Returns the processes that a launcher has started, and connects them.

        Raises:
            ImportError: If there are several, and accelerate is missing.
        """

        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from .outside import require

        require("accelerate", "several processes need", "train")
        from accelerate import PartialState

        state = PartialState()
        return cls(state.process_index, state.num_processes)

    def share(self, items: list[T]) -> list[T]:
        """Returns what of a list, the same in all processes, is for this one: every n-th."""

        return items[self.index :: self.count]

    def meet(self, error: Exception | None = None) -> None:
        """Waits for the others, and raises in all of them where one has failed.

        Arguments:
            error: What this process failed with, if it did.

        Raises:
            Exception: The error; RuntimeError where only others have failed, with their reasons.
        """

        reasons = [None if error is None else f"{type(error).__name__}: {error}"]
        if self.count > 1:
            from torch import distributed

            reasons = [None] * self.count
            own = None if error is None else f"{type(error).__name__}: {error}"
            distributed.all_gather_object(reasons, own)
        if error is not None:
            raise error
        failed = [f"process {i}: {reason}" for i, reason in enumerate(reasons) if reason]
        if failed:
            raise RuntimeError(f"another process failed, {'; '.join(failed)}")
