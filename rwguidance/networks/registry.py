"""Trained guidance networks by name: where they are, and for which model, reward and strength.

A package adds one by an entry point of the group `rwguidance.networks`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..support import checks
from ..support.outside import on_hub
from ..support.packaged import in_package, package_folder
from ..support.registry import Registry
from .guidance import GuidanceNetwork
from .latents import read

__all__ = ["PublishedNetwork", "available", "load", "published", "register"]

N = TypeVar("N", bound="PublishedNetwork")


@dataclass(frozen=True, kw_only=True)
class PublishedNetwork:
    """A trained guidance network, and what it was trained for.

    Arguments:
        name: The name under which it is registered.
        backbone: The name of the model that it guides.
        reward: The name of the reward that it aligns to.
        beta: The temperature of the tilt that it learned, in reward units, positive.
        source: The folder that holds it, local or ``package://name/folder``
            (:mod:`rwguidance.support.packaged`).
        file: The name of its file there; None for a folder that `save_pretrained` wrote.
        card: Where its model card is, a web address or ``package://name/folder/README.md``.
    """

    name: str
    backbone: str
    reward: str
    beta: float
    source: str
    file: str | None = "network.safetensors"
    card: str = ""

    def load(self, device: torch.device | str = "cpu") -> GuidanceNetwork:
        """Returns the network, in single precision, frozen and in eval mode.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not as it was published.
        """

        folder = package_folder(self.source) if in_package(self.source) else Path(self.source)
        if self.file is None:
            network = GuidanceNetwork.from_pretrained(folder, device=device)
        else:
            network = read(folder / self.file, device)
        return network.float().eval().requires_grad_(False)


def _check(name: str, value: Any) -> None:
    if not isinstance(value, PublishedNetwork):
        raise TypeError(
            f"network {name!r} must be a rwguidance.networks.PublishedNetwork, "
            f"got {type(value).__name__}"
        )
    if value.name != name:
        raise ValueError(f"network {value.name!r} must be registered under its name, not {name!r}")


_registry: Registry[PublishedNetwork] = Registry("network", "rwguidance.networks", _check)


def register(name: str) -> Callable[[N], N]:
    """Returns a function that makes a :class:`PublishedNetwork` available by name, and returns it.

    Raises:
        TypeError: If it is not a published network.
        ValueError: If the name is already taken, or is not its own.
    """

    return _registry.register(name)


def published(name: str) -> PublishedNetwork:
    """Returns what is known of the network that is registered under `name`.

    Raises:
        TypeError: If the name is not a string.
        LookupError: If there is none; lists those that exist.
    """

    return _registry.load(name)


def available() -> list[str]:
    """Returns the names of all trained networks, sorted; imports nothing."""

    return _registry.names()


def load(source: str | os.PathLike[str], device: torch.device | str = "cpu") -> GuidanceNetwork:
    """Returns a network for latents, by its name or from what it was saved to.

    A file is read in the dtype it was saved in, and nothing in it is executed.

    Arguments:
        source: A name that :func:`available` lists, the path of a file that a network's `save`
            wrote, or what :meth:`GuidanceNetwork.from_pretrained` takes: a folder, or a repository
            of the hub, as ``hf://owner/name``.
        device: The device of the network.

    Raises:
        TypeError: If the source is neither a string nor a path, or the device is no device.
        FileNotFoundError: If there is neither such a file nor such a name.
        ValueError: If the file is damaged, or holds something else, or there is no such device.
    """

    place = checks.device("device", device) or torch.device("cpu")
    if on_hub(source) or checks.path("source", source).is_dir():
        return GuidanceNetwork.from_pretrained(source, device=place)
    if not checks.path("source", source).is_file() and str(source) in available():
        return published(str(source)).load(place)
    return read(source, place)
