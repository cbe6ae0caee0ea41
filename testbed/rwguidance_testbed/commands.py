"""Functions as commands: their arguments are options, which their docstrings describe."""

import inspect
import re
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass, replace
from inspect import Parameter
from typing import Annotated, Any

__all__ = ["as_command", "run"]


def run(function: Callable[..., Any]) -> None:
    """Runs a function as the command of this process, see :func:`as_command`."""

    import typer

    typer.run(as_command(function))


def as_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that typer runs as a command.

    Its options are the arguments of the given function, with the descriptions in its docstring. An
    argument whose default is a dataclass stands for the fields of that, except those which have
    ``metadata={"option": False}``.

    Arguments:
        function: Function whose arguments have annotations that typer knows.
    """

    import typer

    signature = inspect.signature(function)
    helps = _helps(function)
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.default):
            groups[parameter.name] = parameter.default
            parameters += _parameters_of(parameter.default)
            for kind in inspect.getmro(type(parameter.default)):
                helps = _helps(kind) | helps
        else:
            parameters.append(parameter)
    for i, parameter in enumerate(parameters):
        info = typer.Argument if parameter.default is Parameter.empty else typer.Option
        kind, help = parameter.annotation, helps.get(parameter.name)
        parameters[i] = parameter.replace(annotation=Annotated[kind, info(help=help)])

    def command(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = replace(group, **{f.name: values.pop(f.name) for f in _options(group)})
        return function(**values)

    command.__doc__ = _sections(function)[0]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _options(group: Any) -> list[Field[Any]]:
    return [field for field in fields(group) if field.metadata.get("option", True)]


def _parameters_of(group: Any) -> list[Parameter]:
    kind = Parameter.POSITIONAL_OR_KEYWORD
    return [
        Parameter(f.name, kind, default=getattr(group, f.name), annotation=f.type)
        for f in _options(group)
    ]


def _sections(described: Any) -> tuple[str, str]:
    """Splits a docstring into what comes before the section of arguments and that section."""

    text, _, rest = (inspect.getdoc(described) or "").partition("\nArguments:\n")
    return text.strip(), rest.partition("\n\n")[0]


def _helps(described: Any) -> dict[str, str]:
    """Returns the descriptions of arguments by name."""

    rows = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", _sections(described)[1], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in rows}
