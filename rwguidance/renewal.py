r"""Copies become new: states are noised half way, denoised anew, and kept by a Metropolis test.

Resampling makes copies. A copy :math:`x` is noised to a time t and denoised again to a proposal
:math:`x'`, which is accepted with probability

.. math:: \min\big(1, w(x') / w(x)\big) = \min\big(1, e^{(r' - r) / \beta}\big).

This leaves the tilted law :math:`p w / Z` as it is, and the chain reversible, on one condition:
proposals are reversible for p, :math:`p(x) K(x, x') = p(x') K(x', x)`. Noising and a draw of the
posterior are, since

.. math:: p(x) \, K(x, x') = \int p(x, x_t) \, p(x' | x_t) \, dx_t
    = \int p_t(x_t) \, p(x | x_t) \, p(x' | x_t) \, dx_t

is symmetric. The ancestral sampler, DDIM(eta=1), draws from the model's posterior up to the error
of its steps. A sampler without randomness keeps p as well, and is not reversible: there the test is
an approximation, the better the less its proposals differ in reward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .models import Model, check_is_model
from .noise_space.tasks import check_batch, where
from .samplers import Sampler, check_times, sample
from .support import checks
from .support.batches import batches
from .support.conditions import take
from .support.randomness import Generators, normal
from .tilt import Tilt
from .weights import log_uniform

__all__ = ["Propose", "Renewed", "copies", "renew", "renoising"]

Propose = Callable[[Tensor, Any, Generators], Tensor]
r"""Maps clean states, (B, \*event), their conditions and a source of randomness to proposals."""


@dataclass(frozen=True)
class Renewed:
    r"""Clean states after some moves.

    Arguments:
        x_0: Clean states, with shape (B, \*event).
        log_w: Their log-weights, in nats, with shape (B,).
        acceptance: Share of accepted moves of each, in [0, 1], with shape (B,); 0 where none was
            proposed.
    """

    x_0: Tensor
    log_w: Tensor
    acceptance: Tensor


def renoising(model: Model, sampler: Sampler, times: Tensor | Sequence[float]) -> Propose:
    """Makes proposals that noise a state to the first of `times` and denoise it through the others.

    Each costs the calls of such a run. The earlier the first time, the more a proposal resembles
    the state it comes from, and the more of them are accepted.

    Arguments:
        model: The model, unguided: proposals are to keep its law.
        sampler: The sampler; proposals of DDIM(eta=1) are reversible up to the error of its steps.
        times: Times of a run, as :func:`rwguidance.sample` takes them.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the times are none of a run.
    """

    check_is_model("model", model)
    checks.instance("sampler", sampler, Sampler, "a Sampler such as DDIM(eta=1)")
    grid = check_times(times)
    model = model.starting(None)  # these runs begin from states, not from noise alone

    def propose(x_0: Tensor, condition: Any, generator: Generators) -> Tensor:
        noise = normal(x_0.shape, generator, x_0.device, x_0.dtype)
        x_t = model.schedule.perturb(x_0, grid[0], noise).to(x_0.dtype)
        return sample(model, sampler, x_t, grid, condition, generator)

    return propose


def copies(picks: Tensor) -> Tensor:
    """Returns which of resampled indices were there before: all of a value but the first.

    Arguments:
        picks: Indices, as :func:`rwguidance.weights.systematic` returns them, with shape (n,).

    Returns:
        Booleans, with shape (n,).

    Raises:
        TypeError: If the indices are no tensor of integers.
        ValueError: If they are no row.
    """

    if not isinstance(picks, Tensor) or picks.is_floating_point() or picks.is_complex():
        raise TypeError(f"picks must be a tensor of integers, got {checks.described(picks)}")
    if picks.ndim != 1:
        raise ValueError(f"picks must have shape (n,), got {tuple(picks.shape)}")
    order = picks.argsort(stable=True)
    again = torch.zeros(len(picks), dtype=torch.bool, device=picks.device)
    again[order[1:]] = picks[order].diff() == 0
    return again


def renew(
    x_0: Tensor,
    tilt: Tilt,
    propose: Propose,
    moves: int = 1,
    rows: Tensor | None = None,
    condition: Any = None,
    generator: Generators = None,
    batch_size: int | None = None,
) -> Renewed:
    r"""Moves states of the tilted law to others of it, by proposals and a Metropolis test.

    Arguments:
        x_0: Clean states, with shape (B, \*event).
        tilt: The tilt of their law. A state of zero weight takes the first proposal that has one.
        propose: A function that makes proposals, reversible for the law of the model, such as
            :func:`renoising`.
        moves: Number of proposals for each state, at least 1.
        rows: Booleans with shape (B,), true for states to be moved, such as :func:`copies`; None
            moves all. The choice must not depend on the states: else their law changes.
        condition: Conditions of the B states, as
            :func:`rwguidance.support.conditions.take` takes them.
        generator: Source of randomness: one, or one per state, with which a state depends neither
            on the others nor on `batch_size`.
        batch_size: Number of states that are moved at once. None is all.

    Raises:
        TypeError: If an argument is of the wrong kind, or proposals are no batch of states.
        ValueError: If a number is out of its range, or a length does not fit.
    """

    checks.states("x_0", x_0, finite=True)
    checks.instance("tilt", tilt, Tilt, "a Tilt")
    checks.function("propose", propose)
    moves = checks.integer("moves", moves, 1)
    checks.generator("generator", generator)
    _check_rows(rows, len(x_0))
    size = checks.optional(checks.integer, "batch_size", batch_size, 1) or max(1, len(x_0))
    moving = list(range(len(x_0))) if rows is None else rows.nonzero().flatten().tolist()
    with torch.no_grad():
        log_w = torch.cat([tilt(x_0[i], take(condition, i)) for i in _parts(range(len(x_0)), size)])
        x_0, acceptance = x_0.clone(), torch.zeros_like(log_w)
        for part in _parts(moving, size):
            source = take(generator, part) if isinstance(generator, Sequence) else generator
            for _ in range(moves):
                old, old_w = x_0[part], log_w[part]
                new = propose(old, take(condition, part), source)
                check_batch(new, len(part), "propose must return states")
                new_w = tilt(new, take(condition, part)).to(old_w)
                # Of two zero weights neither is the larger: NaN, which no number is below.
                accept = log_uniform((len(part),), source).to(old_w) < new_w - old_w
                x_0[part] = where(accept, new.to(old), old)
                log_w[part] = torch.where(accept, new_w, old_w)
                acceptance[part] += accept / moves
    return Renewed(x_0, log_w, acceptance)


def _check_rows(rows: Tensor | None, n: int) -> None:
    if rows is None:
        return
    if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
        raise TypeError(f"rows must be a tensor of booleans, got {checks.described(rows)}")
    if rows.shape != (n,):
        raise ValueError(f"rows must have shape ({n},), got {tuple(rows.shape)}")


def _parts(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[part.start : part.stop]) for part in batches(len(items), size)]
