r"""Annealed banks: draws of intermediate tilts join a bank, for tilts that it does not reach.

A tilt of many nats leaves a bank of the model's own draws with a handful that count. Between the
law p and its tilt :math:`p w / Z` lie the laws :math:`p \, w^\tau / Z_\tau`. Each is sampled by the
library's own guided sampler from the bank so far, where that bank has draws enough; all draws
together are weighed as those of the mixture of all stages (the balance heuristic):

.. math:: \log \frac{p}{q}(x) = -\log \sum_k \frac{N_k}{N} \frac{w(x)^{\tau_k}}{Z_{\tau_k}}, \qquad
    Z_\tau = \sum_i \frac{p}{q}(x^i) \, w(x^i)^\tau \Big/ \sum_i \frac{p}{q}(x^i).

The constants are found for all stages at once, as the fixed point of both equations. One by one,
each from the stage before, their errors would add up.

A guided sampler hands on what is wrong with the bank that guides it: modes keep the shares that
they have there. The steps of a stochastic sampler have densities, so that with one the draws of a
stage are particles whose weights mend this (:class:`rwguidance.particles.TwistedSMC`).

References:
    | Statistically optimal analysis of samples from multiple equilibrium states
      (Shirts & Chodera, 2008), arXiv:0801.1426 (the fixed point)
    | Optimally Combining Sampling Techniques for Monte Carlo Rendering (Veach & Guibas, 1995), the
      balance heuristic
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .bank import Bank
from .estimators.importance import ImportanceSampling
from .guidance import GuidedModel
from .models import Model, check_is_model
from .noise_space import Draw
from .particles import TwistedSMC
from .samplers import (
    DDIM,
    AncestralSampler,
    Sampler,
    UnreliableEstimate,
    check_times,
    draws_noise,
    sample,
)
from .support import checks
from .tilt import Tilt
from .weights import ess

__all__ = ["Stages", "anneal", "balance"]

_TOLERANCE = 1e-9
_ROUNDS = 10_000


@dataclass(frozen=True)
class Stages:
    r"""The laws whose draws a bank holds, and its log-importances.

    Arguments:
        powers: Powers :math:`\tau_k` of the weight, in [0, 1], with shape (K,).
        log_z: Estimates of :math:`\log Z_{\tau_k}`, in nats, with shape (K,).
        log_importance: Log-importances of the draws, in nats, with shape (N,).
    """

    powers: Tensor
    log_z: Tensor
    log_importance: Tensor


def balance(log_w: Tensor, powers: Sequence[float], counts: Sequence[int]) -> Stages:
    r"""Weighs draws of several tilts as draws of their mixture.

    Arguments:
        log_w: Log-weights of all draws at full strength, in nats, with shape (N,); -inf is a zero
            weight.
        powers: Powers of the weight that the laws of the stages have, of which one is 0, the law p
            itself.
        counts: Numbers of draws of each stage; which draw is of which does not matter.

    Raises:
        TypeError: If the log-weights are no tensor.
        ValueError: If the counts do not add up to N, or no power is 0.
    """

    checks.tensor("log_w", log_w)
    if sum(counts) != len(log_w) or len(counts) != len(powers):
        raise ValueError(
            f"counts must add up to the {len(log_w)} draws, one for each of {len(powers)} powers, "
            f"got {list(counts)}"
        )
    if 0 not in powers:
        raise ValueError(f"powers must hold 0, the law itself, got {list(powers)}")
    log_w = log_w.detach().cpu()
    tau = torch.tensor(powers, dtype=torch.float64)
    log_n = torch.tensor(counts, dtype=torch.float64).log()
    tilted = _times(tau, log_w)  # (K, N)
    log_z = torch.zeros_like(tau)
    for _ in range(_ROUNDS):
        log_importance = -(log_n[:, None] + tilted - log_z[:, None]).logsumexp(0)
        found = (tilted + log_importance).logsumexp(1)
        found = found - found[powers.index(0)]
        change, log_z = float((found - log_z).abs().max()), found
        if change < _TOLERANCE:
            break
    log_importance = -(log_n[:, None] + tilted - log_z[:, None]).logsumexp(0)
    return Stages(tau, log_z, log_importance)


def anneal(
    bank: Bank,
    model: Model,
    tilt: Tilt,
    draw: Draw,
    times: Tensor | Sequence[float],
    draws: int | None = None,
    fraction: float = 0.3,
    stages: int = 16,
    sampler: Sampler | None = None,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
) -> Bank:
    r"""Adds draws of intermediate tilts to a bank until it serves a tilt.

    Arguments:
        bank: Draws of the model itself, of one condition.
        model: The model.
        tilt: The tilt that the bank is to serve.
        draw: A function that draws the noise at the first of `times`.
        times: Times of a run, as :func:`rwguidance.sample` takes them.
        draws: Number of draws of each stage; None is the size of the bank.
        fraction: Each stage is the strongest tilt to which this share of a stage's draws is
            effective, in (0, 1).
        stages: Number of stages, at most.
        sampler: The sampler; None is :class:`rwguidance.DDIM`. Draws of a stochastic one, such as
            ``DDIM(eta=1.0)``, are weighted by what guidance did to each, and resampled.
        batch_size: Number of states that are drawn, weighted against each other and scored at once.
        generator: Source of randomness.

    Returns:
        A bank of all draws with their log-importances, to which no more than `fraction` is lost at
        the full tilt, for :class:`rwguidance.ImportanceSampling`, :meth:`rwguidance.Tilt.for_kl`
        and everything else that takes banks.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the bank has several conditions or log-importances, or a number is out of its
            range.

    Warns:
        UnreliableEstimate: If the full tilt was not reached in so many stages.
    """

    checks.instance("bank", bank, Bank, "a Bank")
    check_is_model("model", model)
    checks.instance("tilt", tilt, Tilt, "a Tilt")
    checks.function("draw", draw)
    bank.check_of_model("anneal")
    if len(bank.rows) != 1:
        raise ValueError(f"anneal needs a bank of one condition, got {len(bank.rows)}")
    times = check_times(times)
    count = len(bank) if draws is None else checks.integer("draws", draws, 2)
    fraction = checks.number("fraction", fraction, above=0, below=1)
    stages = checks.integer("stages", stages, 1)
    batch_size = checks.integer("batch_size", batch_size, 1)
    bank = bank if bank.rewards is not None else bank.scored(tilt, batch_size)
    stage = _Stage(model, sampler or DDIM(), draw, times, batch_size, generator)
    powers, counts = [0.0], [len(bank)]
    for left in reversed(range(stages + 1)):
        assert bank.rewards is not None
        log_w = tilt.weigh(bank.rewards)
        made = balance(log_w, powers, counts)
        bank = _joined(bank, made)
        power = _next_power(made.log_importance, log_w, powers[-1], fraction * count)
        if power == 1:
            return bank
        if left:
            bank = stage.add(bank, _weaker(tilt, power), count)
            powers, counts = [*powers, power], [*counts, count]
    warnings.warn(
        f"{stages} stages reached a power of {powers[-1]:.2g} of the weight, where 1 is the "
        "whole tilt: allow more stages, more draws, or a smaller fraction",
        UnreliableEstimate,
        stacklevel=2,
    )
    return bank


@dataclass(frozen=True)
class _Stage:
    """What draws of a stage are made with."""

    model: Model
    sampler: Sampler
    draw: Draw
    times: Tensor
    batch_size: int
    generator: torch.Generator | None

    def _drawn(self, estimator: ImportanceSampling, tilt: Tilt, n: int, condition: Any) -> Tensor:
        """Draws of a tilt, guided by a bank; weighted if their steps have densities."""

        noise, start = self.draw(n, self.generator), float(self.times[0])
        run = (self.sampler, noise, self.times, condition, self.generator)
        if not self._random:
            return sample(GuidedModel(self.model, estimator).starting(start), *run)
        made = TwistedSMC(tilt, estimator).sample(self.model.starting(start), *run)
        return made.x_0[made.draw(n, self.generator).flatten()]

    @cached_property
    def _random(self) -> bool:
        """Whether steps draw noise, so that they have densities."""

        one, schedule = self.sampler, self.model.schedule
        return isinstance(one, AncestralSampler) and any(
            draws_noise(one, schedule, t, s) for t, s in itertools.pairwise(self.times)
        )

    def add(self, bank: Bank, tilt: Tilt, count: int) -> Bank:
        """Returns a bank with as many draws of a tilt more, scored."""

        estimator = ImportanceSampling(bank, tilt)
        assert bank.rewards is not None
        states, rewards = [bank.x_0], [bank.rewards]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableEstimate)  # weights mend what is off
            for start in range(0, count, self.batch_size):
                n = min(self.batch_size, count - start)
                condition = None if bank.condition is None else bank.condition[:1] * n
                x_0 = self._drawn(estimator, tilt, n, condition)
                states.append(x_0.to(bank.x_0))
                rewards.append(tilt.score(x_0, condition).to(bank.rewards))
        n = len(bank) + count
        return Bank(
            torch.cat(states),
            None if bank.condition is None else bank.condition[:1] * n,
            torch.cat(rewards),
            bank.origin,
            decode=bank.decode,
        )


def _joined(bank: Bank, made: Stages) -> Bank:
    if len(made.powers) == 1:
        return bank
    return replace(bank, log_importance=made.log_importance)


def _weaker(tilt: Tilt, power: float) -> Tilt:
    """Returns the tilt whose weight is a power of another's."""

    return Tilt(tilt.rewards, [beta / power for beta in tilt.betas], tilt.decode)


def _next_power(log_importance: Tensor, log_w: Tensor, least: float, effective: float) -> float:
    """The largest power at which so many draws are effective, but more than the least by a bit."""

    log_w = log_w.cpu()
    enough = lambda power: bool(ess(log_importance + _times(power, log_w)) >= effective)
    if enough(1.0):
        return 1.0
    low, high = least, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    # A stage that does not move would be drawn for ever.
    return max(low, least + 1e-3)


def _times(power: Any, log_w: Tensor) -> Tensor:
    """Powers times log-weights; a power of 0 does not see zero weights."""

    power = torch.as_tensor(power, dtype=torch.float64)[..., None]
    return torch.where(power == 0, torch.zeros_like(log_w), power * log_w)
