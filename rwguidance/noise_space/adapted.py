r"""Chains of noise that choose the size of their steps, and say when they have mixed."""

import math
from typing import Any

import torch
from torch import Tensor

from ..support import checks
from ..support.randomness import Generators
from ..tilt import Tilt
from .chains import begin, chain_task
from .generators import Draw, Generate
from .kernels import CrankNicolson, State, step
from .tasks import Selection, Task

__all__ = ["adapted_pcn"]

_FEWEST_CHAINS = 8
_FIRST_LOOK = 16


def adapted_pcn(
    generate: Generate,
    tilt: Tilt,
    draw: Draw,
    start: Selection,
    burn_in: int,
    steps: int,
    acceptance: float = 0.3,
    effective: float | None = None,
    condition: Any = None,
    generator: Generators = None,
    batch_size: int | None = None,
) -> Selection:
    r"""Runs :func:`pcn` with a size of steps that every chain finds for itself, then keeps.

    In the burn-in the log-odds of rho follow the probability :math:`\alpha_k` of acceptance
    (Robbins-Monro), and the mean of their second half is kept:

    .. math:: \theta_{k + 1} = \theta_k + 4 \, k^{-0.6} (\alpha_k - \alpha^*), \qquad
        \rho = 1 / (1 + e^{-\theta})

    The steps after it keep the tilted law. Where even rho = 1 is accepted more often than asked,
    it is taken to about 1.

    With `effective`, chains stop together, and so must be of one condition. They stop when, of the
    log-weights of the last half of the steps after the burn-in,

    1. the variance over chains and steps is `effective` times the variance of the chains' means:
       each chain has run through the law so many times, and none is stuck in a mode of its own;
    2. the second half's mean is within two standard errors, over chains, of the first half's.

    They look after 16 steps and whenever the number has doubled. The rule sees modes in which some
    chains start, and which differ in reward: start from picks among several fresh draws.

    Arguments:
        generate: The generator.
        tilt: The tilt, which may differ from the one that made `start`.
        draw: A function that draws noise, from one source per row where it is given several.
        start: One state per output, of the same generator and conditions.
        burn_in: Number of steps that choose rho, at least 2.
        steps: Number of steps after them, at least 1, and at most so many with `effective`.
        acceptance: Share of proposals that are to be accepted, in (0, 1).
        effective: Number of effective draws per chain at which to stop, more than 1. None does all
            steps, and then an output does not depend on the others.
        condition: Conditions of the B outputs, as
            :func:`rwguidance.support.conditions.take` takes them.
        generator: Source of randomness: one, or one per output.
        batch_size: Number of chains that run at once. None is all.

    Returns:
        The states after the last step, with the diagnostics ``acceptance``, the share of accepted
        steps after the burn-in, ``rho``, and ``effective``, the ratio of variances of rule 1 over
        all chains (NaN of one chain).

    Raises:
        ValueError: If a start has zero weight; names the outputs. If a number is out of range, a
            length does not fit, or there are fewer than 8 chains to stop by.
        TypeError: If `tilt` is no Tilt, or noise or states are no batches of floating point.

    References:
        | A Stochastic Approximation Method (Robbins and Monro, 1951)
        | Inference from Iterative Simulation Using Multiple Sequences (Gelman and Rubin, 1992)
    """

    task = chain_task(generate, tilt, draw, start, condition, generator, batch_size)
    burn_in = checks.integer("burn_in", burn_in, 2)
    steps = checks.integer("steps", steps, 1)
    acceptance = checks.number("acceptance", acceptance, above=0, below=1)
    checks.optional(checks.number, "effective", effective, above=1)
    if effective is not None and task.outputs < _FEWEST_CHAINS:
        raise ValueError(
            f"effective needs at least {_FEWEST_CHAINS} chains to compare, got {task.outputs}"
        )
    with torch.no_grad():
        groups = [_Group(task, rows, start, acceptance) for rows in task.groups()]
        for group in groups:
            group.burn_in(burn_in)
        done, look = 0, _FIRST_LOOK if effective is not None else steps
        while done < steps:
            look = min(look, steps)
            for group in groups:
                group.run(look - done)
            done, look = look, 2 * look
            trace = torch.cat([torch.stack(group.log_ws) for group in groups], dim=1)
            if effective is not None and _have_mixed(trace, effective):
                break
    return _result(groups, start, trace, burn_in + done)


class _Group:
    """Chains that run at once, and what they have seen after the burn-in."""

    def __init__(self, task: Task, rows: list[int], start: Selection, target: float) -> None:
        self.task, self.rows, self.target = task, rows, target
        self.kernel, self.dtype = CrankNicolson(), start.noise.dtype
        self.state: State = begin(self.kernel, task, rows, start)
        self.rho = torch.full((len(rows),), 0.5, dtype=torch.float64)
        self.accepted = torch.zeros(len(rows), dtype=torch.float64)
        self.log_ws: list[Tensor] = []

    def burn_in(self, steps: int) -> None:
        """Chooses rho."""

        log_odds, kept = torch.zeros_like(self.rho), []
        for k in range(1, steps + 1):
            log_ratio = self._step()[1]
            log_odds = log_odds + 4 * k**-0.6 * (log_ratio.exp().to(log_odds) - self.target)
            self.rho = log_odds.sigmoid()
            kept.append(log_odds)
        self.rho = torch.stack(kept[steps // 2 :]).mean(0).sigmoid()

    def run(self, steps: int) -> None:
        """Makes steps of the size that was chosen."""

        for _ in range(steps):
            self.accepted += self._step()[0].to(self.accepted)
            self.log_ws.append(self.state.log_w.double().cpu())

    def _step(self) -> tuple[Tensor, Tensor]:
        """Who moved, and the logarithms of their probabilities to."""

        self.state, accept, log_ratio = step(
            self.kernel, self.task, self.rows, self.state, self.rho, self.dtype
        )
        return accept, log_ratio


def _effective(trace: Tensor) -> float:
    """Variance of log-weights, with shape (steps, chains), over that of the chains' means."""

    if trace.shape[1] < 2:
        return math.nan
    between, total = float(trace.mean(0).var()), float(trace.var())
    return math.inf if between == 0 else total / between


def _have_mixed(trace: Tensor, effective: float) -> bool:
    """Whether log-weights, with shape (steps, chains), pass both rules in their last half."""

    trace = trace[len(trace) // 2 :]
    half = len(trace) // 2
    drift = trace[half:].mean(0) - trace[:half].mean(0)
    still = abs(float(drift.mean())) <= 2 * float(drift.std()) / trace.shape[1] ** 0.5
    return still and _effective(trace) >= effective


def _result(groups: list[_Group], start: Selection, trace: Tensor, steps: int) -> Selection:
    states = [group.state for group in groups]
    join = lambda parts: torch.cat(list(parts))
    chains, ratio = trace.shape[1], _effective(trace[len(trace) // 2 :])
    return Selection(
        join(state.x_0 for state in states),
        join(state.z for state in states).to(start.noise.dtype),
        join(state.log_w for state in states),
        start.evaluations + steps,
        {
            "acceptance": join(group.accepted for group in groups) / len(trace),
            "rho": join(group.rho for group in groups),
            "effective": torch.full((chains,), ratio, dtype=torch.float64),
        },
    )
