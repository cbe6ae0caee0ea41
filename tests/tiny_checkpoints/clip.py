"""CLIP under the names of open_clip, OpenAI and transformers: HPSv2, PickScore, CLIPScore."""

import gzip
import importlib.util
from pathlib import Path

import torch
from safetensors.torch import save_file

from .weights import fill, pair, write_json

# Architectures of CLIP are written as open_clip's configurations, from which the rest follows.
HPSV2_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 224,
        "layers": 2,
        "width": 64,
        "head_width": 16,
        "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 4,
        "layers": 2,
    },
}

# OpenAI's loader infers the heads from the widths, always 64 per head.
CLIP_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 224,
        "layers": 2,
        "width": 128,
        "head_width": 64,
        "patch_size": 32,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 128,
        "heads": 2,
        "layers": 2,
    },
}


MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


# CLIP in open_clip's and OpenAI's names


def native_shapes(config):
    """Names and shapes of a CLIP ViT, as in the files of open_clip and of OpenAI."""

    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2

    return {
        "positional_embedding": (text["context_length"], text["width"]),
        "text_projection": (text["width"], embed),
        "logit_scale": (),
        "visual.class_embedding": (vision["width"],),
        "visual.positional_embedding": (patches + 1, vision["width"]),
        "visual.proj": (vision["width"], embed),
        "visual.conv1.weight": (vision["width"], 3, vision["patch_size"], vision["patch_size"]),
        **pair("visual.ln_pre", vision["width"]),
        **native_blocks("visual.transformer", vision["width"], vision["layers"]),
        **pair("visual.ln_post", vision["width"]),
        **native_blocks("transformer", text["width"], text["layers"]),
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        **pair("ln_final", text["width"]),
    }


def native_blocks(prefix, width, layers):
    shapes = {}
    for i in range(layers):
        block = f"{prefix}.resblocks.{i}"
        shapes |= pair(f"{block}.ln_1", width)
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        shapes |= pair(f"{block}.attn.out_proj", width, width)
        shapes |= pair(f"{block}.ln_2", width)
        shapes |= pair(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= pair(f"{block}.mlp.c_proj", width, 4 * width)
    return shapes


def native_state_dict(config, salt=""):
    """The weights of a CLIP ViT; another salt gives other weights."""

    return {name: fill(salt + name, shape) for name, shape in native_shapes(config).items()}


def write_hpsv2(directory, config=HPSV2_CONFIG, name="HPS_v2_compressed.pt"):
    """HPSv2's file; `name` is also "HPS_v2.1_compressed.pt", whose weights differ. Returns it."""

    path = Path(directory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": native_state_dict(config, salt=f"{name}/")}, path)
    return path


def openai_state_dict(config=CLIP_CONFIG):
    """The weights of `write_clip` under OpenAI's names, as its loader reads them.

    That loader rounds all matrices to float16, so these are float16 numbers to begin with, like
    the published ones.
    """

    state = native_state_dict(config, salt="openai/")
    kept = ("ln_", "token_embedding", "positional_embedding", "class_embedding", "logit_scale")
    return {
        name: tensor if any(part in name for part in kept) else tensor.half().float()
        for name, tensor in state.items()
    }


# CLIP in transformers' names and files


def write_pickscore(directory, config=HPSV2_CONFIG, safetensors=True):
    """PickScore's folder: CLIP with GELU, written by an early transformers, and its processor."""

    directory = Path(directory)
    state = native_state_dict(config, salt="pickscore/")
    write_clip_model(directory, hf_config(config, "gelu"), hf_state_dict(state), safetensors)
    write_clip_processor(directory, config["vision_cfg"]["image_size"])
    return directory


def write_clip(directory, projection_dim=None, config=CLIP_CONFIG, safetensors=True):
    """OpenAI's CLIP (its quick GELU) in transformers' format, with its processor."""

    if projection_dim is not None:
        config = {**config, "embed_dim": projection_dim}

    directory = Path(directory)
    state = hf_state_dict(openai_state_dict(config))
    write_clip_model(directory, hf_config(config, "quick_gelu"), state, safetensors)
    write_clip_processor(directory, config["vision_cfg"]["image_size"])
    return directory


def write_clip_model(directory, config, state, safetensors):
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    if safetensors:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, directory / "pytorch_model.bin")


def hf_config(config, activation):
    """config.json in the form of early 2023, when the reward models were published.

    Its `eos_token_id` of 2 names no token: it tells transformers to pool at the largest id.
    """

    vision, text = config["vision_cfg"], config["text_cfg"]
    text_part = {
        "hidden_act": activation,
        "hidden_size": text["width"],
        "intermediate_size": 4 * text["width"],
        "num_attention_heads": text["heads"],
        "num_hidden_layers": text["layers"],
        "projection_dim": config["embed_dim"],
    }
    vision_part = {
        "hidden_act": activation,
        "hidden_size": vision["width"],
        "intermediate_size": 4 * vision["width"],
        "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        "num_hidden_layers": vision["layers"],
        "patch_size": vision["patch_size"],
        "projection_dim": config["embed_dim"],
    }
    shared = {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "transformers_version": "4.27.4",
    }
    return {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": config["embed_dim"],
        "text_config": {
            **shared,
            **text_part,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "max_position_embeddings": text["context_length"],
            "model_type": "clip_text_model",
            "pad_token_id": 1,
            "vocab_size": text["vocab_size"],
        },
        "text_config_dict": text_part,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": {
            **shared,
            **vision_part,
            "image_size": vision["image_size"],
            "model_type": "clip_vision_model",
            "num_channels": 3,
        },
        "vision_config_dict": vision_part,
    }


