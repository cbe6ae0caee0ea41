"""Published pipelines with random weights, to be called with embeddings of prompts: no downloads.

Their weights are made on the device, in the dtype asked for. Nothing but their sizes is real, so
their pictures are noise, and times and memory are what they would be.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.backbones import ARCHITECTURES, Architecture, count, fill, pipeline
from rwguidance import backbones

__all__ = ["NAMES", "PROMPT", "Subject", "options", "published", "tiny"]

PROMPT = "a prompt"

KLEIN = {
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
KLEIN_TOKENS, KLEIN_BILLIONS = 512, 3.876


@dataclass(frozen=True)
class Subject:
    """A pipeline and how it is called.

    Arguments:
        name: Its name.
        pipe: The pipeline.
        call: A function from a number of images to the arguments of a call that makes them.
    """

    name: str
    pipe: Any
    call: Callable[[int], dict[str, Any]]

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that is called at every step."""

        network: torch.nn.Module = getattr(self.pipe, "unet", None) or self.pipe.transformer
        return network


def tiny(name: str) -> Subject:
    """A pipeline of the same class with next to no weights, for a rehearsal."""

    call = lambda n: {"prompt": [PROMPT] * n, **options(name, 32)}
    return Subject(name, backbones.tiny(_CALLS[name][2]), call)


def options(name: str, size: int | None = None) -> dict[str, Any]:
    """The arguments of a call, besides prompts.

    Arguments:
        name: One of :data:`NAMES`.
        size: Side of the images in pixels; None is the pipeline's own.
    """

    steps, scale, _ = _CALLS[name]
    square = {} if size is None else {"height": size, "width": size}
    return {"num_inference_steps": steps, "guidance_scale": scale, **square}


def published(
    name: str, device: torch.device, dtype: torch.dtype, factor: int = 1, size: int | None = None
) -> Subject:
    """A pipeline of the published size.

    Arguments:
        name: One of :data:`NAMES`.
        device: Device of the weights.
        dtype: Their dtype.
        factor: Divides every width of the denoiser and the autoencoder.
        size: Side of the images in pixels; None is the published one.
    """

    shapes: dict[str, tuple[int, ...]]
    if name == "flux2-klein":
        pipe = _klein(device, dtype, factor)
        shapes = {"prompt_embeds": (KLEIN_TOKENS, KLEIN["joint_attention_dim"])}
        side = 1024
    else:
        architecture = ARCHITECTURES[_OF.get(name, name)]
        pipe = pipeline(name, _narrow(architecture, factor), device, dtype)
        shapes = {
            "prompt_embeds": (architecture.tokens, architecture.text),
            "pooled_prompt_embeds": (architecture.pooled,),
        }
        side = architecture.size
    pipe.set_progress_bar_config(disable=True)

    def call(n: int) -> dict[str, Any]:
        texts = {key: _normal((n, *shape), device, dtype) for key, shape in shapes.items()}
        return {**texts, **options(name, size or side)}

    return Subject(name, pipe, call)


def _klein(device: torch.device, dtype: torch.dtype, factor: int) -> Any:
    heads = KLEIN["num_attention_heads"] // factor
    with torch.device("meta"):
        denoiser: Any = diffusers.Flux2Transformer2DModel(**{**KLEIN, "num_attention_heads": heads})
        vae: Any = diffusers.AutoencoderKLFlux2(
            block_out_channels=tuple(width // factor for width in (128, 256, 512, 512)),
            norm_num_groups=32 if factor == 1 else 16,
        )
    billions = count(denoiser) / 1e9
    if factor == 1 and abs(billions - KLEIN_BILLIONS) > 0.005:
        raise ValueError(f"expected {KLEIN_BILLIONS} billion parameters, got {billions:.3f}")
    for part in (denoiser.eval(), vae.eval()):
        fill(part, device, dtype)
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=denoiser,
        is_distilled=True,
    )


def _narrow(architecture: Architecture, factor: int) -> Architecture:
    return architecture if factor == 1 else architecture.reduced(factor)


def _normal(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


_CALLS = {
    "sdxl-turbo": (1, 0.0, "sdxl-turbo"),
    "sd3.5-large-turbo": (4, 0.0, "sd3.5-turbo"),
    "flux2-klein": (4, 1.0, "flux2-klein"),
}
"""Steps and guidance scale, as the cards of the models have them, and names of tiny pipelines."""

_OF = {"sd3.5-large-turbo": "sd3.5-large"}

NAMES = tuple(_CALLS)
"""Names of the pipelines, in order of worth."""
