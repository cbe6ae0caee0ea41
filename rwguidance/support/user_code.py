"""Objects from a user's own file, ``FILE.py:NAME``: imported when asked for, known by a digest.

A file is Python code and may do anything: nothing here is called unless the user named the file.
The SHA-256 of its content stands for the code in it, so that
:func:`rwguidance.support.fingerprint.fingerprint` can tell whether a saved result belongs to it.
Only the file itself counts: what it imports is taken as fixed.
"""

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from .describe import error_text
from .files import expanded, read_regular

__all__ = ["UserCodeError", "load_object", "user_digest"]

_PREFIX = "_rwguidance_user_"
"""Beginning of the private names under which files are imported."""

_digests: dict[str, str] = {}
"""The SHA-256 of every imported file, by the name of its module."""

_loaded: dict[int, tuple[Any, str]] = {}
"""Objects that were asked for, by their id, each with a description of where it is from."""


class UserCodeError(ImportError):
    """A user's file or an object in it cannot be had."""


def load_object(place: str) -> Any:
    """Returns an object of a user's file, which is imported under a private name.

    A file is imported once for each content that it has, so a second object shares its module with
    the first. Its folder is not added to the places that Python imports from.

    Arguments:
        place: File and name, ``FILE.py:NAME``; ``~`` is the user's home.

    Raises:
        UserCodeError: If `place` is not of that form, there is no such file, its import fails, or
            it has no such name.
    """

    path, colon, name = place.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise UserCodeError(f"user code must be named as FILE.py:NAME, got {place!r}")
    file = expanded(path)
    try:
        content = read_regular(file)
    except OSError as error:
        raise UserCodeError(
            f"{path} must be a file of Python to take {name} from, but it cannot be read "
            f"({error.strerror or error})"
        ) from error
    module = _import(file.resolve(), content)
    if not hasattr(module, name):
        public = sorted(key for key in vars(module) if not key.startswith("_"))
        raise UserCodeError(f"{path} has no {name!r}, it has {', '.join(public) or 'no names'}")
    value = getattr(module, name)
    if not isinstance(value, type):  # a class is known by the name of its module
        _loaded[id(value)] = value, f"{_digests[module.__name__]} {name}"
    return value


def user_digest(value: Any) -> str | None:
    """Returns the SHA-256 of the user's file that holds the code of a value, or None.

    That is the file in which a function or a class is written, or the class of an object. For an
    object that :func:`load_object` returned, whatever its class, it is that digest and its name.
    """

    code = value if isinstance(getattr(value, "__qualname__", None), str) else type(value)
    digest = _digests.get(getattr(code, "__module__", None) or "")
    if digest is not None:
        return digest
    known = _loaded.get(id(value))
    return None if known is None else known[1]


def _import(file: Path, content: bytes) -> Any:
    """The module of a file, imported now unless it was with this content."""

    digest = hashlib.sha256(content).hexdigest()
    key = hashlib.sha256(os.fsencode(file) + b"\0" + content).hexdigest()[:16]
    name = f"{_PREFIX}{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look there for what the file defines
    _digests[name] = digest
    try:
        # Compiled from what was digested: a file that changes meanwhile is not another one's.
        exec(compile(content, str(file), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name], _digests[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        detail = f"{type(error).__name__}: {error_text(error)}"
        raise UserCodeError(f"{file} cannot be imported: {detail}") from error
    return module
