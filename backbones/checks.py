"""Checks of what the adapter of a pipeline is given, before any expensive work."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rwguidance.support import checks

__all__ = [
    "check_classes",
    "check_devices",
    "check_latents",
    "check_patches",
    "check_sequence_length",
    "check_size",
]


def check_classes(
    adapter: str, pipe: Any, pipeline_class: str, schedulers: tuple[str, ...]
) -> None:
    """Checks that a pipeline and its scheduler are of classes that an adapter understands.

    Arguments:
        adapter: Name of the adapter, for messages.
        pipe: The pipeline.
        pipeline_class: Name of the class of diffusers that the pipeline must be of.
        schedulers: Names of the classes of which its scheduler must be of one.

    Raises:
        TypeError: If pipeline or scheduler is of another class; names those that are understood.
    """

    if pipeline_class not in _class_names(pipe):
        raise TypeError(
            f"{adapter} adapts {pipeline_class} of diffusers, got {type(pipe).__name__}"
        )
    if not set(schedulers) & set(_class_names(pipe.scheduler)):
        raise TypeError(
            f"{adapter} reads its times from {' or '.join(schedulers)}, the pipeline "
            f"has {type(pipe.scheduler).__name__}; set "
            f"pipe.scheduler = {schedulers[0]}.from_config(pipe.scheduler.config)"
        )


def check_size(name: str, pixels: int, multiple: int) -> int:
    """The height or width of images, if latents can have it.

    Arguments:
        name: "height" or "width", for messages.
        pixels: Height or width of the images, in pixels.
        multiple: Number of pixels of which it must be a multiple.

    Raises:
        ValueError: If it is not.
    """

    if pixels < multiple or pixels % multiple:
        raise ValueError(f"{name} must be a multiple of {multiple} pixels, got {pixels}")
    return pixels


def check_sequence_length(
    length: int | None, default: int | None, pipeline_class: str
) -> int | None:
    """The number of tokens of a prompt that the T5 encoder of a pipeline sees.

    Arguments:
        length: The number that was asked for; None is the default.
        default: The number by default; None if there is no T5 encoder.
        pipeline_class: Name of the pipeline's class, for messages.

    Raises:
        ValueError: If a number is given and there is no T5 encoder, or it is out of its range.
    """

    if length is None:
        return default
    if default is None:
        raise ValueError(
            "max_sequence_length is for pipelines with a T5 encoder, which "
            f"{pipeline_class} has not, got {length}"
        )
    if not 1 <= length <= 512:
        raise ValueError(f"max_sequence_length must lie in [1, 512], got {length}")
    return length


def check_latents(name: str, latents: Any, channels: int) -> None:
    """Checks that a value is a batch of latents of a model.

    Arguments:
        name: Name of the argument, for messages.
        latents: The value.
        channels: Number of channels of the model's latents.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it is sparse, or its shape is not (B, C, H, W) with these channels.
    """

    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor of shape (B, {channels}, H, W), "
            f"got {checks.described(latents)}"
        )
    if latents.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got one of layout {latents.layout}")
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(
            f"{name} must have shape (B, {channels}, H, W), got {tuple(latents.shape)}"
        )


def check_patches(x_t: Tensor, patch: int, fits: bool) -> None:
    """Checks that a network can cut latents into its patches.

    Arguments:
        x_t: The states, with shape (B, C, H, W).
        patch: Side of a patch.
        fits: Whether it could.

    Raises:
        ValueError: If it could not.
    """

    if not fits:
        raise ValueError(
            f"x_t must have shape (B, C, H, W) with H and W multiples of {patch}, as the network "
            f"cuts it into patches, got {tuple(x_t.shape)}"
        )


def check_devices(
    x_t: Tensor, embeddings: Mapping[str, Tensor], network: nn.Module, pipe: Any
) -> None:
    """Checks that states and embeddings are where a pipeline computes.

    Arguments:
        x_t: The states.
        embeddings: The embeddings, by name.
        network: The denoising network of the pipeline.
        pipe: The pipeline.

    Raises:
        ValueError: If they are on another device; names all of them.
    """

    found = {value.device for value in embeddings.values()} | {x_t.device}
    if found == {next(network.parameters()).device}:
        return
    # Weights that are offloaded are elsewhere; to ask where they will be used takes longer.
    used = pipe._execution_device
    if found == {torch.empty(0, device=used).device}:
        return
    encoded = ", ".join(sorted({str(value.device) for value in embeddings.values()}))
    raise ValueError(
        "x_t and condition must be on the device of the backbone, "
        f"got x_t on {x_t.device}, condition on {encoded}, the backbone on {used}"
    )


def _class_names(value: Any) -> list[str]:
    return [cls.__name__ for cls in type(value).__mro__]
