r"""The exactly tilted law, from draws of the model that no method has seen.

The law at the strength of d nats is :math:`p(x | y) \, e^{r(x, y) / \beta} / Z`, whose beta is
chosen for each prompt by itself such that its divergence from the model is d. With draws
:math:`x_i \sim p` and the weights :math:`w = \mathrm{softmax}(r / \beta)`, its mean of any f is
:math:`\sum_i w_i f(x_i)`. This rests on :math:`1 / \sum_i w_i^2` effective draws, which fall by
:math:`e^{-2 d}` where rewards are normal: thirty of them take 1,600 draws at 2 nats and ninety
thousand at 4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..statistics import ratio_and_error
from ..temperature import beta_for_kl
from ..weights import ess

__all__ = ["FEW", "Draws", "Target", "curve", "tilted"]

FEW = 30
"""The effective number of draws below which a target is marked."""


@dataclass(frozen=True)
class Draws:
    """Draws of the model for one prompt, N of them.

    Arguments:
        rewards: Rewards by name, float64, with shape (N,); NaN where a reward failed.
        embeddings: Embeddings by name, each with shape (N, D).
        strengths: Strengths of the targets that they are meant for, in nats.
    """

    rewards: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]
    strengths: Sequence[float]


@dataclass(frozen=True)
class Target:
    """The exactly tilted law at one strength. All is NaN for a prompt that has none.

    Arguments:
        nats: Strength, in nats.
        beta: Temperature of each prompt, in units of the reward that is aligned to, with shape
            (P,).
        ess: Effective number of draws of each prompt, with shape (P,).
        means: Mean rewards by name, each with shape (P,).
        errors: Standard errors of these means, from the draws, each with shape (P,).
        log_weights: Log-weights of each prompt's draws, in nats, each with shape (N,); None for a
            prompt that has no target.
    """

    nats: float
    beta: Tensor
    ess: Tensor
    means: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    log_weights: Sequence[Tensor | None]

    @property
    def effective(self) -> float:
        """Median over prompts of the effective number of draws; NaN without any."""

        known = self.ess[~self.ess.isnan()]
        return float(known.median()) if len(known) else math.nan

    @property
    def few(self) -> bool:
        """True if it rests on so few draws that it should not be believed."""

        return not self.effective >= FEW


def tilted(draws: Sequence[Draws | None], aligned: str, nats: float) -> Target:
    """Returns the exactly tilted law at one strength.

    A prompt has no target if no draws are meant for it, their rewards do not reach the strength, or
    the reward that is aligned to failed on one of them: a draw left out would change the law.

    Arguments:
        draws: Draws of each prompt.
        aligned: Name of the reward that is aligned to.
        nats: Strength, in nats.
    """

    names = list(dict.fromkeys([aligned, *(name for one in draws if one for name in one.rewards)]))
    beta, effective = torch.full((2, len(draws)), math.nan, dtype=torch.float64)
    figures = torch.full((2, len(names), len(draws)), math.nan, dtype=torch.float64)
    log_weights: list[Tensor | None] = [None] * len(draws)
    for i, one in enumerate(draws):
        if one is None or nats not in one.strengths:
            continue
        rewards = one.rewards[aligned]
        beta[i] = _beta(rewards, nats)
        if math.isnan(beta[i]):
            continue
        log_w = rewards / beta[i]
        log_weights[i], effective[i] = log_w, ess(log_w)
        for k, name in enumerate(names):
            found = _mean(log_w, one.rewards[name])
            figures[:, k, i] = torch.tensor(found, dtype=torch.float64)
    means, errors = (dict(zip(names, rows.unbind(), strict=True)) for rows in figures.unbind())
    return Target(nats, beta, effective, means, errors, log_weights)


def curve(draws: Sequence[Draws | None], aligned: str, grid: Sequence[float]) -> Tensor:
    """Returns mean rewards of the tilted law over a grid of strengths.

    Arguments:
        draws: Draws of each of P prompts.
        aligned: Name of the reward that is aligned to.
        grid: Strengths, in nats; 0 is the model itself.

    Returns:
        Mean rewards with shape (P, G); NaN where the draws do not reach the strength.
    """

    rows = [
        [math.nan if one is None else _level(one.rewards[aligned], nats) for nats in grid]
        for one in draws
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(draws), len(grid))


def _beta(rewards: Tensor, nats: float) -> float:
    """Returns the temperature of a strength; NaN where the draws do not determine it."""

    if bool(rewards.isnan().any()):
        return math.nan
    try:
        return beta_for_kl([rewards], nats)
    except ValueError:  # such as rewards that are all one
        return math.nan


def _level(rewards: Tensor, nats: float) -> float:
    return float(rewards.mean()) if nats == 0 else _mean(rewards / _beta(rewards, nats), rewards)[0]


def _mean(log_w: Tensor, values: Tensor) -> tuple[float, float]:
    """Returns a self-normalized mean and its standard error; draws of no weight do not count."""

    weight = log_w.softmax(0)
    return ratio_and_error(weight * torch.where(weight > 0, values, 0.0), weight)
