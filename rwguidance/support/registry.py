"""Names for things that arrive as strings: a registry that third parties can add to.

A name leads to a class or a loader. It gets there by the decorator, or through an entry-point
group, which any installed package can fill from its own metadata:

.. code-block:: toml

    [project.entry-points."rwguidance.rewards"]
    sharpness = "my_package.rewards:Sharpness"
    contrast = "my_package.rewards"

Such a package is not imported until its name is looked up. An entry point that names a module and
nothing in it, such as the second, means that the module registers the name by the decorator.

The groups are `rwguidance.rewards`, `rwguidance.backbones`, `rwguidance.networks` (guidance
networks), `rwguidance.prompts` (sets of prompts) and `rwguidance.embeddings` (of images, for
metrics).
"""

import difflib
import importlib
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn

from . import checks
from .describe import error_text
from .files import expanded
from .outside import on_hub
from .packaged import in_package

__all__ = ["TESTBED", "BrokenEntryPoint", "Registry", "build"]

TESTBED = "install rwguidance-testbed, with `pip install ./testbed` in a clone of rwguidance"
"""How the test bed is installed, for messages."""

_TESTBED = "emoji-"

_OWN = ("rewards", "backbones", "rwguidance")
"""Packages whose names in a registry are the library's own."""

_LONGEST_IMPORT = 60.0
"""Seconds that a package may take to be imported for a list."""

_given_up: set[str] = set()
"""Modules whose import hangs."""

T = TypeVar("T")
V = TypeVar("V")
M = TypeVar("M", bound=nn.Module)


class BrokenEntryPoint(ImportError):
    """A package advertises a name that it cannot deliver."""


