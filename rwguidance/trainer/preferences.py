r"""A reward of pairs: the law of Bradley and Terry, with a utility that is linear in features.

.. math:: P(x_1 \text{ preferred to } x_2) = \sigma\big( v^\top (f(x_1, y) - f(x_2, y)) \big)

The weights v minimize the mean cross-entropy, in which a tie is half a win for each, and a penalty
on weights of features of unit size. That is convex, so there is one minimum, which Newton's steps
find; no rate, no number of steps and no random number enter.

References:
    | Rank Analysis of Incomplete Block Designs (Bradley and Terry, 1952)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.measured import Measured
from ..preparation import Prepared
from ..preparation.prepared import SPLITS
from ..statistics import jackknife_error
from ..support import checks

__all__ = [
    "Comparisons",
    "RewardFindings",
    "fit_reward",
    "fit_weights",
    "prepared_key",
    "read_comparisons",
]

RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 1e-3, 3e-4, 1e-4)
"""Penalties that are tried, from strong to weak."""

_ROWS = 4096
_ITERATIONS = 50
_LEAST = 10
"""Prompts from which on some of them can choose the penalty."""


@dataclass(frozen=True)
class Comparisons:
    """Pairs that people compared.

    Arguments:
        differences: Features of the first picture less those of the second, with shape (N, F).
        preferences: Share of people that prefer the first, with shape (N,), float64.
        prompts: Number of the prompt of each pair, with shape (N,).
        rewards: Rewards of the first picture less those of the second by name, each with shape
            (N,); NaN where one failed.
    """

    differences: Tensor
    preferences: Tensor
    prompts: Tensor
    rewards: Mapping[str, Tensor]

    def some(self, rows: Tensor) -> "Comparisons":
        """Returns some of the pairs, by a mask or by their numbers."""

        rewards = {name: values[rows] for name, values in self.rewards.items()}
        return Comparisons(
            self.differences[rows], self.preferences[rows], self.prompts[rows], rewards
        )


def prepared_key(data: Prepared, features: str) -> str:
    """Returns what the prepared features of a name depend on.

    Raises:
        ValueError: If there are none of this name; lists those that there are.
    """

    known: dict[str, str] = data.about.get("features", {})
    if features not in known:
        raise ValueError(
            f"features must be among those that were prepared, {', '.join(known) or 'none'}, got "
            f"{features!r}: run the same `rwguidance prepare` again, with --features {features}"
        )
    return known[features]


def read_comparisons(data: Prepared, features: str, split: str) -> Comparisons:
    """Reads the pairs of a split as differences of features, file by file.

    Arguments:
        data: Prepared pairs.
        features: Name of the features.
        split: "train" or "validation".

    Raises:
        ValueError: If the data is of draws, has no such features, or no pairs in this split.
        Damaged: If a file of the data is damaged; names it.
    """

    prepared_key(data, features)
    pairs = data.pairs(split)
    if not pairs.pairs:
        raise ValueError(f"data must have pairs for {split}, got none: see --validation of prepare")
    places = {prompt: i for i, prompt in enumerate(data.split(split))}
    parts = []
    for source, shelf in enumerate(pairs.shelves):
        mine = [pair for pair in pairs.pairs if pair.source == source]
        if not mine:
            continue
        first, second = ([pair.first for pair in mine], [pair.second for pair in mine])
        seen = shelf.features[features].read()
        rewards = {name: column.read() for name, column in shelf.rewards.items()}
        parts.append(
            Comparisons(
                seen[first] - seen[second],
                torch.tensor([pair.preference for pair in mine], dtype=torch.float64),
                torch.tensor([places[pair.prompt] for pair in mine]),
                {name: values[first] - values[second] for name, values in rewards.items()},
            )
        )
    return _joined(parts)


def _joined(parts: Sequence[Comparisons]) -> Comparisons:
    names = parts[0].rewards
    return Comparisons(
        torch.cat([part.differences for part in parts]),
        torch.cat([part.preferences for part in parts]),
        torch.cat([part.prompts for part in parts]),
        {name: torch.cat([part.rewards[name] for part in parts]) for name in names},
    )


def fit_weights(pairs: Comparisons, ridge: float, start: Tensor | None = None) -> Tensor:
    r"""Returns the weights of features that minimize cross-entropy and penalty.

    .. math:: \frac{1}{N} \sum_i \log(1 + e^{s_i}) - p_i s_i
        + \frac{\mathrm{ridge}}{2} \sum_j (v_j d_j)^2, \qquad s_i = v^\top \Delta_i

    with :math:`d_j` the root of the mean square of a feature's difference.

    Arguments:
        pairs: The pairs.
        ridge: The penalty, positive.
        start: Weights to begin with; None for zero.

    Returns:
        The weights, float64, with shape (F,).

    Raises:
        ValueError: If the penalty is not positive.
    """

    ridge = checks.number("ridge", ridge, above=0)
    size = _sizes(pairs)
    v = torch.zeros_like(size) if start is None else start * size
    value, gradient, hessian = _expanded(pairs, v, size, ridge)
    for _ in range(_ITERATIONS):
        step = torch.linalg.solve(hessian, gradient)
        decrease, rate = float(gradient @ step), 1.0
        if decrease < 1e-16:  # of a loss that is log 2 at most, from zero on
            break
        while True:
            found = _expanded(pairs, v - rate * step, size, ridge)
            if found[0] <= value - 0.1 * rate * decrease or rate < 1e-6:
                break
            rate /= 2
        v, (value, gradient, hessian) = v - rate * step, found
    return v / size


def _sizes(pairs: Comparisons) -> Tensor:
    """Returns the root of the mean square of every feature's difference, 1 where that is 0."""

    squares = sum(part.double().square().sum(0) for part in pairs.differences.split(_ROWS))
    assert isinstance(squares, Tensor)
    size = (squares / len(pairs.differences)).sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))


