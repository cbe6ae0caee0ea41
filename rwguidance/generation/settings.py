"""Settings of methods as options: from a dataclass to the command line, its help and the docs.

A method is a dataclass. Names, types and defaults of its options are those of its fields, and what
they mean is said in the section Arguments of its docstring, or of a base class's: a setting is
stated once. Two keys of a field's metadata say where the command line differs: `option`, the name
of the option, and `read`, a function that makes the value from the path of a file.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .base import Method

__all__ = [
    "Option",
    "Setting",
    "build",
    "build_fields",
    "flag",
    "method_options",
    "method_settings",
    "summary",
]


@dataclass(frozen=True)
class Setting:
    """One setting of one method.

    Arguments:
        method: Name of the method.
        field: Name of the dataclass's field.
        option: Name of the option, with underscores.
        kind: Type of the option's value.
        meaning: Description of the setting, a sentence or two.
        default: Value of a field that is not given; ``dataclasses.MISSING`` if it must be given.
        read: Function from the option's value to the field's.
    """

    method: str
    field: str
    option: str
    kind: Any
    meaning: str
    default: Any
    read: Callable[[Any], Any]

    @property
    def note(self) -> str:
        """The default in words; empty where it is None."""

        if self.default is MISSING:
            return "required"
        return "" if self.default is None else f"default {_show(self.default)}"


@dataclass(frozen=True)
class Option:
    """One option of the command line: a setting of one method, or of several.

    Arguments:
        name: Name of the option, with underscores.
        settings: Settings that take its value, at most one per method.

    Raises:
        TypeError: If the settings are not of one type.
    """

    name: str
    settings: Sequence[Setting]

    def __post_init__(self) -> None:
        first, *others = self.settings
        for other in others:
            if other.kind != first.kind:
                raise TypeError(
                    f"{flag(self.name)} must have one type for all methods, got {first.kind} for "
                    f"{first.method} and {other.kind} for {other.method}"
                )

    @property
    def kind(self) -> Any:
        """The type of its value."""

        return self.settings[0].kind

    @property
    def meanings(self) -> dict[str, str]:
        """Meanings of the option, each with the methods that take it so and their defaults."""

        methods: dict[str, dict[str, list[str]]] = {}
        for setting in self.settings:
            by_note = methods.setdefault(setting.meaning, {})
            by_note.setdefault(setting.note, []).append(setting.method)
        label = lambda note, names: ", ".join([*names, note] if note else names)
        return {
            meaning: "; ".join(label(note, names) for note, names in by_note.items())
            for meaning, by_note in methods.items()
        }

    @property
    def help(self) -> str:
        """The meanings in one line."""

        meanings = self.meanings.items()
        return " ".join(f"{meaning.rstrip('.')} ({methods})." for meaning, methods in meanings)


def method_settings(method: type[Method]) -> list[Setting]:
    """Returns the settings of a method, in the order of its constructor.

    Raises:
        TypeError: If the method is not a dataclass, or a field may have several types.
    """

    hints = get_type_hints(method)
    fields: Any = dataclasses.fields(method)  # type: ignore[arg-type]
    found = []
    for field in sorted(fields, key=lambda field: field.kw_only):
        read = field.metadata.get("read")
        made = field.default_factory
        found.append(
            Setting(
                method=method.name,
                field=field.name,
                option=field.metadata.get("option", field.name),
                kind=Path if read else _kind(field.name, hints[field.name]),
                meaning=_meaning(method, field.name),
                default=field.default if made is MISSING else made(),
                read=read or (lambda value: value),
            )
        )
    return found


def method_options(methods: Mapping[str, type[Method]]) -> list[Option]:
    """Returns the options of all methods, each once.

    Raises:
        TypeError: If methods disagree on the type of an option.
    """

    settings: dict[str, list[Setting]] = {}
    for method in methods.values():
        for setting in method_settings(method):
            settings.setdefault(setting.option, []).append(setting)
    return [Option(name, found) for name, found in settings.items()]


def build(method: type[Method], options: Mapping[str, Any]) -> Method:
    """Returns a method with the settings that options give.

    Arguments:
        method: Class of the method.
        options: Values by names of options, with underscores; None where an option was not given.

    Raises:
        ValueError: If an option is not for the method, one that it needs is missing, or a value
            makes no sense.
    """

    settings = {setting.option: setting for setting in method_settings(method)}
    given = {name: value for name, value in options.items() if value is not None}
    stray = sorted(given.keys() - settings.keys())
    if stray:
        raise ValueError(
            f"{flag(stray[0])} is not for --method {method.name}, which takes "
            + ", ".join(map(flag, sorted(settings)))
        )
    for name, setting in settings.items():
        if setting.default is MISSING and name not in given:
            raise ValueError(f"--method {method.name} needs {flag(name)}")
    values = {settings[name].field: settings[name].read(value) for name, value in given.items()}
    return method.from_options(**values)


def build_fields(method: type[Method], values: Mapping[str, Any]) -> Method:
    """Returns a method with settings that are given by the names of its fields.

    Arguments:
        method: Class of the method.
        values: Values by fields; lists stand for tuples, and paths for what is read from files.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If the method has no such field, or lacks one, or a value makes no sense.
    """

    settings = {setting.field: setting for setting in method_settings(method)}
    stray = sorted(values.keys() - settings.keys())
    if stray:
        raise ValueError(f"{method.name} has no {stray[0]!r}, it takes {', '.join(settings)}")
    for name, setting in settings.items():
        if setting.default is MISSING and name not in values:
            raise ValueError(f"{method.name} needs {name}, as in {method.name}:{name}=...")
    plain = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return method.from_options(**{name: settings[name].read(v) for name, v in plain.items()})


def summary(method: type[Method]) -> str:
    """Returns the first paragraph of a method's docstring, in one line."""

    return _plain(inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0])


def flag(option: str) -> str:
    """Returns an option as it is typed, from its name with underscores."""

    return "--" + option.replace("_", "-")


def _kind(name: str, hint: Any) -> Any:
    """Returns the type of a field; of ``X | None`` it is X."""

    union = get_origin(hint) in (Union, UnionType)
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if union else [hint]
    kind, *others = kinds
    if others:
        raise TypeError(f"setting {name} must have one type, or that and None, got {hint}")
    return kind


def _meaning(method: type[Method], name: str) -> str:
    """Returns what the section Arguments of a docstring says about a field, or nothing."""

    for cls in method.__mro__:
        doc = inspect.cleandoc(cls.__doc__ or "") + "\n"
        section = re.search(r"^Arguments:\n((?:(?: {4}.*)?\n)*)", doc, re.MULTILINE)
        entry = rf"^ {{4}}{name}: (.*(?:\n {{8}}.*)*)"
        found = re.search(entry, section[1], re.MULTILINE) if section else None
        if found:
            return _plain(found[1])
    return ""


def _plain(text: str) -> str:
    """Returns a text of docstrings in one line, with the names that references show."""

    short = re.sub(r":[\w:]+:`~[\w.]*?(\w+)`", r"`\1`", " ".join(text.split()))
    return re.sub(r":[\w:]+:(?=`)", "", short)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
