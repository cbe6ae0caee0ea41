r"""A trained network against banks that it has not seen, corrected for the noise of these banks.

The draws of a held-out prompt are in three parts. One makes the states; of the others each gives
the shift s by importance sampling, with errors that know nothing of each other nor of the network.
So :math:`\langle s_1, s_2 \rangle` is the squared length of the exact shift without the noise of
the bank, and :math:`\langle g, (s_1 + s_2) / 2 \rangle` its product with the network's g.

What halves share is not noise. Self-normalized weights make a shift too short, by a share of the
order of one over the effective draws, so that every network looked too long: each half gives twice
its own estimate less the mean of those of its two quarters, where the first order cancels. What
remains grows where effective draws are few; their number is stated beside what is found.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bank import Bank
from ..estimators import ImportanceSampling
from ..estimators.draws import Draws, centered
from ..evaluation.measured import Measured
from ..models import DenoiserModel
from ..schedules import Scales, Schedule
from ..statistics import jackknife_error
from ..support.conditions import take
from ..support.randomness import generator_for
from ..tilt import Tilt

__all__ = ["LEAST", "SHUFFLES", "Level", "Output", "agreement"]

LEAST = 10
"""Draws that a held-out prompt must have: two for states, and four quarters of two."""

SHUFFLES = 99
"""Number of shuffles of the rewards with which a network is compared."""

_STATES = 8

Output = Callable[[DenoiserModel, Tensor, Tensor, Any], Tensor]
"""A function of (a model with the path alone, x_t, t, condition) to what a network gives there."""


@dataclass(frozen=True)
class Level:
    """The agreement at one noise level.

    Arguments:
        t: The time; NaN for clean outputs.
        cosine: Cosine between the network's shift and the exact one.
        length: Length of the network's over that of the exact one.
        explained: Share of the squared length of the exact shift that the network explains.
        raw: Cosine with the mean of the two halves, as it is, with their noise.
        ceiling: Cosine of the two halves with each other.
        effective: Effective draws of a half, mean over states.
        chance: Share of shuffled rewards with which the network agrees as well.
    """

    t: float
    cosine: Measured
    length: Measured
    explained: Measured
    raw: float
    ceiling: float
    effective: float
    chance: float


class _Path(DenoiserModel):
    """A path without a model: what is asked of it here does not depend on predictions."""

    depends_on = ("schedule",)

    def denoise(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        return torch.zeros_like(x_t)


@dataclass(frozen=True)
class _Products:
    """Products of shifts at states, each with shape (P,): sums over the states of a prompt."""

    own: Tensor
    with_first: Tensor
    with_second: Tensor
    halves: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def agreement(
    output: Output,
    schedule: Schedule,
    bank: Bank,
    tilt: Tilt,
    levels: Sequence[float],
    start: float,
    encode: Callable[[list[Any]], Any],
    seed: int = 0,
    shuffles: int = SHUFFLES,
) -> list[Level]:
    """Compares a network with banks of prompts that it has not seen, level by level.

    Arguments:
        output: A function that gives the network's shift.
        schedule: The path.
        bank: Draws of held-out prompts, with rewards, at least :data:`LEAST` of each.
        tilt: The tilt.
        levels: Times; NaN for clean outputs, which are changed and not noised.
        start: First time of runs, at which noise knows nothing of the clean state.
        encode: A function from prompts to what the network is conditioned on.
        seed: Seed of the noise and of the shuffles.
        shuffles: Number of shuffles; with none, the chance of agreement says nothing, and is 1.

    Raises:
        ValueError: If a prompt has too few draws.
    """

    fewest = min(rows.stop - rows.start for rows in bank.rows.values())
    if fewest < LEAST:
        raise ValueError(f"bank must have at least {LEAST} draws of each prompt, got {fewest}")
    states, first, second = (_part(bank, part) for part in range(3))
    return [
        _level(output, schedule, (states, first, second), tilt, t, start, encode, seed, shuffles)
        for t in levels
    ]


def _part(bank: Bank, part: int) -> Bank:
    """Returns a fourth of the draws of every prompt, or one half of the rest."""

    chosen: list[int] = []
    for rows in bank.rows.values():
        numbers = list(range(rows.start, rows.stop))
        few = max(2, len(numbers) // 4)
        chosen += numbers[:few][:_STATES] if part == 0 else numbers[few:][part - 1 :: 2]
    return _chosen(bank, chosen)


def _chosen(bank: Bank, rows: list[int]) -> Bank:
    return Bank(bank.x_0[rows], take(bank.condition, rows), _rewards(bank)[rows])


def _quarters(half: Bank) -> list[Bank]:
    """Returns two banks, each with every other draw of every prompt."""

    every = [list(range(rows.start, rows.stop)) for rows in half.rows.values()]
    return [_chosen(half, [i for rows in every for i in rows[k::2]]) for k in range(2)]


def _level(
    output: Output,
    schedule: Schedule,
    parts: tuple[Bank, Bank, Bank],
    tilt: Tilt,
    level: float,
    start: float,
    encode: Callable[[list[Any]], Any],
    seed: int,
    shuffles: int,
) -> Level:
    states = parts[0]
    clean = math.isnan(level)
    t = start if clean else level
    model: Any = _Path(schedule).starting(start)
    generator = generator_for(seed, "agreement", str(level))
    noise = torch.randn(states.x_0.shape, generator=generator).to(states.x_0)
    # Where runs start, and for outputs, banks know nothing but the prompt.
    x_t = noise * float(schedule.sigma(torch.tensor(start, dtype=torch.float64)))
    if t != start:
        x_t = schedule.perturb(states.x_0, t, noise)
    times = torch.full((len(x_t),), t, dtype=torch.float64, device=x_t.device)
    condition = encode(list(states.condition))
    seen = states.x_0 if clean else x_t
    at = torch.zeros_like(times) if clean else times
    own = _flat(output(model, seen, at, condition))
    estimate = lambda some: ImportanceSampling(some, tilt)(model, x_t, times, condition)
    found = [estimate(half) for half in parts[1:]]
    one, two = (
        2 * _flat(whole.shift) - sum(_flat(estimate(part).shift) for part in _quarters(half)) / 2
        for whole, half in zip(found, parts[1:], strict=True)
    )
    effective = torch.stack(
        [torch.minimum(e.diagnostics["ess"], e.diagnostics["ess_tilted"]) for e in found]
    )
    sums = lambda a, b: _by_prompt((a * b).sum(1), states)
    products = _Products(
        sums(own, own), sums(own, one), sums(own, two), sums(one, two), sums(one, one),
        sums(two, two),
    )  # fmt: skip
    flat = t == start
    chance = _chance(own, x_t, schedule.at(times, like=x_t), flat, parts, tilt, seed, shuffles)
    return Level(
        level,
        _measured(products, _cosine),
        _measured(products, _length),
        _measured(products, _explained),
        _raw(products),
        _ratio(products.halves.sum(), products.first.sum(), products.second.sum()),
        float(effective.double().mean()),
        chance,
    )


def _flat(values: Tensor) -> Tensor:
    return values.double().flatten(1)


def _by_prompt(values: Tensor, states: Bank) -> Tensor:
    return torch.stack([values[rows].sum() for rows in states.rows.values()])


def _ratio(product: Tensor, a: Tensor, b: Tensor) -> float:
    """Returns a product over two lengths, NaN where noise hides the second one."""

    square = a * b
    return float(product / square.sqrt()) if float(square) > 0 else math.nan


def _cosine(p: _Products, some: Tensor) -> float:
    product = (p.with_first[some] + p.with_second[some]).sum() / 2
    return _ratio(product, p.own[some].sum(), p.halves[some].sum())


def _length(p: _Products, some: Tensor) -> float:
    square = p.halves[some].sum()
    return float((p.own[some].sum() / square).sqrt()) if float(square) > 0 else math.nan


def _explained(p: _Products, some: Tensor) -> float:
    square = p.halves[some].sum()
    product = p.with_first[some].sum() + p.with_second[some].sum()  # twice that with the mean
    return float((product - p.own[some].sum()) / square) if float(square) > 0 else math.nan


def _raw(p: _Products) -> float:
    product = (p.with_first.sum() + p.with_second.sum()) / 2
    mean = (p.first.sum() + p.second.sum() + 2 * p.halves.sum()) / 4
    return _ratio(product, p.own.sum(), mean)


def _measured(p: _Products, figure: Callable[[_Products, Tensor], float]) -> Measured:
    """Returns a figure over all prompts, with its error by the jackknife over them."""

    n = len(p.own)
    everyone = torch.arange(n)
    without = [figure(p, everyone[everyone != i]) for i in range(n)]
    return Measured(figure(p, everyone), jackknife_error(without))


def _chance(
    own: Tensor,
    x_t: Tensor,
    scales: Scales,
    flat: bool,
    parts: tuple[Bank, Bank, Bank],
    tilt: Tilt,
    seed: int,
    shuffles: int,
) -> float:
    """Returns the share of shuffles of rewards within prompts that agree as well as the rewards.

    Both halves are one bank here, and agreement is the cosine with its shift.
    """

    states, first, second = parts
    generator = generator_for(seed, "shuffles")
    products, squares = torch.zeros(2, 1 + shuffles, dtype=torch.float64)
    for prompt, rows in states.rows.items():
        x_0 = torch.cat([half.x_0[half.rows[prompt]] for half in (first, second)]).double()
        log_w = torch.cat(
            [tilt.weigh(_rewards(half)[half.rows[prompt]]) for half in (first, second)]
        )
        orders = [torch.randperm(len(x_0), generator=generator) for _ in range(shuffles)]
        shuffled = torch.stack([log_w, *(log_w[order.to(log_w.device)] for order in orders)])
        kernel = x_0.new_zeros(rows.stop - rows.start, len(x_0))
        if not flat:
            alpha, sigma = (s[rows].double().flatten(1) for s in (scales.alpha, scales.sigma))
            kernel = _draws(x_0, log_w).log_kernel(x_t[rows].double().flatten(1), alpha, sigma)
        shares = (kernel[:, None] + shuffled.to(kernel)).softmax(-1)
        shift = (shares - kernel.softmax(-1)[:, None]) @ x_0.flatten(1)
        products += (shift * own[rows, None]).sum((0, 2)).cpu()
        squares += shift.square().sum((0, 2)).cpu()
    true, *others = (products / squares.sqrt()).tolist()
    if math.isnan(true) or not float(own.square().sum()) > 0:
        return math.nan
    return (1 + sum(value >= true for value in others)) / (1 + len(others))


def _rewards(bank: Bank) -> Tensor:
    assert bank.rewards is not None
    return bank.rewards


def _draws(x_0: Tensor, log_w: Tensor) -> Draws:
    flat = x_0.flatten(1)
    centers, half_norms, along = centered(flat, [slice(0, len(flat))])
    return Draws(flat, centers[0], half_norms, along, log_w, None)