def _expanded(
    pairs: Comparisons, v: Tensor, size: Tensor, ridge: float
) -> tuple[float, Tensor, Tensor]:
    """Returns the loss with its gradient and its Hessian, in weights of features of unit size."""

    n = len(pairs.differences)
    value = 0.5 * ridge * v.square().sum()
    gradient, hessian = ridge * v, ridge * torch.eye(len(v), dtype=v.dtype, device=v.device)
    for start in range(0, n, _ROWS):
        some = slice(start, start + _ROWS)
        x = pairs.differences[some] / size  # which is float64
        p = pairs.preferences[some]
        s = x @ v
        value = value + (F.softplus(s) - p * s).sum() / n
        share = s.sigmoid()
        gradient = gradient + x.T @ (share - p) / n
        hessian = hessian + (x * (share * (1 - share))[:, None]).T @ x / n
    return float(value), gradient, hessian


@dataclass(frozen=True)
class RewardFindings:
    """What is known of a reward of pairs; errors are over held-out prompts.

    Arguments:
        weights: Weights of the features, with shape (F,), float64.
        ridge: The penalty.
        spread: Standard deviation of the reward over pictures of a prompt, in log-odds.
        agreement: Share of held-out pairs without a tie in which the picture that people prefer has
            the higher reward; of this reward, ``learned``, and of every reward that was prepared.
        loss: Cross-entropy of held-out pairs, in nats; a constant has log 2, .693.
        slope: Factor of the reward that would suit held-out pairs best: 1 if it is calibrated,
            below 1 if it is too sure.
        pairs: Number of pairs of the training, and held out.
        prompts: Number of prompts of the training, and held out.
    """

    weights: Tensor
    ridge: float
    spread: float
    agreement: Mapping[str, Measured]
    loss: Measured
    slope: Measured
    pairs: tuple[int, int]
    prompts: tuple[int, int]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What a reader wants to know, as names and texts."""

        return [
            ("pairs", "{:,} for training, {:,} held out".format(*self.pairs)),
            ("prompts", "{:,} for training, {:,} held out".format(*self.prompts)),
            ("ridge", f"{self.ridge:g}"),
            *((f"agreement of {name}", str(found)) for name, found in self.agreement.items()),
            ("cross-entropy, nats (a constant has 0.693)", str(self.loss)),
            ("slope (1 is calibrated, less is too sure)", str(self.slope)),
        ]


def fit_reward(
    data: Prepared,
    features: str,
    ridge: float | None = None,
    device: torch.device | str | None = None,
) -> RewardFindings:
    """Fits a reward to the pairs of the training prompts, and holds it against the others.

    Arguments:
        data: Prepared pairs, with features.
        features: Name of the features.
        ridge: The penalty; None chooses one by a fifth of the training prompts, of
            :data:`RIDGES`, and fits to all of them then.
        device: Device of the sums; None is the CPU.

    Raises:
        ValueError: If the data has no such features or too few pairs.
        Damaged: If a file of the data is damaged; names it.
    """

    checks.instance("data", data, Prepared, "prepared data")
    train, unseen = (_on(read_comparisons(data, features, s), device) for s in SPLITS)
    chosen = _chosen_ridge(train) if ridge is None else ridge
    weights = fit_weights(train, chosen)
    own = _scores(unseen, weights)
    compared = {"learned": own, **unseen.rewards}
    return RewardFindings(
        weights=weights.cpu(),
        ridge=chosen,
        spread=float(_scores(train, weights).square().mean().sqrt()) / math.sqrt(2),
        agreement={name: _agreement(values, unseen) for name, values in compared.items()},
        loss=_mean_over_prompts(_losses(own, unseen.preferences), unseen.prompts),
        slope=_slope(own, unseen),
        pairs=(len(train.prompts), len(unseen.prompts)),
        prompts=(len(train.prompts.unique()), len(unseen.prompts.unique())),
    )


def _on(pairs: Comparisons, device: torch.device | str | None) -> Comparisons:
    to = lambda values: values.to(device or "cpu")
    rewards = {name: to(values) for name, values in pairs.rewards.items()}
    return Comparisons(to(pairs.differences), to(pairs.preferences), to(pairs.prompts), rewards)


def _scores(pairs: Comparisons, weights: Tensor) -> Tensor:
    return torch.cat([part.double() @ weights for part in pairs.differences.split(_ROWS)])


def _losses(scores: Tensor, preferences: Tensor) -> Tensor:
    return F.softplus(scores) - preferences * scores


def _chosen_ridge(pairs: Comparisons) -> float:
    """Returns the penalty that suits a fifth of the prompts best, which its fit has not seen."""

    if len(pairs.prompts.unique()) < _LEAST:
        raise ValueError(
            f"ridge must be given, since {len(pairs.prompts.unique())} prompts with pairs are too "
            f"few to choose it, less than {_LEAST}"
        )
    held = pairs.prompts.unique(return_inverse=True)[1] % 5 == 0
    seen, unseen = pairs.some(~held), pairs.some(held)
    losses, weights = [], None
    for ridge in RIDGES:
        weights = fit_weights(seen, ridge, weights)
        losses.append(float(_losses(_scores(unseen, weights), unseen.preferences).mean()))
    return RIDGES[losses.index(min(losses))]


def _agreement(scores: Tensor, pairs: Comparisons) -> Measured:
    """Returns how often scores order pairs as people do; equal scores are half right."""

    kept = (pairs.preferences != 0.5) & scores.isfinite()
    right = (scores * (pairs.preferences - 0.5)).sign() / 2 + 0.5
    return _mean_over_prompts(right[kept], pairs.prompts[kept])


def _mean_over_prompts(values: Tensor, prompts: Tensor) -> Measured:
    """Returns the mean over pairs, with its error by the jackknife over prompts."""

    if not len(values):
        return Measured(math.nan, math.nan)
    groups = prompts.unique(return_inverse=True)[1]
    sums = torch.zeros(int(groups.max()) + 1, dtype=torch.float64, device=values.device)
    counts = sums.index_add(0, groups, torch.ones_like(values, dtype=torch.float64))
    sums = sums.index_add(0, groups, values.double())
    without = (sums.sum() - sums) / (counts.sum() - counts)
    return Measured(float(sums.sum() / counts.sum()), jackknife_error(without.cpu()))


def _slope(scores: Tensor, pairs: Comparisons) -> Measured:
    """Returns the factor of scores that suits pairs best, with its error over prompts."""

    alone = Comparisons(scores[:, None], pairs.preferences, pairs.prompts, {})
    (factor,) = fit_weights(alone, 1e-9)
    share = (factor * scores).sigmoid()
    groups = pairs.prompts.unique(return_inverse=True)[1]
    pulls = torch.zeros(int(groups.max()) + 1, dtype=torch.float64, device=scores.device)
    pulls = pulls.index_add(0, groups, (pairs.preferences - share) * scores)
    curvature = (share * (1 - share) * scores.square()).sum()
    return Measured(float(factor), float(pulls.square().sum().sqrt() / curvature))
