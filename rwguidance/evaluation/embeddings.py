"""Embeddings of images by name: the spaces in which metrics compare pictures.

A package adds one by an entry point of the group `rwguidance.embeddings`. Names with a colon stand
for any model of torchvision, timm or transformers, and for the tower of any reward: see
:mod:`rwguidance.evaluation.extractors`.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..support import checks
from ..support.registry import Registry, build
from .extractors import extractor

__all__ = ["available", "embed", "load", "register"]

E = TypeVar("E", bound=Callable[..., nn.Module])


def _check(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(
            f"embedding {name!r} must be a class or a function that returns a module, "
            f"got {type(value).__name__}"
        )


_registry: Registry[Callable[..., nn.Module]] = Registry(
    "embedding", "rwguidance.embeddings", _check
)


def register(name: str) -> Callable[[E], E]:
    """Returns a decorator that makes an embedding available under `name`.

    It decorates a class of modules, or a function that loads one, that maps images in [0, 1], sRGB,
    with shape (B, 3, H, W), to embeddings with shape (B, D).

    Raises:
        TypeError: If it cannot be called.
        ValueError: If the name is already taken.
    """

    return _registry.register(name)


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> nn.Module:
    """Returns an embedding, frozen and in eval mode.

    Arguments:
        name: A name that :func:`available` lists, or one such as "torchvision:resnet18".
        path: A local file or directory with the weights. None is what was published.
        device: The device of the embedding.
        dtype: The dtype of its parameters.
        options: Keywords of its constructor.

    Raises:
        LookupError: If there is no such embedding; lists those that exist.
        FileNotFoundError: If there is nothing at `path`.
        TypeError: If it does not take these options; shows what it takes.
    """

    factory = extractor(name) or _registry.load(name)
    return build("embedding", name, factory, path, device, dtype, options)


@torch.no_grad()
def embed(embedding: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Returns the embeddings of images, on the CPU, with shape (N, D).

    Arguments:
        embedding: What :func:`load` returned.
        images: Images in [0, 1], sRGB, on the device of the embedding, with shape (N, 3, H, W).
        batch: Number of images that are embedded at once.
    """

    checks.integer("batch", batch, 1)
    return torch.cat([embedding(part).cpu() for part in images.split(batch)])


def available() -> list[str]:
    """Returns the names of all embeddings, sorted; imports nothing."""

    return _registry.names()
