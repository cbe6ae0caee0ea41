"""Parts of pipelines with tiny random weights: autoencoders, text encoders, tokenizers."""

from typing import Any

from .pipelines import require

__all__ = [
    "chat_tokenizer",
    "clip_config",
    "clip_tokenizer",
    "dc_autoencoder",
    "flow",
    "flux2_autoencoder",
    "gemma2",
    "glm",
    "llama",
    "mistral3",
    "qwen3",
    "qwen_vl",
    "t5",
    "t5_tokenizer",
    "vae",
    "vae16",
    "video_autoencoder",
]

_BYTES = 256
"""Every byte is one token; the special ones come after."""

_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>"]
"""Special tokens of chats."""

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def vae(
    latent_channels: int,
    scaling_factor: float,
    shift_factor: float | None = None,
    levels: int = 2,
) -> Any:
    """An autoencoder that maps 2 ** (levels - 1) pixels to one, along each side."""

    diffusers = require("diffusers")
    quantized = shift_factor is None  # only the older VAE has convolutions around its latents
    return diffusers.AutoencoderKL(
        block_out_channels=(8, *[16] * (levels - 1)),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=quantized,
        use_post_quant_conv=quantized,
        sample_size=16,
    )


def clip_config() -> Any:
    """Returns the configuration of a text encoder of CLIP."""

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


def t5(width: int, kind: str = "T5") -> Any:
    """Returns the encoder of a T5, or of the kind "UMT5", of a width."""

    transformers = require("transformers")
    config = getattr(transformers, f"{kind}Config")(
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
    return getattr(transformers, f"{kind}EncoderModel")(config)


def clip_tokenizer() -> Any:
    """Returns a tokenizer with the special tokens of CLIP, for 77 tokens."""

    return _tokenizer(["<start>", "<end>"], "<start> $A <end>", "<start>", "<end>", 77)


def t5_tokenizer() -> Any:
    """Returns a tokenizer with the special tokens of T5, for 512 tokens."""

    return _tokenizer(["<end>", "<pad>"], "$A <end>", None, "<pad>", 512)


def _tokenizer(
    special: list[str],
    template: str,
    start: str | None,
    pad: str,
    length: int,
    end: str = "<end>",
) -> Any:
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
        eos_token=end,
        pad_token=pad,
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],  # UMT5 takes no others
    )


_DECODER: dict[str, Any] = {
    "vocab_size": _BYTES + len(_SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": _BYTES + 3,
    "eos_token_id": _BYTES + 1,
    "pad_token_id": _BYTES + 2,
}


def qwen3(layers: int = 2, causal: bool = False) -> Any:
    """Returns a Qwen3, with a head for the next token if it is to be causal."""

    transformers = require("transformers")
    kind = transformers.Qwen3ForCausalLM if causal else transformers.Qwen3Model
    return kind(transformers.Qwen3Config(num_hidden_layers=layers, **_DECODER))


def gemma2() -> Any:
    """Returns a Gemma 2."""

    transformers = require("transformers")
    config = transformers.Gemma2Config(num_hidden_layers=2, query_pre_attn_scalar=8, **_DECODER)
    return transformers.Gemma2Model(config)


def glm() -> Any:
    """Returns a GLM."""

    transformers = require("transformers")
    return transformers.GlmModel(transformers.GlmConfig(num_hidden_layers=2, **_DECODER))


def llama() -> Any:
    """Returns a Llama with its head."""

    transformers = require("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=2, **_DECODER))


def mistral3() -> Any:
    """Returns the language model of a Mistral 3."""

    transformers = require("transformers")
    return transformers.MistralModel(transformers.MistralConfig(num_hidden_layers=2, **_DECODER))


def qwen_vl() -> Any:
    """Returns a Qwen2.5-VL, whose vision is there and never asked."""

    transformers = require("transformers")
    text = {k: v for k, v in _DECODER.items() if k != "head_dim"}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **text,
            "num_hidden_layers": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def chat_tokenizer() -> Any:
    """Returns a tokenizer with a template of chats, for 2048 tokens."""

    tokenizer = _tokenizer(_SPECIAL, "<bos> $A", "<bos>", "<|endoftext|>", 2048, "<|im_end|>")
    tokenizer.chat_template = _CHAT
    return tokenizer


def dc_autoencoder() -> Any:
    """Returns a deep compression autoencoder, of 2 pixels to one."""

    diffusers = require("diffusers")
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        scaling_factor=0.41407,
    )


def video_autoencoder(name: str, channels: int = 16) -> Any:
    """Returns an autoencoder of videos, of a class of diffusers; 8 pixels to one."""

    diffusers = require("diffusers")
    return getattr(diffusers, name)(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def flow(**config: Any) -> Any:
    """Returns the scheduler of straight paths."""

    return require("diffusers").FlowMatchEulerDiscreteScheduler(**config)


def vae16(scaling_factor: float = 0.3611, shift_factor: float = 0.1159, levels: int = 2) -> Any:
    """Returns an autoencoder with latents of 16 channels."""

    return vae(16, scaling_factor, shift_factor, levels)


def flux2_autoencoder() -> Any:
    """Returns the autoencoder of FLUX.2, with statistics of its batch norm."""

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
