"""Options that the training commands share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch

__all__ = ["BufferedOptions", "Options", "compute_on"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every training command.

    Arguments:
        steps: Steps in all. With no more than an earlier run took, what that reached is written.
        batch: Pictures, pairs or examples of a step.
        peak: Largest learning rate.
        threads: Threads of PyTorch.
        resume: Whether to go on where an earlier run was.
        smoke: Whether the model is tiny, for tests.
    """

    steps: int
    batch: int
    peak: float
    threads: int = 1
    resume: bool = True
    smoke: bool = False

    @property
    def deciding(self) -> dict[str, Any]:
        """The options that decide the result, by name, but for the number of steps."""

        others = ("steps", "threads", "resume", "compiled")
        return {name: value for name, value in vars(self).items() if name not in others}


@dataclass(frozen=True, kw_only=True)
class BufferedOptions(Options):
    """Options of the training commands that keep a buffer; beside those of :class:`Options`:

    Arguments:
        kept: Pictures or examples that the buffer keeps.
        compiled: Whether to compile the network first, which needs a compiler of C++ and minutes,
            and makes steps a third faster.
    """

    kept: int
    compiled: bool = False

    def compile(self, function: _Function) -> _Function:
        """Returns the function, compiled if that is asked for."""

        if not self.compiled:
            return function
        return cast(_Function, torch.compile(function, dynamic=False))


def compute_on(device: str, threads: int) -> torch.device:
    """Returns a device, after PyTorch was told the number of threads and not to be too exact.

    Arguments:
        device: Name of the device; on a GPU matrices are multiplied in TF32.
        threads: Threads of PyTorch on the CPU.
    """

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if device.startswith("cuda") else "highest")
    return torch.device(device)
