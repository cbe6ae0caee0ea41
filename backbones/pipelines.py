r"""The adapter of a diffusers pipeline, as far as it is the same for all families.

An adapter holds a pipeline and calls its parts: the text encoders through `encode_prompt`, the
denoising network, the VAE. Their weights are shared, so offloading, quantization, attention
backends, VAE slicing and tiling are set on the pipeline and hold here as well. The scheduler is
only asked which times it would visit; steps are taken by :mod:`rwguidance.samplers`.

With classifier-free guidance of scale g > 1 the model is, by definition, the one that predicts

.. math:: \text{negative} + g \, (\text{positive} - \text{negative})

in the convention of its network. Reward guidance then tilts the law that this composed model
samples.

The contract of an adapter stands here in one place, which makes the file longer than others.
"""

import copy
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rwguidance import Prediction, Schedule
from rwguidance.schedules import Scales, as_times, working_dtype
from rwguidance.support import checks, memory, outside
from rwguidance.support.randomness import Generators, normal

from .adapter import PipelineAdapter
from .autoencoders import check_autoencoder, load_autoencoder
from .checks import (
    check_classes,
    check_devices,
    check_latents,
    check_patches,
    check_sequence_length,
    check_size,
)
from .conditioning import Embeddings, TextCondition, check_condition, encode_distinct
from .latents import LatentCodec

__all__ = ["PipelineBackbone", "require"]


