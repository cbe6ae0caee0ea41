"""What a thing depends on, as a short key: to tell whether a saved result belongs to it.

A class says what decides its results besides parameters and buffers, by a class attribute:

.. code-block:: python

    class Sharpness(Reward):
        depends_on = ("factor",)

names options, tables and parts among its attributes; ``()`` says that parameters and buffers are
all. The class must say so itself: a subclass may have added options or changed a method, so what
its base says does not hold for it. Functions and lambdas cannot say anything.

The key is that of values, not of code: who changes what a class computes changes `depends_on`, or
lets the version of the library tell. Code of a user's file counts by the digest of that file
(:mod:`rwguidance.support.user_code`).
"""

import dataclasses
import enum
import functools
import json
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from .digests import Numbers, digest_of
from .user_code import user_digest

__all__ = ["NotKept", "Undescribed", "fingerprint", "fingerprint_or_reason", "structure"]

_OURS = ("rwguidance", "rewards", "backbones", "rwguidance_testbed")
"""Packages whose functions are known by their names."""

_FIXED = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "open_clip",
    "timm",
    "torchvision",
    "peft",
    "accelerate",
)
"""Packages whose classes and functions are known by their names, though they say nothing."""

_PLACES = ("name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of configurations that say where weights are from and how they were read."""

_ADAPTERS = ("_active_adapter", "_disable_adapters")
"""Private attributes that say which adapters of a layer (LoRA) act."""

_STATE = ("cache", "warnings_issued")
"""Attributes of tokenizers and models that grow while they are used."""


_NESTED = ("chat_template", "image_processor", "tokenizer")
"""Attributes of processors that are described themselves."""


class Undescribed(TypeError):
    """Something does not say what its results depend on, so saved results cannot be told apart."""


class NotKept(UserWarning):
    """A result is neither kept nor resumed, since something that made it is undescribed."""


def fingerprint(value: Any, ignore: Collection[str] = ()) -> str:
    """Returns a key of everything that a value depends on, the same in every process.

    Described are numbers, strings, None, dtypes, tensors, arrays of numpy, sequences, sets,
    mappings, frozen dataclasses of these, objects whose class says `depends_on`, and bound methods
    of such objects. Modules are followed into their submodules by name, each of which must be
    described. Modules of torch, diffusers, transformers, open_clip, timm, torchvision and peft say
    nothing and need not: their configurations, their public options and the adapters that act are
    taken.

    Tensors count byte for byte up to 64 MiB in all. Of more than that, the entries 0, k, 2k, ...
    and the last one of every tensor count, with k the number of all bytes divided by 64 MiB,
    rounded up, and the names, shapes and dtypes of all. It is meant against mistakes, not against
    malice. Devices and folders do not enter; weights do that are offloaded.

    Arguments:
        value: The value.
        ignore: Names of attributes, at any depth, that change no result.

    Returns:
        64 hexadecimal digits.

    Raises:
        Undescribed: If something in it says not what it depends on; names its class, and what to
            write there.
    """

    describer = _Describer(ignore)
    description = describer.describe(value, "")
    return digest_of(description, describer.numbers)


def fingerprint_or_reason(value: Any, ignore: Collection[str] = ()) -> tuple[str | None, str]:
    """Returns the fingerprint and an empty reason; or None and, in one line, why there is none."""

    try:
        return fingerprint(value, ignore), ""
    except Undescribed as reason:
        return None, str(reason)


def structure(value: Any) -> str:
    """Returns a key as :func:`fingerprint` does, to which the values of tensors do not matter.

    Names, shapes and dtypes of tensors do, and all options.

    Raises:
        Undescribed: If something in it says not what it depends on.
    """

    describer = _Describer(())
    description = describer.describe(value, "")
    return digest_of(description, describer.numbers, values=False)


class _Describer:
    """Turns values into nested tuples of strings; tensors and arrays stay, to be digested later."""

    def __init__(self, ignore: Collection[str]) -> None:
        self.ignore = frozenset(ignore)
        self.numbers: list[Numbers] = []
        self._path: list[int] = []
        self._modules: list[int] = []

    def describe(self, value: Any, where: str) -> Any:
        """Returns the description of a value.

        Arguments:
            value: The value.
            where: Path of attributes that leads to it, for messages.

        Raises:
            Undescribed: If there is none.
        """

        plain = _plain(value)
        if plain is not None:
            return plain
        if id(value) in self._path:
            return "around", str(len(self._path) - self._path.index(id(value)))
        self._path.append(id(value))
        try:
            return self._compound(value, where)
        finally:
            self._path.pop()

    def _compound(self, value: Any, where: str) -> Any:
        cls = type(value)
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        if cls.__module__ == "numpy" and cls.__name__ == "ndarray" and value.dtype.kind in "biufc":
            return self._numbers(value)
        if "depends_on" in cls.__dict__:
            return self._said(value, where)
        if isinstance(value, Mapping):
            items = [(self.describe(k, where), k, v) for k, v in value.items()]
            items.sort(key=lambda item: repr(item[0]))
            return "mapping", tuple(
                (name, self.describe(v, f"{where}[{k!r}]")) for name, k, v in items
            )
        if isinstance(value, Sequence):
            each = (self.describe(v, f"{where}[{i}]") for i, v in enumerate(value))
            return "sequence", tuple(each)
        if isinstance(value, Set):
            return "set", tuple(sorted((self.describe(v, where) for v in value), key=repr))
        digest = user_digest(value)
        if digest is not None:
            return self._of_user(value, digest, where)
        if _top(cls) in _FIXED and not _is_function(value):
            return self._fixed(value, where)
        if "__dataclass_params__" in cls.__dict__ and cls.__dataclass_params__.frozen:
            names = [field.name for field in dataclasses.fields(value)]
            return "dataclass", _name(cls), self._attributes(value, names, where)
        return self._function(value, where)

    def _said(self, value: Any, where: str) -> Any:
        names = type(value).__dict__["depends_on"]
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"{type(value).__name__}.depends_on must be a tuple of names of attributes, "
                f"got {names!r}"
            )
        missing = [name for name in names if not hasattr(value, name)]
        if missing:
            raise TypeError(
                f"{type(value).__name__}.depends_on must name attributes, but an object has no "
                f"{', '.join(missing)}"
            )
        before = len(self._modules)
        attributes = self._attributes(value, names, where)
        kind = _name(type(value)), user_digest(type(value)) or ""
        if not isinstance(value, nn.Module):
            return "object", kind, attributes
        return "module", kind, attributes, self._parts(value, where, self._modules[before:])

    def _attributes(self, value: Any, names: Collection[str], where: str) -> Any:
        return tuple(
            (name, self.describe(getattr(value, name), f"{where}.{name}"))
            for name in sorted(names)
            if name not in self.ignore
        )

    def _parts(self, module: nn.Module, where: str, known: Collection[int]) -> Any:
        """The tensors and submodules of a module, but for those that are described already."""

        self._modules.append(id(module))
        tensors = tuple(
            (name, self._tensor(tensor, f"{where}.{name}", load))
            for name, tensor, load in _tensors(module)
        )
        modules = tuple(
            (name, self.describe(part, f"{where}.{name}"))
            for name, part in module._modules.items()
            if part is not None and id(part) not in known and name not in self.ignore
        )
        return tensors, modules

    def _fixed(self, value: Any, where: str) -> Any:
        """A module, a scheduler or a tokenizer of a package whose code is fixed."""

        words = _vocabulary(value)
        config = {} if words else _config(value)
        told = words or (config and not isinstance(value, nn.Module))
        options = {} if told else _options(getattr(value, "__dict__", {}))
        about = tuple(self._plain_part(part) for part in (config, options))
        if isinstance(value, nn.Module):
            text = value.extra_repr()
            return "module", _name(type(value)), about, text, self._parts(value, where, ())
        names = [name for name in _NESTED if name in getattr(value, "__dict__", {})]
        nested = self._attributes(value, names, where)
        return "object", _name(type(value)), about, words, nested

    def _plain_part(self, options: Mapping[str, Any]) -> Any:
        return repr({k: v for k, v in options.items() if k not in self.ignore})

    def _of_user(self, value: Any, digest: str, where: str) -> Any:
        """Something that is written in a user's file, which holds its code."""

        if isinstance(value, type):
            return "user's class", digest, value.__qualname__
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            defaults = (value.__defaults__, value.__kwdefaults__, cells)
            name = f"{value.__qualname__}:{value.__code__.co_firstlineno}"
            return "user's function", digest, name, self.describe(defaults, where)
        if isinstance(value, types.MethodType | functools.partial):
            return self._function(value, where)
        names = list(getattr(value, "__dict__", {}))
        if not isinstance(value, nn.Module):
            return (
                "user's object",
                digest,
                _name(type(value)),
                self._attributes(value, names, where),
            )
        hidden = vars(nn.Module()).keys()
        names = [name for name in names if name not in hidden]
        state = self._attributes(value, names, where), self._parts(value, where, ())
        return "user's module", digest, _name(type(value)), state

    def _function(self, value: Any, where: str) -> Any:
        """A function, a method or a class that is known by its name."""

        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return "partial", self.describe(parts, where)
        if isinstance(value, types.MethodType):
            return "method", value.__func__.__qualname__, self.describe(value.__self__, where)
        name = getattr(value, "__qualname__", "<>")
        known = _is_function(value) and _top(value) in (*_OURS, *_FIXED)
        if known and "<" not in name and not getattr(value, "__closure__", None):
            return "function", f"{value.__module__}.{name}"
        raise Undescribed(_advice(value, where))

    def _tensor(self, tensor: Tensor, where: str, load: Callable[[], Tensor] | None = None) -> Any:
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise Undescribed(
                f"{where.lstrip('.') or 'a tensor'} must be dense, got {tensor.layout}"
            )
        return self._numbers(tensor, load)

    def _numbers(self, values: Any, load: Callable[[], Tensor] | None = None) -> Any:
        self.numbers.append(Numbers(values, load))
        return self.numbers[-1]


