"""Guidance of the steps of a pipeline's scheduler: from its output and state to a guided output."""

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from rwguidance import ConditionalExpectation, GuidedModel, ImportanceSampling, Prediction
from rwguidance.samplers import UnreliableEstimate, doubts_of, explain_doubts
from rwguidance.support.randomness import seeded

from .call_condition import embeddings_of_call
from .conditioning import Embeddings, TextCondition, named_embeddings
from .coordinates import Coordinates
from .origins import check_call, check_size
from .published import has_family
from .recorded import Recorded, evaluate_again
from .replay import Replay, can_be_replayed
from .states import (
    Grid,
    check_handed_on,
    check_state,
    grid_of,
    in_family,
    packed,
    size_told,
    state_after,
    unpacked,
)

__all__ = ["StepGuidance"]


@dataclass(eq=False)
class StepGuidance:
    """The guidance that a pipeline adds to the steps of its scheduler.

    A step of a scheduler knows nothing of prompts, so the pipeline tells of its calls: when one
    begins, what was asked for, what was encoded. What it told is forgotten when the call ends,
    however it ends, and a call within a call has facts of its own. Steps outside of a call of the
    guided pipeline, as of another pipeline that was lent its scheduler, are guided without prompts.

    Arguments:
        coordinates: Coordinates of its scheduler.
        estimator: Estimator of the shift.
        scale: Factor of the shift.
        window: Closed interval of times (low, high) in which to guide.
        condition: Condition that the estimator is given; None takes the prompts of the call.
        pipe: The guided pipeline.
    """

    coordinates: Coordinates
    estimator: ConditionalExpectation
    scale: float | Callable[[Tensor], Tensor]
    window: tuple[float, float]
    condition: Any
    pipe: InitVar[Any] = None

    def __post_init__(self, pipe: Any) -> None:
        self._pipe = pipe  # of the present call, or the last one that called
        self.call = _Call()

    def __copy__(self) -> "StepGuidance":
        return self._again()

    def __deepcopy__(self, memo: Any) -> "StepGuidance":
        return self._again()  # a copy shares banks and networks of the estimator

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a guided pipeline does not pickle: send the plain pipeline to the other process, and "
            "call backbones.guide there"
        )

    def _again(self) -> "StepGuidance":
        options = (self.coordinates, self.estimator, self.scale, self.window, self.condition)
        return StepGuidance(*options, self._pipe)  # until another pipeline calls

    @contextmanager
    def call_of(self, pipe: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Context of one call of a guided pipeline, with these arguments.

        Raises:
            ValueError: If the estimator's bank was drawn otherwise, or for other prompts; names
                what differs.
        """

        check_call(self.estimator, pipe, arguments)
        prompts = _strings(arguments.get("prompt"))
        if prompts and self.condition is None and isinstance(self.estimator, ImportanceSampling):
            self.estimator.check_conditions(prompts)
        outer, self._pipe = self.call, pipe
        from_noise = _begins_from_noise(pipe, arguments)
        self.call = _Call(True, prompts, arguments=arguments, from_noise=from_noise)
        try:
            yield
            self._report()
        finally:
            self.call = outer

    def told(self, method: str, arguments: Mapping[str, Any], result: Any) -> None:
        """Takes note of a call's `check_inputs` and of what its `encode_prompt` returned."""

        if not self.call.within:
            return
        if method == "check_inputs":
            self.call.size = size_told(arguments)
            check_size(self.estimator, self.call.size)
        else:
            self.call.results.append(result)

    def __call__(self, scheduler: Any, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        """The guided output, in the dtype and layout of the plain one."""

        check_state(sample)
        check_handed_on(self.call.state, sample)
        timestep = _scalar(timestep)
        t = self.coordinates.time(scheduler, timestep)
        grid = grid_of(self._pipe, sample, self.call.size)
        self.call.begin(scheduler, timestep, t)
        x_t, prediction = self.coordinates.read(unpacked(output, grid), unpacked(sample, grid), t)
        guided = self._guide(x_t, t, prediction, output.dtype, (scheduler, timestep, grid))
        self._note(scheduler, timestep, t, guided)
        if guided is prediction:
            return output  # bit for bit, which there and back again is not
        return packed(self.coordinates.write(guided).to(output.dtype), grid)

    def stepped(self, result: Any) -> None:
        """Takes note of what the plain step returned; outside of a call, nothing outlives a run."""

        if self.call.within:
            self.call.state = state_after(result)

    def _guide(
        self,
        x_t: Tensor,
        t: Tensor,
        prediction: Prediction,
        dtype: torch.dtype,
        place: tuple[Any, Any, Grid],
    ) -> Prediction:
        text = self._text(len(x_t))
        condition = self.condition
        if condition is None and self.call.prompts is not None:
            condition = text
        again = self._evaluation(text, condition, t, place)
        # A network that is evaluated again differs by its rounding.
        tolerance = max(1e-3, 4 * torch.finfo(dtype).eps)
        base = Recorded(self.coordinates, x_t, t, prediction, condition, again, tolerance)
        base = base.starting(self.call.start)
        model = GuidedModel(base, self.estimator, self.scale, self.window)
        try:
            with _own_randomness(x_t, t):
                guided: Prediction = model(x_t, t, condition)
        except (ValueError, TypeError, AttributeError) as error:
            hints = ("condition", "NoneType")
            if condition is not None or not any(hint in str(error) for hint in hints):
                raise
            raise type(error)(
                f"{error}; the prompts of this call are not known to the guidance: pass "
                "guide(..., condition=...), with one item per image"
            ) from error
        return guided

    def _evaluation(
        self, text: TextCondition | None, condition: Any, t: Tensor, place: tuple[Any, Any, Grid]
    ) -> Callable[..., Prediction]:
        """How the network is asked again: by the adapter of its family, or by the call itself."""

        given = {k for k, value in (self.call.arguments or {}).items() if value is not None}
        pictured = any(name.startswith("ip_adapter") for name in given)  # of which no family knows
        adapted = has_family(self._pipe) and not pictured
        if adapted or self.call.arguments is None or not can_be_replayed(self._pipe):
            return functools.partial(evaluate_again, self._pipe, text, condition)
        scheduler, timestep, grid = place
        return Replay(
            pipe=self._pipe,
            arguments=self.call.arguments,
            encoded=tuple(self.call.results),
            coordinates=self.coordinates,
            scheduler=scheduler,
            timestep=timestep,
            t=t,
            grid=grid,
            condition=condition,
        )

    def _note(self, scheduler: Any, timestep: Any, t: Tensor, prediction: Prediction) -> None:
        """Collects doubts; outside of a call, reports them with the last step of a run."""

        self.call.doubts += doubts_of(float(t), prediction)
        last = scheduler.timesteps[-1]
        if self.call.within or float(timestep) != float(last):
            return
        self.call.last_steps += 1  # some schedulers visit it more than once
        if self.call.last_steps < int((scheduler.timesteps == last).sum()):
            return
        self._report()
        self.call = _Call()

    def _report(self) -> None:
        if self.call.doubts:
            assert self.call.first is not None
            text = explain_doubts(self.call.doubts, self.call.first, self.call.start)
            warnings.warn(text, UnreliableEstimate, stacklevel=4)

    def _text(self, n: int) -> TextCondition | None:
        """The prompts and embeddings of n images, as the adapter's own; "" for unknown prompts."""

        prompts = self.call.prompts
        # Those of true classifier-free guidance come second.
        encoded = self.call.results[0] if self.call.results else None
        positive, negative = _embeddings(self._pipe, encoded, n)
        if prompts is None:
            return TextCondition(("",) * n, positive, negative) if positive else None
        if n % len(prompts):
            return None
        # Images of one prompt are neighbors.
        repeated = tuple(prompt for prompt in prompts for _ in range(n // len(prompts)))
        return TextCondition(repeated, positive, negative)


@dataclass
class _Call:
    """Facts about one call of the pipeline, as they come.

    Arguments:
        within: Whether it is a call of the guided pipeline, not steps of a lent scheduler.
        prompts: The prompts of the call; None if they are unknown.
        size: Height and width of its images, in pixels; None if they are unknown.
        arguments: Arguments of the call, by name; None outside of one.
        results: Results of `encode_prompt`, in the order of its calls.
        doubts: The doubts about the estimates so far.
        state: The state that the last step returned; None before the first one.
        last_steps: Number of steps at the last time so far.
        from_noise: Whether its first state may be noise alone.
        first: Time of its first step; None before it.
        start: The same if the first state is noise alone, or None.
    """

    within: bool = False
    prompts: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    arguments: Mapping[str, Any] | None = None
    results: list[Any] = field(default_factory=list)
    doubts: list[tuple[float, float]] = field(default_factory=list)
    state: Tensor | None = None
    last_steps: int = 0
    from_noise: bool = True
    first: float | None = None
    start: float | None = None

    def begin(self, scheduler: Any, timestep: Any, t: Tensor) -> None:
        """Takes note of the first step of a run; the others change nothing.

        Runs that begin from a picture skip the first timesteps of the scheduler.
        """

        noisiest = float(timestep) == float(scheduler.timesteps[0])
        if self.first is None or noisiest:  # a run outside of a call may have been stopped
            self.first = float(t)
            self.start = self.first if noisiest and self.from_noise else None


def _strings(prompts: Any) -> tuple[str, ...] | None:
    """The prompts of a call; None if it has none that are text."""

    prompts = (prompts,) if isinstance(prompts, str) else prompts
    strings = isinstance(prompts, list | tuple) and all(isinstance(p, str) for p in prompts)
    return tuple(prompts) if strings and prompts else None


def _scalar(timestep: Any) -> Any:
    """The timestep of a batch, of which some pipelines tell once for each state."""

    several = isinstance(timestep, Tensor) and timestep.ndim > 0
    return timestep.flatten()[0] if several else timestep


def _begins_from_noise(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """True if a call begins from noise that knows nothing of a picture, as far as it tells.

    Calls of pipelines that take a `strength` begin from a picture, of which even strength 1 may
    leave a trace. Latents are noise, as diffusers has it, unless times of the caller's go with them
    or the call goes on where another one ended.
    """

    given = {name for name, value in arguments.items() if value is not None}
    takes_picture = "strength" in inspect.signature(type(pipe).__call__).parameters
    own = "latents" in given and bool(given & {"timesteps", "sigmas"})
    return not (takes_picture or own or "denoising_start" in given)


def _embeddings(pipe: Any, encoded: Any, n: int) -> tuple[Embeddings, Embeddings | None]:
    """Embeddings of n images from a result of `encode_prompt`, by the names of the adapters.

    Those of families without an adapter are found by their shapes, and have no negative part.
    """

    four = in_family(pipe, "StableDiffusionXL") or in_family(pipe, "StableDiffusion3")
    if four and len(encoded or ()) == 4:
        positive, negative = named_embeddings(encoded)
    elif in_family(pipe, "Flux") and len(encoded or ()) == 3:
        # The scale is an input of the network.
        text, pooled, _ = encoded
        positive, negative = {"text": text, "pooled": pooled}, None
    else:
        positive, negative = embeddings_of_call([encoded], n), None
    if "text" not in positive:
        return {}, None
    return (positive, negative) if len(positive["text"]) == n else ({}, None)


def _own_randomness(x_t: Tensor, t: Tensor) -> AbstractContextManager[None]:
    """Context with random numbers that are a function of the state, not those of the sampler."""

    values = [float(t), *x_t.flatten()[:8].tolist()]
    seed = int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big", signed=True)
    return seeded(seed, x_t.device)
