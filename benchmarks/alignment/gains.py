"""Gains over the base model, picture by picture from the same noise, and their errors."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rwguidance.evaluation import prompts
from rwguidance.statistics import mean_and_error

__all__ = ["Row", "by_part", "gains", "less", "of_prompts"]

Row = Mapping[str, Any]
"""What was measured of a method with one seed: lists of values, one for each prompt, by name."""


def less(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Returns values less others, of the same prompts."""

    return [a - b for a, b in zip(values, others, strict=True)]


def of_prompts(rows: Iterable[Row], base: Mapping[int, Row], name: str) -> list[float]:
    """Returns the gain of each prompt, mean over seeds.

    Arguments:
        rows: Rows of a method.
        base: Rows of the base model by seed.
        name: Name of the values.
    """

    of_seeds = [less(row[name], base[row["seed"]][name]) for row in rows]
    return [statistics.mean(values) for values in zip(*of_seeds, strict=True)]


def gains(
    rows: Sequence[Row], base: Mapping[int, Row], names: Iterable[str]
) -> dict[str, tuple[float, float] | list[float]]:
    """Returns the gains of values by name: mean and error over prompts, and those of each seed.

    Arguments:
        rows: Rows of a method.
        base: Rows of the base model by seed.
        names: Names of the values.
    """

    found: dict[str, tuple[float, float] | list[float]] = {}
    for name in names:
        found[f"{name} gain"] = mean_and_error(of_prompts(rows, base, name))
        found[f"{name} gain of seeds"] = [
            statistics.mean(of_prompts([row], base, name)) for row in rows
        ]
    return found


def by_part(values: Sequence[float], split: str) -> dict[str, tuple[float, float]]:
    """Returns mean and error over prompts of learned names, and over those of names held out.

    Arguments:
        values: A value for each of the first prompts of a split.
        split: "development" or "report".
    """

    parts = prompts.load(f"emoji-{split}").subset(len(values)).groups
    of = lambda name: [v for v, part in zip(values, parts, strict=True) if part == name]
    return {name: mean_and_error(of(name)) for name in sorted(set(parts))}
