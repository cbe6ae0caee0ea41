"""Guidance networks for latents: convolutional, stored as safetensors with their arguments."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..schedules import (
    CosineSchedule,
    DiscreteSchedule,
    RectifiedSchedule,
    Scales,
    Schedule,
    VESchedule,
    VPSchedule,
    working_dtype,
)
from ..support import checks
from ..support.randomness import seeded
from ..support.tensors import check_config, read_tensor_file, write_tensor_file
from .common import check_sizes, posterior_variance, silence, waves
from .convolutions import GROUPS, Decoder, Encoder

__all__ = ["LatentExpectation", "LatentShift", "read"]


class _LatentNetwork(nn.Module):
    """A network for latents: its arguments, the inputs of its encoder, and its file."""

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    last: nn.Conv2d | nn.Linear

    def __init__(
        self,
        channels: int,
        schedule: Schedule,
        text: int | None,
        widths: Sequence[int],
        depth: int,
        seed: int,
    ) -> None:
        super().__init__()
        checks.integer("channels", channels, 1)
        checks.instance("schedule", schedule, Schedule, "a Schedule")
        checks.optional(checks.integer, "text", text, 1)
        check_sizes("widths", widths)
        checks.integer("depth", depth, 1)
        checks.integer("seed", seed)
        if any(width % GROUPS for width in widths):
            raise ValueError(
                f"widths must be at least one multiple of {GROUPS}, got {list(widths)}"
            )
        self.channels = channels
        self.schedule = schedule
        self.text = text
        self.widths = tuple(widths)
        self.depth = depth
        self.seed = seed

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights and constructor arguments as one safetensors file, atomically.

        :func:`rwguidance.networks.load` reads it.

        Raises:
            TypeError: If the schedule is not one of :mod:`rwguidance.schedules`. If the path is
                neither a string nor a path.
            FileNotFoundError: If there is no such directory.
        """

        names = ("channels", "text", "widths", "depth", "seed")
        arguments = {name: getattr(self, name) for name in names}
        arguments["schedule"] = _describe(self.schedule)
        metadata = {"network": type(self).__name__, "arguments": json.dumps(arguments)}
        path = checks.path("path", path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no directory {path.parent} to save a network in")
        write_tensor_file(path, self.state_dict(), metadata)

    def _start(
        self, x_t: Tensor, t: Tensor, condition: Any
    ) -> tuple[Scales, tuple[Tensor, Tensor, Tensor]]:
        """The scales at these times, and the inputs of the encoder, in the dtype of the weights."""

        if x_t.ndim != 4 or x_t.shape[1] != self.channels:
            raise ValueError(
                f"x_t must hold latents of shape ({self.channels}, H, W), "
                f"got shape {tuple(x_t.shape)}"
            )
        scales = self.schedule.at(t, like=x_t)
        dtype = self.last.weight.dtype
        x = x_t / (scales.alpha**2 + scales.sigma**2).sqrt()
        # The angle says what the log-SNR says, and is finite at both ends.
        level = waves(torch.atan2(scales.sigma, scales.alpha).flatten())
        text = self._text_of(condition, x_t)
        return scales, (x.to(dtype), level.to(dtype), text.to(dtype))

    def _text_of(self, condition: Any, x_t: Tensor) -> Tensor:
        if self.text is None:
            return x_t.new_empty(len(x_t), 0)
        embeddings = getattr(condition, "embeddings", None)
        if not isinstance(embeddings, Mapping) or "pooled" not in embeddings:
            raise TypeError(
                "condition must hold condition.embeddings['pooled'], as what "
                f"backbone.condition(prompts) returns does, got {type(condition).__name__}; to "
                "train on a bank of prompts, give the objective encode="
            )
        pooled: Tensor = embeddings["pooled"]
        if pooled.shape != (len(x_t), self.text):
            raise ValueError(
                "condition.embeddings['pooled'] must have shape "
                f"({len(x_t)}, {self.text}), got {tuple(pooled.shape)}"
            )
        return pooled


class LatentExpectation(_LatentNetwork):
    r"""A residual convolutional network for :math:`\log h_t` of latents.

    Stages of half the height and width each, attention over the pixels of the last one, their mean,
    and a perceptron. Norms are modulated by the noise level and the pooled embedding of the prompt.
    States may be of any size, since convolutions round up where they halve it. The network computes
    in the dtype of its weights and returns float32 or wider.

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
        super().__init__(channels, schedule, text, widths, depth, seed)
        with seeded(seed):
            self.encoder = Encoder(channels, text or 0, self.widths, depth)
            self.head = nn.Linear(widths[-1], widths[-1])
            self.last = nn.Linear(widths[-1], 1)
        silence(self.last)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        _, inputs = self._start(x_t, t, condition)
        stages, _ = self.encoder(*inputs)
        hidden = nn.functional.silu(self.head(stages[-1].mean((2, 3))))
        log_h = self.last(hidden).squeeze(1)
        return log_h.to(working_dtype(log_h.dtype))


class LatentShift(_LatentNetwork):
    r"""A U-shaped convolutional network for the shift of latents.

    The stages of :class:`LatentExpectation`, and a way back up beside them. The output is scaled by
    :math:`\sigma_t^2 / (\alpha_t^2 + \sigma_t^2)`, as that of :class:`ShiftMLP`. States may be of
    any size. The network computes in the dtype of its weights and returns float32 or wider.

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
        super().__init__(channels, schedule, text, widths, depth, seed)
        with seeded(seed):
            self.encoder = Encoder(channels, text or 0, self.widths, depth)
            self.decoder = Decoder(self.widths, depth)
            self.norm = nn.GroupNorm(GROUPS, widths[0])
            self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        silence(self.last)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        scales, inputs = self._start(x_t, t, condition)
        hidden = self.decoder(*self.encoder(*inputs))
        return posterior_variance(scales) * self.last(nn.functional.silu(self.norm(hidden)))


def read(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> LatentExpectation | LatentShift:
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
    classes = {cls.__name__: cls for cls in (LatentExpectation, LatentShift)}
    if metadata.get("network") not in classes or "arguments" not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not one that a network for latents was saved to"
        )
    try:
        arguments = json.loads(metadata["arguments"])
        check_config(arguments, path)
        schedule = _schedule(**arguments.pop("schedule"))
        with torch.device("meta"):  # the weights of the file take their place
            network = classes[metadata["network"]](schedule=schedule, **arguments)
        network.load_state_dict(tensors, assign=True)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit {metadata['network']} of this version: {error}"
        ) from error
    return network


_SCHEDULES: dict[str, tuple[type[Schedule], tuple[str, ...]]] = {
    cls.__name__: (cls, arguments)
    for cls, arguments in (
        (CosineSchedule, ()),
        (DiscreteSchedule, ("alphas_cumprod",)),
        (RectifiedSchedule, ()),
        (VESchedule, ("sigma_min", "sigma_max")),
        (VPSchedule, ("beta_min", "beta_max")),
    )
}


def _describe(schedule: Schedule) -> dict[str, Any]:
    """A schedule of the library as a name and constructor arguments, for JSON."""

    name = type(schedule).__name__
    cls, names = _SCHEDULES.get(name, (None, ()))
    if type(schedule) is not cls:
        raise TypeError(f"schedule must be one of {list(_SCHEDULES)} to be saved, got {name}")
    arguments = {key: getattr(schedule, key) for key in names}
    plain = lambda value: value.tolist() if isinstance(value, Tensor) else value
    return {"name": name, **{key: plain(value) for key, value in arguments.items()}}


def _schedule(name: str, **arguments: Any) -> Schedule:
    if name not in _SCHEDULES:
        raise ValueError(f"schedule must be one of {list(_SCHEDULES)}, got {name!r}")
    return _SCHEDULES[name][0](**arguments)
