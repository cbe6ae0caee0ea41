"""The output of a pipeline's network at another state, by the pipeline's own code.

What stands between a network and its scheduler differs from pipeline to pipeline: how the state is
scaled, how often the network is called, how its outputs are composed. So the call of the pipeline
is made again, with the state in the place of its latents, the prompts as they were encoded, and a
scheduler that stands where it stood and ends the call as soon as it is handed an output.
"""

import copy
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rwguidance import Prediction
from rwguidance.schedules import as_times

from .coordinates import Coordinates
from .guided_classes import extended, plain
from .states import Grid, packed, replaced, unpacked

__all__ = ["Replay", "can_be_replayed"]


@dataclass(frozen=True, eq=False)
class Replay:
    """One step of a call of a pipeline, as a function of the state.

    Arguments:
        pipe: The pipeline.
        arguments: Arguments of the call, by name.
        encoded: Results of its `encode_prompt`, in the order of its calls.
        coordinates: Coordinates of the scheduler.
        scheduler: The scheduler, where it stands.
        timestep: The timestep of the step.
        t: Time of the step.
        grid: Grid of the states.
        condition: Condition of the call, as the estimator was given it.
    """

    pipe: Any
    arguments: Mapping[str, Any]
    encoded: tuple[Any, ...]
    coordinates: Coordinates
    scheduler: Any
    timestep: Any
    t: Tensor
    grid: Grid
    condition: Any

    def __call__(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        r"""Returns the prediction at a state, differentiable in it.

        Arguments:
            x_t: States with shape (B, \*event).
            t: The time of the step.
            condition: The condition of the call.

        Raises:
            ValueError: If the time or the condition is another one.
        """

        if condition is not self.condition or not bool((as_times(t).cpu() == self.t).all()):
            raise ValueError(
                "the estimator asks the network at another time or for another condition, which "
                f"takes an adapter, of which a {type(plain(self.pipe)).__name__} has none"
            )
        sample = packed(self.coordinates.state(x_t, self.t), self.grid)
        output = self._output(sample)
        return self.coordinates.read(
            unpacked(output, self.grid), unpacked(sample, self.grid), self.t
        )[1]

    def _output(self, sample: Tensor) -> Tensor:
        """The output that the scheduler is handed when the network is asked at a state."""

        pipe, scheduler = plain(self.pipe), plain(self.scheduler)
        told = _Told(
            sample / self.coordinates.size,
            [_copied(result) for result in self.encoded],
            self.coordinates.input_scale(self.t),
        )
        base: Any = type(pipe)
        kind: Any = type(scheduler)
        if scheduler.timesteps.ndim:
            here = (scheduler.timesteps.cpu() == float(self.timestep)).nonzero().flatten()
            told.timesteps = scheduler.timesteps[int(here[0]) :]
        scheduler.__class__, scheduler._guidance = _replayed_scheduler_class(kind), told
        pipe.__class__ = _replayed_pipeline_class(base)
        pipe.__dict__["scheduler"] = scheduler
        pipe.set_progress_bar_config(disable=True)
        silent = ("callback", "self")
        arguments = {k: v for k, v in self.arguments.items() if not k.startswith(silent)}
        arguments["generator"] = torch.Generator().manual_seed(0)  # of noise that nobody sees
        if not hasattr(base, "prepare_latents"):
            arguments["latents"] = told.latents
        try:
            inspect.unwrap(base.__call__)(pipe, **arguments)
        except _Handed as handed:
            return handed.output
        raise AssertionError("a pipeline steps its scheduler")


def can_be_replayed(pipe: Any) -> bool:
    """Whether a pipeline's call says what it takes, as those of modular pipelines do not."""

    return "prompt" in inspect.signature(type(plain(pipe)).__call__).parameters


class _Handed(Exception):
    """The scheduler was handed an output."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


@dataclass
class _Told:
    """What a pipeline that makes a call again is told.

    Arguments:
        latents: The states, as the pipeline prepares them.
        encoded: Results of `encode_prompt` that are left.
        scale: Factor of the states before the network.
        timesteps: Timesteps from the present one on.
    """

    latents: Tensor
    encoded: list[Any]
    scale: float
    timesteps: Tensor | None = None


@functools.cache
def _replayed_pipeline_class(base: type) -> type:
    """Returns the class of pipelines that make a call again."""

    plain_class: Any = base

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain_class.prepare_latents(self, *args, **kwargs)
        return replaced(result, self.scheduler._guidance.latents)

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.scheduler._guidance.encoded.pop(0)

    def get_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        timesteps = self.scheduler._guidance.timesteps
        return timesteps, len(timesteps)  # where a strength would leave out the first ones

    own = (prepare_latents, encode_prompt, get_timesteps)
    members = {method.__name__: method for method in own if hasattr(base, method.__name__)}
    return extended(base, members, _replayed_pipeline_class)


@functools.cache
def _replayed_scheduler_class(base: type) -> type:
    """Returns the class of schedulers that stand where they stood."""

    plain_class: Any = base

    @functools.wraps(plain_class.set_timesteps)  # pipelines look for `sigmas` in its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        self.timesteps = self._guidance.timesteps

    def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._guidance.scale * sample

    @functools.wraps(plain_class.step)
    def step(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise _Handed(model_output)

    members: dict[str, Any] = {"set_timesteps": set_timesteps, "step": step}
    if hasattr(base, "scale_model_input"):
        members["scale_model_input"] = scale_model_input
    return extended(base, members, _replayed_scheduler_class)


def _copied(value: Any) -> Any:
    """A copy of a result of `encode_prompt`, which may come from inside of inference mode."""

    with torch.inference_mode(False):
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, list | tuple):
            return type(value)(_copied(item) for item in value)
        return copy.copy(value)
