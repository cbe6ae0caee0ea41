"""The figures of a table: gains, shares, distances and costs of every cell, with standard errors.

Prompts are the units that were sampled: errors are over them, as are intervals and tests. A figure
that cannot be had is left out. Names of figures are flat, ``NAME gain`` and ``NAME gain error``, so
that a row is a line of a file of comma-separated values.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import metrics, statistics
from ..metrics.kernels import Reference, negative_distance
from ..metrics.targets import share_of_gains
from ..support.randomness import generator_for
from .appearance import APPEARANCE
from .results import BASE, Cell, Pictures, Results
from .targets import Target, curve

__all__ = ["TILTED", "Row", "rows_of"]

Row = dict[str, Any]
"""Figures of a cell by name; a figure's standard error has the same name and ``error``."""

TILTED = "tilted law"
"""Method of the rows that say what the exactly tilted law has."""

_Found = dict[tuple[Cell, str], Row]
"""Figures of cells by embedding."""

_POOLED = 2000
"""Draws of the tilted law, of all prompts together, to which pooled pictures are compared."""

_GRID = (0.0, 1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Strengths between which the curve of the tilted law's reward is interpolated, in nats."""


def rows_of(results: Results) -> list[Row]:
    """Returns the base, the other cells, and the tilted law at its strengths, a row for each."""

    if not results.prompts:
        return []
    path, distances = _Path(results), _distances(results)
    rows = [_row(results, cell, path, distances) for cell in results.cells]
    return rows + [_tilted_row(results, target) for target in results.targets.values()]


def _row(results: Results, cell: Cell, path: "_Path", distances: "_Found") -> Row:
    pictures = results.cells[cell]
    rewards = pictures.rewards[results.aligned]
    row: Row = {
        "method": cell.method,
        "nats": cell.nats,
        "prompts": len(results.prompts),
        "pictures": rewards.numel(),
        "failed": int((~rewards.isfinite()).sum()),
    }
    for name in (*results.rewards, *APPEARANCE):
        if name in pictures.rewards:
            row |= _gains(results, cell, name, pictures.rewards[name])
    target = None if cell.nats is None else results.targets.get(cell.nats)
    if target is not None:
        row |= _share(results, cell, target)
        row |= {"effective draws": target.effective, "few": target.few}
    if cell != BASE:
        row |= path.spent(cell)
    for name in results.embeddings:
        row |= _diversity(name, pictures.embeddings.get(name))
        row |= distances.get((cell, name), {})
    return row | _costs(results, pictures)


def _gains(results: Results, cell: Cell, name: str, values: Tensor) -> Row:
    """Returns the mean of a reward, and what it gains over the base, picture by picture."""

    base = results.base.rewards[name]
    known = values.isfinite() & base.isfinite()
    unit = known.nonzero()[:, 0].tolist()
    row = _pair(name, statistics.mean_and_error(values[known], unit))
    if cell == BASE:
        return row
    after, before = values[known], base[known]
    row |= _pair(f"{name} gain", statistics.paired_difference(after, before, unit))
    if name in APPEARANCE:  # more is not better
        return row
    generator = generator_for(0, "bootstrap", str(cell), name)
    low, high = statistics.bootstrap_interval(after - before, unit, generator=generator)
    row |= {f"{name} gain low": low, f"{name} gain high": high}
    row |= _pair(f"{name} wins", statistics.win_rate(after, before, unit))
    return row | {f"{name} p": statistics.signed_rank_test(after, before, unit)}


def _share(results: Results, cell: Cell, target: Target) -> Row:
    """Returns the share of the tilted law's gain, by the jackknife over prompts."""

    gain = results.gains(cell, results.aligned)
    way = target.means[results.aligned] - results.draw_means(results.aligned)
    known = gain.isfinite() & way.isfinite()
    return _pair("share", share_of_gains(gain[known], way[known]))


class _Path:
    """The tilted law's reward as a function of its divergence from the model.

    Of all laws with a mean reward, the tilted one is nearest to the model. So the strength at which
    it gains as much as a method is the least divergence that the method can have spent.
    """

    def __init__(self, results: Results) -> None:
        top = 4 * max(results.strengths, default=0.0)
        grid = [nats for nats in _GRID if nats <= max(top, _GRID[2])]
        levels = curve(results.draws, results.aligned, grid)
        self.results = results
        self.known = levels[:, 0].isfinite()
        # Where the draws of a prompt do not reach, the mean over prompts is none.
        reached = levels[self.known].isfinite().all(0).cumprod(0).bool()
        self.gains = (levels - levels[:, :1])[:, reached]
        self.grid = torch.tensor(grid, dtype=torch.float64)[reached]

    def spent(self, cell: Cell) -> Row:
        """Returns the least divergence that a method has spent, in nats, on average over prompts.

        A method beyond the end of the curve has that end, and no error.
        """

        gain = self.results.gains(cell, self.results.aligned)
        known = gain.isfinite() & self.known
        if not bool(known.any()) or len(self.grid) < 2:
            return {}
        gain, gains = gain[known], self.gains[known]
        value = self._nats(gain.mean(), gains.mean(0))
        if value == float(self.grid[-1]):
            return _pair("nats spent", (value, math.nan))
        n = len(gain)
        without = [
            self._nats((gain.sum() - one) / (n - 1), (gains.sum(0) - path) / (n - 1))
            for one, path in zip(gain, gains, strict=True)
        ]
        error = statistics.jackknife_error(without) if n > 1 else math.nan
        return _pair("nats spent", (value, error))

    def _nats(self, gain: Tensor, gains: Tensor) -> float:
        """Returns the strength at which the curve has a gain; gains rise as its root near zero."""

        rising = gains.cummax(0).values
        place = int(torch.searchsorted(rising, gain.clamp(min=0)))
        if place == 0:
            return 0.0
        if place == len(rising):
            return float(self.grid[-1])
        low, high = self.grid[place - 1 : place + 1].sqrt()
        part = (gain - rising[place - 1]) / (rising[place] - rising[place - 1])
        return float(low + part * (high - low)) ** 2


def _diversity(name: str, embeddings: Tensor | None) -> Row:
    if embeddings is None or not bool(embeddings.isfinite().all(-1).any()):
        return {}
    sample = _sample(embeddings, range(len(embeddings)))
    if min(map(len, sample.rows.values())) < 2:
        return {}
    figure = metrics.pairwise_distance(sample)
    return _pair(f"{name} diversity", (figure.value, figure.error))


def _distances(results: Results) -> _Found:
    """Returns energy distances to the tilted law, target by target: its own pairs are costly."""

    found = {}
    for target in results.targets.values():
        for name in results.embeddings:
            compared = _Compared(results, name, target)
            for cell, pictures in results.cells.items():
                if cell.nats == target.nats:
                    found[cell, name] = compared.row(pictures)
    return found


class _Compared:
    """Energy distances to the tilted law at one strength, of which that of the base is kept.

    With several pictures of each prompt the laws of every prompt are compared, and of all prompts
    together otherwise.
    """

    def __init__(self, results: Results, name: str, target: Target) -> None:
        self.results, self.name, self.target = results, name, target
        self._kept: dict[tuple[int, ...], tuple[Reference, metrics.Figure]] = {}

    def row(self, pictures: Pictures) -> Row:
        """Returns the distances of a cell and of the base, over the prompts that have both."""

        name, draws = self.name, self.results.draws
        sets = [pictures.embeddings.get(name), self.results.base.embeddings.get(name)]
        if any(one is None for one in sets):
            return {}
        own, base = [one for one in sets if one is not None]
        where = tuple(
            i
            for i, (log_w, drawn) in enumerate(zip(self.target.log_weights, draws, strict=True))
            if log_w is not None
            and drawn is not None
            and name in drawn.embeddings  # which may have failed on the draws of this prompt
            and all(bool(one[i].isfinite().all()) for one in (own, base))
        )
        pooled = own.shape[1] < 2
        if len(where) < (3 if pooled else 1):
            return {}
        if where not in self._kept:
            tilted = _tilted_sample(self.results, name, self.target, where, pooled)
            reference = Reference(tilted, negative_distance, pooled=pooled)
            self._kept[where] = reference, reference.distance(_sample(base, where))
        reference, before = self._kept[where]
        after = reference.distance(_sample(own, where))
        nearer = before.value - after.value, math.hypot(before.error, after.error)
        if not pooled:  # else the errors are taken as independent, which makes theirs too large
            values = ([one.by_group[i] for i in where] for one in (before, after))
            nearer = statistics.paired_difference(*values)
        return (
            _pair(f"{name} energy", (after.value, after.error))
            | _pair(f"{name} base energy", (before.value, before.error))
            | _pair(f"{name} nearer", nearer)
        )


def _tilted_sample(
    results: Results, name: str, target: Target, where: Sequence[int], pooled: bool
) -> metrics.Sample:
    """Returns the embeddings of the tilted law's draws, of some prompts, weighted.

    Where prompts are pooled, draws by weight stand for weighted draws, of which there are too many
    for all pairs. No pair is within a prompt, so that a draw that comes twice does no harm.
    """

    features, weights, groups = [], [], []
    for i in where:
        draws, log_w = results.draws[i], target.log_weights[i]
        assert draws is not None
        assert log_w is not None
        x = draws.embeddings[name]
        if pooled:
            generator = generator_for(0, "pooled", str(target.nats), i)
            n = max(1, _POOLED // len(where))
            x = x[torch.multinomial(log_w.softmax(0), n, replacement=True, generator=generator)]
            log_w = torch.zeros(n)
        features.append(x)
        weights.append(log_w)
        groups += [i] * len(x)
    return metrics.Sample(torch.cat(features), torch.cat(weights), groups)


def _sample(embeddings: Tensor, where: Sequence[int]) -> metrics.Sample:
    """Returns pictures of some prompts as a set, without those that have no embedding."""

    rows = [(i, x) for i in where for x in embeddings[i] if bool(x.isfinite().all())]
    return metrics.Sample(torch.stack([x for _, x in rows]), None, [i for i, _ in rows])


def _tilted_row(results: Results, target: Target) -> Row:
    row: Row = {
        "method": TILTED,
        "nats": target.nats,
        "prompts": int(target.beta.isfinite().sum()),
        "effective draws": target.effective,
        "few": target.few,
    }
    for name, means in target.means.items():
        known = means.isfinite()
        base = results.draw_means(name)
        row |= _pair(name, statistics.mean_and_error(means[known]))
        row |= _pair(f"{name} gain", statistics.paired_difference(means[known], base[known]))
    where = [i for i, log_w in enumerate(target.log_weights) if log_w is not None]
    for name in results.embeddings:
        held = [one.embeddings.get(name) for one in results.draws if one is not None]
        if where and all(one is not None for one in held):
            sample = _tilted_sample(results, name, target, where, False)
            # By products, as there are many pairs, of which none needs to be zero exactly.
            figure = metrics.pairwise_distance(sample, lambda a, b: -negative_distance(a, b))
            row |= _pair(f"{name} diversity", (figure.value, figure.error))
    return row


def _costs(results: Results, pictures: Pictures) -> Row:
    """Returns costs of a picture, without and with the draws; those of a draw are of the base."""

    count = pictures.rewards[results.aligned].shape[1]
    cost = {name: float(values.nanmean()) / count for name, values in pictures.costs.items()}
    draw = {name: float(values.nanmean()) / count for name, values in results.base.costs.items()}
    return {
        "calls": cost["network"],
        "calls with draws": cost["network"] + cost["draws"] * draw["network"],
        "decoded": cost["decoder"],
        "scored": cost["reward"],
        "draws": cost["draws"] * count,
        "seconds": cost["seconds"],
        "seconds with draws": cost["seconds"] + cost["draws"] * draw["seconds"],
        "memory": float(pictures.costs["memory"].nan_to_num(nan=-1).max()),
    }


def _pair(name: str, value: tuple[float, float]) -> Row:
    return {name: value[0], f"{name} error": value[1]}
