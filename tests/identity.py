"""What identifies an object of a class: each argument, each entry; and equals are equal."""

import importlib
import inspect
import json
import pkgutil
import types
from dataclasses import dataclass, field

import torch
from torch import nn

from rwguidance.support.fingerprint import fingerprint


@dataclass
class Case:
    """A class with arguments, others that must change its fingerprint, and others that must not.

    Arguments:
        make: Makes an object of keyword arguments; the class, or a function.
        base: Arguments.
        changes: Others, which change results.
        incidental: Others, which change none.
        follows: Names of arguments that are seen in what others hold, such as initial weights.
    """

    make: object
    base: dict = field(default_factory=dict)
    changes: dict = field(default_factory=dict)
    incidental: dict = field(default_factory=dict)
    follows: tuple = ()


class Each:
    """Several values of one argument."""

    def __init__(self, *values):
        self.values = values


def check(make_case, tensors=12):
    """Checks a case, which is made anew where it matters that objects are not the same.

    Arguments:
        make_case: Makes the case.
        tensors: Number of tensors of which entries are changed, about.
    """

    case = make_case()
    parameters = set(inspect.signature(case.make).parameters)
    told = {*case.changes, *case.incidental, *case.follows}
    assert parameters <= told, f"nothing is said of {parameters - told}"
    key = fingerprint(case.make(**case.base))
    again = make_case()
    assert fingerprint(again.make(**again.base)) == key
    seen = {key}
    for name, value in again.changes.items():
        for other in value.values if isinstance(value, Each) else [value]:
            found = fingerprint(case.make(**{**case.base, name: other}))
            assert found not in seen, f"{name} changes nothing"
            seen.add(found)
    for name, value in again.incidental.items():
        found = fingerprint(case.make(**{**case.base, name: value}))
        assert found == key, f"{name} changes something"
    check_entries(case.make(**case.base), tensors)


def check_entries(value, count=12):
    """Changes an entry of every tensor of an object, at its ends and in the middle."""

    key = fingerprint(value)
    tensors = [t for t in tensors_of(value) if t.numel()]
    tensors = tensors[:: max(1, len(tensors) // count)] + tensors[-1:]
    for tensor in tensors:
        places = {0, tensor.numel() // 2, tensor.numel() - 1}
        for place in places if count > 2 else {tensor.numel() - 1}:
            flat = tensor.detach().view(-1)
            old = flat[place].clone()
            flat[place] = ~old if old.dtype == torch.bool else old + 1
            assert fingerprint(value) != key, f"entry {place} of {tuple(tensor.shape)}"
            flat[place] = old
    assert fingerprint(value) == key


def tensors_of(value):
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    public = {name: v for name, v in getattr(value, "__dict__", {}).items() if name[0] != "_"}
    return [t for t in public.values() if isinstance(t, torch.Tensor) and t.is_contiguous()]


def keys_of(cases):
    """The fingerprints of the first objects of cases, as JSON, to compare processes by."""

    return json.dumps({name: fingerprint(c.make(**c.base)) for name, c in sorted(cases.items())})


def classes_with_state(*packages):
    """Concrete public classes that are no frozen dataclasses, by full name.

    A frozen dataclass without `depends_on` is identified by all its fields, whatever they are.
    """

    found = {}
    for package in map(importlib.import_module, packages):
        inside = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        for name in [package.__name__, *(m.name for m in inside if "__main__" not in m.name)]:
            module = importlib.import_module(name)
            for cls in (getattr(module, n) for n in getattr(module, "__all__", ())):
                # In Python 3.10 an alias such as dict[str, int] passes for a type.
                named = isinstance(cls, type) and not isinstance(cls, types.GenericAlias)
                if named and has_state(cls):
                    found[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return found


def has_state(cls):
    told = cls.__dict__.get("__dataclass_params__")
    plain = told is not None and told.frozen and "depends_on" not in cls.__dict__
    kinds = (BaseException, tuple)
    protocol = getattr(cls, "_is_protocol", False)
    return not (inspect.isabstract(cls) or issubclass(cls, kinds) or protocol or plain)


__all__ = ["Case", "Each", "check", "check_entries", "classes_with_state", "keys_of"]