def _plain(value: Any) -> Any:
    """The description of a number, a string, None, a dtype or a slice; None if it is none."""

    if isinstance(value, enum.Enum):
        return "enum", _name(type(value)), value.name
    if isinstance(value, str | bytes):
        return type(value).__name__, repr(value)
    for kind in (bool, int, float, complex):
        if isinstance(value, kind):
            return kind.__name__, kind.__repr__(value)
    if value is None or isinstance(value, torch.dtype | slice | types.EllipsisType):
        return type(value).__name__, repr(value)
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and value.shape == ():
        return str(value.dtype), repr(value.item())
    return None


def _options(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """What is plain among attributes of a class of fixed code, in the order of their names."""

    named = {str(key): _simplified(value) for key, value in attributes.items()}
    return {
        key: value
        for key, value in sorted(named.items())
        if value is not None
        and key not in (*_PLACES, *_STATE)
        and (not key.startswith("_") or key in _ADAPTERS)
    }


def _simplified(value: Any) -> Any:
    """A value in terms of numbers and strings; None if it is anything else."""

    if isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, list | tuple):
        return [_simplified(item) for item in value]
    return _options(value) if isinstance(value, Mapping) else None


def _config(value: Any) -> dict[str, Any]:
    """The configuration of a model, a scheduler or a processor, without private entries."""

    config = getattr(value, "config", value)
    if not isinstance(config, Mapping):
        make = getattr(config, "to_dict", None)
        config = make() if callable(make) else {}
    return _options(config) if isinstance(config, Mapping) else {}


