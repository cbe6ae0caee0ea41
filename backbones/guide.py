r"""Guidance of a pipeline of diffusers that one already has, without changing how it is called.

Pipelines differ in everything but this: after classifier-free guidance, they hand the network's
output and the state to `scheduler.step`. There the output is turned into a
:class:`~rwguidance.Prediction`, moved by :class:`~rwguidance.GuidedModel` as in every other run,
and turned back. So multistep and stochastic schedulers, img2img, callbacks and offloading stay what
they are, and the network is called as often as before.
"""

import copy
import functools
import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from rwguidance import ConditionalExpectation, GuidedModel, Model, Prediction
from rwguidance.samplers import UnreliableEstimate, doubts_of, explain_doubts
from rwguidance.schedules import as_times

from .conditioning import TextCondition, named_embeddings
from .coordinates import Coordinates, coordinates_of
from .flux import Flux
from .pipelines import PipelineBackbone, require
from .published import family_of

__all__ = ["guide"]


def guide(
    pipe: Any,
    estimator: ConditionalExpectation | None,
    scale: float | Callable[[Tensor], Tensor] = 1.0,
    window: tuple[float, float] = (0.0, 1.0),
    condition: Any = None,
) -> Any:
    r"""The same pipeline, guided: called as before, it samples the tilted law.

        guided = guide(pipe, ImportanceSampling(bank, tilt))
        images = guided(["a cat", "a dog"], num_inference_steps=30).images

    Works with every pipeline of diffusers whose scheduler is one of those listed in
    :mod:`backbones.coordinates`, modular ones included. Estimators that ask the model only at the
    state of the run (:class:`~rwguidance.ImportanceSampling`, the learned ones,
    ``PlugIn(jacobian=False)``) cost no network call. Those that differentiate through the network
    or ask elsewhere evaluate it again. That takes a pipeline which :func:`backbones.from_pipeline`
    adapts, called in a way that the adapter knows: without rescaled, skip-layer or true
    classifier-free guidance and without image prompts.

    States and times are those of the adapter: :math:`\alpha_t x_0 + \sigma_t \epsilon` whatever the
    scheduler keeps, and with FLUX latents of shape (B, 16, H, W) instead of tokens. Random numbers
    that an estimator draws are a function of the state and do not disturb those of the sampler.

    Arguments:
        pipe: A pipeline of diffusers. It is left as it is, and weights are shared.
        estimator: Gives the shift; on the device of the pipeline. None takes guidance off, and a
            guided pipeline is guided anew, never twice.
        scale: Multiplies the shift, as in :class:`~rwguidance.GuidedModel`.
        window: Closed interval of times (low, high) in which to guide.
        condition: What the estimator is told, with one item per image of a call. None is the
            prompts of the call with their embeddings, as a :class:`TextCondition`, if they can be
            known: they cannot in modular pipelines, and if embeddings are passed instead.

    Returns:
        A pipeline of the same class. Saved and loaded, it is the plain pipeline; another scheduler,
        set on it later, is not guided.

    Raises:
        TypeError: If the pipeline has no scheduler, or one whose coordinates are not understood
            (lists those that are), or another argument is of the wrong kind.
        ValueError: If the scale is not finite or the window is not 0 <= low <= high <= 1.

    Warns:
        UnreliableEstimate: Once per run, as :func:`rwguidance.sample` does.
    """

    if getattr(pipe, "scheduler", None) is None:
        raise TypeError(f"pipe must be a pipeline with a scheduler, got {type(pipe).__name__}")
    guided = copy.copy(pipe)
    for name, method in list(vars(guided).items()):
        if getattr(method, "_is_watched", False):
            del guided.__dict__[name]
    with torch.inference_mode(False):  # what is made here is used outside of it, too
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.__class__ = getattr(type(scheduler), "_unguided", type(scheduler))
        scheduler.__dict__.pop("_guidance", None)
        if estimator is not None:
            coordinates = coordinates_of(scheduler)
            # Checks the arguments before any expensive work.
            GuidedModel(_Unknown(coordinates.schedule), estimator, scale, window)
            guidance = _Guidance(guided, coordinates, estimator, scale, window, condition)
            scheduler.__class__ = _guided_class(scheduler.__class__)
            scheduler._guidance = guidance
            _watch(guided, "check_inputs", guidance.begin)
            _watch(guided, "encode_prompt", guidance.encoded)
    guided.scheduler = scheduler
    return guided


