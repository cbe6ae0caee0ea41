"""Options that commands share, how their values are read, and options made from settings."""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from ...generation.settings import Option
from ...support.describe import printable
from ...support.files import expanded
from ...support.notes import heard

if TYPE_CHECKING:
    import torch

Command = TypeVar("Command", bound=Callable[..., None])


class DtypeName(str, Enum):
    """The precisions that weights are cast to."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


Device = Annotated[str | None, typer.Option(help="Such as cuda:0.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Seed of everything.", min=0)]


class PartialCommand(TyperCommand):
    """Exits with 1 after wrong options, as 2 says that something was skipped."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            if getattr(error, "exit_code", 0) == 2:
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


def takes_settings(options: Sequence[Option], panel: str) -> Callable[[Command], Command]:
    """Returns a decorator of a command that ends with ``**settings``, to be given these options.

    Arguments:
        options: The options; the command gets None for those that were not given.
        panel: Heading of their part of the help.
    """

    def expand(command: Command) -> Command:
        signature = inspect.signature(command)
        *own, _ = signature.parameters.values()
        parameters = [*own, *(_parameter(option, panel) for option in options)]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return expand


def _parameter(option: Option, panel: str) -> inspect.Parameter:
    info = typer.Option(help=option.help, show_default=False, rich_help_panel=panel)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[option.kind | None, info],
    )


def dtype_named(name: DtypeName | None) -> "torch.dtype | None":
    """Returns the dtype of a name; None stays None."""

    import torch

    return None if name is None else getattr(torch, name.value)


def parse_names(entries: list[str] | None) -> list[str]:
    """Returns the names of an option that may repeat, and holds several separated by commas."""

    return [name for entry in entries or () for name in entry.split(",") if name]


def parse_paths(entries: list[str] | None) -> dict[str, str]:
    """Returns the paths of entries NAME=PATH by name.

    Raises:
        ValueError: If an entry is not of that form, or a name comes twice.
    """

    paths: dict[str, str] = {}
    for entry in entries or ():
        key, equals, value = entry.partition("=")
        if not (key and equals and value) or key in paths:
            raise ValueError(f"path must be NAME=PATH, once per name, got {entry!r}")
        paths[key] = str(expanded(value)) if value.startswith("~") else value
    return paths


def parse_options(entries: list[str] | None) -> dict[str, dict[str, Any]]:
    """Returns the values of entries NAME:KEY=VALUE by name and key; they are JSON, or plain words.

    Raises:
        ValueError: If an entry is not of that form.
    """

    options: dict[str, dict[str, Any]] = {}
    for entry in entries or ():
        left, equals, value = entry.partition("=")
        name, colon, key = left.rpartition(":")  # FILE.py:NAME has a colon of its own
        if not (name and colon and key and equals):
            raise ValueError(f"option must be NAME:KEY=VALUE, got {entry!r}")
        options.setdefault(name, {})[key] = json_or_word(value)
    return options


def json_or_word(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints warnings, such as those of packages that fail, in a line each."""

    say = lambda warning: typer.echo(f"warning: {printable(str(warning))}", err=True)
    with heard(say, RuntimeWarning):
        yield
