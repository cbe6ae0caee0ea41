"""Guidance networks for latents as they were before :class:`.guidance.GuidanceNetwork`, by kind."""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from ..schedules import Schedule
from ..support import checks
from ..support.tensors import read_tensor_file
from .guidance import GuidanceNetwork
from .storage import build

__all__ = ["LatentExpectation", "LatentShift", "read"]


class _OneKind(GuidanceNetwork):
    """A guidance network that sees the pooled text alone, with fewer arguments."""

    @property
    def arguments(self) -> dict[str, Any]:
        names = ("channels", "text", "widths", "depth", "seed")
        return {name: getattr(self, name) for name in names}


class LatentExpectation(_OneKind):
    r"""A :class:`GuidanceNetwork` for :math:`\log h_t` that sees the pooled text alone.

    The defaults have 16.9 million parameters, 68 MB in float32, for latents of 4 channels and
    `text=1280` (SDXL), and 17.3 million for 16 channels and `text=2048` (SD3).

    Arguments:
        channels: Number of channels of the latents.
        schedule: Path of the base model.
        text: Size of the pooled embeddings, `condition.embeddings["pooled"]` of shape (B, text);
            None if the condition is to be ignored.
        widths: Numbers of channels of the stages, from fine to coarse, multiples of 8.
        depth: Number of residual blocks per stage.
        seed: Seed of the initial weights.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.

    References:
        | Reward-weighted guidance, arXiv:2602.00413 (which gives the size, not the layers)
    """

    depends_on = ("channels", "schedule", "text", "widths", "depth")

    def __init__(
        self,
        channels: int,
        schedule: Schedule,
        text: int | None = None,
        widths: Sequence[int] = (64, 128, 256, 256),
        depth: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__(channels, schedule, "log_h", text, widths=widths, depth=depth, seed=seed)


class LatentShift(_OneKind):
    r"""A :class:`GuidanceNetwork` for the shift that sees the pooled text alone.

    The defaults have 17.9 million parameters, 72 MB in float32, for latents of 4 channels and
    `text=1280` (SDXL), and 18.3 million for 16 channels and `text=2048` (SD3).

    Arguments:
        channels: Number of channels of the latents.
        schedule: Path of the base model.
        text: Size of the pooled embeddings, `condition.embeddings["pooled"]` of shape (B, text);
            None if the condition is to be ignored.
        widths: Numbers of channels of the stages, from fine to coarse, multiples of 8.
        depth: Number of residual blocks per stage, on the way down and on the way up.
        seed: Seed of the initial weights.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
    """

    depends_on = ("channels", "schedule", "text", "widths", "depth")

    def __init__(
        self,
        channels: int,
        schedule: Schedule,
        text: int | None = None,
        widths: Sequence[int] = (64, 128, 256, 256),
        depth: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(channels, schedule, "shift", text, widths=widths, depth=depth, seed=seed)


def read(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> GuidanceNetwork:
    """Reads a network for latents that its method `save` wrote, in the dtype it was saved in.

    Nothing in the file is executed.

    Raises:
        TypeError: If the path is neither a string nor a path, or the device is no device.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds something else, or there is no such device.
    """

    path = checks.path("path", path)
    place = checks.device("device", device) or "cpu"
    if not path.is_file():
        raise FileNotFoundError(f"no network at {path}")
    tensors, metadata = read_tensor_file(path, place)
    classes = {cls.__name__: cls for cls in (GuidanceNetwork, LatentExpectation, LatentShift)}
    if metadata.get("network") not in classes or "arguments" not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not one that a network for latents was saved to"
        )
    try:
        arguments = json.loads(metadata["arguments"])
    except ValueError as error:
        raise ValueError(f"{path} has no arguments of a network: {error}") from error
    return build(classes[metadata["network"]], arguments, tensors, path)
