"""One candidate among several: the best, or one drawn by its weight."""

from typing import Any

import torch
from torch import Tensor

from ..support import checks
from ..support.randomness import Generators
from ..tilt import Tilt
from ..weights import ess, gumbel, log_mean_exp, pareto_k
from .generators import Draw, Generate
from .tasks import Selection, Task, where

__all__ = ["best_of_n", "soft_best_of_n"]


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

    task = Task(generate, tilt, draw, outputs, condition, generator, batch_size)
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

    task = Task(generate, tilt, draw, outputs, condition, generator, batch_size)
    return _select(task, n, soft=True)


def _select(task: Task, n: int, soft: bool) -> Selection:
    n = checks.integer("n", n, 1)
    with torch.no_grad():
        parts = [_select_group(task, rows, n, soft) for rows in task.groups()]
    noise, x_0, chosen, log_w = (torch.cat(column) for column in zip(*parts, strict=True))
    diagnostics = {"ess": ess(log_w), "log_z": log_mean_exp(log_w), "pareto_k": pareto_k(log_w)}
    return Selection(x_0, noise, chosen, n, diagnostics)


def _select_group(task: Task, rows: list[int], n: int, soft: bool) -> tuple[Tensor, ...]:
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
            new = tuple(where(better, *pair) for pair in zip(new, kept, strict=True))
        kept = new
        log_ws.append(columns)
    log_w = torch.cat(log_ws, dim=1)
    task.check_weights(log_w, rows, f"one of the {n} candidates")
    return *kept[1:], log_w
