"""Methods as an evaluation names them, with their settings: ``NAME:KEY=VALUE,KEY=VALUE``."""

import re
from typing import TYPE_CHECKING, Any

from .options import json_or_word
from .sources import is_own, label

if TYPE_CHECKING:
    from ...generation import Method

__all__ = ["parse_methods"]


def parse_methods(specs: list[str]) -> "dict[str, Method]":
    """Returns methods by the text that names them, without the folders of the user's files.

    Arguments:
        specs: Texts such as ``importance``, ``importance:bank=64,ess=0.05`` or, for a method or a
            class of methods of the user's own, ``FILE.py:NAME:key=1``. Keys are the fields of the
            method; values are JSON, or plain words.

    Raises:
        LookupError: If there is no such method; lists those that exist.
        UserCodeError: If there is no such file, or it fails.
        TypeError: If it is no method, or a value is of the wrong kind.
        ValueError: If a text is not of that form, a key is unknown, a value makes no sense, or a
            method comes twice.
    """

    methods: dict[str, Method] = {}
    for spec in specs:
        if label(spec) in methods:
            raise ValueError(f"method must name each method once, got {label(spec)!r} twice")
        methods[label(spec)] = _method(spec)
    return methods


def _method(spec: str) -> "Method":
    from rwguidance.generation.methods import METHODS
    from rwguidance.generation.settings import build_fields
    from rwguidance.support.user_code import load_object

    from ...generation import Method

    name, settings = _split(spec)
    if not is_own(name):
        if name not in METHODS:
            known = ", ".join(map(repr, METHODS))
            raise LookupError(f"there is no method {name!r}, there are {known}")
        return build_fields(METHODS[name], settings)
    value = load_object(name)
    if isinstance(value, type) and issubclass(value, Method):
        return build_fields(value, settings)
    if not isinstance(value, Method):
        raise TypeError(f"{name} must be a method or a class of methods, got {value!r:.80}")
    if settings:
        raise ValueError(f"{name} is a method with its settings, so that it takes none: {spec!r}")
    return value


def _split(spec: str) -> tuple[str, dict[str, Any]]:
    """Returns the name and the settings of a text."""

    own = re.match(r"(.*?\.py:[^:]+)(?::(.*))?$", spec)
    name, rest = own.groups("") if own else spec.partition(":")[::2]
    settings: dict[str, Any] = {}
    for entry in re.split(r",(?=\w+=)", rest) if rest else ():
        key, equals, value = entry.partition("=")
        if not (key.isidentifier() and equals) or key in settings:
            raise ValueError(
                f"method must be NAME or NAME:KEY=VALUE,KEY=VALUE, each key once, got {spec!r}"
            )
        settings[key] = json_or_word(value)
    return name, settings
