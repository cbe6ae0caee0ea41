"""The beginning of a pipeline's call: prompts encoded, times set, latents drawn, no network asked.

How prompts become embeddings, which times are visited and how noise is laid out differ from
pipeline to pipeline. So the call is made, and ended before its loop.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .guided_classes import extended, plain
from .states import first_of

__all__ = ["Beginning", "begin"]


@dataclass
class Beginning:
    """What a call has done before its loop.

    Arguments:
        encoded: Results of `encode_prompt`, in the order of its calls.
        scheduler: The scheduler, its times set.
        latents: The states with which the loop begins, in the layout and the coordinates of the
            scheduler.
    """

    encoded: list[Any]
    scheduler: Any
    latents: Tensor


def begin(
    pipe: Any, arguments: Mapping[str, Any], encoded: Sequence[Any] | None = None
) -> Beginning:
    """Begins a call of a pipeline, and ends it before the network is asked.

    Arguments:
        pipe: The pipeline. It is left as it is.
        arguments: Arguments of the call, by name.
        encoded: Results of `encode_prompt` that take the place of its calls. None encodes.
    """

    pipe, scheduler = plain(pipe), plain(pipe.scheduler)
    base: Any = type(pipe)
    kind: Any = type(scheduler)
    scheduler.__class__, pipe.__class__ = _scheduler_class(kind), _pipeline_class(base)
    scheduler._guidance = told = _Told(None if encoded is None else list(encoded))
    pipe.__dict__["scheduler"] = scheduler
    call = inspect.unwrap(base.__call__)  # beneath the decorator that turns gradients off
    with torch.no_grad():
        try:
            call(pipe, **arguments)
        except _Begun:
            assert told.latents is not None
            return Beginning(told.encoded, plain(scheduler), told.latents)
    raise AssertionError("a pipeline sets its times and prepares its latents")


class _Begun(Exception):
    """Times are set and latents are prepared."""


@dataclass
class _Told:
    """What a call tells while it begins.

    Arguments:
        given: Results of `encode_prompt` that are left; None if prompts are to be encoded.
        encoded: Results of `encode_prompt`.
        latents: Result of `prepare_latents`.
        timed: Whether the times are set.
    """

    given: list[Any] | None
    encoded: list[Any] = field(default_factory=list)
    latents: Tensor | None = None
    timed: bool = False

    def end(self) -> None:
        """Ends the call once all is known."""

        if self.timed and self.latents is not None:
            raise _Begun


@functools.cache
def _pipeline_class(base: type) -> type:
    plain_class: Any = base

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        told = self.scheduler._guidance
        if told.given is not None:
            return told.given.pop(0)
        result = plain_class.encode_prompt(self, *args, **kwargs)
        told.encoded.append(result)
        return result

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
        told, result = self.scheduler._guidance, plain_class.prepare_latents(self, *args, **kwargs)
        told.latents = first_of(result)
        told.end()
        return result

    members = {method.__name__: method for method in (encode_prompt, prepare_latents)}
    return extended(base, members, _pipeline_class)


@functools.cache
def _scheduler_class(base: type) -> type:
    plain_class: Any = base

    @functools.wraps(plain_class.set_timesteps)  # pipelines look for `sigmas` in its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        plain_class.set_timesteps(self, *args, **kwargs)
        self._guidance.timed = True
        self._guidance.end()

    return extended(base, {"set_timesteps": set_timesteps}, _scheduler_class)
