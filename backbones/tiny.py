"""Real diffusers pipelines with tiny random weights: nothing is downloaded.

They are of the published classes, with text encoders, tokenizers and schedulers as published, but
a few megabytes in size. Their images are noise. They are what tests, examples and dry runs of a
script need where the real weights are not at hand:

.. code-block:: python

    pipe = tiny("sdxl-turbo")
    backbone = from_pipeline(pipe)
"""

from collections.abc import Callable
from typing import Any

import torch

from rwguidance.support.randomness import seeded

from .pipelines import require
from .tiny_language import LANGUAGE
from .tiny_parts import clip_config, clip_tokenizer, t5, t5_tokenizer, vae
from .tiny_transformers import TRANSFORMERS
from .tiny_unets import UNETS

__all__ = ["tiny"]


def tiny(name: str, seed: int = 0) -> Any:
    """A pipeline of the real class with random weights, at 16 pixels or more, in float32.

    Arguments:
        name: The name of a pipeline, such as "sdxl-turbo", "sd3", "flux" or "qwen-image"; an error
            lists all.
        seed: Seed of the weights. The global generators stay as they are.

    Returns:
        A pipeline of diffusers, such as a StableDiffusionXLPipeline.

    Raises:
        LookupError: If there is no such pipeline; lists those that exist.
        ImportError: If diffusers is missing; says how to install it.
    """

    if name not in _PIPELINES:
        names = ", ".join(map(repr, _PIPELINES))
        raise LookupError(f"there is no tiny pipeline {name!r}, there are {names}")
    require("diffusers")
    with seeded(seed):
        pipe = _PIPELINES[name]()
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sdxl() -> Any:
    diffusers = require("diffusers")
    return _sdxl_with(
        diffusers.EulerDiscreteScheduler(**_SDXL_BETAS, timestep_spacing="leading", steps_offset=1)
    )


def _sdxl_turbo() -> Any:
    diffusers = require("diffusers")
    return _sdxl_with(
        diffusers.EulerAncestralDiscreteScheduler(**_SDXL_BETAS, timestep_spacing="trailing")
    )


_SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sdxl_with(scheduler: Any) -> Any:
    diffusers, transformers = require("diffusers"), require("transformers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        cross_attention_dim=64,  # the two text encoders side by side
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(latent_channels=4, scaling_factor=0.13025),
        text_encoder=transformers.CLIPTextModel(clip_config()),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sd3() -> Any:
    diffusers, transformers = require("diffusers"), require("transformers")
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=64,
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=transformers.CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(width=64),
        tokenizer_3=t5_tokenizer(),
    )


def _flux() -> Any:
    diffusers = require("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return _flux_with(scheduler, guidance_embeds=True)


def _flux_schnell() -> Any:
    diffusers = require("diffusers")
    return _flux_with(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), guidance_embeds=False)


def _flux_with(scheduler: Any, guidance_embeds: bool) -> Any:
    diffusers, transformers = require("diffusers"), require("transformers")
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,  # 16 channels of 2 x 2 latent pixels
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=transformers.CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(width=32),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


_PIPELINES: dict[str, Callable[[], Any]] = {
    "sdxl": _sdxl,
    "sdxl-turbo": _sdxl_turbo,
    "sd3": _sd3,
    "sd3.5-turbo": _sd3,  # published with the same classes and the same scheduler
    "flux": _flux,
    "flux-schnell": _flux_schnell,
    **UNETS,
    **TRANSFORMERS,
    **LANGUAGE,
}
