"""The guidance network for latents: convolutional, for prompts, and for tilts of any strength."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..schedules import Scales, Schedule, working_dtype
from ..support import checks
from ..support.randomness import seeded
from .common import check_sizes, posterior_variance, silence, waves
from .convolutions import GROUPS, Decoder, Encoder, Given
from .storage import StoredNetwork
from .texts import pooled_of, tokens_of

__all__ = ["OUTPUTS", "PRESETS", "AtStrength", "GuidanceNetwork"]

N = TypeVar("N", bound="GuidanceNetwork")

OUTPUTS = ("shift", "log_h", "change", "changes")
"""What a network can give."""

PRESETS: Mapping[str, tuple[tuple[int, ...], int]] = {
    "tiny": ((16, 24, 48), 1),
    "small": ((32, 64, 128), 2),
    "paper": ((64, 120, 248, 256), 2),
    "large": ((96, 192, 384, 448), 2),
    "huge": ((144, 288, 576, 832), 2),
}
"""Widths and depths by name, from 2 to 500 MB; ``paper`` is 72 MB, as the method's paper gives."""


class GuidanceNetwork(StoredNetwork):
    r"""A convolutional network for the shift, for :math:`\log h_t`, or for a change of a state.

    Stages of half the height and width each, with attention over the pixels of the last one, to
    each other and to the tokens of the prompt. Norms are modulated by the noise level, the pooled
    embedding of the prompt and the strength of the tilt. Latents may be of any size, since
    convolutions round up where they halve it. The noise level is seen as the angle
    :math:`\arctan(\sigma_t / \alpha_t)`, which says what the log-SNR says and is finite at both
    ends. The network starts at zero, computes in the dtype of its weights, and returns float32 or
    wider.

    Of the outputs, ``shift`` is U-shaped, with the shape of the state, and scaled by
    :math:`\sigma_t^2 / (\alpha_t^2 + \sigma_t^2)`, the posterior variance under a unit Gaussian
    prior; ``change`` is the same without that factor, for changes of clean states or of noise
    (:mod:`rwguidance.training.one_step`); ``changes`` is that for both, of noise at the time 1 and
    of clean states at the time 0; ``log_h`` is a number, from the mean over the pixels of
    the last stage.

    What it is conditioned on is found in ``condition.embeddings``, as what
    ``backbone.condition(prompts)`` returns has it: ``pooled``, with shape (B, text), ``text``, the
    states of the tokens, with shape (B, L, tokens), and ``mask``, with shape (B, L), which is true
    or 1 where there is a token; without it there are L of all.

    Arguments:
        channels: Number of channels of the latents.
        schedule: Path of the base model.
        output: One of ``shift``, ``log_h``, ``change`` and ``changes``.
        text: Size of the pooled embeddings; None if they are to be ignored.
        tokens: Size of the states of tokens; None if they are to be ignored.
        strength: Whether the strength of the tilt is an input, so that one network serves many.
        widths: Numbers of channels of the stages, from fine to coarse, multiples of 8.
        depth: Number of residual blocks per stage.
        scales: Factors of the output by strength, from a calibration, in between linear in the
            logarithm of the strength; None for 1. Without `strength`, one factor under any key.
        seed: Seed of the initial weights.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
    """

    depends_on: ClassVar[tuple[str, ...]] = (
        "channels",
        "schedule",
        "output",
        "text",
        "tokens",
        "strength",
        "widths",
        "depth",
        "scales",
    )
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    last: nn.Conv2d | nn.Linear

    def __init__(
        self,
        channels: int,
        schedule: Schedule,
        output: str = "shift",
        text: int | None = None,
        tokens: int | None = None,
        strength: bool = False,
        widths: Sequence[int] = (64, 128, 256, 256),
        depth: int = 2,
        scales: Mapping[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.channels = checks.integer("channels", channels, 1)
        checks.instance("schedule", schedule, Schedule, "a Schedule")
        self.schedule = schedule
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {list(OUTPUTS)}, got {output!r}")
        self.output = output
        self.text = checks.optional(checks.integer, "text", text, 1)
        self.tokens = checks.optional(checks.integer, "tokens", tokens, 1)
        self.strength = checks.flag("strength", strength)
        check_sizes("widths", widths)
        if any(width % GROUPS for width in widths):
            raise ValueError(
                f"widths must be at least one multiple of {GROUPS}, got {list(widths)}"
            )
        self.widths = tuple(widths)
        self.depth = checks.integer("depth", depth, 1)
        self.seed = checks.integer("seed", seed)
        self.scales = _checked_scales(scales, self.strength)
        with seeded(seed):
            self.encoder = Encoder(
                channels, text or 0, self.widths, depth, tokens or 0, self.strength
            )
            if output == "log_h":
                self.head = nn.Linear(widths[-1], widths[-1])
                self.last = nn.Linear(widths[-1], 1)
            else:
                self.decoder = Decoder(self.widths, depth)
                self.norm = nn.GroupNorm(GROUPS, widths[0])
                self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        silence(self.last)

    @classmethod
    def preset(cls: type[N], name: str, channels: int, schedule: Schedule, **options: Any) -> N:
        """Makes a network of a size that has a name.

        Arguments:
            name: One of :data:`PRESETS`: ``tiny`` (2 MB), ``small``, ``paper`` (72 MB), ``large``,
                ``huge`` (500 MB); megabytes in float32, of a shift for SDXL.
            channels: Number of channels of the latents.
            schedule: Path of the base model.
            options: Other arguments but `widths` and `depth`.

        Raises:
            LookupError: If there is no such preset; lists those that exist.
        """

        if name not in PRESETS:
            raise LookupError(f"name must be a preset, one of {list(PRESETS)}, got {name!r}")
        widths, depth = PRESETS[name]
        return cls(channels, schedule, widths=widths, depth=depth, **options)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Any = None,
        strength: float | Tensor | None = None,
    ) -> Tensor:
        r"""Returns what the network gives for states, see the class.

        Arguments:
            x_t: States, with shape (B, channels, H, W).
            t: Times, float64, with shape (B,).
            condition: What holds the embeddings.
            strength: Strength of the tilt, positive, in the unit in which the network was trained
                (nats of divergence, or 1 / beta): a number, or one for each state, with shape (B,).

        Raises:
            TypeError: If the condition holds no embeddings.
            ValueError: If shapes do not fit, or a strength is not positive, missing or in excess.
        """

        if x_t.ndim != 4 or x_t.shape[1] != self.channels:
            raise ValueError(
                f"x_t must hold latents of shape ({self.channels}, H, W), "
                f"got shape {tuple(x_t.shape)}"
            )
        strengths = self._strengths(strength, x_t)
        scales = self.schedule.at(t, like=x_t)
        x = (x_t / (scales.alpha**2 + scales.sigma**2).sqrt()).to(self.last.weight.dtype)
        stages, embedding = self.encoder(x, self._given(scales, x_t, condition, strengths))
        if self.output == "log_h":
            hidden = nn.functional.silu(self.head(stages[-1].mean((2, 3))))
            out = self.last(hidden).squeeze(1)
        else:
            hidden = self.decoder(stages, embedding)
            out = self.last(nn.functional.silu(self.norm(hidden)))
        out = out.to(working_dtype(out.dtype))
        if self.output == "shift":
            out = posterior_variance(scales) * out
        return out if self.scales is None else self._calibrated(out, strengths)

    def at(self, strength: float) -> "AtStrength":
        """Returns the network at one strength, a network of (x_t, t, condition) for estimators."""

        return AtStrength(self, strength)

    def calibrated(self: N, scales: Mapping[float, float] | None) -> N:
        """Returns a network with the same weights, shared, and other factors of its output.

        Arguments:
            scales: Factors by strength, as the constructor takes them.
        """

        other = copy.copy(self)
        other.scales = _checked_scales(scales, self.strength)
        return other

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments but the schedule, in values that JSON can hold."""

        names = ("channels", "output", "text", "tokens", "strength", "widths", "depth", "seed")
        scales = {str(key): factor for key, factor in (self.scales or {}).items()} or None
        return {**{name: getattr(self, name) for name in names}, "scales": scales}

    def _given(
        self, scales: Scales, x_t: Tensor, condition: Any, strengths: Tensor | None
    ) -> Given:
        """What the encoder is conditioned on, in the dtype of the weights."""

        place = lambda value: value.to(x_t.device, self.last.weight.dtype)
        level = place(waves(torch.atan2(scales.sigma, scales.alpha).flatten()))
        text, n = x_t.new_empty(len(x_t), 0), len(x_t)
        if self.text is not None:
            text = pooled_of(condition, n, self.text)
        tokens = mask = features = None
        if self.tokens is not None:
            tokens, mask = tokens_of(condition, n, self.tokens)
            tokens, mask = place(tokens), None if mask is None else mask.to(x_t.device)
        if strengths is not None:
            # From (0, inf) to (0, pi / 2); fine where strengths are, from 1/16 to 16.
            features = place(waves(torch.pi / 4 + torch.atan(strengths.log() / 2) / 2))
        return Given(level, place(text), tokens, mask, features)

    def _strengths(self, strength: float | Tensor | None, x_t: Tensor) -> Tensor | None:
        if (strength is not None) != self.strength:
            raise ValueError(
                "strength must be given to a network that takes it, as by network.at(1.0), and to "
                f"no other; this one {'takes it' if self.strength else 'does not'}"
            )
        if strength is None:
            return None
        values = torch.as_tensor(strength, dtype=working_dtype(x_t.dtype), device=x_t.device)
        if values.shape not in (torch.Size(), (len(x_t),)) or not bool((values > 0).all()):
            raise ValueError(
                f"strength must be positive, a number or one per state, shape ({len(x_t)},), "
                f"got {checks.described(strength)}"
            )
        return values.expand(len(x_t))

    def _calibrated(self, out: Tensor, strengths: Tensor | None) -> Tensor:
        assert self.scales is not None
        if strengths is None or len(self.scales) == 1:
            (only,) = self.scales.values()
            return only * out
        keys = torch.tensor([*self.scales], dtype=out.dtype, device=out.device).log()
        factors = torch.tensor([*self.scales.values()], dtype=out.dtype, device=out.device)
        at = strengths.log().to(out.dtype).clamp(keys[0], keys[-1])
        right = torch.searchsorted(keys, at).clamp(1, len(keys) - 1)
        share = (at - keys[right - 1]) / (keys[right] - keys[right - 1])
        factor = torch.lerp(factors[right - 1], factors[right], share)
        return factor.reshape(-1, *(1,) * (out.ndim - 1)) * out


class AtStrength(nn.Module):
    """A guidance network at one strength.

    Arguments:
        network: A network whose call takes a strength.
        strength: The strength, positive, in the unit in which the network was trained.
    """

    depends_on = ("strength",)

    def __init__(self, network: GuidanceNetwork, strength: float) -> None:
        super().__init__()
        checks.instance("network", network, GuidanceNetwork, "a GuidanceNetwork")
        if not network.strength:
            raise ValueError("network must take a strength, but was made with strength=False")
        self.network = network
        self.strength = checks.number("strength", strength, above=0)

    @property
    def output(self) -> str:
        """What the network gives."""

        return self.network.output

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.network(x_t, t, condition, self.strength)


def _checked_scales(
    scales: Mapping[float, float] | None, strength: bool
) -> dict[float, float] | None:
    """Factors by strength, in its order."""

    if scales is None:
        return None
    checks.instance("scales", scales, Mapping, "a mapping from strengths to factors")
    found = sorted(
        (checks.number("scales", float(key), above=0), checks.number("scales", factor))
        for key, factor in scales.items()
    )
    if not found or (len(found) > 1 and not strength):
        count = "one factor at least" if strength else "one factor, for a network of one strength"
        raise ValueError(f"scales must hold {count}, got {len(found)}")
    return dict(found)
