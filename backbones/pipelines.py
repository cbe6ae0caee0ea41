r"""What all adapters of diffusers pipelines share.

An adapter holds a pipeline and calls its parts: the text encoders through `encode_prompt`, the
denoising network, the VAE. Their weights are shared, so offloading, quantization, attention
backends, VAE slicing and tiling are set on the pipeline and hold here as well. The scheduler is
only asked which times it would visit; steps are taken by :mod:`rwguidance.samplers`.

With classifier-free guidance of scale g > 1 the model is, by definition, the one that predicts

.. math:: \text{negative} + g \, (\text{positive} - \text{negative})

in the convention of its network. Reward guidance then tilts the law that this composed model
samples.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rwguidance import Prediction, Schedule, outside
from rwguidance.conditions import string_keys
from rwguidance.randomness import Generators, normal
from rwguidance.schedules import Scales, as_times

from .base import Backbone
from .conditioning import TextCondition

__all__ = ["PipelineBackbone", "require"]


class PipelineBackbone(Backbone, ABC):
    r"""A text-to-image pipeline of diffusers as a model.

    The pipeline is left as it is, and what is changed on it later holds here too, except its
    scheduler, from which the path is read once.

    A family says how its network is called (:meth:`network`), what the output means
    (:meth:`predict`), how prompts are encoded (:meth:`encode_text`) and which times the scheduler
    visits (:meth:`times`).

    Arguments:
        pipe: The pipeline.
        schedule: The path its network was trained on.
        guidance_scale: Scale of classifier-free guidance. None and values up to 1 mean without.
        height: Of the images, in pixels. None is the pipeline's default.
        width: Of the images, in pixels. None is the pipeline's default.
        steps: What :meth:`times` assumes if it is not told. None is the family's default.
        decode_batch: Images the VAE handles at once. None is all of them.
    """

    pipeline_class: ClassVar[str]
    """Name of the pipeline's class."""

    schedulers: ClassVar[tuple[str, ...]]
    """Names of the scheduler classes whose times are understood."""

    denoiser: ClassVar[str]
    """Name of the pipeline's component that denoises."""

    patch: ClassVar[int]
    """Height and width of latents must be multiples of this."""

    default_steps: ClassVar[int]
    """Steps that the family's pipeline takes by default."""

    def __init__(
        self,
        pipe: Any,
        schedule: Schedule,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        decode_batch: int | None = None,
    ) -> None:
        super().__init__(schedule)
        if guidance_scale is not None and not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be at least 0, got {guidance_scale}")
        for name, value in (("steps", steps), ("decode_batch", decode_batch)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.pipe = pipe
        self.guidance_scale = guidance_scale
        default = pipe.default_sample_size * pipe.vae_scale_factor
        self.height = default if height is None else height
        self.width = default if width is None else width
        multiple = self.pixels_per_latent * self.patch
        for name, size in (("height", self.height), ("width", self.width)):
            if size < multiple or size % multiple:
                raise ValueError(f"{name} must be a multiple of {multiple} pixels, got {size}")
        self.steps = self.default_steps if steps is None else steps
        self.decode_batch = decode_batch
        # So that .to(), .eval(), .requires_grad_() and .parameters() reach them.
        self.modules_of_pipe = nn.ModuleDict(
            {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        )

    @classmethod
    def check_pipeline(cls, pipe: Any) -> None:
        """Checks that a pipeline and its scheduler are of the family.

        Raises:
            TypeError: If not; names the classes that are.
        """

        if cls.pipeline_class not in _class_names(pipe):
            raise TypeError(
                f"{cls.__name__} adapts {cls.pipeline_class} of diffusers, "
                f"got {type(pipe).__name__}"
            )
        if not set(cls.schedulers) & set(_class_names(pipe.scheduler)):
            raise TypeError(
                f"{cls.__name__} reads its times from {' or '.join(cls.schedulers)}, the pipeline "
                f"has {type(pipe.scheduler).__name__}; set "
                f"pipe.scheduler = {cls.schedulers[0]}.from_config(pipe.scheduler.config)"
            )

    @abstractmethod
    def network(self, x_t: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        r"""Calls the denoising network once.

        Arguments:
            x_t: States in the dtype of the network, with shape (B, \*event).
            t: Times in float64, with shape (B,).
            embeddings: What :meth:`encode_text` returned, for these B samples.

        Returns:
            The network's output, in the shape of `x_t`.
        """

    @abstractmethod
    def predict(self, output: Tensor, x_t: Tensor, scales: Scales) -> Prediction:
        """What an output of the network, in float32 or wider, says about mean and noise."""

    @abstractmethod
    def encode_text(
        self, prompts: list[str], negative_prompts: list[str] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Embeddings of prompts and, under classifier-free guidance, of negative prompts.

        Arguments:
            prompts: The prompts.
            negative_prompts: One for each, or None for what the pipeline then takes.
        """

    @abstractmethod
    def times(self, steps: int | None = None) -> Tensor:
        """The times that the pipeline itself visits.

        Arguments:
            steps: Number of steps, at least 1. None is the number of the constructor.

        Returns:
            Strictly decreasing times in [0, 1], float64, with shape (steps + 1,).
        """

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance, for which the network sees twice the batch."""

        return self.guidance_scale is not None and self.guidance_scale > 1

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, which under offloading is not where its weights are."""

        device: torch.device = self.pipe._execution_device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoising network."""

        dtype: torch.dtype = getattr(self.pipe, self.denoiser).dtype
        return dtype

    def condition(
        self, prompts: Sequence[str], negative_prompts: str | Sequence[str] | None = None
    ) -> TextCondition:
        """Encodes prompts through the pipeline; what repeats is encoded once.

        The pipeline warns, in its own words, of what it cuts from a prompt that is too long.

        Arguments:
            prompts: One per sample.
            negative_prompts: What classifier-free guidance leads away from, one per sample or one
                for all. None is the pipeline's default.

        Raises:
            ValueError: If there are negative prompts, but no classifier-free guidance.
        """

        prompts = _strings("prompts", prompts, len(prompts))
        if negative_prompts is not None and not self.guided:
            raise ValueError(
                "negative_prompts take classifier-free guidance, of which this backbone has none "
                f"(guidance_scale={self.guidance_scale}); it comes with a guidance_scale above 1, "
                "for models of the SDXL and SD3 families that are not distilled"
            )
        if isinstance(negative_prompts, str):
            negative_prompts = [negative_prompts] * len(prompts)
        if negative_prompts is not None:
            negative_prompts = _strings("negative_prompts", negative_prompts, len(prompts))

        pairs = list(zip(prompts, negative_prompts or [""] * len(prompts), strict=True))
        place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        distinct = [pair[0] for pair in place]
        with torch.no_grad():
            positive, negative = self.encode_text(
                distinct, None if negative_prompts is None else [pair[1] for pair in place]
            )
        return TextCondition(tuple(distinct), positive, negative)[[place[pair] for pair in pairs]]

    def forward(
        self, x_t: Tensor, t: float | Tensor, condition: TextCondition | None = None
    ) -> Prediction:
        r"""Predicts with one call of the network, in float32 or wider around it.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], with shape () or (B,).
            condition: What :meth:`condition` returned for these B samples.
        """

        embeddings = self._embeddings(condition, len(x_t))
        scales = self.schedule.at(t, like=x_t)
        t = as_times(t, batch=len(x_t)).expand(len(x_t))

        x = x_t.to(self.dtype)
        if self.guided:
            x, t = torch.cat((x, x)), torch.cat((t, t))
        output = self.network(x, t, embeddings)
        output = output.to(torch.promote_types(torch.float32, x_t.dtype))
        if self.guided:
            negative, positive = output.chunk(2)
            scale = self.guidance_scale or 1.0
            output = negative + scale * (positive - negative)
        return self.predict(output, x_t, scales)

    def _embeddings(self, condition: TextCondition | None, n: int) -> dict[str, Tensor]:
        if not isinstance(condition, TextCondition):
            raise TypeError(
                "condition must be what backbone.condition(prompts) returns, "
                f"got {type(condition).__name__}"
            )
        if len(condition) != n:
            raise ValueError(
                f"condition must hold one prompt per sample, {n}, got {len(condition)}"
            )
        if self.guided != (condition.negative is not None):
            has, was = ("has", "without") if self.guided else ("has no", "with")
            raise ValueError(
                f"this backbone {has} classifier-free guidance, but condition was encoded {was}; "
                "encode it with the backbone that is called"
            )
        return {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in condition.stacked().items()
        }

    def draw_noise(self, n: int, generator: Generators = None) -> Tensor:
        r"""States with which the pipeline starts; the same ones for the same generator.

        Arguments:
            n: Number of states.
            generator: Source of randomness, on the CPU or on the pipeline's device; one, or one per
                state.

        Returns:
            States with shape (n, C, H, W), on the device and in the dtype of the network.
        """

        side = self.pixels_per_latent
        shape = (n, self.channels, self.height // side, self.width // side)
        return self.noise_scale * normal(shape, generator, self.device, self.dtype)

    @property
    def channels(self) -> int:
        """Channels of the latents."""

        return int(self.pipe.vae.config.latent_channels)

    @property
    def pixels_per_latent(self) -> int:
        """Height and width, in pixels, of what one latent pixel stands for."""

        return int(self.pipe.vae_scale_factor)

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the states with which the pipeline starts."""

        return 1.0

    def decode(self, latents: Tensor) -> Tensor:
        r"""Images of clean states, as the pipeline makes them, but without watermark.

        Differentiable in the latents where gradients are enabled.

        Arguments:
            latents: Clean states, with shape (B, C, H, W).

        Returns:
            Images in [0, 1], float32, with shape (B, 3, H, W).

        Raises:
            ValueError: If gradients are asked of a VAE that the pipeline widens from float16 to
                float32 only for the moment of decoding.
        """

        vae = self.pipe.vae
        chunks = latents.split(self.decode_batch or max(1, len(latents)))
        if vae.dtype != torch.float16 or not getattr(vae.config, "force_upcast", False):
            return torch.cat([self._decode(chunk) for chunk in chunks])
        if latents.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "decode is not differentiable through this VAE, which overflows in float16; run "
                "it in another precision, pipe.vae.to(torch.float32) or torch.bfloat16"
            )
        vae.to(torch.float32)
        try:
            return torch.cat([self._decode(chunk) for chunk in chunks])
        finally:
            vae.to(torch.float16)

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        scale, shift = self._latent_affine()
        latents = latents.to(self.device)
        z = latents * scale.to(latents) + shift.to(latents)
        images = vae.decode(z.to(vae.dtype), return_dict=False)[0]
        wide = torch.promote_types(torch.float32, images.dtype)
        return (images.to(wide) / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        r"""Clean states of images: the mean of what the VAE's encoder allows.

        Arguments:
            images: In [0, 1], with shape (B, 3, H, W), of sizes that the VAE accepts.

        Returns:
            Latents in the units of the network, float32, with shape (B, C, H', W').
        """

        if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else images
            raise TypeError(f"images must be a float tensor of shape (B, 3, H, W), got {got}")
        return torch.cat(
            [self._encode(chunk) for chunk in images.split(self.decode_batch or len(images))]
        )

    def _encode(self, images: Tensor) -> Tensor:
        vae = self.pipe.vae
        encoded = vae.encode((2 * images - 1).to(device=self.device, dtype=vae.dtype))
        # A tiny autoencoder has no posterior, only its latents.
        z = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        z = z.to(torch.promote_types(torch.float32, z.dtype))
        scale, shift = self._latent_affine()
        return (z - shift.to(z)) / scale.to(z)

    def _latent_affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift from the network's units to those of the VAE, each (1, C or 1, 1, 1)."""

        config = self.pipe.vae.config
        column = lambda value: torch.as_tensor(value, dtype=torch.float64).reshape(1, -1, 1, 1)
        scale = 1 / column(config.scaling_factor)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            return column(std) * scale, column(mean)
        return scale, column(getattr(config, "shift_factor", None) or 0.0)

    def _scheduler_at(self, steps: int | None, **keywords: Any) -> Any:
        """A copy of the pipeline's scheduler, set to a number of steps."""

        steps = self.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        scheduler = copy.deepcopy(self.pipe.scheduler)
        if "sigmas" in keywords:
            scheduler.set_timesteps(**keywords)
        else:
            scheduler.set_timesteps(steps, **keywords)
        return scheduler


def require(module: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: If it is missing; says how to install it.
    """

    return outside.require(module, "pipelines need", "backbones")


def _class_names(value: Any) -> list[str]:
    return [cls.__name__ for cls in type(value).__mro__]


def _strings(name: str, values: Sequence[str], n: int) -> list[str]:
    strings = string_keys(values, n, name)
    if not strings:
        raise ValueError(f"{name} must hold at least one string, got none")
    return strings
