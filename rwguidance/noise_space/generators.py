"""Generators as functions of noise: those of models, and banks of what they make."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..models import Model, check_is_model
from ..samplers import AncestralSampler, Sampler, check_times, draws_noise, sample
from ..support import checks
from ..support.randomness import Generators

__all__ = ["Draw", "Generate", "flow_map"]

Generate = Callable[[Tensor, Any], Tensor]
r"""Maps (noise, condition) to clean states: (B, \*shape of the noise) to (B, \*event)."""

Draw = Callable[[int, Generators], Tensor]
"""Draws noise of a centered Gaussian law, one sample per row, such as `Backbone.draw_noise`."""


def flow_map(
    model: Model, sampler: Sampler, times: Tensor | Sequence[float], gradient: bool = False
) -> Generate:
    r"""Makes the generator that runs a sampler without randomness, such as DDIM(eta=0) or Heun.

    A last step to :math:`\sigma = 0` draws nothing for any eta, so that DDIM of any eta passes if
    it is the only step. For a sampler that does draw, write a function that hands it a generator.
    The noise knows nothing of a clean state, so the run starts at its first time, see
    :meth:`rwguidance.Model.starting`.

    Arguments:
        model: The model whose law is to be tilted.
        sampler: The sampler, which makes one step.
        times: Times of the run, as :func:`rwguidance.sample` takes them. Those of a cheaper map,
            whose gradient stands for that of the whole run, are its first k and its last: the
            last call's clean estimate is the state.
        gradient: Whether clean states carry gradients in the noise where gradients are recorded.
            Of several steps each is then computed again in the backward pass, so that the memory is
            that of one step.

    Returns:
        A function (noise, condition) -> clean states.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the times are none of a run, or the sampler draws random numbers; the
            function raises it for a sampler whose steps are not known to be Gaussian.
    """

    check_is_model("model", model)
    checks.instance("sampler", sampler, Sampler, "a Sampler such as DDIM()")
    times = check_times(times)
    _check_deterministic(model, sampler, times)
    model = model.starting(float(times[0]))
    if checks.flag("gradient", gradient):
        return lambda noise, condition: _recomputed(model, sampler, noise, times, condition)
    return lambda noise, condition: sample(
        model, sampler, noise, times, condition, generator=_NoRandomness()
    )


def _recomputed(
    model: Model, sampler: Sampler, noise: Tensor, times: Tensor, condition: Any
) -> Tensor:
    """Runs a sampler with the graph of no more than one step in memory at a time."""

    if not torch.is_grad_enabled():
        return sample(model, sampler, noise, times, condition, _NoRandomness())

    def step(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        times = torch.stack((t, s))
        return sample(model, sampler, x_t, times, condition, _NoRandomness(), gradient=True)

    if len(times) == 2:  # a graph of one step is no larger for being kept
        return step(noise, *times)
    for t, s in itertools.pairwise(times):
        noise = checkpoint(step, noise, t, s, use_reentrant=False)
    return noise


def _check_deterministic(model: Model, sampler: Sampler, times: Tensor) -> None:
    """Raises ValueError if a Gaussian step of the sampler has a width, before any call."""

    if not isinstance(sampler, AncestralSampler):
        return  # known when it asks for numbers
    pairs = itertools.pairwise(times)
    if any(draws_noise(sampler, model.schedule, t, s) for t, s in pairs):
        _refuse()


def _refuse() -> NoReturn:
    raise ValueError(
        "a flow map must be deterministic, but a step of the sampler asks for random numbers; "
        "use DDIM(eta=0) or Heun()"
    )


class _NoRandomness(Sequence[torch.Generator]):
    """A source of randomness that refuses to be asked."""

    def __getitem__(self, index: Any) -> NoReturn:
        _refuse()

    def __len__(self) -> int:
        _refuse()