class Registry(Generic[T]):
    """A mapping from names to classes or loaders.

    Arguments:
        kind: What the names stand for, in the singular, as messages put it: "reward".
        group: The entry-point group through which installed packages add names.
        check: Called with (name, value) for everything that comes in; raises TypeError or
            ValueError if the value is not what the registry holds. None accepts everything.
    """

    def __init__(
        self, kind: str, group: str, check: Callable[[str, Any], None] | None = None
    ) -> None:
        self.kind = kind
        self.group = group
        self._check = check
        self._values: dict[str, T] = {}
        self._advertised: set[str] = set()  # names that entry points have brought in

    def register(self, name: str) -> Callable[[V], V]:
        """Returns a decorator that registers a value under `name` and returns it unchanged.

        Raises:
            TypeError: If the name is not a string, or the value is not what the registry holds.
            ValueError: If the name is empty or already taken by something else.
        """

        if not isinstance(name, str):
            raise TypeError(
                f"a {self.kind} is registered under a string, got {type(name).__name__}; "
                f'write @register("name")'
            )
        if not name:
            raise ValueError(f"a {self.kind} is registered under a name, got an empty string")

        def add(value: V) -> V:
            if self._check is not None:
                self._check(name, value)
            held: Any = self._values.setdefault(name, cast(T, value))
            if held is not value:
                raise ValueError(
                    f"{self.kind} {name!r} is already registered, by {_origin(held)};"
                    f" choose another name for {_origin(value)}"
                )
            return value

        return add

    def load(self, name: str) -> T:
        """What `name` stands for. Imports the package that provides it, and no other.

        Raises:
            TypeError: If the name is not a string.
            LookupError: If nothing has this name; lists the names that exist.
            BrokenEntryPoint: If the package that advertises the name fails to deliver.
            ValueError: If the name is provided twice.
        """

        checks.instance("name", name, str, "a string, one of those that available() lists")
        advertised = self._entry_points.get(name, ())
        if name not in self._values and not advertised:
            raise LookupError(self._unknown(name))
        if self._is_taken(name):
            return self._values[name]
        for entry_point in advertised:
            self._add(entry_point)
        return self._values[name]

    def _is_taken(self, name: str) -> bool:
        """Whether a name is this library's own, which no package can take, nor break by failing."""

        value: Any = self._values.get(name)
        own = str(getattr(value, "__module__", "")).partition(".")[0] in _OWN
        return name in self._values and own and name not in self._advertised

    def names(self) -> list[str]:
        """Every name, sorted; imports nothing."""

        return sorted({*self._values, *self._entry_points})

    def available(self) -> dict[str, T]:
        """Everything that can be loaded, sorted by name. Imports every package that adds a name.

        Warns:
            RuntimeWarning: For every name that cannot be loaded, with the reason.
        """

        values = {}
        for name in self.names():
            try:
                for entry_point in self._entry_points.get(name, ()):
                    if self._is_taken(name):
                        raise BrokenEntryPoint(self._refused(entry_point))
                    _import_in_time(entry_point)
                values[name] = self.load(name)
            except (BrokenEntryPoint, ValueError) as error:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
                if self._is_taken(name):
                    values[name] = self._values[name]
        return values

    def _refused(self, entry_point: EntryPoint) -> str:
        return (
            f"{self.kind} {entry_point.name!r} is this library's own: the entry point "
            f"{entry_point.value!r}{_package(entry_point)} cannot take its name"
        )

    @cached_property
    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for entry_point in sorted(entry_points(group=self.group), key=lambda e: (e.name, e.value)):
            known = found.setdefault(entry_point.name, [])
            if entry_point.value not in [other.value for other in known]:
                known.append(entry_point)
        return found

    def _add(self, entry_point: EntryPoint) -> None:
        name = entry_point.name
        _check_not_given_up(entry_point)  # who imports it now would wait for it
        try:
            value = entry_point.load()
            if not isinstance(value, ModuleType):
                self.register(name)(value)
            elif name not in self._values:
                raise LookupError(f"the module {value.__name__} does not register it")
            self._advertised.add(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a foreign package does wrong is its own fault
            raise BrokenEntryPoint(
                f"{self.kind} {name!r} is provided by the entry point {entry_point.value!r}"
                f"{_package(entry_point)}, which fails: {type(error).__name__}: {error_text(error)}"
            ) from error

    def _unknown(self, name: str) -> str:
        names = self.names()
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if str(name).startswith(_TESTBED):
            hint = f"; names that begin with {_TESTBED} are those of the test bed: {TESTBED}"
        if not names:
            return f"there is no {self.kind} {name!r}: none is registered or installed{hint}"
        return f"there is no {self.kind} {name!r}, there are {', '.join(map(repr, names))}{hint}"


def build(
    kind: str,
    name: str,
    factory: Callable[..., M],
    path: str | os.PathLike[str] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    options: Mapping[str, Any],
) -> M:
    """Calls a registered class and makes what it returns ready to be used: frozen, in eval mode.

    Arguments:
        kind: What is built, for messages.
        name: The name it was found under, for messages.
        factory: The class or loader. Receives `path` as a keyword, if there is one, and `options`;
            and `dtype`, if it takes one: what reads its weights in their final precision saves both
            memory and a second rounding.
        path: A local file or directory with the weights, or ``hf://owner/repository``, or
            ``package://name/folder``.
        device: The device of the module, or its name.
        dtype: The dtype that its floating-point parameters are cast to, or its name.
        options: Further keywords.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        TypeError: If the factory does not take these keywords; shows what it takes. If the path,
            the device or the dtype is of another kind.
        ValueError: If there is no such device, or the dtype is not of floating point.
    """

    device = checks.device("device", device)  # before weights are read
    dtype = checks.floating_dtype("dtype", dtype)
    keywords = dict(options)
    if path is not None:
        checks.path("path", path)
        if str(path).startswith("~"):
            path = expanded(path)
        if not str(path) or not (on_hub(path) or in_package(path) or Path(path).exists()):
            raise FileNotFoundError(f"no file or directory with the {kind} {name!r} at {path}")
        keywords["path"] = path
    signature = inspect.signature(factory)
    if dtype is not None and "dtype" in signature.parameters:
        keywords["dtype"], dtype = dtype, None
    try:
        signature.bind(**keywords)
    except TypeError as error:
        takes = ", ".join(str(parameter) for parameter in signature.parameters.values())
        raise TypeError(f"{kind} {name!r} takes ({takes}): {error}") from None
    module = factory(**keywords).to(device=device, dtype=dtype)
    return module.eval().requires_grad_(False)


def _package(entry_point: EntryPoint) -> str:
    return f" of {entry_point.dist.name}" if entry_point.dist is not None else ""


def _import_in_time(entry_point: EntryPoint) -> None:
    """Imports the module of an entry point, but gives it up if that takes too long.

    What else goes wrong is left to whoever loads it. The thread of one that hangs cannot be ended.

    Raises:
        BrokenEntryPoint: If it is given up.
    """

    _check_not_given_up(entry_point)
    if entry_point.module in sys.modules:
        return
    thread = threading.Thread(target=_try_import, args=(entry_point.module,), daemon=True)
    thread.start()
    thread.join(_LONGEST_IMPORT)
    if thread.is_alive():
        _given_up.add(entry_point.module)
    _check_not_given_up(entry_point)


def _check_not_given_up(entry_point: EntryPoint) -> None:
    if entry_point.module in _given_up:
        raise BrokenEntryPoint(
            f"the entry point {entry_point.name!r}{_package(entry_point)} is left out: "
            f"{entry_point.module} was not imported within {_LONGEST_IMPORT:g} seconds"
        )


def _try_import(module: str) -> None:
    with suppress(BaseException):
        importlib.import_module(module)


def _origin(value: Any) -> str:
    name = getattr(value, "__qualname__", repr(value))
    return f"{getattr(value, '__module__', '?')}.{name}"
