"""Classes of guided pipelines and schedulers: those of diffusers, which tell of their calls.

A guided pipeline has a class of its own that extends that of the plain one and has its name, so
that a copy of it, shallow or deep, has methods of its own and does not call the original's. Saved
and loaded, it is the plain pipeline.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["extended", "guided_pipeline_class", "guided_scheduler_class", "plain"]


def plain(thing: Any) -> Any:
    """Returns a shallow copy of a pipeline or scheduler without guidance of its own."""

    found = copy.copy(thing)
    found.__class__ = getattr(type(found), "_unguided", type(found))
    found.__dict__.pop("_guidance", None)
    return found


@functools.cache
def guided_pipeline_class(base: type) -> type:
    """Returns the class of pipelines that tell their guidance of calls, prompts and embeddings."""

    plain_call: Any = base.__call__

    @functools.wraps(plain_call)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        guidance = _guidance_of(self)
        if guidance is None:
            return plain_call(self, *args, **kwargs)
        arguments = inspect.signature(plain_call).bind_partial(self, *args, **kwargs).arguments
        with guidance.call_of(self, arguments):
            return plain_call(self, *args, **kwargs)

    told = {
        name: _telling(getattr(base, name), name)
        for name in ("check_inputs", "encode_prompt")
        if hasattr(base, name)
    }
    return extended(base, {"__call__": call, **told}, guided_pipeline_class)


def _guidance_of(pipe: Any) -> Any:
    """The guidance of the scheduler that a pipeline has now; None if it is not guided."""

    return getattr(pipe.scheduler, "_guidance", None)


@functools.cache
def guided_scheduler_class(base: type) -> type:
    """Returns the class of schedulers whose steps are guided."""

    plain_step: Any = base.step  # type: ignore[attr-defined]

    @functools.wraps(plain_step)  # pipelines look for `generator` and `eta` in its signature
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        guidance = self._guidance
        if guidance is None:
            return plain_step(self, model_output, timestep, sample, *args, **kwargs)
        if kwargs.get("per_token_timesteps") is not None:
            raise TypeError("guidance takes one time per state, got per_token_timesteps")
        model_output = guidance(self, model_output, timestep, sample)
        result = plain_step(self, model_output, timestep, sample, *args, **kwargs)
        guidance.stepped(result)
        return result

    return extended(base, {"step": step}, guided_scheduler_class)


def _telling(method: Any, name: str) -> Any:
    """A method that tells its guidance of its arguments, by name, and of its result."""

    signature = inspect.signature(method)

    @functools.wraps(method)
    def telling(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        guidance = _guidance_of(self)
        if guidance is not None:
            guidance.told(name, signature.bind(self, *args, **kwargs).arguments, result)
        return result

    return telling


def extended(base: type, members: Mapping[str, Any], factory: Callable[[type], type]) -> type:
    """Returns a class that extends one of diffusers, and has its name.

    Arguments:
        base: The class of diffusers.
        members: Attributes of the new one.
        factory: The function of a module that makes the new one of the base, by which copies are
            made.
    """

    names = ("__module__", "__qualname__", "__doc__")
    same = {name: getattr(base, name) for name in names}
    # Python copies and pickles by the name of a class, which leads to the plain one.
    reduce = lambda self, protocol: (_anew, (factory, base), dict(self.__dict__))
    own = {"_guidance": None, "_unguided": base, "__reduce_ex__": reduce}
    return type(base.__name__, (base,), {**same, **own, **members})


def _anew(factory: Callable[[type], type], base: type) -> Any:
    kind: Any = factory(base)
    return kind.__new__(kind)
