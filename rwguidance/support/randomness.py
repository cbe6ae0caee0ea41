"""Random numbers: drawn from explicit generators, and for every sample by itself where asked."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from . import checks

__all__ = ["Generators", "forked", "generator_for", "normal", "seeded"]

Generators: TypeAlias = "torch.Generator | Sequence[torch.Generator] | None"
"""One source of randomness for a batch, or one for each sample of it."""


def generator_for(seed: int, *names: str | int) -> torch.Generator:
    """A generator on the CPU for one purpose, independent of those with other names.

    With one of these for each sample, a sample does not depend on its batch.

    Arguments:
        seed: The seed of a run.
        names: What the numbers are for, such as a prompt and the number of an image.
    """

    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def normal(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Standard normal numbers, drawn on the device of the generator and moved to `device`.

    Arguments:
        shape: (B, \*event).
        generator: Generator for the batch, or a sequence with one for each of the B samples.
        device: Device of the result. None is the CPU.
        dtype: A floating dtype. None is the default one.

    Raises:
        TypeError: If `generator` is no source of randomness, or the shape holds no integers.
        ValueError: If there are several generators, but not one per sample, or a size is negative.
    """

    checks.generator("generator", generator)
    checks.instance("shape", shape, Sequence, "a shape")
    shape = tuple(checks.integer("shape", size, 0) for size in shape)
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"generator must hold one per sample, {shape[0]}, got {len(generator)}")
    draw = lambda one: torch.randn(
        tuple(shape[1:]), generator=one, device=one.device, dtype=dtype
    ).to(device)
    return torch.stack([draw(one) for one in generator])


@contextmanager
def forked(device: torch.device | None = None) -> Iterator[None]:
    """Context that leaves the global generators where they were when it began.

    Threads take turns: of two that saved and restored the states at once, the one that leaves last
    could restore what the other had seeded. Contexts within contexts of one thread are fine.

    Arguments:
        device: The device whose generator counts, besides that of the CPU.
    """

    devices = [device] if device is not None and device.type == "cuda" else []
    with _TURN, torch.random.fork_rng(devices=devices, device_type="cuda"):
        yield


_TURN = threading.RLock()
"""The turn of the thread that is within :func:`forked`."""


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Context in which the global generators start from a seed; after it, they are as before.

    For what takes no generator, such as the initial weights of layers.

    Arguments:
        seed: The seed.
        device: The device whose generator is seeded, besides that of the CPU.
    """

    with forked(device):
        # Not torch.manual_seed, which would seed the generators of all devices, for good.
        torch.default_generator.manual_seed(seed)
        if device is not None and device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