class PipelineBackbone(PipelineAdapter):
    r"""A text-to-image pipeline of diffusers as a model.

    The pipeline is left as it is, and what is changed on it later holds here too, except the path,
    which is read from its scheduler once.

    A family says on which path its network was trained (:meth:`path`), how the network is called
    (:meth:`network`), what the output means (:meth:`predict`), how prompts are encoded
    (:meth:`encode_text`) and which times the scheduler visits (:meth:`times`). All families are
    constructed alike.

    Arguments:
        pipe: The pipeline.
        guidance_scale: Scale of classifier-free guidance. None and values up to 1 mean without.
        height: Height of the images, in pixels. None is the pipeline's default.
        width: Width of the images, in pixels. None is the pipeline's default.
        steps: Number of steps that :meth:`times` takes by default. None is the family's default.
        max_sequence_length: Number of tokens of a prompt that the T5 encoder sees, for families
            that have one. None is the family's default.
        decode_batch: Number of images that the VAE handles at once. None is all of them.
        checkpoint_decode: Whether gradients through the VAE keep only its inputs, and compute the
            rest again: the images of one `decode_batch` at a time, for the price of decoding twice.
        vae: Autoencoder in place of the pipeline's VAE: an AutoencoderTiny or AutoencoderKL of
            diffusers, or a local folder with one, either as `save_pretrained` writes it or in the
            original layout of TAESD. It is moved to where the pipeline computes.

    Raises:
        TypeError: If the pipeline, its scheduler or `vae` are of classes that are not supported.
        FileNotFoundError: If there is no autoencoder where `vae` says.
        ValueError: If another argument is out of its range, the latents of `vae` are not those of
            the pipeline, or the pipeline has no T5 encoder whose length could be chosen.
    """

    schedulers: ClassVar[tuple[str, ...]]
    """Names of the scheduler classes whose times are understood."""

    denoiser: ClassVar[str]
    """Name of the pipeline's component that denoises."""

    patch_size: ClassVar[int]
    """Side of a patch of the network, in pixels of the latents, whose sides are multiples of it."""

    default_steps: ClassVar[int]
    """Number of steps that the family's pipeline takes by default."""

    default_sequence_length: ClassVar[int | None] = None
    """Number of tokens that the T5 encoder sees by default. None in families without one."""

    shifts_latents: ClassVar[bool] = True
    """Whether the family's pipeline adds the shift that an autoencoder's configuration names."""

    depends_on: ClassVar[tuple[str, ...]] = (
        "schedule",
        "guidance_scale",
        "height",
        "width",
        "steps",
        "max_sequence_length",
        "parts",
    )

    incidental = ("decode_batch", "checkpoint_decode")

    def __init__(
        self,
        pipe: Any,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        max_sequence_length: int | None = None,
        decode_batch: int | None = None,
        checkpoint_decode: bool = False,
        vae: nn.Module | str | os.PathLike[str] | None = None,
    ) -> None:
        check_classes(type(self).__name__, pipe, self.pipeline_class, self.schedulers)
        for name, value in (("steps", steps), ("decode_batch", decode_batch)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        super().__init__(
            pipe,
            self.path(pipe),
            self.scale(pipe, guidance_scale),
            self.default_steps if steps is None else steps,
        )
        default = pipe.default_sample_size * pipe.vae_scale_factor
        multiple = self.vae_scale_factor * self.patch_size
        self.height = check_size("height", default if height is None else height, multiple)
        self.width = check_size("width", default if width is None else width, multiple)
        self.max_sequence_length = check_sequence_length(
            max_sequence_length, self.default_sequence_length, self.pipeline_class
        )
        self.decode_batch = decode_batch
        self.checkpoint_decode = checkpoint_decode
        self.vae_override: nn.Module | None = None
        if vae is not None:
            self.vae_override = load_autoencoder(vae, self.tiny_autoencoder, pipe.vae.dtype)
            check_autoencoder(self.vae_override, self.channels, self.vae_scale_factor)

    @classmethod
    @abstractmethod
    def path(cls, pipe: Any) -> Schedule:
        """The path on which the pipeline's network was trained.

        Raises:
            ValueError: If the network was trained in a way that the family does not know.
        """

    @classmethod
    def scale(cls, pipe: Any, guidance_scale: float | None) -> float | None:
        """The scale of classifier-free guidance of a pipeline; None asks for its default.

        Raises:
            TypeError: If it is no number.
            ValueError: If the pipeline cannot have it.
        """

        return checks.optional(checks.number, "guidance_scale", guidance_scale, 0)

    @abstractmethod
    def network(self, x_t: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        r"""Calls the denoising network once.

        Arguments:
            x_t: States in the dtype of the network, with shape (B, \*event).
            t: Times in float64, with shape (B,).
            embeddings: Embeddings of these B samples, as from :meth:`encode_text`.

        Returns:
            The network's output, with the shape of `x_t`.
        """

    @abstractmethod
    def predict(self, output: Tensor, x_t: Tensor, scales: Scales) -> Prediction:
        r"""The prediction that an output of the network states.

        Arguments:
            output: The output, in float32 or wider, with shape (B, \*event).
            x_t: The states, with the same shape.
            scales: The path at their times.
        """

    @abstractmethod
    def encode_text(
        self, prompts: list[str], negative_prompts: list[str] | None
    ) -> tuple[Embeddings, Embeddings | None]:
        """Embeddings of prompts and, under classifier-free guidance, of negative prompts.

        Arguments:
            prompts: The prompts.
            negative_prompts: One negative prompt for each; None is the pipeline's default.
        """

    @abstractmethod
    def times(self, steps: int | None = None) -> Tensor:
        """The times that the pipeline itself visits, as :meth:`rwguidance.backbone.Backbone.times`.

        Arguments:
            steps: Number of steps, at least 1. None is the number of the constructor.
        """

    def __repr__(self) -> str:
        """Returns the class and the settings in one line, not the tree of all networks."""

        return (
            f"{type(self).__name__}(pipe={type(self.pipe).__name__}, steps={self.steps}, "
            f"guidance_scale={self.guidance_scale}, size={self.height} x {self.width}, "
            f"device={self.device}, dtype={self.dtype})"
        )

    @property
    def guided(self) -> bool:
        """True if there is classifier-free guidance, for which the network sees twice the batch."""

        return self.guidance_scale is not None and self.guidance_scale > 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoising network."""

        dtype: torch.dtype = getattr(self.pipe, self.denoiser).dtype
        return dtype

    def condition(
        self, prompts: Sequence[str], negative_prompts: str | Sequence[str] | None = None
    ) -> TextCondition:
        """Encodes prompts through the pipeline, each distinct one once.

        The pipeline warns, in its own words, of what it cuts from a prompt that is too long.

        Arguments:
            prompts: One prompt per sample.
            negative_prompts: Prompts that classifier-free guidance leads away from, one per sample
                or one for all. None is the pipeline's default.

        Raises:
            TypeError: If prompts are not strings.
            ValueError: If there is no prompt, or there are negative prompts but no classifier-free
                guidance.
        """

        if negative_prompts is not None and not self.guided:
            raise ValueError(
                "negative_prompts take classifier-free guidance, of which this backbone has none "
                f"(guidance_scale={self.guidance_scale}); it comes with a guidance_scale above 1, "
                "for models of the SDXL and SD3 families that are not distilled"
            )
        with torch.no_grad():
            return encode_distinct(self._encoded, prompts, negative_prompts)

    def _encoded(self, prompts: list[str], negative_prompts: list[str] | None) -> TextCondition:
        return TextCondition(tuple(prompts), *self.encode_text(prompts, negative_prompts))

    def forward(
        self, x_t: Tensor, t: float | Tensor, condition: TextCondition | None = None
    ) -> Prediction:
        r"""Predicts with one call of the network, in float32 or wider around it.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], with shape () or (B,).
            condition: The condition of these B samples, as from :meth:`condition`.

        Raises:
            TypeError: If the condition is none of :meth:`condition`.
            ValueError: If it is for another number of samples or another guidance, or states and
                condition are not where the pipeline computes.
        """

        check_latents("x_t", x_t, self.channels)
        embeddings = check_condition(condition, len(x_t), self.guided).stacked(self.dtype)
        check_devices(x_t, embeddings, getattr(self.pipe, self.denoiser), self.pipe)
        scales = self.schedule.at(t, like=x_t)
        t = as_times(t, batch=len(x_t)).expand(len(x_t))

        x = x_t.to(self.dtype)
        if self.guided:
            x, t = torch.cat((x, x)), torch.cat((t, t))
        with memory.advice(
            f"The network had a batch of {len(x)}: sample fewer at once, load its weights with "
            "dtype=torch.bfloat16, or call pipe.enable_model_cpu_offload()"
        ):
            output = self.network(x, t, embeddings)
        check_patches(x_t, self.patch_size, output.shape[1:] == x_t.shape[1:])
        output = output.to(working_dtype(x_t.dtype))
        if self.guided:
            negative, positive = output.chunk(2)
            scale = self.guidance_scale or 1.0
            output = negative + scale * (positive - negative)
        return self.predict(output, x_t, scales)

    def draw_noise(self, n: int, generator: Generators = None) -> Tensor:
        r"""States with which the pipeline starts, the same ones for the same generator.

        Arguments:
            n: Number of states.
            generator: Source of randomness, on the CPU or on the pipeline's device; one, or one per
                state.

        Returns:
            States with shape (n, C, H, W), on the device and in the dtype of the network.
        """

        n = checks.integer("n", n, 0)
        side = self.vae_scale_factor
        shape = (n, self.channels, self.height // side, self.width // side)
        return self.noise_scale * normal(shape, generator, self.device, self.dtype)

    @property
    def channels(self) -> int:
        """Channels of the latents."""

        return int(self.pipe.vae.config.latent_channels)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image per pixel of its latents, along one side."""

        return int(self.pipe.vae_scale_factor)

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the states with which the pipeline starts."""

        return 1.0

    @property
    def vae(self) -> Any:
        """The autoencoder in use: the pipeline's, unless another one took its place."""

        if self.vae_override is None:
            return self.pipe.vae
        return self.vae_override.to(self.device)

    @property
    def _codec(self) -> LatentCodec:
        return LatentCodec(
            vae=self.vae,
            device=self.device,
            shifted=self.shifts_latents,
            batch=self.decode_batch,
            recompute=self.checkpoint_decode,
        )

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

        check_latents("latents", latents, self.channels)
        if latents.is_meta and self.device.type != "meta":
            raise ValueError("latents must hold values, got a tensor of the meta device")
        return self._codec.decode(latents)

    def encode(self, images: Tensor) -> Tensor:
        r"""Clean states of images: the mean of the VAE's posterior.

        Arguments:
            images: Images in [0, 1], with shape (B, 3, H, W), of sizes that the VAE accepts.

        Returns:
            Latents in the units of the network, float32, with shape (B, C, H', W').

        Raises:
            TypeError: If the images are no floating-point tensor with four axes.
        """

        return self._codec.encode(images)

    def _scheduler_at(self, steps: int | None, **keywords: Any) -> Any:
        """A copy of the pipeline's scheduler, set to a number of steps."""

        steps = self._checked_steps(steps)
        if "sigmas" not in keywords:  # which say the number themselves
            keywords["num_inference_steps"] = steps
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(**keywords)
        return scheduler


def require(module: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: If it is missing; says how to install it.
    """

    return outside.require(module, "pipelines need", "backbones")
