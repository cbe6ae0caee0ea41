"""Tiny pipelines of transformers that read the states of a language model."""

from collections.abc import Callable
from typing import Any

from .pipelines import require
from .tiny_parts import (
    chat_tokenizer,
    clip_config,
    clip_tokenizer,
    flow,
    flux2_autoencoder,
    llama,
    mistral3,
    qwen3,
    qwen_vl,
    t5,
    t5_tokenizer,
    vae16,
    video_autoencoder,
)

__all__ = ["LANGUAGE"]


def _flux2_klein() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,  # of three layers of the text encoder
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=qwen3(layers=27, causal=True),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
        is_distilled=True,
    )


def _qwen_image() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=video_autoencoder("AutoencoderKLQwenImage"),
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


def _z_image() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.ZImageTransformer2DModel(
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    return diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=vae16(),
        text_encoder=qwen3(),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


def _ernie_image() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        text_in_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    return diffusers.ErnieImagePipeline(
        transformer=transformer,
        vae=flux2_autoencoder(),
        text_encoder=mistral3(),
        tokenizer=chat_tokenizer(),
        scheduler=flow(shift=3.0),
    )


def _hidream() -> Any:
    diffusers, transformers = require("diffusers"), require("transformers")
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[32, 32],
        text_emb_dim=64,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
    )
    return diffusers.HiDreamImagePipeline(
        scheduler=flow(shift=3.0),
        vae=vae16(),
        text_encoder=transformers.CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(width=32),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama(),
        tokenizer_4=chat_tokenizer(),
        transformer=transformer,
    )


def _ovis() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.OvisImageTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.OvisImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae16(),
        text_encoder=qwen3(),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


def _longcat() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.LongCatImageTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    return diffusers.LongCatImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae16(),
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(),
        text_processor=None,
        transformer=transformer,
    )


LANGUAGE: dict[str, Callable[[], Any]] = {
    "flux2-klein": _flux2_klein,
    "qwen-image": _qwen_image,
    "z-image": _z_image,
    "ernie-image": _ernie_image,
    "hidream": _hidream,
    "ovis-image": _ovis,
    "longcat-image": _longcat,
}
"""Functions that make pipelines, by name."""
