r"""Copies become new: states are noised half way, denoised anew, and kept by a Metropolis test.

Resampling makes copies. A state :math:`x` is noised to a time t and denoised again to a proposal
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

All states move, not the copies alone. Copies are of the largest weights: moved by themselves they
go back to where the law has its mass, while those that stay are spread as the bank is, so that the
law of all of them drifts towards p. Moved together, states come nearer to the tilted law with every
move, whatever their law was.
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

__all__ = ["Propose", "Renewed", "renew", "renoising"]

Propose = Callable[[Tensor, Any, Generators], Tensor]
r"""Maps clean states, (B, \*event), their conditions and a source of randomness to proposals."""


@dataclass(frozen=True)
class Renewed:
    r"""Clean states after some moves.

    Arguments:
        x_0: Clean states, with shape (B, \*event).
        log_w: Their log-weights, in nats, with shape (B,).
        acceptance: Share of accepted moves of each, in [0, 1], with shape (B,).
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
        x_t = model.schedule.perturb(x_0, grid[0], noise)
        return sample(model, sampler, x_t, grid, condition, generator)

    return propose


def renew(
    x_0: Tensor,
    tilt: Tilt,
    propose: Propose,
    moves: int = 1,
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
    size = checks.optional(checks.integer, "batch_size", batch_size, 1) or max(1, len(x_0))
    parts = [list(part) for part in batches(len(x_0), size)]
    with torch.no_grad():
        log_w = torch.cat([tilt(x_0[part], take(condition, part)) for part in parts])
        x_0, acceptance = x_0.clone(), torch.zeros_like(log_w)
        for part in parts:
            source = take(generator, part) if isinstance(generator, Sequence) else generator
            for _ in range(moves):
                old, old_w = x_0[part], log_w[part]
                new = propose(old, take(condition, part), source)
                check_batch(new, len(part), "propose must return states")
                new_w = tilt(new, take(condition, part)).to(old_w)
                # Of two zero weights neither is the larger: NaN, which no number is below.
                accept = log_uniform((len(part),), source).to(old_w.device) < new_w - old_w
                x_0[part] = where(accept, new.to(old), old)
                log_w[part] = torch.where(accept, new_w, old_w)
                acceptance[part] += accept / moves
    return Renewed(x_0, log_w, acceptance)
