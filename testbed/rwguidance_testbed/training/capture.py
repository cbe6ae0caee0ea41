"""Training steps as one graph of kernels: small networks spend a GPU's time on starting kernels."""

from collections.abc import Callable

import torch
from torch import Generator

__all__ = ["captured"]

_WARMUP = 3  # steps that are taken before one is recorded: they allocate what all of them use


def captured(step: Callable[[], None], generator: Generator) -> Callable[[], None]:
    """Returns a function that does what a training step does, on a GPU by replaying its kernels.

    On a GPU three steps are taken first, and then one is recorded, which does not count. So a step
    must read and write tensors that stay where they are, and never wait for the device.

    Arguments:
        step: Step to take, with gradients and optimizers.
        generator: Source of all its random numbers, whose device is that of the step.
    """

    if generator.device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARMUP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        step()
    return graph.replay
