r"""Guidance networks: perceptrons for vectors and small images, convolutional ones for latents.

A guidance network is any module (x_t, t, condition), with t of shape (B,) and float64. It returns
:math:`\log h_t` of shape (B,), or a shift of the shape of x_t. The last layer starts at zero, so
that training starts from no guidance.
"""

import itertools
import json
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .schedules import (
    CosineSchedule,
    DiscreteSchedule,
    RectifiedSchedule,
    Scales,
    Schedule,
    VESchedule,
    VPSchedule,
    working_dtype,
)
from .support.conditions import condition_keys
from .support.files import replacing
from .support.randomness import seeded

__all__ = ["ExpectationMLP", "LatentExpectation", "LatentShift", "ShiftMLP", "load"]

_FREQUENCIES = 16

_GROUPS = 8
"""Groups of channels that are normalized together in networks for latents."""


class ExpectationMLP(nn.Module):
    r"""A perceptron for :math:`\log h_t`.

    Arguments:
        event: Shape of one state.
        labels: The conditions it will see; None if there are none.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        event: Sequence[int],
        labels: Sequence[Hashable] | None = None,
        width: int = 256,
        depth: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.trunk = _Trunk(math.prod(event), 1, labels, width, depth, seed)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.trunk(x_t.flatten(1), t, condition).squeeze(1)


class ShiftMLP(nn.Module):
    r"""A perceptron for the shift, scaled by :math:`\sigma_t^2 / (\alpha_t^2 + \sigma_t^2)`.

    That is the posterior variance under a unit Gaussian prior: the size of a shift at that time.

    Arguments:
        event: Shape of one state.
        schedule: The path of the base model.
        labels: The conditions it will see; None if there are none.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        event: Sequence[int],
        schedule: Schedule,
        labels: Sequence[Hashable] | None = None,
        width: int = 256,
        depth: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        size = math.prod(event)
        self.schedule = schedule
        self.trunk = _Trunk(size, size, labels, width, depth, seed)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        shift = self.trunk(x_t.flatten(1), t, condition).reshape(x_t.shape)
        return _posterior_variance(self.schedule.at(t, like=x_t)) * shift


class _Trunk(nn.Module):
    """Residual perceptron on [state, time features, label embedding]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        labels: Sequence[Hashable] | None,
        width: int,
        depth: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.labels = None if labels is None else {key: i for i, key in enumerate(labels)}
        with seeded(seed):
            self.first = nn.Linear(inputs + 2 * _FREQUENCIES, width)
            self.embedding = None if labels is None else nn.Embedding(len(labels), width)
            self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
            self.last = nn.Linear(width, outputs)
        _silence(self.last)

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        features = _waves(torch.pi / 2 * t).to(x.dtype)
        hidden = self.first(torch.cat((x, features), dim=1))
        if self.embedding is not None:
            hidden = hidden + self.embedding(self._indices(condition, x))
        for layer in self.hidden:
            hidden = hidden + layer(nn.functional.silu(hidden))
        return self.last(nn.functional.silu(hidden))

    def _indices(self, condition: Any, x: Tensor) -> Tensor:
        assert self.labels is not None
        keys = condition_keys(condition, len(x))
        if keys is None or any(key not in self.labels for key in keys):
            unknown = [key for key in dict.fromkeys(keys or ()) if key not in self.labels]
            raise ValueError(
                f"condition must hold labels that the network knows, {list(self.labels)}, "
                f"got {unknown if keys else None}"
            )
        return torch.tensor([self.labels[key] for key in keys], device=x.device)


class _LatentNetwork(nn.Module):
    """What the networks for latents share: the first half, and how they are stored."""

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
        for name, value in (("channels", channels), ("text", text), ("depth", depth)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not widths or any(width < 1 or width % _GROUPS for width in widths):
            raise ValueError(
                f"widths must be at least one multiple of {_GROUPS}, got {list(widths)}"
            )
        self.channels = channels
        self.schedule = schedule
        self.text = text
        self.widths = tuple(widths)
        self.depth = depth
        self.seed = seed

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights and constructor arguments as one safetensors file, atomically.

        :func:`load` reads it.

        Raises:
            TypeError: If the schedule is not one of :mod:`rwguidance.schedules`.
            FileNotFoundError: If there is no such directory.
        """

        from safetensors.torch import save_file

        names = ("channels", "text", "widths", "depth", "seed")
        arguments = {name: getattr(self, name) for name in names}
        arguments["schedule"] = _describe(self.schedule)
        metadata = {"network": type(self).__name__, "arguments": json.dumps(arguments)}
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no directory {path.parent} to save a network in")
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(path) as partial:
            save_file(tensors, partial, metadata)

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
        level = _waves(torch.atan2(scales.sigma, scales.alpha).flatten())
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
        channels: Of the latents.
        schedule: The path of the base model.
        text: Size of the pooled embeddings, `condition.embeddings["pooled"]` of shape (B, text);
            None if the condition is to be ignored.
        widths: Channels of the stages, from fine to coarse, multiples of 8.
        depth: Residual blocks per stage.
        seed: Of the initial weights.

    Raises:
        ValueError: If an argument is out of range.

    References:
        | Reward-weighted guidance, arXiv:2602.00413 (which gives the size, not the layers)
    """

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
            self.encoder = _Encoder(channels, text or 0, self.widths, depth)
            self.head = nn.Linear(widths[-1], widths[-1])
            self.last = nn.Linear(widths[-1], 1)
        _silence(self.last)

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
        channels: Of the latents.
        schedule: The path of the base model.
        text: Size of the pooled embeddings, `condition.embeddings["pooled"]` of shape (B, text);
            None if the condition is to be ignored.
        widths: Channels of the stages, from fine to coarse, multiples of 8.
        depth: Residual blocks per stage, on the way down and on the way up.
        seed: Of the initial weights.

    Raises:
        ValueError: If an argument is out of range.
    """

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
            self.encoder = _Encoder(channels, text or 0, self.widths, depth)
            self.decoder = _Decoder(self.widths, depth)
            self.norm = nn.GroupNorm(_GROUPS, widths[0])
            self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        _silence(self.last)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        scales, inputs = self._start(x_t, t, condition)
        hidden = self.decoder(*self.encoder(*inputs))
        return _posterior_variance(scales) * self.last(nn.functional.silu(self.norm(hidden)))