def hf_state_dict(native):
    """The same weights under transformers' names.

    With the two `position_ids`, which files of that age hold and later models do not know.
    """

    renamed = {
        "logit_scale": native["logit_scale"],
        "text_projection.weight": native["text_projection"].T,
        "visual_projection.weight": native["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": native["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": native["positional_embedding"],
        "vision_model.embeddings.class_embedding": native["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": native["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": native["visual.positional_embedding"],
    }
    for part in ("weight", "bias"):
        renamed |= {
            f"text_model.final_layer_norm.{part}": native[f"ln_final.{part}"],
            f"vision_model.pre_layrnorm.{part}": native[f"visual.ln_pre.{part}"],
            f"vision_model.post_layernorm.{part}": native[f"visual.ln_post.{part}"],
        }

    renamed |= hf_blocks(native, "transformer", "text_model.encoder")
    renamed |= hf_blocks(native, "visual.transformer", "vision_model.encoder")

    for model in ("text_model", "vision_model"):
        count = len(renamed[f"{model}.embeddings.position_embedding.weight"])
        renamed[f"{model}.embeddings.position_ids"] = torch.arange(count)[None]
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def hf_blocks(native, old, new):
    names = {
        "ln_1": "layer_norm1",
        "attn.out_proj": "self_attn.out_proj",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    renamed = {}
    layers = sum(
        name.startswith(f"{old}.resblocks.") and name.endswith("in_proj_bias") for name in native
    )
    for i in range(layers):
        here, there = f"{old}.resblocks.{i}", f"{new}.layers.{i}"
        for part in ("weight", "bias"):
            for before, after in names.items():
                renamed[f"{there}.{after}.{part}"] = native[f"{here}.{before}.{part}"]
            thirds = native[f"{here}.attn.in_proj_{part}"].chunk(3)
            for letter, third in zip("qkv", thirds, strict=True):
                renamed[f"{there}.self_attn.{letter}_proj.{part}"] = third.clone()
    return renamed


def write_clip_processor(directory, image_size=224, bpe=None):
    """Tokenizer and image processor of CLIP, as the folders of laion and OpenAI hold them."""

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "preprocessor_config.json",
        {
            "crop_size": image_size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": MEAN,
            "image_std": STD,
            "resample": 3,
            "size": image_size,
        },
    )

    vocabulary, merges = clip_vocabulary(bpe)
    write_json(directory / "vocab.json", vocabulary, indent=None)
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    (directory / "merges.txt").write_text(text, encoding="utf-8")

    start, end = "<|startoftext|>", "<|endoftext|>"
    specials = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    write_json(directory / "special_tokens_map.json", specials)
    write_json(
        directory / "tokenizer_config.json",
        {
            **specials,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
        },
    )


def clip_vocabulary(bpe=None):
    """CLIP's 49408 tokens and 48894 merges, in order."""

    with gzip.open(bpe or bpe_file(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = lines[1 : 1 + 49408 - 2 * 256 - 2]
    letters = byte_letters()
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {token: i for i, token in enumerate(tokens)}, merges


def byte_letters():
    """One visible letter per byte: the visible bytes are themselves, and come first."""

    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def bpe_file():
    """The merges of CLIP's tokenizer, which open_clip and OpenAI's package both ship."""

    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
            if path.exists():
                return path
    raise FileNotFoundError(
        "bpe_simple_vocab_16e6.txt.gz is in neither open_clip nor clip; "
        "pip install open_clip_torch, or pass its path"
    )
