"""Writes the tables of docs/generation.md anew, from the methods: ``python docs/tables.py``.

A table stands between the marks ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import re
from pathlib import Path

from rwguidance.generation.choice import Situation, choose
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


# What was asked for, with `Situation` and settings: pictures, steps, whether there is a path and a
# gradient, calls; and the settings.
SITUATIONS = [
    (Situation(16, 4, True, False), {}),
    (Situation(64, 4, True, False), {}),
    (Situation(16, 4, True, False), {"kl": 2.0}),
    (Situation(16, 4, True, False), {"kl": 4.0}),
    (Situation(16, 4, True, False, 8), {}),
    (Situation(16, 4, True, False, 6), {}),
    (Situation(16, 4, True, False, 4), {"kl": 4.0}),
    (Situation(4, 4, True, False), {}),
    (Situation(1, 4, True, True), {}),
    (Situation(1, 4, True, True, 60), {}),
    (Situation(1, 4, True, True, 20), {"beta": 1.0}),
    (Situation(1, 4, True, False, 4), {"kl": 4.0}),
    (Situation(16, 1, True, False), {}),
    (Situation(1, 1, True, False), {}),
    (Situation(1, 1, True, True, 4), {"beta": 1.0}),
    (Situation(16, 1, False, False), {}),
]


def choice():
    """A row for each situation: the situation, the method that the command chooses, its calls."""

    rows = []
    for situation, given in SITUATIONS:
        model = "a path" if situation.path else "none, a Generator"
        reward = "a gradient" if situation.gradient else "values"
        nats = given.get("kl", 1.0)
        strength = "`--beta`" if "beta" in given else f"{nats:g} nat{'s' * (nats != 1)}"
        asked = "" if situation.calls is None else f"{situation.calls:g}"
        try:
            found = choose(situation, given)
            bank = found.settings.get("bank")
            name = f"`{found.kind.name}`" + ("" if bank is None else f", bank of {bank}")
            cells = (name, f"{found.calls:.3g}")
        except ValueError:
            cells = ("refused", "")
        rows.append(
            (str(situation.images), str(situation.steps), model, reward, strength, asked, *cells)
        )
    headings = (
        "pictures",
        "steps",
        "model",
        "reward",
        "strength",
        "`--calls`",
        "it takes",
        "calls",
    )
    return _markdown(headings, rows)


def written(page):
    """The page with its tables as they should be."""

    tables = {"methods": methods(), "settings": settings(), "choice": choice()}
    return _MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[4]}", page)


def _markdown(headings, rows):
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *escaped]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
