"""Tiny random models in the layout of Qwen2-VL, with its tokenizer, and images for them."""

import math

import pytest
import torch
from PIL import Image

PROMPTS = ["a cat", "two dogs on a very long red sofa, oil painting", "猫 {braces} & <tags>"]


def images(n=2, height=30, width=41, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator) / 255


def as_pil(image):
    return Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())


SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(path):
    """A byte-level tokenizer with a few merges and the special tokens of Qwen2-VL."""

    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("Ċ", "Ye"), ("Ċ", "Yes"), ("c", "a"), ("ca", "t")]
    words = [*letters, *(a + b for a, b in merges)]
    words = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(words)}, merges)
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    words.decoder = tokenizers.decoders.ByteLevel()
    words.add_special_tokens(SPECIAL)
    words.save(str(path))
    return words


def qwen_config(words, rows=None):
    """The published config.json of Qwen2-VL in its own layout, tiny."""

    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_start_token_id": words.token_to_id("<|vision_start|>"),
        "vision_end_token_id": words.token_to_id("<|vision_end|>"),
        "vision_token_id": words.token_to_id("<|vision_pad|>"),
        "image_token_id": words.token_to_id("<|image_pad|>"),
        "video_token_id": words.token_to_id("<|video_pad|>"),
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "vocab_size": rows or words.get_vocab_size(),
    }


def fill(module):
    """Random weights with some spread, so that everything matters."""

    generator = torch.Generator().manual_seed(1)
    for name, value in sorted(module.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("norm.weight") or ".norm" in name or "layernorm.weight" in name:
            value.copy_(1 + 0.2 * noise)
        elif value.ndim == 1:
            value.copy_(0.1 * noise)
        else:
            fan = math.prod(value.shape[1:]) if "embed_tokens" not in name else 1
            value.copy_(1.5 * noise / fan**0.5)
    return module


@pytest.fixture(scope="module")
def transformers():
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("the tiny models here are those of transformers 5")
    return transformers


@pytest.fixture(scope="module")
def qwen(transformers, tmp_path_factory):
    """A tiny Qwen2-VL with its processor, as save_pretrained writes it."""

    folder = tmp_path_factory.mktemp("qwen")
    words = write_tokenizer(folder / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
    )
    image_processor = transformers.Qwen2VLImageProcessor(
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 6}
    )
    processor = transformers.Qwen2VLProcessor(
        image_processor,
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )
    processor.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        model = transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(**qwen_config(words))
        )
    fill(model).save_pretrained(folder)
    return folder


def copied(folder, target):
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
