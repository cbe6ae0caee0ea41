"""Backbones by name."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rwguidance.registry import Registry, build

from .base import Backbone

__all__ = ["available", "load", "register"]

B = TypeVar("B", bound=type[Backbone])


def _check(name: str, value: Any) -> None:
    if not isinstance(value, type) or not issubclass(value, Backbone):
        raise TypeError(
            f"backbone {name!r} must be a subclass of backbones.Backbone, got {value!r}"
        )


_registry: Registry[type[Backbone]] = Registry("backbone", "rwguidance.backbones", _check)


def register(name: str) -> Callable[[B], B]:
    """Class decorator that makes a :class:`Backbone` available under `name`.

    Raises:
        TypeError: If the class is not a backbone.
        ValueError: If the name is already taken.
    """

    def add(backbone: B) -> B:
        _registry.register(name)(backbone)
        return backbone

    return add


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Backbone:
    """Builds a backbone, frozen and in eval mode.

    Arguments:
        name: A name that :func:`available` lists.
        path: A local file or directory with the weights.
        device: Where the backbone goes.
        dtype: What its parameters are cast to.
        options: Keywords of the backbone's constructor.

    Raises:
        LookupError: If there is no such backbone; lists those that exist.
        FileNotFoundError: If there is nothing at `path`.
        TypeError: If the backbone does not take these options; shows what it takes.
    """

    return build("backbone", name, _registry.load(name), path, device, dtype, options)


def available() -> list[str]:
    """The names of every backbone that can be loaded, sorted.

    Warns:
        RuntimeWarning: For every installed package that advertises a backbone and cannot deliver.
    """

    return list(_registry.available())
