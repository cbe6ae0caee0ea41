"""What a module computes, as a short key: to tell whether a saved result belongs to it."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..schedules import Schedule

__all__ = ["fingerprint"]

_ENTRIES = 64
"""Entries of each tensor that are looked at, evenly spaced: a change of weights changes them."""

_PLACES = ("name_or_path",)
"""Attributes that say where weights were read from, which changes nothing."""

_ADAPTERS = ("_active_adapter", "_disable_adapters")
"""Private attributes that say which adapters of a layer (LoRA) act."""


def fingerprint(module: nn.Module, ignore: Collection[str] = ()) -> str:
    """A key of a module's classes, options, `extra_repr`, and some entries of each of its tensors.

    Options are public attributes that are numbers, strings, schedules, frozen dataclasses, or
    collections of these; others, functions among them, belong into `extra_repr`.

    Of schedules, the tables enter entry by entry.

    Devices and folders do not enter, and weights do that are offloaded one by one. It takes
    milliseconds, also for billions of weights, and is meant against mistakes, not against malice:
    64 entries of each tensor enter.

    Arguments:
        module: The module.
        ignore: Attributes, of any submodule, that change no result.

    Returns:
        64 hexadecimal digits.
    """

    digest = hashlib.sha256()
    for name, part in module.named_modules():
        kind, options = type(part), _options(vars(part), (*_PLACES, *ignore))
        about = f"{name} {kind.__module__}.{kind.__qualname__} {options} {part.extra_repr()}\n"
        digest.update(about.encode("utf-8", "surrogatepass"))
        for key, tensor in _tensors(part):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            for entries in _entries(tensor):
                digest.update(entries.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _options(attributes: Mapping[Any, Any], ignore: Collection[str] = _PLACES) -> dict[str, Any]:
    """What is plain among attributes, in the order of their names."""

    named = {str(key): _plain(value) for key, value in attributes.items()}
    return {
        key: value
        for key, value in sorted(named.items())
        if value is not None and key not in ignore and (not key.startswith("_") or key in _ADAPTERS)
    }


def _plain(value: Any) -> Any:
    """A value in terms of numbers and strings; None if it is anything else."""

    if isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return _options(value)
    if isinstance(value, Schedule):
        return type(value).__qualname__, _options(vars(value)), _tables(value)
    settings = getattr(value, "__dataclass_params__", None)
    if settings is not None and settings.frozen:
        return type(value).__qualname__, _options(vars(value))
    return None


def _tables(schedule: Schedule) -> dict[str, str]:
    """The tensors of a schedule, private ones among them, by name: every byte counts."""

    digest = lambda table: hashlib.sha256(
        table.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    ).hexdigest()
    tensors = {key: v for key, v in sorted(vars(schedule).items()) if isinstance(v, Tensor)}
    return {key: f"{v.dtype} {tuple(v.shape)} {digest(v)}" for key, v in tensors.items()}


def _tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module itself; where they were offloaded, from there."""

    offloaded = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
    own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    for key, tensor in own:
        yield key, tensor if offloaded is None or not tensor.is_meta else offloaded[key]


def _entries(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.is_meta:
        return
    flat = tensor.detach().flatten()
    yield flat[:: max(1, len(flat) // _ENTRIES)].cpu().contiguous()
