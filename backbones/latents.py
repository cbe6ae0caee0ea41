"""Between latents and images: an autoencoder of diffusers, called as the pipelines call it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwguidance.schedules import working_dtype
from rwguidance.support import memory

__all__ = ["NOT_DIFFERENTIABLE", "LatentCodec", "overflows"]


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """An autoencoder between the latents of a denoising network and images.

    Arguments:
        vae: The autoencoder.
        device: Device on which it computes.
        shifted: Whether to add the shift that its configuration names.
        batch: Number of images that it handles at once; None is all of them.
        recompute: Whether gradients keep only its inputs, and compute the rest again.
    """

    depends_on: ClassVar[tuple[str, ...]] = ("vae", "shifted")

    vae: Any
    device: torch.device
    shifted: bool
    batch: int | None = None
    recompute: bool = False

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], float32 or wider, of latents (B, C, H, W)."""

        return self._in_chunks(self._decode, latents)

    def encode(self, images: Tensor) -> Tensor:
        """Latents, float32 or wider, of images (B, 3, H, W) in [0, 1]: the posterior's mean.

        Raises:
            TypeError: If the images are no floating-point tensor with four axes.
        """

        if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else images
            raise TypeError(f"images must be a float tensor of shape (B, 3, H, W), got {got}")
        return self._in_chunks(self._encode, images)

    def _decode(self, latents: Tensor) -> Tensor:
        scale, shift = self._affine()
        latents = latents.to(self.device)
        z = latents * scale.to(latents) + shift.to(latents)
        (images,) = self.vae.decode(z.to(self.vae.dtype), return_dict=False)
        wide = working_dtype(images.dtype)
        return (images.to(wide) / 2 + 0.5).clamp(0, 1)

    def _encode(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode((2 * images - 1).to(device=self.device, dtype=self.vae.dtype))
        # A tiny autoencoder has no posterior, only its latents.
        z = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        z = z.to(working_dtype(z.dtype))
        scale, shift = self._affine()
        return (z - shift.to(z)) / scale.to(z)

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift from the network's units to those of the VAE, each (1, C or 1, 1, 1)."""

        config = self.vae.config
        column = lambda value: torch.as_tensor(value, dtype=torch.float64).reshape(1, -1, 1, 1)
        scale = 1 / column(config.scaling_factor)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            return column(std) * scale, column(mean)
        shift = getattr(config, "shift_factor", None) if self.shifted else None
        return scale, column(shift or 0.0)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        size = self.batch or max(1, len(batch))
        differentiable = batch.requires_grad and torch.is_grad_enabled()
        if differentiable and self.recompute:
            function = partial(checkpoint, function, use_reentrant=False)
        hint = (
            f"The VAE had {min(size, len(batch))} images at once: lower decode_batch, pass "
            "vae=, a tiny autoencoder, or call pipe.enable_vae_tiling() or "
            "pipe.enable_model_cpu_offload()"
        )
        if differentiable and not self.recompute:
            hint += "; where gradients flow, as here, set checkpoint_decode=True"
        with _widened(self.vae, differentiable), memory.advice(hint):
            return torch.cat([function(chunk) for chunk in batch.split(size)])


NOT_DIFFERENTIABLE = (
    "decode is not differentiable through this VAE, which overflows in float16; run "
    "it in another precision, pipe.vae.to(torch.float32) or torch.bfloat16"
)
"""The message where a VAE is widened only for the moment of decoding."""


def overflows(vae: Any) -> bool:
    """True if a VAE is in float16 and must be widened to decode."""

    return vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))


@contextmanager
def _widened(vae: Any, differentiable: bool) -> Iterator[None]:
    """Runs a VAE that overflows in float16 in float32, as the pipelines do."""

    if not overflows(vae):
        yield
        return
    if differentiable:
        raise ValueError(NOT_DIFFERENTIABLE)
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)
