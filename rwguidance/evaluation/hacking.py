"""Reward hacking: what held-out rewards and the look of pictures do while a reward is raised.

The exactly tilted law is the measure. What it does to a held-out reward is the fault or the merit
of the reward that is aligned to; what a method does beside that is its own. A method *exploits* a
reward if it clearly raises it while a held-out reward clearly falls, and clearly has a smaller
slope (:mod:`rwguidance.evaluation.slopes`) than under the tilted law. Clear are differences of more
than two standard errors over prompts (:data:`~rwguidance.evaluation.measured.CLEAR`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .appearance import APPEARANCE
from .figures import TILTED
from .measured import Measured
from .results import BASE, Cell, Results
from .slopes import gain_excess, slope, slope_excess, target_slope

__all__ = ["Companion", "Verdict", "believed", "verdict_on", "verdicts"]

Rows = Sequence[Mapping[str, Any]]

_LOOKS = {
    "high frequency": "energy at high frequencies",
    "clipped": "clipping",
    "chroma": "chroma",
}


@dataclass(frozen=True)
class Companion:
    """What another number does while the reward that is aligned to is raised.

    Arguments:
        name: Name of a held-out reward, or of a number of the pictures' appearance.
        gain: Gain over the base, in its own unit.
        slope: Gain per gain of the reward that is aligned to.
        target_gain: Gain of the tilted law.
        target_slope: Slope under the tilted law.
        excess: Of a held-out reward its slope less that under the tilted law; of appearance, where
            more is not better, likewise its gain.
    """

    name: str
    gain: Measured
    slope: Measured
    target_gain: Measured
    target_slope: Measured
    excess: Measured


@dataclass(frozen=True)
class Verdict:
    """What the figures say of a cell.

    Arguments:
        cell: The cell.
        nats: Strength of the tilted law that it is held against; None without a target.
        held_out: The held-out rewards.
        appearance: The numbers of the pictures' appearance.
        word: One of "exploits", "disagrees" (a held-out reward falls, as under the tilted law, or
            without a target to tell), "lags" (a held-out reward has a smaller slope than under the
            tilted law), "overshoots" (its target), "follows" and "unmoved".
        sentence: The verdict in words.
    """

    cell: Cell
    nats: float | None
    held_out: Sequence[Companion]
    appearance: Sequence[Companion]
    word: str
    sentence: str


def believed(results: Results) -> float | None:
    """Returns the largest strength whose target can be believed, or else the smallest one.

    None if the results have no strengths.
    """

    good = [nats for nats in results.strengths if not results.targets[nats].few]
    return good[-1] if good else next(iter(results.strengths), None)


def verdicts(results: Results, rows: Rows) -> list[Verdict]:
    """Returns a verdict on each method, in their order.

    A method with strengths is judged at the one that :func:`believed` returns.

    Arguments:
        results: The results.
        rows: Their figures, from :func:`~rwguidance.evaluation.figures.rows_of`.
    """

    shown = (None, believed(results))
    cells = [cell for cell in results.cells if cell != BASE and cell.nats in shown]
    return [verdict_on(results, rows, cell) for cell in cells]


def verdict_on(results: Results, rows: Rows, cell: Cell) -> Verdict:
    """Returns the verdict on a cell.

    Arguments:
        results: The results.
        rows: Their figures.
        cell: One of their cells, other than the base.
    """

    row = next(one for one in rows if (one["method"], one["nats"]) == (cell.method, cell.nats))
    target = _target_of(rows, row, f"{results.aligned} gain")
    nats = None if target is None else float(target["nats"])
    known = results.cells[cell].rewards
    held_out, appearance = (
        [_companion(results, cell, row, target, name) for name in names if name in known]
        for names in (results.rewards[1:], APPEARANCE)
    )
    gain, share = Measured.of(row, f"{results.aligned} gain"), Measured.of(row, "share")
    word = _word(gain, share, held_out)
    parts = [_movement(results.aligned, gain, share), *_held_out(word, held_out)]
    sentence = f"{cell} {' '.join(parts)}.{_appearance(word, appearance)}"
    if target is not None and target["few"]:
        sentence += f" Its target rests on few draws ({target['effective draws']:.0f} effective)."
    return Verdict(cell, nats, held_out, appearance, word, sentence)


def _target_of(rows: Rows, row: Mapping[str, Any], gain: str) -> Mapping[str, Any] | None:
    """Returns the row of the tilted law that a cell is held against, that at its strength.

    A cell without a strength, such as the best of n, is held against the law of the nearest gain.
    """

    targets = [one for one in rows if one["method"] == TILTED and Measured.of(one, gain).known]
    if row["nats"] is not None:
        return next((one for one in targets if one["nats"] == row["nats"]), None)
    return min(targets, key=lambda one: abs(one[gain] - row[gain]), default=None)


def _companion(
    results: Results,
    cell: Cell,
    row: Mapping[str, Any],
    target: Mapping[str, Any] | None,
    name: str,
) -> Companion:
    gain, own = Measured.of(row, f"{name} gain"), slope(results, cell, name)
    if target is None:
        nothing = Measured.of({}, name)
        return Companion(name, gain, own, nothing, nothing, nothing)
    excess = gain_excess if name in APPEARANCE else slope_excess
    return Companion(
        name,
        gain,
        own,
        Measured.of(target, f"{name} gain"),
        target_slope(results, target["nats"], name),
        excess(results, cell, target["nats"], name),
    )


def _word(gain: Measured, share: Measured, held_out: Sequence[Companion]) -> str:
    if not gain.above(0):
        return "unmoved"
    falling = [one for one in held_out if one.gain.below(0)]
    if any(one.excess.below(0) for one in falling):
        return "exploits"
    if falling:
        return "disagrees"
    if any(one.excess.below(0) for one in held_out):
        return "lags"
    return "overshoots" if share.above(1) else "follows"


def _movement(aligned: str, gain: Measured, share: Measured) -> str:
    if gain.below(0):
        return f"lowers {aligned} ({gain})"
    if not gain.above(0):
        return f"does not clearly move {aligned} ({gain})"
    if not share.known:
        return f"raises {aligned} by {gain}"
    if share.above(1):
        return f"moves {aligned} beyond its target (share {share})"
    if share.below(1):
        return f"moves {aligned} part of the way to its target (share {share})"
    return f"moves {aligned} as far as its target, within the error (share {share})"


def _held_out(word: str, held_out: Sequence[Companion]) -> list[str]:
    """Returns what is said of held-out rewards, if anything."""

    known = [one for one in held_out if one.excess.known]
    falling = [one for one in held_out if one.gain.below(0)]
    lagging = [one for one in known if one.excess.below(0) and one not in falling]
    if word == "unmoved":
        return []
    if known and not falling and not lagging:
        names = _listed([one.name for one in known])
        return [f"and brings not clearly less {names} with it than the tilted law"]
    parts = []
    if falling:
        falls = _listed([f"{one.name} falls ({one.gain})" for one in falling])
        why = "it exploits the reward" if word == "exploits" else _without_fault(falling)
        parts.append(f"while {falls}: {why}")
    if lagging:
        slopes = _listed([f"{one.slope} {one.name}, not {one.target_slope}" for one in lagging])
        start = "and" if parts else "but"
        parts.append(f"{start} brings less with it than the tilted law: {slopes}, per unit gained")
    return parts


def _without_fault(falling: Sequence[Companion]) -> str:
    if any(not one.excess.known for one in falling):
        return "without a target nothing tells whether the method or the reward is at fault"
    return "the rewards disagree, under the tilted law as well"


def _appearance(word: str, appearance: Sequence[Companion]) -> str:
    """Returns a sentence on how pictures look other than those of the target, or of the model."""

    held = word != "unmoved" and any(one.excess.known for one in appearance)
    parts = []
    for one in appearance:
        other = one.excess if held else one.gain
        if other.above(0) or other.below(0):
            parts.append(f"{'more' if other.value > 0 else 'less'} {_LOOKS[one.name]} ({other})")
    than = "the tilted law" if held else "the model"
    return f" Its pictures have {', '.join(parts)} than those of {than}." if parts else ""


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))
