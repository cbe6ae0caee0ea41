"""Rewards by name."""

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rwguidance.support import checks
from rwguidance.support.registry import Registry, build

from .base import Reward, RewardSpec
from .table import RewardTable

__all__ = ["available", "load", "register", "spec"]

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

    return _registry.register(name)


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> Reward:
    """Builds a reward, frozen and in eval mode.

    Arguments:
        name: A name that :func:`available` lists, or a folder that `rwguidance train-reward` wrote,
            as a path with a separator, such as ``./folder``; path and options are then those of its
            tower (:mod:`rewards.learned`).
        path: A local file or directory with the weights, for rewards that have some.
        device: Device of the reward.
        dtype: Dtype of the reward's parameters.
        options: Keywords of the reward's constructor.

    Raises:
        LookupError: If there is no such reward; lists those that exist.
        FileNotFoundError: If there is nothing at `path`.
        TypeError: If the reward does not take these options; shows what it takes. If an argument
            is of another kind.
        ValueError: If there is no such device, or the dtype is not of floating point.
    """

    from .learned import is_learned, learned

    factory = learned(name) if is_learned(name) else _registry.load(name)
    return build("reward", name, factory, path, device, dtype, options)


def spec(name: str) -> RewardSpec:
    """The facts about one reward. Imports the package that provides it, and builds nothing.

    Arguments:
        name: A name, or a folder, as :func:`load` takes them.

    Raises:
        TypeError: If the name is not a string.
        LookupError: If there is no such reward; lists those that exist.
    """

    from .learned import is_learned, learned_spec

    if is_learned(name):
        return learned_spec(name)
    return _registry.load(name).spec


def available(
    commercial: bool | None = None,
    differentiable: bool | None = None,
    license: str | None = None,
) -> RewardTable:
    """The facts about every reward that can be loaded, sorted by name; prints as a table.

    Arguments:
        commercial: True keeps the rewards whose licenses are known to permit commercial use, and
            False all others: those that forbid it and those of which it is not known.
        differentiable: Keeps the rewards that are, or are not.
        license: An SPDX identifier such as "MIT", in any case. Keeps the rewards whose code or
            weights have it. "none" and "unknown" find weights that do not exist or state none.

    Warns:
        RuntimeWarning: For every installed package that advertises a reward and cannot deliver it.

    Raises:
        TypeError: If `license` is not a string, or one of the others neither a boolean nor None.
    """

    checks.optional(checks.flag, "commercial", commercial)
    checks.optional(checks.flag, "differentiable", differentiable)
    checks.optional(checks.instance, "license", license, str, "an SPDX identifier")

    def fits(spec: RewardSpec) -> bool:
        return (
            (commercial is None or (spec.commercial_use is True) == commercial)
            and (differentiable is None or spec.differentiable == differentiable)
            and (license is None or license.strip().lower() in _licenses(spec))
        )

    specs = (reward.spec for reward in _registry.available().values())
    return RewardTable(filter(fits, specs))


def _licenses(spec: RewardSpec) -> set[str]:
    """Identifiers in the SPDX expressions of code and weights, such as MIT AND Apache-2.0."""

    return set(re.split(r"[\s()]+", f"{spec.code_license} {spec.weights_license}".lower()))