@functools.cache
def _guided_class(base: type) -> type:
    """The scheduler class whose steps are guided. Saved and loaded, it is its base again."""

    plain_step = base.step  # type: ignore[attr-defined]

    @functools.wraps(plain_step)  # pipelines look for `generator` and `eta` in its signature
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if self._guidance is not None:
            if kwargs.get("per_token_timesteps") is not None:
                raise TypeError("guidance takes one time per state, got per_token_timesteps")
            model_output = self._guidance(self, model_output, timestep, sample)
        return plain_step(self, model_output, timestep, sample, *args, **kwargs)

    names = ("__module__", "__qualname__", "__doc__")
    members = {name: getattr(base, name) for name in names}
    return type(
        base.__name__, (base,), {**members, "step": step, "_guidance": None, "_unguided": base}
    )


def _watch(pipe: Any, name: str, tell: Callable[[Mapping[str, Any], Any], None]) -> None:
    """Tells of the calls of a method of one pipeline: their arguments by name, and the result."""

    method = getattr(pipe, name, None)
    if method is None:
        return
    signature = inspect.signature(method)

    @functools.wraps(method)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        tell(signature.bind(*args, **kwargs).arguments, result)
        return result

    watched._is_watched = True  # type: ignore[attr-defined]
    pipe.__dict__[name] = watched


@dataclass(frozen=True)
class _Call:
    """What is known of a call of the pipeline.

    Arguments:
        prompts: One per prompt of the call, or None.
        size: Height and width of its images, in pixels, or None.
        encoded: What the first `encode_prompt` of the call returned, or None.
    """

    prompts: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    encoded: Any = None


