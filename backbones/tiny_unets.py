"""Tiny pipelines around a U-Net, beside that of SDXL."""

from collections.abc import Callable
from typing import Any

from .pipelines import require
from .tiny_parts import clip_config, clip_tokenizer, vae

__all__ = ["UNETS"]

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd15() -> Any:
    scheduler = require("diffusers").PNDMScheduler(
        **_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    return _stable_diffusion("StableDiffusionPipeline", scheduler)


def _sd_turbo() -> Any:
    scheduler = require("diffusers").EulerDiscreteScheduler(
        **_BETAS, steps_offset=1, timestep_spacing="trailing"
    )
    return _stable_diffusion("StableDiffusionPipeline", scheduler)


def _lcm() -> Any:
    scheduler = require("diffusers").LCMScheduler(**_BETAS, set_alpha_to_one=True)
    return _stable_diffusion("LatentConsistencyModelPipeline", scheduler, time_cond_proj_dim=32)


def _stable_diffusion(pipeline: str, scheduler: Any, **network: Any) -> Any:
    diffusers, transformers = require("diffusers"), require("transformers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=32,
        **network,
    )
    return getattr(diffusers, pipeline)(
        vae=vae(latent_channels=4, scaling_factor=0.18215),
        text_encoder=transformers.CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


UNETS: dict[str, Callable[[], Any]] = {"sd1.5": _sd15, "sd-turbo": _sd_turbo, "lcm": _lcm}
"""Functions that make pipelines, by name."""
