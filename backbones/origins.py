"""Origins of banks that a pipeline drew: what decides its law, and whether a call has the same one.

The law of the states depends on the weights and on the arguments of the call: guidance scale,
negative prompt, size, pictures and controls. How many steps are taken, from which random numbers,
and what becomes of the states is the call's own affair.
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch

from rwguidance.support.fingerprint import fingerprint, fingerprint_or_reason

from .guided_classes import plain

__all__ = ["call_told", "check_call", "check_pipeline", "check_size", "origin_of", "weights_of"]

_SILENT = ("callback", "return_dict", "output_type")
"""Beginnings of the names of arguments that change no state."""

_OWN = (
    "prompt",
    "generator",
    "latents",
    "num_images_per_prompt",
    "num_videos_per_prompt",
)
"""Arguments of which :func:`draw` takes care."""

_STEPS = (
    "num_inference_steps",
    "timesteps",
    "sigmas",
    "max_timesteps",
    "intermediate_timesteps",
    "eta",
)
"""Arguments that say how well the law is sampled, not which one."""

_NO_PART = ("scheduler", "safety_checker", "feature_extractor", "image_processor", "watermark")
"""Components that decide no state, or are described apart."""


def weights_of(pipe: Any) -> tuple[str | None, str]:
    """Returns a key of the components of a pipeline; or None and why there is none."""

    parts = {name: part for name, part in pipe.components.items() if name not in _NO_PART}
    with torch.inference_mode(False):
        return fingerprint_or_reason(parts)


def call_told(pipe: Any, call: Mapping[str, Any], steps: bool) -> dict[str, Any]:
    """Returns the arguments of a call that decide its states, in values that JSON can hold.

    Those that are not given have their defaults. Tensors and pictures are told by a key.

    Arguments:
        pipe: The pipeline.
        call: Its arguments, by name.
        steps: Whether those that say how the law is sampled are wanted, too.
    """

    left_out = (*_OWN, *(() if steps else _STEPS))
    parameters = inspect.signature(type(plain(pipe)).__call__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    arguments = defaults | dict(call)
    negative = arguments.get("negative_prompt")
    if isinstance(negative, list) and len(set(negative)) == 1:  # the same one for every image
        arguments["negative_prompt"] = negative[0]
    return {
        name: _told(value)
        for name, value in sorted(arguments.items())
        if name not in left_out and name != "self" and not name.startswith(_SILENT)
    }


def origin_of(pipe: Any, call: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns all that draws of a pipeline depend on, but for prompt and number.

    Arguments:
        pipe: The pipeline.
        call: Arguments of its calls, by name.
        seed: Seed of the draws.
    """

    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    origin = {
        "pipeline": type(plain(pipe)).__name__,
        "weights": weights_of(pipe)[0],
        "scheduler": {"class": type(plain(pipe.scheduler)).__name__, **config},
        "call": call_told(pipe, call, steps=True),
        "seed": seed,
    }
    told: dict[str, Any] = json.loads(json.dumps(origin, default=str))
    return told


def check_pipeline(estimator: Any, pipe: Any) -> None:
    """Checks that the bank of an estimator, if a pipeline drew it, is of this pipeline.

    Raises:
        ValueError: If it is of another class, or of other weights.
    """

    origin = _drawn(estimator)
    if not origin:
        return
    name = type(plain(pipe)).__name__
    if origin["pipeline"] != name:
        raise ValueError(
            f"pipe must be a {origin['pipeline']}, by which the estimator's bank was drawn, "
            f"got a {name}; draw a bank of this one with backbones.draw"
        )
    if origin["weights"] is not None and origin["weights"] != weights_of(pipe)[0]:
        raise ValueError(
            "pipe must have the weights by which the estimator's bank was drawn, adapters and text "
            "encoders included, got others; draw a bank of this one with backbones.draw"
        )


def check_call(estimator: Any, pipe: Any, call: Mapping[str, Any]) -> None:
    """Checks that a call samples the law that the bank of an estimator holds draws of.

    Arguments:
        estimator: The estimator.
        pipe: The pipeline.
        call: Arguments of the call, by name.

    Raises:
        ValueError: If one that decides the law differs; names it.
    """

    origin = _drawn(estimator)
    if not origin:
        _check_stated(estimator, call)
        return
    if call.get("prompt") is None and call.get("prompt_embeds") is not None:
        raise ValueError(
            "the estimator's bank tells conditions apart by their prompts, but the call has "
            "prompt_embeds and no prompt; pass the prompt"
        )
    stated = origin["call"]
    known = {"height", "width"} if origin.get("size") else set()  # checked once all is known
    for name, value in call_told(pipe, call, steps=False).items():
        value = json.loads(json.dumps(value, default=str))
        if name in stated and name not in known and stated[name] != value:
            raise _another_law(name, stated[name], value)


def check_size(estimator: Any, size: tuple[int, int] | None) -> None:
    """Checks that images have the size of those that the bank of an estimator holds draws of.

    Raises:
        ValueError: If the size is known and differs.
    """

    stated = _drawn(estimator).get("size")
    if stated and size and tuple(stated) != size:
        raise _another_law("height and width", tuple(stated), size)


def _drawn(estimator: Any) -> Mapping[str, Any]:
    """The origin of an estimator's bank, if :func:`draw` wrote it; or an empty one."""

    origin: Mapping[str, Any] = getattr(estimator, "origin", None) or {}
    return origin if {"pipeline", "weights", "call"} <= origin.keys() else {}


def _check_stated(estimator: Any, call: Mapping[str, Any]) -> None:
    """Checks a bank of other origin; a call that does not state something is as the bank."""

    origin = getattr(estimator, "origin", None) or {}
    for name in ("guidance_scale", "negative_prompt"):
        stated = origin.get(name, origin.get(name.replace("_", " ")))
        if stated is not None and name in call and call[name] != stated:
            raise _another_law(name, stated, call[name])


def _another_law(name: str, stated: Any, found: Any) -> ValueError:
    return ValueError(
        f"{name} must be that of the estimator's bank, {stated!r}, got {found!r}: the bank holds "
        "draws of another law; draw it anew with the arguments of the call"
    )


def _told(value: Any) -> Any:
    """An argument in values that JSON can hold."""

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    if hasattr(value, "mode") and hasattr(value, "tobytes") and hasattr(value, "size"):
        return fingerprint((value.mode, value.size, value.tobytes()))  # a picture of PIL
    return fingerprint_or_reason(value)[0]
