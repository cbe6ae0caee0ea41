"""What a checkpoint of a training belongs to: a key for each thing that decides the result."""

import contextlib
import uuid
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..support.fingerprint import Undescribed, fingerprint, structure

__all__ = ["check_origin", "origin_of"]

_PROCESS = uuid.uuid4().hex
"""A name of this process, which no other one has."""

_seen: dict[int, "tuple[weakref.ref[Any], str]"] = {}
"""Objects that do not say what they depend on, by their id, with a name that no other one has."""


def origin_of(network: nn.Module, objective: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns a key of everything that decides the result of a training, by name.

    Arguments:
        network: The network; its class, options, and the names, shapes and dtypes of its tensors
            count, their values do not.
        objective: The objective; each attribute that its `depends_on` names has a key of its own.
        settings: Other arguments, by name.
    """

    keys = {name: str(value) for name, value in settings.items()}
    try:
        keys["network"] = structure(network)
    except Undescribed:
        tensors = {name: (tuple(x.shape), x.dtype) for name, x in network.state_dict().items()}
        keys["network"] = f"{_unsaid(type(network))} {tensors}"
    cls = type(objective)
    if "depends_on" not in cls.__dict__:
        return {**keys, "objective": _key(objective)}
    keys["objective"] = f"{cls.__module__}.{cls.__qualname__}"
    parts = {name: getattr(objective, name) for name in cls.__dict__["depends_on"]}
    return keys | {f"objective.{name}": _key(value) for name, value in parts.items()}


def check_origin(path: Any, found: Any, expected: Mapping[str, str]) -> None:
    """Checks that a checkpoint belongs to a training.

    Arguments:
        path: File of the checkpoint, for the message.
        found: Keys of what it was made with.
        expected: Keys of the training, as from :func:`origin_of`.

    Raises:
        ValueError: If any of them differs; names those that do.
    """

    if not isinstance(found, Mapping):
        raise ValueError(
            f"checkpoint {path} does not say what it was made with, since it is of an older "
            "version: delete it, or use another file"
        )
    names = [*expected, *(name for name in found if name not in expected)]
    differ = [name for name in names if found.get(name) != expected.get(name)]
    if not differ:
        return
    unsaid = [name for name in differ if _is_unsaid(keys.get(name) for keys in (found, expected))]
    advice = ""
    if unsaid:
        advice = (
            f"; {', '.join(unsaid)} cannot be told apart, as the class does not say what it "
            "depends on: write `depends_on` there (see rwguidance.support.fingerprint)"
        )
    raise ValueError(
        f"checkpoint {path} was made with another {', '.join(map(_short, differ))}: "
        f"{'; '.join(_change(name, found, expected) for name in differ)}. Use the same, or another "
        f"file{advice}"
    )


def _key(value: Any) -> str:
    try:
        return fingerprint(value)
    except Undescribed:
        return _unsaid(value)


def _unsaid(value: Any) -> str:
    """A key of this very object, in this process."""

    ref, name = _seen.get(id(value), (None, ""))
    if ref is None or ref() is not value:
        name = f"undescribed {type(value).__qualname__} {_PROCESS} {uuid.uuid4().hex}"
        with contextlib.suppress(TypeError):  # such as a tuple, which is another one each time
            _seen[id(value)] = weakref.ref(value), name
    return name


def _is_unsaid(keys: Iterable[str | None]) -> bool:
    return any(key is not None and key.startswith("undescribed") for key in keys)


def _short(name: str) -> str:
    return name.removeprefix("objective.")


def _change(name: str, found: Mapping[str, Any], expected: Mapping[str, str]) -> str:
    was, now = (
        _abridged(str(keys[name])) if name in keys else "not there" for keys in (found, expected)
    )
    return f"{_short(name)} was {was}, is {now}"


def _abridged(key: str) -> str:
    word = key.partition(" ")[0]
    return word[:12] if len(word) == 64 else word  # of a fingerprint, the beginning will do