def _vocabulary(tokenizer: Any) -> str:
    """What decides the tokens of a tokenizer, without the state that its calls leave there."""

    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(fast, "to_str"):
        parts = json.loads(fast.to_str())
        words = {k: v for k, v in parts.items() if k not in ("truncation", "padding")}
    elif hasattr(tokenizer, "get_vocab"):
        ranks = sorted(getattr(tokenizer, "bpe_ranks", {}).items())
        words = {"vocabulary": sorted(tokenizer.get_vocab().items()), "ranks": ranks}
    else:
        return ""
    kept = ("model_max_length", "special_tokens_map")
    return repr((words, [getattr(tokenizer, name, None) for name in kept]))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, Callable[[], Tensor] | None]]:
    """Parameters and buffers of a module itself, with a loader of those that were offloaded."""

    offloaded: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for key, tensor in own:
        away = offloaded is not None and tensor.is_meta
        yield key, tensor, functools.partial(offloaded.__getitem__, key) if away else None


def _is_function(value: Any) -> bool:
    kinds = (types.FunctionType, types.BuiltinFunctionType, type)
    return isinstance(value, kinds) or type(value).__name__ == "builtin_function_or_method"


def _name(cls: Any) -> str:
    """The full name of a class; of a user's file, which its digest stands for, the name in it."""

    return cls.__qualname__ if user_digest(cls) else f"{cls.__module__}.{cls.__qualname__}"


def _top(code: Any) -> str:
    return (getattr(code, "__module__", None) or "").partition(".")[0]


def _advice(value: Any, where: str) -> str:
    place = f" ({where.lstrip('.')})" if where else ""
    if _is_function(value):
        name = getattr(value, "__qualname__", type(value).__name__)
        return (
            f"the function {name}{place} cannot say what its results depend on: write a class with "
            "`__call__` and `depends_on`, a tuple of names of its attributes"
        )
    return (
        f"{type(value).__module__}.{type(value).__qualname__}{place} does not say what its results "
        "depend on: write `depends_on = (...)` in that class, the names of the attributes that "
        "decide them besides parameters and buffers, or () if there are none"
    )
