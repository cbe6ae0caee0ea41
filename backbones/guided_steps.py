"""Guidance of the steps of a pipeline's scheduler: from its output and state to a guided output."""

import functools
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from rwguidance import ConditionalExpectation, GuidedModel, Prediction
from rwguidance.samplers import UnreliableEstimate, doubts_of, explain_doubts

from .conditioning import Embeddings, TextCondition, named_embeddings
from .coordinates import Coordinates
from .recorded import Recorded, evaluate_again

__all__ = ["StepGuidance"]


@dataclass(eq=False)
class StepGuidance:
    """The guidance that a pipeline adds to the steps of its scheduler.

    It is told when a call of the pipeline begins and what it encodes, since a step of a scheduler
    knows nothing of prompts, and forgets the call with its last step.

    Arguments:
        pipe: The guided pipeline.
        coordinates: Coordinates of its scheduler.
        estimator: Estimator of the shift.
        scale: Factor of the shift.
        window: Closed interval of times (low, high) in which to guide.
        condition: Condition that the estimator is given; None takes the prompts of the call.
    """

    pipe: Any
    coordinates: Coordinates
    estimator: ConditionalExpectation
    scale: float | Callable[[Tensor], Tensor]
    window: tuple[float, float]
    condition: Any

    def __post_init__(self) -> None:
        self.end()

    def __deepcopy__(self, memo: Any) -> "StepGuidance":
        return self  # copies of a scheduler share banks and networks

    def begin(self, arguments: Mapping[str, Any], _: Any = None) -> None:
        """Takes note that a call of the pipeline begins, with these arguments."""

        self.end()
        prompts = arguments.get("prompt")
        prompts = (prompts,) if isinstance(prompts, str) else prompts
        strings = isinstance(prompts, list | tuple) and all(isinstance(p, str) for p in prompts)
        height, width = arguments.get("height"), arguments.get("width")
        size = None if height is None or width is None else (int(height), int(width))
        self.call = _Call(tuple(prompts) if strings and prompts else None, size)

    def encoded(self, arguments: Mapping[str, Any], result: Any) -> None:
        """Takes note of prompts that the pipeline encoded, the first of a call.

        Those of true classifier-free guidance come second.
        """

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
        again = functools.partial(evaluate_again, self.pipe, text, condition)
        # A network that is evaluated again differs by its rounding.
        tolerance = max(1e-3, 4 * torch.finfo(dtype).eps)
        base = Recorded(self.coordinates, x_t, t, prediction, condition, again, tolerance)
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
        return sample.ndim == 3 and _in_family(self.pipe, "Flux")

    def _unpack(self, value: Tensor, tokens: int | None) -> Tensor:
        """Latents (B, C, H, W) of tokens (B, H W / 4, 4 C); the value itself if it is latents."""

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


@dataclass(frozen=True)
class _Call:
    """Facts about a call of the pipeline.

    Arguments:
        prompts: The prompts of the call; None if they are unknown.
        size: Height and width of its images, in pixels; None if they are unknown.
        encoded: Result of the first `encode_prompt` of the call; None before it.
    """

    prompts: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    encoded: Any = None


def _in_family(pipe: Any, family: str) -> bool:
    """True if a pipeline's class, or one that it extends, is named after a family."""

    return any(re.match(rf"{family}(?!\d)", cls.__name__) for cls in type(pipe).__mro__)


def _embeddings(pipe: Any, encoded: Any, n: int) -> tuple[Embeddings, Embeddings | None]:
    """Embeddings of n images from a result of `encode_prompt`, by the names of the adapters.

    They are empty for families without an adapter.
    """

    four = _in_family(pipe, "StableDiffusionXL") or _in_family(pipe, "StableDiffusion3")
    if four and len(encoded or ()) == 4:
        positive, negative = named_embeddings(encoded)
    elif _in_family(pipe, "Flux") and len(encoded or ()) == 3:
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
