"""Markov chains of noise that keep the tilted law."""

from typing import Any

import torch
from torch import Tensor

from ..schedules import working_dtype
from ..support import checks
from ..support.conditions import take
from ..support.randomness import Generators
from ..tilt import Tilt
from .generators import Draw, Generate
from .kernels import CrankNicolson, Langevin, State, step
from .slopes import check_differentiable
from .tasks import Selection, Task

__all__ = ["pcn", "pcnl"]


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

    task = chain_task(generate, tilt, draw, start, condition, generator, batch_size)
    return _run(task, start, steps, rho, CrankNicolson())


def pcnl(
    generate: Generate,
    tilt: Tilt,
    draw: Draw,
    start: Selection,
    steps: int,
    rho: float,
    condition: Any = None,
    generator: Generators = None,
    batch_size: int | None = None,
    std: float = 1.0,
) -> Selection:
    r"""Runs a Markov chain per output whose proposals follow the gradient: pCN Langevin.

    With :math:`a = \sqrt{1 - \rho^2}` and :math:`g(z) = \nabla_z \log w(G(z))`,

    .. math:: z' = a \, z + (1 - a) \, C \, g(z) + \rho \, \xi, \quad \xi \sim N(0, C),
        \quad C = \mathrm{std}^2 I

    is accepted with probability :math:`\min(1, \exp(\log w(G(z')) - \log w(G(z)) + \ell(z', z) -
    \ell(z, z')))`, where

    .. math:: \ell(z, z') = \frac{1}{1 + a}
        \Big( g(z)^T (z' - a z) - \frac{1 - a}{2} \, g(z)^T C \, g(z) \Big)

    is the logarithm of the density of the proposal in that of :func:`pcn`, which keeps N(0, C).
    So the chain keeps the tilted law, in any dimension. Where the log-weight is linear in the
    noise, every proposal is accepted, and rho = 1 is a fresh draw of the tilted law. A step costs
    one forward and one backward pass.

    Arguments:
        generate: The generator, differentiable: ``flow_map(..., gradient=True)``.
        tilt: The tilt, whose rewards and `decode` are differentiable.
        draw: A function that draws noise of the law N(0, std^2 I).
        start: One state per output, of the same generator and conditions.
        steps: Number of steps of every chain, at least 1.
        rho: Size of a step, in (0, 1].
        condition: Conditions of the B outputs.
        generator: Source of randomness: one, or one per output.
        batch_size: Number of chains that run at once. None is all.
        std: Standard deviation of the noise.

    Returns:
        The states after the last step, as :func:`pcn` returns them.

    Raises:
        ValueError: If generator or tilt carry no gradient, or as :func:`pcn` says.
        TypeError: As :func:`pcn` says.
        FloatingPointError: If a gradient is not finite; names the outputs.

    References:
        | MCMC Methods for Functions: Modifying Old Algorithms to Make Them Faster (Cotter et al.,
          2013), arXiv:1202.0709
    """

    task = chain_task(generate, tilt, draw, start, condition, generator, batch_size)
    check_differentiable(tilt)
    return _run(task, start, steps, rho, Langevin(checks.number("std", std, above=0)))


def chain_task(
    generate: Generate,
    tilt: Tilt,
    draw: Draw,
    start: Selection,
    condition: Any,
    generator: Generators,
    batch_size: int | None,
) -> Task:
    """The arguments that all chains share, checked."""

    checks.instance("start", start, Selection, "a Selection")
    return Task(generate, tilt, draw, len(start.x_0), condition, generator, batch_size)


def begin(kernel: CrankNicolson, task: Task, rows: list[int], start: Selection) -> State:
    """Chains at their start, weighed by the tilt at hand."""

    z = start.noise[rows].to(working_dtype(start.noise.dtype))
    if isinstance(kernel, Langevin):
        state = kernel.at(task, z, rows, start.noise.dtype)
    else:  # kept, as the generator may draw numbers of its own
        x_0 = start.x_0[rows]
        log_w = task.tilt(x_0, take(task.condition, rows))
        state = State(z, x_0, log_w, z.new_zeros(len(rows), 0))
    task.check_weights(state.log_w[:, None], rows, "the start")
    return state


def _run(task: Task, start: Selection, steps: int, rho: float, kernel: CrankNicolson) -> Selection:
    steps = checks.integer("steps", steps, 1)
    rho = checks.number("rho", rho, above=0, high=1)
    with torch.no_grad():
        parts = [_run_chains(kernel, task, rows, start, steps, rho) for rows in task.groups()]
    noise, x_0, log_w, acceptance = (torch.cat(column) for column in zip(*parts, strict=True))
    return Selection(x_0, noise, log_w, start.evaluations + steps, {"acceptance": acceptance})


def _run_chains(
    kernel: CrankNicolson, task: Task, rows: list[int], start: Selection, steps: int, rho: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise, states and log-weights after the last step, and shares of accepted steps."""

    dtype = start.noise.dtype
    state = begin(kernel, task, rows, start)
    accepted = torch.zeros_like(state.log_w)
    rhos = torch.full((len(rows),), rho, dtype=torch.float64)
    for _ in range(steps):
        state, accept, _ = step(kernel, task, rows, state, rhos, dtype)
        accepted += accept
    return state.z.to(dtype), state.x_0, state.log_w, accepted / steps
