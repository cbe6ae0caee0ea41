"""A table of rewards: what each of them is, at a glance."""

import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import overload

from rwguidance.support.packaged import in_package

from .base import RewardFile, RewardSpec

__all__ = ["HEADINGS", "RewardTable", "cells", "column_widths", "facts"]

_WIDTH = 100
_GAP = "  "
HEADINGS = ("name", "title", "gradient", "prompt", "license", "commercial", "range")
"""What is in the columns of a row, but for parity, which comes last."""

_NARROWEST = {"title": 15, "license": 13, "range": 7}  # the columns that may wrap


class RewardTable(Sequence[RewardSpec]):
    """The facts about some rewards: a sequence that prints as a table, and as HTML in a notebook.

    It equals any list or tuple of the same facts. Licenses read "code / weights" where they differ.

    Arguments:
        specs: The facts, in order.
    """

    def __init__(self, specs: Iterable[RewardSpec] = ()) -> None:
        self._specs = tuple(specs)

    def __len__(self) -> int:
        return len(self._specs)

    @overload
    def __getitem__(self, index: int) -> RewardSpec: ...

    @overload
    def __getitem__(self, index: slice) -> "RewardTable": ...

    def __getitem__(self, index: int | slice) -> "RewardSpec | RewardTable":
        if isinstance(index, slice):
            return RewardTable(self._specs[index])
        return self._specs[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RewardTable | list | tuple):
            return self._specs == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._specs)

    def __str__(self) -> str:
        """Returns at most 100 columns of plain text; below each reward, what is known of parity."""

        if not self._specs:
            return "no rewards"
        rows = [cells(spec)[:-1] for spec in self._specs]
        widths = column_widths([HEADINGS, *rows], _WIDTH)
        lines = [*_lines(HEADINGS, widths), _GAP.join("-" * width for width in widths)]
        indent = " " * (widths[0] + len(_GAP))
        for spec, row in zip(self._specs, rows, strict=True):
            lines += _lines(row, widths)
            if spec.parity:
                lines += textwrap.wrap(
                    f"parity: {spec.parity}",
                    _WIDTH,
                    initial_indent=indent,
                    subsequent_indent=indent + "  ",
                )
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tag = lambda name, texts: "".join(f"<{name}>{escape(text)}</{name}>" for text in texts)
        rows = "".join(f"<tr>{tag('td', cells(spec))}</tr>\n" for spec in self._specs)
        head = tag("th", (*HEADINGS, "parity"))
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"


def cells(spec: RewardSpec) -> tuple[str, ...]:
    """The row of a reward: name, title, gradient, prompt, license, commercial, range and parity."""

    both = dict.fromkeys((spec.code_license, spec.weights_license))
    return (
        spec.name,
        spec.title,
        _yes(spec.differentiable),
        _yes(spec.needs_prompt),
        " / ".join(both),
        _yes(spec.commercial_use),
        _range(spec),
        spec.parity,
    )


def column_widths(rows: Sequence[Sequence[str]], total: int) -> list[int]:
    """Widths of columns two spaces apart, at most `total` together if cells may wrap at words.

    Arguments:
        rows: The headings and the cells, in the order of :data:`HEADINGS`.
        total: Number of characters in a line.
    """

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    spare = [width - _NARROWEST.get(h, width) for h, width in zip(HEADINGS, widths, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > total and max(spare) > 0:
        most = max(range(len(spare)), key=spare.__getitem__)
        widths[most] -= 1
        spare[most] -= 1
    return widths


def facts(spec: RewardSpec) -> dict[str, str]:
    """Everything about one reward, by what it is."""

    limit = spec.context_length
    return {
        "title": spec.title,
        "formula": spec.formula,
        "typical range": _range(spec),
        "published scale": spec.published_scale or "as above",
        "preprocessing": spec.preprocessing,
        "prompt": "cut after " + f"{limit} tokens" if limit else _yes(spec.needs_prompt),
        "gradient": _yes(spec.differentiable),
        "code license": spec.code_license,
        "weights license": spec.weights_license,
        "commercial use": f"{_yes(spec.commercial_use)} (a summary, not legal advice)",
        "files": "\n".join(
            f"{file.name}\n  from {file.source}\n  digest {_digest(file)}" for file in spec.files
        )
        or "none",
        "parity": spec.parity or "not stated",
        "card": spec.card or "none",
        "citation": spec.citation,
    }


def _digest(file: RewardFile) -> str:
    return file.digest or ("in its package" if in_package(file.source) else "unknown")


def _yes(flag: bool | None) -> str:
    return "unknown" if flag is None else "yes" if flag else "no"


def _range(spec: RewardSpec) -> str:
    low, high = spec.typical_range
    return f"{low:g} to {high:g}"


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The lines of a row, with every cell wrapped to its width."""

    columns = [
        textwrap.wrap(text, width, break_on_hyphens=False) or [""]
        for text, width in zip(row, widths, strict=True)
    ]
    height = max(map(len, columns))
    filled = [column + [""] * (height - len(column)) for column in columns]
    return [
        _GAP.join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*filled, strict=True)
    ]
