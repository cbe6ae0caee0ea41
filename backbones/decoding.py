"""Images of the states in which a pipeline's scheduler ends, by the pipeline's own code.

What a pipeline does after its last step is nowhere to be called: it stands at the end of its
`__call__`, and differs from pipeline to pipeline in scales, statistics, layouts and autoencoders.
So the pipeline is called with nothing to do in between: its latents are the states, and its
scheduler has no steps left. The prompt is encoded once for each size of a batch, and the denoising
network is never called.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rwguidance.schedules import working_dtype

from .calls import batch_arguments, begins_from_picture
from .coordinates import Coordinates
from .guided_classes import extended, plain
from .latents import NOT_DIFFERENTIABLE, overflows
from .origins import call_told
from .states import grid_of_latents, packed, replaced

__all__ = ["PipelineDecoder"]


class PipelineDecoder:
    r"""The end of a call of a pipeline, as a function from states to images.

    Without watermark and safety checker, and differentiable in the states where the pipeline's own
    code is. Its batches are no larger than `batch_size`.

    Arguments:
        pipe: The pipeline.
        call: Arguments of its calls, by name, which say the size of the images.
        batch_size: Number of states that are decoded at once.
        prompt: A prompt; which one does not matter to the images.
    """

    depends_on: ClassVar[tuple[str, ...]] = ("components", "told")

    def __init__(
        self, pipe: Any, call: Mapping[str, Any], batch_size: int = 8, prompt: str = ""
    ) -> None:
        self.pipe = plain(pipe)
        self.call = {name: value for name, value in call.items() if "callback" not in name}
        self.batch_size = batch_size
        self.prompt = prompt
        self.encoded: dict[int, list[Any]] = {}

    def __repr__(self) -> str:
        return f"PipelineDecoder({type(self.pipe).__name__}, batch_size={self.batch_size})"

    @property
    def components(self) -> dict[str, Any]:
        """The components of the pipeline, by name."""

        return dict(self.pipe.components)

    @property
    def told(self) -> dict[str, Any]:
        """The arguments of the calls, in values that JSON can hold."""

        return call_told(self.pipe, self.call, steps=False)

    def __call__(self, states: Tensor) -> Tensor:
        r"""Returns images in [0, 1], float32, with shape (B, 3, H, W); of videos (B, T, 3, H, W).

        Arguments:
            states: States as :func:`backbones.draw` keeps them, with shape (B, \*event).

        Raises:
            ValueError: If gradients are asked of a VAE that the pipeline widens from float16 to
                float32 only for the moment of decoding.
        """

        size = 1 if begins_from_picture(self.pipe) else self.batch_size
        return torch.cat([self._images(chunk) for chunk in states.split(size)])

    def _images(self, states: Tensor) -> Tensor:
        gradient = states.requires_grad and torch.is_grad_enabled()
        if gradient and hasattr(self.pipe, "vae") and overflows(self.pipe.vae):
            raise ValueError(NOT_DIFFERENTIABLE)
        arguments = {**self.call, "output_type": "pt", "return_dict": True}
        arguments["generator"] = torch.Generator().manual_seed(0)  # of noise that nobody sees
        arguments |= batch_arguments(self.pipe, self.prompt, len(states))
        # Beneath the decorator that turns gradients off.
        call = inspect.unwrap(type(self.pipe).__call__)
        pipe = self._at_its_end(states)
        if not hasattr(type(self.pipe), "prepare_latents"):  # takes them as they are
            arguments["latents"] = pipe.scheduler._guidance.states
        with torch.set_grad_enabled(gradient):
            output = call(pipe, **arguments)
        images: Tensor = output.frames if hasattr(output, "frames") else output.images
        return images.to(working_dtype(images.dtype))

    def _at_its_end(self, states: Tensor) -> Any:
        """A copy of the pipeline that has these states and no steps left."""

        pipe, scheduler = plain(self.pipe), plain(self.pipe.scheduler)
        base: Any = type(pipe)
        size = Coordinates.from_scheduler(scheduler).size
        states = packed(size * states, grid_of_latents(pipe, states))
        # Where the code around the loop needs the times or what the last step returned, it runs.
        code = inspect.unwrap(base.__call__).__code__
        looping = bool({"denoised", "strength"} & set(code.co_varnames))
        own: dict[str, Any] = {"safety_checker": None, "watermark": None}
        for name in ("unet", "transformer") if looping else ():
            own[name] = _Silent(getattr(pipe, name, None))
        pipe.__dict__.update({name: part for name, part in own.items() if hasattr(pipe, name)})
        kind: Any = type(scheduler)
        scheduler.__class__ = _end_scheduler_class(kind)
        scheduler._guidance = _End(states, looping, self.encoded.setdefault(len(states), []))
        pipe.__class__ = _end_pipeline_class(base)
        pipe.__dict__["scheduler"] = scheduler
        pipe.set_progress_bar_config(disable=True)
        return pipe


class _Silent:
    """A network that is never asked, and says nothing: zeros, of the shape of the states."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any]:
        states, *_ = args or (kwargs["hidden_states"],)
        if isinstance(states, list):
            return ([torch.zeros_like(state) for state in states],)
        return (torch.zeros_like(states),)


class _End:
    """What a pipeline at its end is told in place of its own.

    Arguments:
        states: The states.
        looping: Whether steps are taken, all of which end in these states.
        encoded: Results of `encode_prompt` for so many states, in the order of its calls, which
            grows.
    """

    def __init__(self, states: Tensor, looping: bool, encoded: list[Any]) -> None:
        self.states = states
        self.looping = looping
        self.encoded = encoded
        self.asked = 0

    def encode(self, encode: Callable[[], Any]) -> Any:
        """Returns what a call of `encode_prompt` returned before, at the same place."""

        if self.asked == len(self.encoded):
            self.encoded.append(encode())
        self.asked += 1
        return self.encoded[self.asked - 1]


@functools.cache
def _end_pipeline_class(base: type) -> type:
    """Returns the class of pipelines that stand at their end."""

    plain_class: Any = base

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain_class.prepare_latents(self, *args, **kwargs)
        return replaced(result, self.scheduler._guidance.states)

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            encode = functools.partial(plain_class.encode_prompt, self, *args, **kwargs)
            return self.scheduler._guidance.encode(encode)

    own = (prepare_latents, encode_prompt)
    members = {method.__name__: method for method in own if hasattr(base, method.__name__)}
    return extended(base, members, _end_pipeline_class)


@functools.cache
def _end_scheduler_class(base: type) -> type:
    """Returns the class of schedulers that have no steps left, or only steps to the end."""

    plain_class: Any = base

    @functools.wraps(plain_class.set_timesteps)  # pipelines look for `sigmas` in its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        plain_class.set_timesteps(self, *args, **kwargs)
        if not self._guidance.looping:
            self.timesteps = self.timesteps[:0]

    @functools.wraps(plain_class.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._guidance.states, self._guidance.states

    members = {"set_timesteps": set_timesteps, "step": step}
    return extended(base, members, _end_scheduler_class)
