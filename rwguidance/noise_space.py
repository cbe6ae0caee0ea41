r"""Tilting the noise of a generator: samples of the tilted law from rewards alone.

A generator :math:`x_0 = G(z, y)` turns noise :math:`z \sim N(0, C)` into clean states: a one-step
network, or a model with a deterministic sampler. Its law is that of G(z), and tilting the noise
tilts it exactly:

.. math:: z \sim N(0, C) \, w(G(z, y), y) / Z(y) \quad \Rightarrow \quad
    x_0 = G(z, y) \sim p(x_0 | y) \, w(x_0, y) / Z(y)

No density, score or gradient is needed, of the generator or of the reward, and no property of the
path: it is the exact object where one step leaves nothing to guide. The price is paid in calls of
the generator.

Clean states are kept with their noise and never generated twice. A generator that draws numbers
of its own (an ancestral sampler) therefore keeps every statement here true of its law, but `noise`
no longer reproduces `x_0`, and proposals of :func:`pcn` are not close to where they come from. If
the generator is a guided model, the law that is tilted is the guided one.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from .models import Model, check_is_model
from .samplers import Sampler, check_times, sample
from .schedules import working_dtype
from .support import checks
from .support.conditions import condition_keys, describe_keys, take
from .support.randomness import Generators
from .tilt import Tilt
from .weights import ess, gumbel, log_mean_exp, log_uniform, pareto_k

__all__ = ["Draw", "Generate", "Selection", "best_of_n", "flow_map", "pcn", "soft_best_of_n"]

Generate = Callable[[Tensor, Any], Tensor]
r"""Maps (noise, condition) to clean states: (B, \*shape of the noise) to (B, \*event)."""

Draw = Callable[[int, Generators], Tensor]
"""Draws noise of a centered Gaussian law, one sample per row, such as `Backbone.draw_noise`."""


@dataclass(frozen=True)
class Selection:
    r"""Clean states, one per output, and the noise they come from.

    Arguments:
        x_0: Clean states, with shape (B, \*event).
        noise: The noise that they were generated from, with shape (B, \*shape of the noise).
        log_w: Log-weights of the clean states, in nats, with shape (B,).
        evaluations: Number of clean states that were generated and scored for each output.
        diagnostics: Measures of how far to trust the states, each with shape (B,).
    """

    x_0: Tensor
    noise: Tensor
    log_w: Tensor
    evaluations: int
    diagnostics: dict[str, Tensor]


def flow_map(model: Model, sampler: Sampler, times: Tensor | Sequence[float]) -> Generate:
    r"""Makes the generator that runs a sampler without randomness, such as DDIM(eta=0) or Heun.

    A last step to :math:`\sigma = 0` draws nothing for any eta, so that DDIM of any eta passes if
    it is the only step. For a sampler that does draw, write a function that hands it a generator.

    Arguments:
        model: The model whose law is to be tilted.
        sampler: The sampler, which makes one step.
        times: Times of the run, as :func:`rwguidance.sample` takes them.

    Returns:
        A function (noise, condition) -> clean states. It raises ValueError if a step asks for
        random numbers, and keeps no graph.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the times are none of a run.
    """

    check_is_model("model", model)
    checks.instance("sampler", sampler, Sampler, "a Sampler such as DDIM()")
    times = check_times(times)
    return lambda noise, condition: sample(
        model, sampler, noise, times, condition, generator=_NoRandomness()
    )


def best_of_n(
    generate: Generate,
    tilt: Tilt,
    draw: Draw,
    outputs: int,
    n: int,
    condition: Any = None,
    generator: Generators = None,
    batch_size: int | None = None,
) -> Selection:
    r"""Selects the candidate of the largest log-weight among `n`, for every output.

    This maximizes; it is not a draw of the tilted law and does not depend on beta, if there is one
    reward. Its law is at most :math:`\log n - (n - 1) / n` nats away from that of the generator.

    Arguments:
        generate: The generator.
        tilt: The tilt.
        draw: A function that draws noise, from one source per row where it is given several.
        outputs: Number of outputs B, at least 1.
        n: Number of candidates per output, at least 1.
        condition: Conditions of the B outputs, as
            :func:`rwguidance.support.conditions.take` takes them.
        generator: Source of randomness: one, or one per output. With one per output an output
            depends neither on the others nor on `batch_size`; with one for all, it does.
        batch_size: Number of states that are generated and scored at once. None is `outputs`.

    Returns:
        The candidates, of equal ones the first, with diagnostics of all `n` log-weights:

        - ``ess``: effective candidates, in [1, n],
        - ``log_z``: estimate of :math:`\log Z(y)`, in nats, whose exponential is unbiased,
        - ``pareto_k``: tail shape (see :func:`rwguidance.weights.pareto_k`).

    Raises:
        ValueError: If all candidates of an output have zero weight; names the outputs. If a number
            is out of range, or a length does not fit.
        TypeError: If `tilt` is no Tilt, or noise or states are no batches of floating point.

    References:
        | Theoretical guarantees on the best-of-n alignment policy (Beirami et al., 2024),
          arXiv:2401.01879 (the bound)
    """

    task = _Task(generate, tilt, draw, outputs, condition, generator, batch_size)
    return _select(task, n, soft=False)


def soft_best_of_n(
    generate: Generate,
    tilt: Tilt,
    draw: Draw,
    outputs: int,
    n: int,
    condition: Any = None,
    generator: Generators = None,
    batch_size: int | None = None,
) -> Selection:
    r"""Draws one of `n` candidates for every output, by :math:`\mathrm{softmax}(\log w)`.

    Also known as sampling importance resampling (SIR). The law of the pick tends to the tilted law
    as 1 / n: n = 1 is a draw of the generator, and once ``ess`` is large, the pick is a draw of the
    tilted law. This takes more than :math:`\exp \mathrm{KL}(\tilde p \,\|\, p)` candidates; with
    fewer, it is hardly different from :func:`best_of_n`.

    Arguments, diagnostics and errors are those of :func:`best_of_n`.

    References:
        | Using the SIR algorithm to simulate posterior distributions (Rubin, 1988)
        | Soft Best-of-n Sampling for Model Alignment (Verdun et al., 2025), arXiv:2505.03156
    """

    task = _Task(generate, tilt, draw, outputs, condition, generator, batch_size)
    return _select(task, n, soft=True)


def pcn(
    generate: Generate,
    tilt: Tilt,
    draw: Draw,
    start: Selection,
    steps: int,
    rho: float,
    condition: Any = None,
    generator: Generators = None,
    batch_size: int | None = None,
) -> Selection:
    r"""Runs a Markov chain per output that keeps the tilted law: preconditioned Crank-Nicolson.

    .. math:: z' = \sqrt{1 - \rho^2} \, z + \rho \, \xi, \quad \xi \sim N(0, C), \qquad
        \text{accepted with probability } \min(1, w(G(z')) / w(G(z)))

    Proposals keep the law of the noise, whatever its covariance and dimension, so that only the
    reward can reject them. With rho = 1 they are fresh draws (the independence sampler); a smaller
    rho is accepted more often and moves less; an acceptance of 0.2 to 0.5 is the usual compromise.

    Start from :func:`soft_best_of_n`, which is closer to the tilted law than a fresh draw (its
    n = 1). A result continues the chain as the next `start`: see whether mean rewards still change.

    Arguments:
        generate: The generator.
        tilt: The tilt, which may differ from the one that made `start`: it weighs it anew.
        draw: A function that draws noise, from one source per row where it is given several.
        start: One state per output, of the same generator and conditions.
        steps: Number of steps of every chain, at least 1; each costs one call of the generator.
        rho: Size of a step, in (0, 1].
        condition: Conditions of the B outputs, as
            :func:`rwguidance.support.conditions.take` takes them.
        generator: Source of randomness: one, or one per output. With one per output an output
            depends neither on the others nor on `batch_size`; with one for all, it does.
        batch_size: Number of chains that run at once. None is all.

    Returns:
        The states after the last step, with the diagnostic ``acceptance``, the share of accepted
        steps, in [0, 1]. Its evaluations are counted on from those of `start`.

    Raises:
        ValueError: If a start has zero weight; names the outputs. If a number is out of range, or a
            length does not fit.
        TypeError: If `tilt` is no Tilt, or noise or states are no batches of floating point.

    References:
        | MCMC Methods for Functions: Modifying Old Algorithms to Make Them Faster (Cotter et al.,
          2013), arXiv:1202.0709
    """

    checks.instance("start", start, Selection, "a Selection")
    task = _Task(generate, tilt, draw, len(start.x_0), condition, generator, batch_size)
    steps = checks.integer("steps", steps, 1)
    rho = checks.number("rho", rho, above=0, high=1)
    with torch.no_grad():
        parts = [_run_chains(task, rows, start, steps, rho) for rows in task.groups()]
    noise, x_0, log_w, acceptance = (torch.cat(column) for column in zip(*parts, strict=True))
    return Selection(x_0, noise, log_w, start.evaluations + steps, {"acceptance": acceptance})


@dataclass(frozen=True)
class _Task:
    """The arguments that all methods share, and their use: draw noise, generate and score it."""

    generate: Generate
    tilt: Tilt
    draw: Draw
    outputs: int
    condition: Any
    generator: Generators
    batch_size: int | None

    def __post_init__(self) -> None:
        checks.function("generate", self.generate)
        checks.instance("tilt", self.tilt, Tilt, "a Tilt")
        checks.function("draw", self.draw)
        checks.integer("outputs", self.outputs, 1)
        checks.generator("generator", self.generator)
        checks.optional(checks.integer, "batch_size", self.batch_size, 1)
        lengths = {"generator": self.generator, "condition": self.condition}
        for name, value in lengths.items():
            counted = isinstance(value, Sized) and not isinstance(value, Mapping | str | bytes)
            if counted and len(value) != self.outputs:
                raise ValueError(
                    f"{name} must hold one item per output, {self.outputs}, got {len(value)}"
                )

    @property
    def size(self) -> int:
        return self.batch_size or self.outputs

    def groups(self) -> list[list[int]]:
        """The outputs, split into those that run at once."""

        return [
            list(range(self.outputs))[first : first + self.size]
            for first in range(0, self.outputs, self.size)
        ]

    def generators(self, rows: list[int]) -> Generators:
        """Sources of randomness for the outputs `rows`."""

        if self.generator is None or isinstance(self.generator, torch.Generator):
            return self.generator
        return [self.generator[row] for row in rows]

    def noise(self, rows: list[int]) -> Tensor:
        """Fresh noise for the outputs `rows`, which may repeat."""

        noise = self.draw(len(rows), self.generators(rows))
        _check_batch(noise, len(rows), "draw must return noise")
        return noise

    def evaluate(self, noise: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Clean states of the outputs `rows`, and their log-weights."""

        condition = take(self.condition, rows)
        x_0 = self.generate(noise, condition)
        _check_batch(x_0, len(rows), "generate must return states")
        return x_0, self.tilt(x_0, condition)

    def check_weights(self, log_w: Tensor, rows: list[int], what: str) -> None:
        """Raises for outputs of `rows` whose log-weights, with shape (len(rows), n), are -inf."""

        bad = [row for row, zero in zip(rows, (log_w == -math.inf).all(1), strict=True) if zero]
        if bad:
            raise ValueError(
                f"the tilt must leave a weight to {what} of every output, but it is zero for "
                f"outputs {describe_keys(bad)}{self._named(bad)}"
            )

    def _named(self, rows: list[int]) -> str:
        try:
            keys = condition_keys(take(self.condition, rows), len(rows))
        except (TypeError, ValueError):  # a condition that only the generator understands
            return ""
        return "" if keys is None else f" (conditions {describe_keys(keys)})"


def _select(task: _Task, n: int, soft: bool) -> Selection:
    n = checks.integer("n", n, 1)
    with torch.no_grad():
        parts = [_select_group(task, rows, n, soft) for rows in task.groups()]
    noise, x_0, chosen, log_w = (torch.cat(column) for column in zip(*parts, strict=True))
    diagnostics = {"ess": ess(log_w), "log_z": log_mean_exp(log_w), "pareto_k": pareto_k(log_w)}
    return Selection(x_0, noise, chosen, n, diagnostics)


def _select_group(task: _Task, rows: list[int], n: int, soft: bool) -> tuple[Tensor, ...]:
    """Noise, states and log-weights of the picks, and all log-weights, (b, n)."""

    b, at_once = len(rows), max(1, task.size // len(rows))
    # the largest of log w + Gumbel noise is a draw from softmax(log w), and needs one pass only
    perturbation = gumbel((b, n), task.generators(rows)) if soft else torch.zeros(b, n)
    kept: tuple[Tensor, ...] = ()
    log_ws = []
    for first in range(0, n, at_once):
        count = min(at_once, n - first)
        tiled = rows * count  # row c * b + i is candidate first + c of output rows[i]
        noise = task.noise(tiled)
        x_0, log_w = task.evaluate(noise, tiled)
        columns = log_w.reshape(count, b).mT
        key = columns + perturbation[:, first : first + count].to(columns)
        top, candidate = key.max(1)
        best = candidate * b + torch.arange(b, device=candidate.device)
        new = (top, *(values[best.to(values.device)] for values in (noise, x_0, log_w)))
        if kept:
            better = top > kept[0]
            new = tuple(_where(better, *pair) for pair in zip(new, kept, strict=True))
        kept = new
        log_ws.append(columns)
    log_w = torch.cat(log_ws, dim=1)
    task.check_weights(log_w, rows, f"one of the {n} candidates")
    return *kept[1:], log_w


def _run_chains(
    task: _Task, rows: list[int], start: Selection, steps: int, rho: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise, states and log-weights after the last step, and shares of accepted steps."""

    dtype = start.noise.dtype
    z, x_0 = start.noise[rows].to(working_dtype(dtype)), start.x_0[rows]
    log_w = task.tilt(x_0, take(task.condition, rows))
    task.check_weights(log_w[:, None], rows, "the start")
    accepted = torch.zeros_like(log_w)
    for _ in range(steps):
        proposal = math.sqrt(1 - rho**2) * z + rho * task.noise(rows).to(z)
        new_x_0, new_log_w = task.evaluate(proposal.to(dtype), rows)
        log_u = log_uniform((len(rows),), task.generators(rows)).to(log_w)
        accept = log_u < new_log_w - log_w
        z, x_0 = _where(accept, proposal, z), _where(accept, new_x_0, x_0)
        log_w = torch.where(accept, new_log_w, log_w)
        accepted += accept
    return z.to(dtype), x_0, log_w, accepted / steps


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where the mask, with shape (B,), is true, else of `b`."""

    return torch.where(mask.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _check_batch(x: Tensor, n: int, what: str) -> None:
    good = isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and len(x) == n
    if not good:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{what} of floating point with shape ({n}, *event), got {got}")


class _NoRandomness(Sequence[torch.Generator]):
    """A source of randomness that refuses to be asked."""

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse()

    def __len__(self) -> int:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            "a flow map must be deterministic, but a step of the sampler asks for random numbers; "
            "use DDIM(eta=0) or Heun()"
        )
