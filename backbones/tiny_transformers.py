"""Tiny pipelines around a transformer, beside those of SD3 and FLUX.1."""

from collections.abc import Callable
from typing import Any

from .pipelines import require
from .tiny_parts import (
    chat_tokenizer,
    clip_config,
    clip_tokenizer,
    dc_autoencoder,
    gemma2,
    glm,
    llama,
    mistral3,
    qwen3,
    qwen_vl,
    t5,
    t5_tokenizer,
    umt5,
    vae,
    video_autoencoder,
)

__all__ = ["TRANSFORMERS"]


def _flow(**config: Any) -> Any:
    return require("diffusers").FlowMatchEulerDiscreteScheduler(**config)


def _vae16(scaling_factor: float = 0.3611, shift_factor: float = 0.1159, levels: int = 2) -> Any:
    return vae(16, scaling_factor, shift_factor, levels)


def _flux2_autoencoder() -> Any:
    made = require("diffusers").AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    made.bn.running_mean.normal_()
    made.bn.running_var.uniform_(0.5, 2.0)
    return made


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
        scheduler=_flow(shift=3.0, use_dynamic_shifting=True),
        vae=_flux2_autoencoder(),
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
        scheduler=_flow(use_dynamic_shifting=True),
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
        scheduler=_flow(shift=3.0),
        vae=_vae16(),
        text_encoder=qwen3(),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


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
        scheduler=_flow(shift=6.0),
        vae=_vae16(levels=4),
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
        scheduler=_flow(),
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
        scheduler=_flow(use_dynamic_shifting=True),
        vae=_vae16(),
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
        vae=_vae16(1.0, 0.0),
        transformer=transformer,
        scheduler=_flow(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True),
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
        text_encoder=umt5(width=32),
        vae=vae(latent_channels=4, scaling_factor=0.13025),
        transformer=transformer,
        scheduler=_flow(shift=1.73),
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
        vae=_flux2_autoencoder(),
        text_encoder=mistral3(),
        tokenizer=chat_tokenizer(),
        scheduler=_flow(shift=3.0),
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
        scheduler=_flow(shift=3.0),
        vae=_vae16(),
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
        scheduler=_flow(use_dynamic_shifting=True),
        vae=_vae16(),
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
        scheduler=_flow(use_dynamic_shifting=True),
        vae=_vae16(),
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(),
        text_processor=None,
        transformer=transformer,
    )


def _prx() -> Any:
    diffusers = require("diffusers")
    transformer = diffusers.PRXTransformer2DModel(
        context_in_dim=32, hidden_size=32, num_heads=2, depth=1, axes_dim=[8, 8]
    )
    return diffusers.PRXPipeline(
        transformer=transformer,
        scheduler=_flow(shift=3.0),
        text_encoder=gemma2(),
        tokenizer=chat_tokenizer(),
        vae=_vae16(),
        default_sample_size=16,
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
        text_encoder=umt5(width=32),
        vae=video_autoencoder("AutoencoderKLWan"),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer,
    )


TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "flux2-klein": _flux2_klein,
    "qwen-image": _qwen_image,
    "z-image": _z_image,
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
    "ernie-image": _ernie_image,
    "hidream": _hidream,
    "ovis-image": _ovis,
    "longcat-image": _longcat,
    "prx": _prx,
    "wan": _wan,
}
"""Functions that make pipelines, by name."""
