"""Real diffusers pipelines with tiny random weights: nothing is downloaded.

They are of the published classes, with text encoders, tokenizers and schedulers as published, but
a few megabytes in size. Their images are noise. They are what tests, examples and dry runs of a
script need where the real weights are not at hand:

    pipe = tiny("sdxl-turbo")
    backbone = from_pipeline(pipe)
"""

from collections.abc import Callable
from typing import Any

import torch

from rwguidance.support.randomness import seeded

from .pipelines import require

__all__ = ["tiny"]

_BYTES = 256
"""Every byte is one token; the special ones come after."""


def tiny(name: str, seed: int = 0) -> Any:
    """A pipeline of the real class with random weights, at 16 pixels or more, in float32.

    Arguments:
        name: "sdxl", "sdxl-turbo", "sd3", "sd3.5-turbo", "flux" or "flux-schnell".
        seed: Seed of the weights. The global generators stay as they are.

    Returns:
        A StableDiffusionXLPipeline, StableDiffusion3Pipeline or FluxPipeline of diffusers.

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
        vae=_vae(latent_channels=4, scaling_factor=0.13025),
        text_encoder=transformers.CLIPTextModel(_clip_config()),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
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
        vae=_vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=transformers.CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(width=64),
        tokenizer_3=_t5_tokenizer(),
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
        vae=_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=transformers.CLIPTextModel(_clip_config()),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(width=32),
        tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
    )


_PIPELINES: dict[str, Callable[[], Any]] = {
    "sdxl": _sdxl,
    "sdxl-turbo": _sdxl_turbo,
    "sd3": _sd3,
    "sd3.5-turbo": _sd3,  # published with the same classes and the same scheduler
    "flux": _flux,
    "flux-schnell": _flux_schnell,
}


def _vae(latent_channels: int, scaling_factor: float, shift_factor: float | None = None) -> Any:
    diffusers = require("diffusers")
    quantized = shift_factor is None  # only the older VAE has convolutions around its latents
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=quantized,
        use_post_quant_conv=quantized,
        sample_size=16,
    )


def _clip_config() -> Any:
    transformers = require("transformers")
    return transformers.CLIPTextConfig(
        vocab_size=_BYTES + 2,
        bos_token_id=_BYTES,
        eos_token_id=_BYTES + 1,
        pad_token_id=_BYTES + 1,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
    )


def _t5(width: int) -> Any:
    transformers = require("transformers")
    config = transformers.T5Config(
        vocab_size=_BYTES + 2,
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        eos_token_id=_BYTES,
        pad_token_id=_BYTES + 1,
        decoder_start_token_id=_BYTES + 1,
    )
    return transformers.T5EncoderModel(config)


def _clip_tokenizer() -> Any:
    return _tokenizer(["<start>", "<end>"], "<start> $A <end>", "<start>", "<end>", 77)


def _t5_tokenizer() -> Any:
    return _tokenizer(["<end>", "<pad>"], "$A <end>", None, "<pad>", 512)


def _tokenizer(special: list[str], template: str, start: str | None, pad: str, length: int) -> Any:
    """A tokenizer whose tokens are bytes: every prompt has its own, without files."""

    tokenizers, transformers = require("tokenizers"), require("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *special])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in special]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token="<end>",
        pad_token=pad,
        model_max_length=length,
    )