def load(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> LatentExpectation | LatentShift:
    """Reads a network for latents that its method `save` wrote, in the dtype it was saved in.

    Nothing in the file is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds something else.
    """

    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no network at {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            # Copied: in the mapped file they lie at addresses where kernels round otherwise.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    classes = {cls.__name__: cls for cls in (LatentExpectation, LatentShift)}
    if metadata.get("network") not in classes or "arguments" not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not one that a network for latents was saved to"
        )
    try:
        arguments = json.loads(metadata["arguments"])
        schedule = _schedule(**arguments.pop("schedule"))
        with torch.device("meta"):  # the weights of the file take their place
            network = classes[metadata["network"]](schedule=schedule, **arguments)
        network.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
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


class _Encoder(nn.Module):
    """The stages from fine to coarse, with attention in the last, and the embedding for them."""

    def __init__(self, channels: int, text: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        size = _embedding_size(widths)
        self.level = nn.Linear(2 * _FREQUENCIES, size)
        self.text = nn.Sequential(nn.LayerNorm(text), nn.Linear(text, size)) if text else None
        self.embedding = nn.Linear(size, size)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(above, width, 3, stride=2, padding=1)
            for above, width in itertools.pairwise(widths)
        )
        self.stages = nn.ModuleList(_Stage(width, width, size, depth) for width in widths)
        self.attention = _Attention(widths[-1])
        self.last = _Stage(widths[-1], widths[-1], size, depth)

    def forward(self, x: Tensor, level: Tensor, text: Tensor) -> tuple[list[Tensor], Tensor]:
        silu = nn.functional.silu
        embedding = self.level(level)
        if self.text is not None:
            embedding = embedding + self.text(text)
        embedding = silu(self.embedding(silu(embedding)))
        hidden, outputs = self.first(x), []
        for down, stage in zip((nn.Identity(), *self.down), self.stages, strict=True):
            hidden = stage(down(hidden), embedding)
            outputs.append(hidden)
        outputs[-1] = self.last(self.attention(hidden), embedding)
        return outputs, embedding


class _Decoder(nn.Module):
    """The way back up, with the outputs of the encoder's stages at its side."""

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        size = _embedding_size(widths)
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.Conv2d(below, width, 3, padding=1) for width, below in pairs)
        self.stages = nn.ModuleList(_Stage(2 * width, width, size, depth) for width, _ in pairs)

    def forward(self, outputs: Sequence[Tensor], embedding: Tensor) -> Tensor:
        *finer, hidden = outputs
        for up, stage, beside in zip(self.up, self.stages, reversed(finer), strict=True):
            # To the size of what lies beside, which need not be twice this one.
            hidden = nn.functional.interpolate(hidden, size=beside.shape[-2:])
            hidden = stage(torch.cat((up(hidden), beside), dim=1), embedding)
        return hidden


class _Stage(nn.Module):
    """Residual blocks of one resolution."""

    def __init__(self, inputs: int, outputs: int, embedding: int, depth: int) -> None:
        super().__init__()
        sizes = (inputs, *(outputs,) * (depth - 1))
        self.blocks = nn.ModuleList(_Block(size, outputs, embedding) for size in sizes)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class _Block(nn.Module):
    """Two convolutions beside an identity; the embedding modulates the norm between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulated = nn.GroupNorm(_GROUPS, outputs, affine=False)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.beside = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        silu = nn.functional.silu
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.modulated(self.first(silu(self.norm(x))))
        return self.beside(x) + self.second(silu((1 + scale) * hidden + shift))


class _Attention(nn.Module):
    """Attention between the pixels, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.project = nn.Conv2d(width, 3 * width, 1)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(self.norm(x)).flatten(2).chunk(3, dim=1)
        # Written out: the fused kernels have no second derivative, which regularizers need.
        weight = (query.mT @ key / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.last((value @ weight.mT).reshape(x.shape))


def _embedding_size(widths: Sequence[int]) -> int:
    return 8 * widths[0]


def _posterior_variance(scales: Scales) -> Tensor:
    """That of a clean state under a unit Gaussian prior."""

    return scales.sigma**2 / (scales.alpha**2 + scales.sigma**2)


def _waves(angle: Tensor) -> Tensor:
    """Sines and cosines of angles in [0, pi / 2] and of their multiples, one row for each."""

    angles = angle[:, None] * torch.arange(1, _FREQUENCIES + 1, device=angle.device)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def _silence(layer: nn.Conv2d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
