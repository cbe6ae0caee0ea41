r"""Guide, pool, resample: guided draws and a bank as candidates of one mixture.

Guidance moves draws towards the tilted law, and stops short of it or goes too far. A bank has the
right law once it is weighted, but few of its draws count. Pooled, each mends the other. With N
draws of :math:`p(x | y)` with rewards :math:`r_i`, and n guided ones, let the law of the guided
draws be the tilt of p by a strength :math:`\lambda'`, which is found from their mean reward,

.. math:: E_{\lambda'}[r] = \frac{\sum_i e^{\lambda' r_i} r_i}{\sum_i e^{\lambda' r_i}}
    = \frac1n \sum_j r_j, \qquad
    \log Z' = \log \frac1N \sum_i e^{\lambda' r_i},

and weigh all N + n candidates as draws of the mixture of both laws (the balance heuristic):

.. math:: \log \omega = \lambda r - \log\big(N + n \, e^{\lambda' r} / Z'\big).

This is exact, as both numbers grow, if guidance *only tilts*. If it does not, the candidates are
nearer to the tilted law than the guided draws, but not of it. :attr:`Pooled.misfit` says whether
the rewards of the guided draws look like those of such a tilt. With no guided draws this is the
resampling of a bank, with the weights of the tilt.

References:
    | Optimally Combining Sampling Techniques for Monte Carlo Rendering (Veach & Guibas, 1995), the
      balance heuristic
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .support import checks
from .temperature import beta_for_reward
from .weights import ess, systematic

__all__ = ["Pooled", "pool"]


@dataclass(frozen=True)
class Pooled:
    r"""Weighted candidates of one condition: draws of the bank, then the guided ones.

    Arguments:
        log_w: Log-weights towards the tilted law, in nats, float64, with shape (N + n,).
        log_importance: Log-weights towards the law p itself, in nats, with shape (N + n,): the
            candidates and these are a weighted :class:`rwguidance.Bank`.
        log_z: Estimate of :math:`\log E_p[\exp(r / \beta)]`, in nats.
        reach: The strength at which the bank has the mean reward of the guided draws, over that of
            the tilt, in [0, 1]; 1 where they have all of it or more, 0 where there are none.
        misfit: Distance of the distributions of the guided rewards and of the bank's at that
            strength (Kolmogorov and Smirnov's), over the value that it exceeds once in twenty times
            where guidance only tilts; NaN where there are none. Above 1 the candidates have another
            law than is assumed.
    """

    log_w: Tensor
    log_importance: Tensor
    log_z: float
    reach: float
    misfit: float

    @property
    def effective(self) -> float:
        """Effective number of candidates."""

        return float(ess(self.log_w))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Returns indices of `n` candidates, resampled systematically, int64, with shape (n,).

        Arguments:
            n: Number of indices.
            generator: Source of randomness.
        """

        return systematic(self.log_w, n, generator)


def pool(
    rewards: Tensor,
    guided: Tensor | None,
    beta: float,
    log_importance: Tensor | None = None,
) -> Pooled:
    r"""Weighs draws of a bank and guided draws of the same condition together.

    Arguments:
        rewards: Rewards of the bank's draws, with shape (N,), in reward units; -inf is a zero
            weight.
        guided: Rewards of the guided draws, with shape (n,); None if there are none.
        beta: Temperature of the tilt, in reward units.
        log_importance: Log-importances of the bank's draws, in nats, with shape (N,), as those of a
            :class:`rwguidance.Bank`; such a bank counts as its effective number of draws. None if
            they are draws of p.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a reward is NaN or +inf, none of the bank's is finite, or beta is not
            positive.
    """

    own, log_b = _rewards("rewards", rewards), _importance(log_importance, rewards)
    others = own.new_empty(0) if guided is None else _rewards("guided", guided)
    if not bool(own.isfinite().any()):
        raise ValueError("rewards must be finite for one draw of the bank at least, got none")
    strength = 1 / checks.number("beta", beta, above=0)
    count = float(ess(log_b))
    reached = _strength_of(others, own, log_b, strength)
    log_z = (log_b + _times(reached, own)).logsumexp(0)
    log_n = math.log(len(others)) if len(others) else -math.inf
    mixture = lambda r: torch.logaddexp(
        torch.full_like(r, math.log(count)), log_n + _times(reached, r) - log_z
    )
    log_importance = torch.cat((log_b + math.log(count) - mixture(own), -mixture(others)))
    log_w = log_importance + strength * torch.cat((own, others))
    return Pooled(
        log_w,
        log_importance,
        float(log_w.logsumexp(0)),
        reached / strength if len(others) else 0.0,
        _misfit(others, own, log_b + _times(reached, own)),
    )


def _times(strength: float, rewards: Tensor) -> Tensor:
    """Strength times rewards; where they are -inf that is left, as of the smallest strength."""

    return torch.where(rewards == -math.inf, rewards, strength * rewards)


def _strength_of(guided: Tensor, rewards: Tensor, log_b: Tensor, most: float) -> float:
    """The strength in [0, `most`] at which the bank has the mean reward of the guided draws."""

    finite = guided[guided.isfinite()]
    if not len(finite):
        return 0.0
    values = rewards.nan_to_num(neginf=0.0)
    mean = lambda strength: float((log_b + _times(strength, rewards)).softmax(0) @ values)
    level = float(finite.mean())
    if level <= mean(0.0):
        return 0.0
    if level >= mean(most):
        return most
    return min(1 / beta_for_reward([rewards], level, [log_b]), most)


def _misfit(guided: Tensor, rewards: Tensor, log_w: Tensor) -> float:
    """How far two distributions of rewards are apart, over what chance makes in 95 of 100 cases."""

    if not len(guided):
        return math.nan
    at = torch.cat((guided, rewards))
    distance = (
        (_share_below(guided, torch.zeros_like(guided), at) - _share_below(rewards, log_w, at))
        .abs()
        .max()
    )
    return float(distance) / (1.36 * math.sqrt(1 / len(guided) + 1 / float(ess(log_w))))


def _share_below(values: Tensor, log_w: Tensor, at: Tensor) -> Tensor:
    """Share of the weight that values up to some points have."""

    order = values.argsort()
    shares = torch.cat((values.new_zeros(1), log_w[order].softmax(0).cumsum(0)))
    return shares[torch.searchsorted(values[order], at, right=True)]


def _rewards(name: str, values: Tensor) -> Tensor:
    checks.tensor(name, values)
    if values.ndim != 1 or not values.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor of shape (N,), got {checks.described(values)}"
        )
    bad = values.isnan() | (values == math.inf)
    if bool(bad.any()):
        raise ValueError(
            f"{name} must be finite or -inf, got NaN or +inf in {checks.bad_items(values[:, None])}"
        )
    return values.detach().double().cpu()


def _importance(values: Tensor | None, rewards: Tensor) -> Tensor:
    """Shares of the bank's draws in p, as logarithms, normalized."""

    if values is None:
        values = torch.zeros(len(rewards))
    checks.tensor("log_importance", values, tuple(rewards.shape))
    return values.detach().double().cpu().log_softmax(0)