class _Guidance:
    """What a guided pipeline adds to the steps of its scheduler."""

    def __init__(
        self,
        pipe: Any,
        coordinates: Coordinates,
        estimator: ConditionalExpectation,
        scale: float | Callable[[Tensor], Tensor],
        window: tuple[float, float],
        condition: Any,
    ) -> None:
        self.pipe = pipe
        self.coordinates = coordinates
        self.estimator = estimator
        self.scale = scale
        self.window = window
        self.condition = condition
        self.end()

    def __deepcopy__(self, memo: Any) -> "_Guidance":
        return self  # copies of a scheduler share banks and networks

    def begin(self, arguments: Mapping[str, Any], _: Any = None) -> None:
        """A call of the pipeline begins, with these arguments."""

        self.end()
        prompts = arguments.get("prompt")
        prompts = (prompts,) if isinstance(prompts, str) else prompts
        strings = isinstance(prompts, list | tuple) and all(isinstance(p, str) for p in prompts)
        height, width = arguments.get("height"), arguments.get("width")
        size = None if height is None or width is None else (int(height), int(width))
        self.call = _Call(tuple(prompts) if strings and prompts else None, size)

    def encoded(self, arguments: Mapping[str, Any], result: Any) -> None:
        """The pipeline encoded prompts. Those of true classifier-free guidance come second."""

        if self.call.encoded is None:
            self.call = _Call(self.call.prompts, self.call.size, result)

    def end(self) -> None:
        """Forgets the call: a scheduler may be lent to other pipelines."""

        self.call = _Call()
        self.doubts: list[tuple[float, float]] = []
        self.last_steps = 0

    def __call__(self, scheduler: Any, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        """The guided output, in the dtype and layout of the plain one."""

        t = self.coordinates.time(scheduler, timestep)
        tokens = sample.shape[1] if self._packed(sample) else None
        x_t, prediction = self.coordinates.read(
            self._unpack(output, tokens), self._unpack(sample, tokens), t
        )
        guided = self._guide(x_t, t, prediction, output.dtype)
        self._note(scheduler, timestep, t, guided)
        if guided is prediction:
            return output  # bit for bit, which there and back again is not
        result = self.coordinates.write(guided).to(output.dtype)
        return result if tokens is None else pixel_unshuffle(result, 2).flatten(2).mT

    def _guide(
        self, x_t: Tensor, t: Tensor, prediction: Prediction, dtype: torch.dtype
    ) -> Prediction:
        text = self._text(len(x_t))
        condition = self.condition
        if condition is None and self.call.prompts is not None:
            condition = text
        again = functools.partial(_evaluate, self.pipe, text, condition)
        # A network that is evaluated again differs by its rounding.
        tolerance = max(1e-3, 4 * torch.finfo(dtype).eps)
        base = _Recorded(self.coordinates, x_t, t, prediction, condition, again, tolerance)
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

    def _note(self, scheduler: Any, timestep: Any, t: Tensor, prediction: Prediction) -> None:
        """Collects doubts, and reports them with the last step of a run."""

        self.doubts += doubts_of(float(t), prediction)
        last = scheduler.timesteps[-1]
        if float(timestep) != float(last):
            return
        self.last_steps += 1  # some schedulers visit it more than once
        if self.last_steps < int((scheduler.timesteps == last).sum()):
            return
        found = self.doubts
        self.end()
        if found:
            warnings.warn(explain_doubts(found), UnreliableEstimate, stacklevel=2)

    def _packed(self, sample: Tensor) -> bool:
        return sample.ndim == 3 and _is_of(self.pipe, "Flux")

    def _unpack(self, value: Tensor, tokens: int | None) -> Tensor:
        """Latents (B, C, H, W) of tokens (B, H W / 4, 4 C)."""

        if tokens is None:
            return value
        if self.call.size is None:
            raise ValueError(
                "guidance needs the height and width of the images, to which FLUX latents are "
                "unpacked; only calls of a guided pipeline that is not modular tell them"
            )
        side = int(self.pipe.image_processor.config.vae_scale_factor)
        height, width = (size // side for size in self.call.size)
        if height * width != tokens:
            raise ValueError(
                f"the latents must be those of images of {self.call.size} pixels, "
                f"{height * width} tokens, got {tokens}"
            )
        return pixel_shuffle(value.mT.unflatten(2, (height, width)), 2)

    def _text(self, n: int) -> TextCondition | None:
        """The prompts and embeddings of n images, as the adapter's own; "" for unknown prompts."""

        prompts = self.call.prompts
        positive, negative = _embeddings(self.pipe, self.call.encoded, n)
        if prompts is None:
            return TextCondition(("",) * n, positive, negative) if positive else None
        if n % len(prompts):
            return None
        # Images of one prompt are neighbors.
        repeated = tuple(prompt for prompt in prompts for _ in range(n // len(prompts)))
        return TextCondition(repeated, positive, negative)


class _Unknown(Model):
    """Stands for a model that is not there yet, where only arguments are checked."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        raise NotImplementedError


class _Recorded(Model):
    """What the network said at one state, and a way to ask it again.

    Arguments:
        coordinates: Of the scheduler.
        x_t: The state.
        t: Its time.
        prediction: What was predicted there.
        condition: What the estimator was told.
        again: Evaluates the network, as a model does.
        tolerance: Relative difference that a second evaluation may show.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        x_t: Tensor,
        t: Tensor,
        prediction: Prediction,
        condition: Any,
        again: Callable[[Tensor, float | Tensor, Any], Prediction],
        tolerance: float,
    ) -> None:
        super().__init__(coordinates.schedule)
        self.coordinates = coordinates
        self.x_t = x_t
        self.t = t
        self.prediction = prediction
        self.condition = condition
        self.again = again
        self.tolerance = tolerance
        self.checked = False

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        here = condition is self.condition and self._is_here(x_t, t)
        differentiated = x_t.requires_grad and torch.is_grad_enabled()
        if here and not differentiated:
            return self.prediction
        if not here:
            if not self.checked:
                with torch.no_grad():
                    self._check(self.again(self.x_t, self.t, self.condition))
            return self.again(x_t, t, condition)
        prediction = self.again(x_t, t, condition)
        self._check(prediction)
        # The recorded values, with the gradients of the new ones.
        graft = lambda old, new: old + (new - new.detach())
        return replace(
            self.prediction,
            mean=graft(self.prediction.mean, prediction.mean),
            noise=graft(self.prediction.noise, prediction.noise),
        )

    def _is_here(self, x_t: Tensor, t: float | Tensor) -> bool:
        return bool((as_times(t).cpu() == self.t).all()) and torch.equal(x_t, self.x_t)

    def _check(self, prediction: Prediction) -> None:
        old, new = (
            self.coordinates.write(value).detach().flatten(1)
            for value in (self.prediction, prediction)
        )
        size = old.norm(dim=1).clamp_min(torch.finfo(old.dtype).tiny)
        difference = float(((new - old).norm(dim=1) / size).max())
        if not difference <= self.tolerance:
            raise ValueError(
                "the estimator asks the network again, whose output then differs by "
                f"{difference:.1e} (relative; {self.tolerance:.1e} is allowed) from what the "
                "pipeline handed to its scheduler: this call composes its predictions in a way "
                "that the adapter of its family does not know, such as rescaled, skip-layer or "
                "true classifier-free guidance, image prompts or unusual sizes; leave that out, "
                f"or use {_ADVICE}"
            )
        self.checked = True


_ADVICE = "ImportanceSampling, LearnedShift or PlugIn(..., jacobian=False), which need no gradient"


def _evaluate(
    pipe: Any,
    text: TextCondition | None,
    told: Any,
    x_t: Tensor,
    t: float | Tensor,
    condition: Any,
) -> Prediction:
    """Calls the network of a pipeline again, through the adapter of its family.

    Arguments:
        pipe: The guided pipeline.
        text: Prompts and embeddings of the present call.
        told: What the estimator knows as the condition of the present call.
        x_t: States.
        t: Times.
        condition: What the estimator asks for.
    """

    purpose = "the estimator asks the network again, which takes"
    family = family_of(pipe, purpose, f"; use {_ADVICE}")
    if condition is told:
        condition = text
    if condition is None or (isinstance(condition, TextCondition) and not condition.embeddings):
        raise ValueError(
            "the estimator asks the network again, but the embeddings of this call are not known; "
            f"call the guided pipeline itself, or use {_ADVICE}"
        )
    with torch.inference_mode(False):  # copies, since embeddings may come from inside of it
        prediction: Prediction = _adapter(family, pipe)(x_t, t, condition[:])
    return prediction


def _adapter(family: type[PipelineBackbone], pipe: Any) -> PipelineBackbone:
    """The adapter of a pipeline, with the guidance scale of its present call."""

    plain = copy.copy(pipe)
    scheduler = getattr(require("diffusers"), family.schedulers[0])
    plain.scheduler = scheduler.from_config(pipe.scheduler.config)
    takes_scale = family is not Flux or pipe.transformer.config.guidance_embeds
    return family(plain, pipe.guidance_scale if takes_scale else None)


def _is_of(pipe: Any, family: str) -> bool:
    """Whether a pipeline's class, or one that it extends, is named after a family."""

    return any(re.match(rf"{family}(?!\d)", cls.__name__) for cls in type(pipe).__mro__)


def _embeddings(
    pipe: Any, encoded: Any, n: int
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """What `encode_prompt` returned for n images, by the names that the adapters use.

    Empty for families without adapter.
    """

    four = _is_of(pipe, "StableDiffusionXL") or _is_of(pipe, "StableDiffusion3")
    if four and len(encoded or ()) == 4:
        positive, negative = named_embeddings(encoded)
    elif _is_of(pipe, "Flux") and len(encoded or ()) == 3:
        # The scale is an input of the network.
        positive, negative = {"text": encoded[0], "pooled": encoded[1]}, None
    else:
        return {}, None
    return (positive, negative) if len(positive["text"]) == n else ({}, None)


@contextmanager
def _own_randomness(x_t: Tensor, t: Tensor) -> Iterator[None]:
    """Random numbers that are a function of the state, apart from those of the sampler."""

    device = x_t.device
    values = [float(t), *x_t.flatten()[:8].tolist()]
    seed = int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big", signed=True)
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked, device_type="cuda"):
        # Not torch.manual_seed, which would seed the generators of all devices.
        torch.default_generator.manual_seed(seed)
        for _ in forked:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
