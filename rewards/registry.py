"""Rewards by name."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rwguidance.registry import Registry, build

from .base import Reward, RewardSpec

__all__ = ["available", "load", "register"]

R = TypeVar("R", bound=type[Reward])


def _check(name: str, value: Any) -> None:
    if not isinstance(value, type) or not issubclass(value, Reward):
        raise TypeError(f"reward {name!r} must be a subclass of rewards.Reward, got {value!r}")
    spec = getattr(value, "spec", None)
    if not isinstance(spec, RewardSpec):
        raise TypeError(
            f"reward {name!r} must have a class attribute spec of type RewardSpec, "
            f"got {type(spec).__name__}"
        )
    if spec.name != name:
        raise ValueError(f"reward {name!r} must be registered under its spec's name, {spec.name!r}")


_registry: Registry[type[Reward]] = Registry("reward", "rwguidance.rewards", _check)


def register(name: str) -> Callable[[R], R]:
    """Class decorator that makes a :class:`Reward` available under `name`, its spec's name.

    Raises:
        TypeError: If the class is not a reward, or states no spec.
        ValueError: If the name is already taken, or is not the name in the spec.
    """

    def add(reward: R) -> R:
        _registry.register(name)(reward)
        return reward

    return add


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Reward:
    """Builds a reward, frozen and in eval mode.

    Arguments:
        name: A name that :func:`available` lists.
        path: A local file or directory with the weights, for rewards that have some.
        device: Where the reward goes.
        dtype: What its parameters are cast to.
        options: Keywords of the reward's constructor.

    Raises:
        LookupError: If there is no such reward; lists those that exist.
        FileNotFoundError: If there is nothing at `path`.
        TypeError: If the reward does not take these options; shows what it takes.
    """

    return build("reward", name, _registry.load(name), path, device, dtype, options)


def available() -> list[RewardSpec]:
    """The facts about every reward that can be loaded, sorted by name.

    Warns:
        RuntimeWarning: For every installed package that advertises a reward and cannot deliver it.
    """

    return [reward.spec for reward in _registry.available().values()]
