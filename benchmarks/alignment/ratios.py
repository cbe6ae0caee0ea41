r"""What is told from the rows: which methods reach the tilted law's gold, and at which cost.

A method reaches it if the gain of gold over the base model, with the same noise, is not below the
tilted law's by two standard errors of the paired difference over prompts. It is as near to the law
as the model is if its energy distance to the tilted law is not above the base model's by two. The
cost is operations of the training and of 10,000 pictures.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rwguidance.evaluation.measured import Measured
from rwguidance.statistics import mean_and_error
from rwguidance.support.randomness import generator_for

from .gains import Row, less, of_prompts

__all__ = ["PICTURES", "Curve", "at_law", "chosen", "cost_ratio", "cost_ratios", "curves"]

PICTURES = (10, 1_000, 10_000)
"""Numbers of pictures whose cost is told beside that of the training; the last decides."""

_RESAMPLED = 1000


@dataclass(frozen=True)
class Curve:
    """A method with a trial and a budget on the same prompts, mean over seeds.

    Arguments:
        method: Name of the method.
        group: "fine-tuner", "ours" or "existing".
        trial: Settings.
        budget: Budget of the training.
        gold: Gain of gold of each prompt, less that of the tilted law.
        energy: Energy distance to the tilted law of each prompt, less that of the base model.
        training: Operations of the training.
        picture: Operations of a picture.
    """

    method: str
    group: str
    trial: Mapping[str, Any]
    budget: int
    gold: Sequence[float]
    energy: Sequence[float]
    training: float
    picture: float

    def operations(self, pictures: int = PICTURES[-1]) -> float:
        """Returns operations of the training and of so many pictures."""

        return self.training + pictures * self.picture

    def reaches(self, law: bool, where: Sequence[int] | None = None) -> bool:
        """Returns whether the gold of the tilted law is reached, and if asked, as near to the law.

        Arguments:
            law: Whether the distance counts.
            where: Numbers of the prompts that are looked at; None is all.
        """

        pick = lambda values: [values[i] for i in where] if where is not None else list(values)
        gold = Measured(*mean_and_error(pick(self.gold)))
        energy = Measured(*mean_and_error(pick(self.energy)))
        return not gold.below(0.0) and not (law and energy.above(0.0))


def at_law(curves: Sequence[Curve], group: str, law: bool) -> Curve | None:
    """Returns the cheapest of a group that reaches the gold of the tilted law; None without any."""

    found = [one for one in curves if one.group == group and one.reaches(law)]
    return min(found, key=Curve.operations, default=None)


def cost_ratio(own: Curve | None, other: Curve | None) -> float | None:
    """Returns operations of our method over those of a fine-tuner; None where one is missing."""

    return None if own is None or other is None else own.operations() / other.operations()


def cost_ratios(development: Sequence[Curve], reported: Sequence[Curve]) -> dict[str, Any]:
    """Returns both ratios of the definition, of methods that development prompts chose.

    The ratio is null where development prompts choose none of one kind, or where what they choose
    does not reach the same on reported prompts. Beside it stands the ratio of the cheapest that
    reach it on reported prompts, with an interval of 95 % over prompts drawn anew, and the share of
    these draws in which there is none.

    Arguments:
        development: Curves on development prompts.
        reported: Curves on reported prompts.
    """

    found: dict[str, Any] = {}
    for name, law in (("cost_ratio", False), ("cost_ratio_at_law", True)):
        picked = {group: at_law(development, group, law) for group in ("ours", "fine-tuner")}
        same = {group: _same(one, reported) for group, one in picked.items()}
        holds = {group: one is not None and one.reaches(law) for group, one in same.items()}
        ratio = cost_ratio(same["ours"], same["fine-tuner"]) if all(holds.values()) else None
        best = {group: at_law(reported, group, law) for group in picked}
        found[name] = ratio
        found[f"{name} details"] = {
            "chosen": {group: _told(one, law) for group, one in same.items()},
            "holds on reported prompts": holds,
            "cheapest on reported prompts": {g: _told(one, law) for g, one in best.items()},
            "ratio of these": cost_ratio(best["ours"], best["fine-tuner"]),
            **_interval(reported, law),
        }
    return found


def _same(one: Curve | None, curves: Sequence[Curve]) -> Curve | None:
    if one is None:
        return None
    key = lambda c: (c.method, dict(c.trial), c.budget)
    return next((c for c in curves if key(c) == key(one)), None)


def _told(one: Curve | None, law: bool) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "method": one.method,
        "trial": dict(one.trial),
        "budget": one.budget,
        "gold less the tilted law's": mean_and_error(list(one.gold)),
        "energy less the base model's": mean_and_error(list(one.energy)),
        "operations": one.operations(),
        "reaches": one.reaches(law),
    }


def _interval(curves: Sequence[Curve], law: bool) -> dict[str, Any]:
    """Returns the interval of the ratio of the cheapest, over prompts drawn with replacement."""

    if not curves:
        return {"interval": None, "share without": 1.0}
    generator, n = generator_for(0, "ratio", str(law)), len(curves[0].gold)
    ratios: list[float] = []
    for _ in range(_RESAMPLED):
        where = torch.randint(n, (n,), generator=generator).tolist()
        costs = {"ours": math.inf, "fine-tuner": math.inf}
        for one in curves:
            cheaper = one.operations() < costs.get(one.group, -math.inf)
            if cheaper and one.reaches(law, where):
                costs[one.group] = one.operations()
        if math.isfinite(sum(costs.values())):
            ratios.append(costs["ours"] / costs["fine-tuner"])
    ratios.sort()
    share = 1 - len(ratios) / _RESAMPLED
    if not ratios:
        return {"interval": None, "share without": share}
    place = lambda q: ratios[min(len(ratios) - 1, int(q * len(ratios)))]
    return {"interval": [place(0.025), place(0.975)], "share without": share}


def curves(
    rows: Sequence[Row], law: Sequence[float], group_of: Callable[[str], str]
) -> list[Curve]:
    """Returns a curve point for each method, trial and budget of rows of one split.

    Arguments:
        rows: Rows of the cells, with those of the base model at the same seeds.
        law: Gain of gold of the tilted law, of each prompt.
        group_of: A function from methods to groups.
    """

    base = {row["seed"]: row for row in rows if row["method"] == "base"}
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] != "base" and row["seed"] in base:
            kinds.setdefault(f"{row['method']} {row['trial']} {row['budget']}", []).append(row)
    found = []
    for some in kinds.values():
        mean = lambda part, key, some=some: statistics.mean(row[part][key] for row in some)
        found.append(
            Curve(
                some[0]["method"],
                group_of(some[0]["method"]),
                some[0]["trial"],
                some[0]["budget"],
                less(of_prompts(some, base, "emoji-gold"), law),
                of_prompts(some, base, "energy"),
                mean("training", "operations"),
                mean("picture", "operations"),
            )
        )
    return found


def chosen(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """Returns the trials of a method that are reported, of its rows on development prompts.

    They are the one whose best budget has the most gold, and the one that is nearest to the tilted
    law at its largest budget; often these are one. Without rows there is one empty trial.

    Arguments:
        rows: Rows of one method on development prompts.
    """

    if not rows:
        return [{}]
    trials: list[Mapping[str, Any]] = []
    for row in rows:
        if row["trial"] not in trials:
            trials.append(row["trial"])
    of = lambda trial: [row for row in rows if row["trial"] == trial]
    gold = lambda trial: max(statistics.mean(row["emoji-gold"]) for row in of(trial))
    largest = lambda trial: max(of(trial), key=lambda row: row["budget"])
    energy = lambda trial: statistics.mean(largest(trial)["energy"])
    best, nearest = max(trials, key=gold), min(trials, key=energy)
    return [best] if best == nearest else [best, nearest]
