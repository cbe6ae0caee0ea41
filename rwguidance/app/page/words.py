"""What was made, in words: how far the reward went, and how much the estimates can be trusted."""

import math
from collections.abc import Sequence
from typing import Any

from ...generation import NoiseGradient, Row
from ...generation.base import Guided
from ...generation.pooled import Together
from ...statistics import mean_and_error
from .studio import Answer

__all__ = ["best_of", "in_words"]

_FEW = 5
"""Number of effective draws below which an estimate follows single draws rather than the law."""


def in_words(answer: Answer) -> list[str]:
    """Returns what there is to say about an answer, in sentences."""

    method, facts = answer.method, [row.facts for row in answer.rows]
    nats = getattr(method, "kl", None)
    said = [_gain(answer.rows), *([] if nats is None else [_strength(nats)]), *_aim(facts)]
    if isinstance(method, Together) or not isinstance(method, Guided | NoiseGradient):
        said.append(
            f"With {method.name}, aligned pictures are chosen among draws, so that they do not "
            "begin with the noise of the pictures beside them."
        )
    trust = [*_effective(facts), *_distinct(facts)]
    said += trust or dict.fromkeys(answer.doubts)
    said += [row.error for row in answer.rows if row.error]
    said.append(
        f"{method.name} took at most {answer.calls:,.0f} calls of the network; draws of a prompt "
        "are kept, so that another strength takes fewer."
    )
    return said


def best_of(nats: float) -> float:
    """Returns n for which the best of n draws is so many nats away from a draw.

    This is log n - 1 + 1 / n, whatever the reward is. Arguments and result are at least 0 and 1.
    """

    low, high = 1.0, math.exp(nats + 1)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.log(middle) - 1 + 1 / middle < nats else (low, middle)
    return (low + high) / 2


def _strength(nats: float) -> str:
    far = best_of(nats)
    as_far = (
        "less far than the better of two" if far < 2 else f"about as far as the best of {far:.0f}"
    )
    return f"{nats:g} nat{' goes' if nats == 1 else 's go'} {as_far} draws would."


def _gain(rows: Sequence[Row]) -> str:
    gains = [row.gain for row in rows if row.gain is not None]
    if not gains:
        return "The reward could not be computed."
    mean, error = mean_and_error(gains)
    before = sum(row.rewards[0] or 0.0 for row in rows if row.gain is not None) / len(gains)
    which = f"The mean reward of {len(gains)} pictures" if len(gains) > 1 else "The reward"
    verb = "rose" if mean > 0 else "fell" if mean < 0 else "stayed"
    by = f"by {abs(mean):.3g}" + ("" if math.isnan(error) else f" ± {error:.2g}")
    return f"{which} {verb} from {before:.3g} to {before + mean:.3g}, {by}."


def _aim(facts: Sequence[Any]) -> list[str]:
    """The temperature, and the mean that the bank expects of the tilted law."""

    first = facts[0]
    said = []
    if "tilted mean" in first:
        said.append(
            f"By its bank, the law that this aims at has the mean {first['tilted mean']:.3g}."
        )
    if "beta" in first:
        said.append(f"The temperature beta is {first['beta']:.3g}, in units of the reward.")
    return said


def _effective(facts: Sequence[Any]) -> list[str]:
    """The number of draws of the bank that count, at the first step and at the last."""

    seen = [one["effective draws"] for one in facts if one.get("effective draws")]
    if not seen:
        return []
    first, last = (sum(steps[place] for steps in seen) / len(seen) for place in (0, -1))
    text = f"Of the draws of the bank, {first:.2g} count at the first step"
    if len(seen[0]) > 1:
        text += f" and {last:.2g} at the last, where little is left to choose"
    if first >= _FEW:
        return [f"{text}: enough to trust where guidance leads."]
    return [f"{text}. That is few: guidance follows single draws. Try a weaker strength."]


def _distinct(facts: Sequence[Any]) -> list[str]:
    """The number of different pictures among those that were drawn by weight."""

    first = facts[0]
    if "distinct" not in first:
        return []
    return [f"{first['distinct']} of the {len(facts)} aligned pictures are distinct."]
