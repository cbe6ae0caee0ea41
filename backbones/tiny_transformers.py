"""Tiny pipelines around a transformer, beside those of SD3 and FLUX.1."""

from collections.abc import Callable
from typing import Any

from .pipelines import require
from .tiny_parts import (
    chat_tokenizer,
    clip_tokenizer,
    dc_autoencoder,
    flow,
    gemma2,
    glm,
    t5,
    t5_tokenizer,
    vae,
    vae16,
    video_autoencoder,
)

__all__ = ["TRANSFORMERS"]


def _sana_transformer(**network: Any) -> Any:
    return require("diffusers").SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=32,
        **network,
    )


def _sana() -> Any:
    diffusers = require("diffusers")
    return diffusers.SanaPipeline(
        tokenizer=chat_tokenizer(),
        text_encoder=gemma2(),
        vae=dc_autoencoder(),
        transformer=_sana_transformer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def _sana_sprint() -> Any:
    diffusers = require("diffusers")
    return diffusers.SanaSprintPipeline(
        tokenizer=chat_tokenizer(),
        text_encoder=gemma2(),
        vae=dc_autoencoder(),
        transformer=_sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        scheduler=diffusers.SCMScheduler(),
    )


def _pixart_alpha() -> Any:
    return _pixart("PixArtAlphaPipeline", 0.18215)


def _pixart_sigma() -> Any:
    return _pixart("PixArtSigmaPipeline", 0.13025)


def _pixart(pipeline: str, scaling_factor: float) -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        cross_attention_dim=32,
        sample_size=8,
        caption_channels=32,
        use_additional_conditions=False,
    )
    return getattr(diffusers, pipeline)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(width=32),
        vae=vae(latent_channels=4, scaling_factor=scaling_factor),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


def _lumina2() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(512, 64, 64),
        cap_feat_dim=32,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(shift=6.0),
        vae=vae16(levels=4),
        text_encoder=gemma2(),
        tokenizer=chat_tokenizer(),
    )


def _lumina() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        hidden_size=32,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=32,
    )
    return diffusers.LuminaPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(latent_channels=4, scaling_factor=0.13025),
        text_encoder=gemma2(),
        tokenizer=chat_tokenizer(),
    )


def _chroma() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.ChromaTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae16(),
        text_encoder=t5(width=32),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )


def _cogview4() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.CogView4Transformer2DModel(
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(64, 64),
    )
    return diffusers.CogView4Pipeline(
        tokenizer=chat_tokenizer(),
        text_encoder=glm(),
        vae=vae16(1.0, 0.0),
        transformer=transformer,
        scheduler=flow(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True),
    )


def _aura_flow() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(width=32, kind="UMT5"),
        vae=vae(latent_channels=4, scaling_factor=0.13025),
        transformer=transformer,
        scheduler=flow(shift=1.73),
    )


def _hunyuan_dit() -> Any:
    diffusers, transformers = require("diffusers"), require("transformers")
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
    )
    bert = transformers.BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return diffusers.HunyuanDiTPipeline(
        vae=vae(latent_channels=4, scaling_factor=0.13025, levels=4),
        text_encoder=transformers.BertModel(bert),
        tokenizer=clip_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(
            prediction_type="v_prediction", beta_schedule="scaled_linear", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(width=32),
        tokenizer_2=t5_tokenizer(),
    )


def _wan() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    return diffusers.WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(width=32, kind="UMT5"),
        vae=video_autoencoder("AutoencoderKLWan"),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer,
    )


TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "sana": _sana,
    "sana-sprint": _sana_sprint,
    "pixart-alpha": _pixart_alpha,
    "pixart-sigma": _pixart_sigma,
    "lumina": _lumina,
    "lumina2": _lumina2,
    "chroma": _chroma,
    "cogview4": _cogview4,
    "aura-flow": _aura_flow,
    "hunyuan-dit": _hunyuan_dit,
    "wan": _wan,
}
"""Functions that make pipelines, by name."""
