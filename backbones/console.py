"""Backbones on a terminal: the output of `rwguidance backbones`."""

import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rwguidance.support.describe import plain_text, print_facts
from rwguidance.support.packaged import in_package, package_of

from .published import Published
from .registry import available, loader

__all__ = ["facts", "print_backbone", "print_backbones"]

_HEADINGS = ("name", "class", "steps", "weights", "license")


def print_backbones() -> None:
    """Prints the backbones that can be loaded by name, as a table."""

    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in _HEADINGS:
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for name in available():
        found = facts(name)
        table.add_row(*(plain_text(found.get(heading, "")) for heading in _HEADINGS))
    Console().print(table)


def print_backbone(name: str) -> None:
    """Prints everything about one backbone.

    Raises:
        LookupError: If there is no such backbone; lists those that exist.
    """

    print_facts(name, facts(name))


def facts(name: str) -> dict[str, str]:
    """Returns what is known of a backbone without loading it, as texts by heading.

    Arguments:
        name: A name that :func:`available` lists.

    Raises:
        LookupError: If there is no such backbone; lists those that exist.
    """

    value: Any = loader(name)
    if not isinstance(value, Published):
        text = (inspect.getdoc(value) or "").partition("\n")[0]
        own = getattr(value, "__name__", type(value).__name__)
        return {"name": name, "class": own, "about": text, "takes": _taken(value)}
    shipped = in_package(value.source)
    come = f"come with {package_of(value.source)}" if shipped else "to be given or fetched"
    scale = value.defaults.get("guidance_scale")
    return {
        "name": name,
        "class": value.pipeline_class,
        "steps": str(value.defaults.get("steps", "of the class")),
        "weights": come,
        "license": value.license or "see the card",
        "guidance scale": "none: distilled" if value.distilled else str(scale or "of the class"),
        "adapter": value.family.__name__,
        "source": value.source,
        "card": value.card or _card(value.source),
        "get it": "" if shipped else value.download,
        "diffusers": _diffusers(value.pipeline_class),
        "takes": _taken(value),
    }


def _card(source: str) -> str:
    return source.replace("hf://", "https://huggingface.co/")


def _taken(value: Any) -> str:
    return str(inspect.signature(value))


def _diffusers(pipeline: str) -> str:
    """Whether the installed version of diffusers has a class of pipelines."""

    try:
        installed = version("diffusers")
    except PackageNotFoundError:
        return "not installed"
    import diffusers

    has = "has" if hasattr(diffusers, pipeline) else "has no"
    return f"{installed}, which {has} {pipeline}"
