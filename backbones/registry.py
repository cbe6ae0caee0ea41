"""Backbones by name."""

import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rwguidance.backbone import TextToImage
from rwguidance.support.registry import Registry, build

__all__ = ["available", "load", "loader", "register"]

B = TypeVar("B", bound=Callable[..., TextToImage])


def _check(name: str, value: Any) -> None:
    loader = callable(value) and not isinstance(value, type)
    if not loader and not (isinstance(value, type) and issubclass(value, TextToImage)):
        raise TypeError(
            f"backbone {name!r} must be a subclass of backbones.Backbone or backbones.Generator, "
            f"got {value!r}; or a function that returns one"
        )
    inspect.signature(value)  # which lists show


_registry: Registry[Callable[..., TextToImage]] = Registry(
    "backbone", "rwguidance.backbones", _check
)


def register(name: str) -> Callable[[B], B]:
    """Decorator that makes a backbone, or a function that loads one, available by name.

    It is a subclass of :class:`Backbone` or of :class:`Generator`.

    Raises:
        TypeError: If it is neither.
        ValueError: If the name is already taken.
    """

    return _registry.register(name)


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> TextToImage:
    """Builds a backbone, frozen and in eval mode.

    Arguments:
        name: A name that :func:`available` lists.
        path: A local file or directory with the weights, or ``hf://owner/name``. None is what was
            published under the name.
        device: Device of the backbone.
        dtype: The precision of its weights. None leaves the choice to the backbone.
        options: Keywords of the backbone's constructor.

    Raises:
        LookupError: If there is no such backbone; lists those that exist.
        FileNotFoundError: If there is nothing at `path`.
        TypeError: If the backbone does not take these options; shows what it takes. If an argument
            is of another kind.
        ValueError: If there is no such device, or the dtype is not of floating point.
    """

    backbone = build("backbone", name, _registry.load(name), path, device, dtype, options)
    if not isinstance(backbone, TextToImage):
        raise TypeError(
            f"the function registered as backbone {name!r} must return a backbones.Backbone "
            f"or backbones.Generator, "
            f"got {type(backbone).__name__}"
        )
    return backbone


def loader(name: str) -> Callable[..., TextToImage]:
    """What a name stands for: a class of backbones, or what loads one, such as a `Published`.

    Raises:
        LookupError: If there is no such backbone; lists those that exist.
    """

    return _registry.load(name)


def available() -> list[str]:
    """The names of every backbone that can be loaded, sorted.

    Warns:
        RuntimeWarning: For every installed package that advertises a backbone and cannot deliver.
    """

    return list(_registry.available())
