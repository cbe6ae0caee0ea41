"""What a module computes, as a short key: to tell whether a saved result belongs to it."""

import hashlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]

_ENTRIES = 64
"""Entries of each tensor that are looked at, evenly spaced: a change of weights changes them."""


def fingerprint(module: nn.Module, ignore: Collection[str] = ()) -> str:
    """A key of a module's classes, simple options, and some entries of each of its tensors.

    Devices do not enter. It takes milliseconds, also for billions of weights, and is meant against
    mistakes, not against malice: 64 entries of each tensor enter. Under sequential offloading,
    where weights are not in memory, only their shapes do.

    Arguments:
        module: The module.
        ignore: Attributes, of any submodule, that change no result.

    Returns:
        64 hexadecimal digits.
    """

    digest = hashlib.sha256()
    for name, part in module.named_modules():
        kind = type(part)
        digest.update(
            f"{name} {kind.__module__}.{kind.__qualname__} {_options(part, ignore)}\n".encode()
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        for entries in _entries(tensor):
            digest.update(entries.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _options(part: nn.Module, ignore: Collection[str]) -> dict[str, object]:
    return {
        key: value
        for key, value in sorted(vars(part).items())
        if not key.startswith("_")
        and key not in ignore
        and isinstance(value, bool | int | float | str)
    }


def _entries(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.is_meta:
        return
    flat = tensor.detach().flatten()
    yield flat[:: max(1, len(flat) // _ENTRIES)].cpu().contiguous()
