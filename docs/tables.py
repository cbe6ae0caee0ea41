"""Writes the tables of docs/generation.md anew, from the methods: ``python docs/tables.py``.

A table stands between the marks ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import re
from pathlib import Path

from rwguidance.generation.methods import METHODS
from rwguidance.generation.settings import flag, method_options, method_settings, summary

PAGE = Path(__file__).with_name("generation.md")
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def methods():
    """A row for each method: its name, the options that it cannot do without, and what it is."""

    rows = []
    for name, method in METHODS.items():
        required = [s.option for s in method_settings(method) if s.note == "required"]
        rows.append((f"`{name}`", ", ".join(f"`{flag(o)}`" for o in required), summary(method)))
    return _markdown(("`--method`", "needs", "what it is"), rows)


def settings():
    """A row for each meaning of an option: its name, the methods that take it, what it is."""

    rows = [
        (f"`{flag(option.name)}`", methods, meaning)
        for option in method_options(METHODS)
        for meaning, methods in option.meanings.items()
    ]
    return _markdown(("option", "of", "what it is"), rows)


def written(page):
    """The page with its tables as they should be."""

    tables = {"methods": methods(), "settings": settings()}
    return _MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[4]}", page)


def _markdown(headings, rows):
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *escaped]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
