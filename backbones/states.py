r"""Layouts of the states of pipelines, and how they are given to estimators.

Latents come as (B, C, H, W), as (B, C, T, H, W) for T frames of a video, and as tokens (B, N, D).
An estimator takes any of them as they are, with one exception: tokens of FLUX.1, of 2 x 2 latent
pixels each, are the latents (B, 16, H, W) of its adapter.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from rwguidance.support import checks

__all__ = [
    "Grid",
    "check_handed_on",
    "check_state",
    "first_of",
    "grid_of",
    "grid_of_latents",
    "in_family",
    "packed",
    "replaced",
    "size_told",
    "state_after",
    "unpacked",
]

Grid: TypeAlias = tuple[int, int] | None
"""Rows and columns of tokens that are latents to an estimator; None if states stay as they are."""


def in_family(pipe: Any, family: str) -> bool:
    """True if a pipeline's class, or one that it extends, is named after a family."""

    return any(re.match(rf"{family}(?!\d)", cls.__name__) for cls in type(pipe).__mro__)


def size_told(arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the height and width that a `check_inputs` is given, in pixels; None without."""

    height, width = arguments.get("height"), arguments.get("width")
    return None if height is None or width is None else (int(height), int(width))


def check_state(sample: Any) -> None:
    """Checks that a scheduler's state has a layout that estimators can be given.

    Raises:
        TypeError: If it has none of them; names them.
    """

    if not isinstance(sample, Tensor) or not sample.is_floating_point() or sample.ndim < 3:
        raise TypeError(
            "guidance understands states of the layouts (B, C, H, W), (B, N, D) of tokens and "
            f"(B, C, T, H, W) of videos, the pipeline steps {checks.described(sample)}"
        )


def state_after(result: Any) -> Tensor:
    """Returns the state that a scheduler's `step` returns, of either form of its result."""

    state: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return state


def first_of(prepared: Any) -> Tensor:
    """Returns the latents of a result of `prepare_latents`, which may hold more."""

    latents: Tensor = prepared if isinstance(prepared, Tensor) else prepared[0]
    return latents


def replaced(prepared: Any, latents: Tensor) -> Any:
    """Returns a result of `prepare_latents` with other latents, in the dtype of those it has."""

    latents = latents.to(first_of(prepared))
    if isinstance(prepared, Tensor):
        return latents
    return type(prepared)((latents, *prepared[1:]))


def check_handed_on(previous: Tensor | None, sample: Tensor) -> None:
    """Checks that a pipeline hands its scheduler the state that the last step returned.

    Parts of it may have been replaced, as inpainting does; a multiple of it is a state of another
    path than that of the scheduler.

    Arguments:
        previous: The state that the last step returned; None before that.
        sample: The state of the present step.

    Raises:
        TypeError: If it is a multiple of the last one.
    """

    if previous is None or previous is sample or previous.shape != sample.shape:
        return
    old, new = (value.detach().flatten().float() for value in (previous, sample))
    factor = float(old @ new / old.square().sum())
    cosine = float(old @ new / (old.norm() * new.norm()))
    if cosine > 0.9999 and abs(factor - 1) > 0.01:
        raise TypeError(
            f"guidance understands pipelines that hand states on as the scheduler returns them, "
            f"this one multiplies them by {factor:.4g} between two steps"
        )


def grid_of(pipe: Any, sample: Tensor, size: tuple[int, int] | None) -> Grid:
    """Returns the grid of a state, as a pipeline hands it to its scheduler.

    Arguments:
        pipe: The pipeline.
        sample: The state.
        size: Height and width of the images, in pixels, as far as known.

    Raises:
        ValueError: If there are tokens of FLUX.1, and the size is not known or not theirs.
    """

    if sample.ndim != 3 or not in_family(pipe, "Flux"):
        return None
    if size is None:
        raise ValueError(
            "guidance needs the height and width of the images, to which FLUX latents are "
            "unpacked; only calls of a guided pipeline that is not modular tell them"
        )
    side = int(pipe.image_processor.config.vae_scale_factor)
    height, width = (length // side for length in size)
    if height * width != sample.shape[1]:
        raise ValueError(
            f"the latents must be those of images of {size} pixels, "
            f"{height * width} tokens, got {sample.shape[1]}"
        )
    return height, width


def grid_of_latents(pipe: Any, latents: Tensor) -> Grid:
    """Returns the grid of states in the layout of estimators, of which tokens of FLUX.1 have one.

    Arguments:
        pipe: The pipeline.
        latents: The states.
    """

    tokens = in_family(pipe, "Flux") and latents.ndim == 4
    return (latents.shape[-2] // 2, latents.shape[-1] // 2) if tokens else None


def unpacked(value: Tensor, grid: Grid) -> Tensor:
    """Returns a state or an output in the layout of estimators."""

    return value if grid is None else pixel_shuffle(value.mT.unflatten(2, grid), 2)


def packed(value: Tensor, grid: Grid) -> Tensor:
    """Returns a state or an output in the layout of the pipeline; the inverse of `unpacked`."""

    return value if grid is None else pixel_unshuffle(value, 2).flatten(2).mT
