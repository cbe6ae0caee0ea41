"""Calls of a pipeline of diffusers: what they take, and what they tell before anything is done."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .guided_classes import guided_pipeline_class, plain
from .states import size_told

__all__ = [
    "batch_arguments",
    "begins_from_picture",
    "check_arguments",
    "check_not_ours",
    "size_of_call",
    "warn_of_cut",
]

_OURS = {
    "prompt": "prompts",
    "generator": "seed, from which every draw has a generator of its own",
    "num_images_per_prompt": "n and batch_size",
    "num_videos_per_prompt": "n and batch_size",
    "latents": "seed",
    "prompt_embeds": "prompts",
}
"""Arguments of pipelines that are not passed on, and what to pass."""


def batch_arguments(pipe: Any, prompt: str, n: int) -> dict[str, Any]:
    """Returns the arguments with which a pipeline makes n images of one prompt.

    The prompt is encoded once, where the pipeline takes a number of images.

    Arguments:
        pipe: The pipeline.
        prompt: The prompt.
        n: Number of images.
    """

    parameters = inspect.signature(type(plain(pipe)).__call__).parameters
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if name in parameters:
            return {"prompt": prompt, name: n}
    return {"prompt": [prompt] * n}


def begins_from_picture(pipe: Any) -> bool:
    """Whether a pipeline begins from a picture, so that it makes and decodes one image at a time.

    Images of one call would share the noise of its encoding, and some warn where prompts are more
    than pictures.
    """

    return "strength" in inspect.signature(type(plain(pipe)).__call__).parameters


def check_not_ours(call: Mapping[str, Any]) -> None:
    """Checks that no argument of a call is one of which `draw` takes care."""

    ours = [name for name in call if name in _OURS]
    if ours:
        raise ValueError(f"draw takes no {ours[0]}: pass {_OURS[ours[0]]}")


def check_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """Checks that a pipeline takes these arguments."""

    parameters = inspect.signature(type(plain(pipe)).__call__).parameters
    if "prompt" not in parameters:
        raise TypeError(
            f"pipe must be a pipeline whose call takes a prompt, got a {type(plain(pipe)).__name__}"
        )
    old = ("callback", "callback_steps")  # which pipelines take without saying so
    unknown = [name for name in call if name not in (*parameters, *old)]
    if unknown:
        raise TypeError(
            f"the call of a {type(plain(pipe)).__name__} takes no {unknown[0]}, it takes "
            f"{', '.join(name for name in parameters if name not in (*_OURS, 'self', 'kwargs'))}"
        )


def warn_of_cut(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any]) -> None:
    """Warns of prompts of which no tokenizer of a pipeline sees the end."""

    limits = []
    default = inspect.signature(type(plain(pipe)).__call__).parameters.get("max_sequence_length")
    for name, part in pipe.components.items():
        if name.startswith("tokenizer") and part is not None and hasattr(part, "model_max_length"):
            longest = int(part.model_max_length)
            if default is not None and longest > 77:  # that of CLIP has its own
                longest = min(longest, int(call.get(default.name) or default.default or longest))
            limits.append((part, longest))
    for prompt in prompts:
        counts = [(len(part(prompt)["input_ids"]), longest) for part, longest in limits]
        if counts and all(count > longest for count, longest in counts):
            count, longest = max(counts, key=lambda pair: pair[1])
            warnings.warn(
                f"the pipeline cuts the prompt {prompt[:40]!r}..., which has {count} tokens, to "
                f"{longest}: prompts that differ only after that have the same draws",
                UserWarning,
                stacklevel=3,
            )


def size_of_call(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images of a call, in pixels; None if the pipeline does not tell.

    Arguments that the pipeline itself refuses are refused here, before any network is called.
    """

    if not hasattr(pipe, "check_inputs"):
        return None
    asked, scheduler = plain(pipe), plain(pipe.scheduler)
    base: Any = type(asked)
    asked.__class__ = guided_pipeline_class(base)
    scheduler._guidance = asker = _Asker()
    asked.__dict__["scheduler"] = scheduler
    with suppress(_Asked):
        asked(**arguments)
    return asker.size


class _Asked(Exception):
    """The size of images is known."""


class _Asker:
    """Ends a call of a pipeline once it has told the size of its images."""

    size: tuple[int, int] | None = None

    @contextmanager
    def call_of(self, pipe: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
        yield

    def told(self, method: str, arguments: Mapping[str, Any], result: Any) -> None:
        if method == "check_inputs":
            self.size = size_told(arguments)
        raise _Asked
