r"""Checkpoints, images and prompts made by formula, in the file formats of the real reward models.

The published weights weigh gigabytes and may not be at hand; what must be proven is that *any*
weights in these formats give the score that the reference implementation gives. So the weights are
a hash of (tensor name, index), the same on every machine, and nothing large is committed: the
reference implementations (`tests/references`) score the same files, and their scores are in
`tests/goldens`.

Nothing here draws from a random generator, and nothing needs more than torch, numpy, Pillow and
safetensors, because the environments of the references are years older than ours. Every builder
takes its architecture as an argument: the defaults are tiny, but a benchmark may ask for ViT-L/14.
"""

import gzip
import importlib.util
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

__all__ = [
    "CLIP_CONFIG",
    "HPSV2_CONFIG",
    "IMAGEREWARD_VISION",
    "MED_CONFIG",
    "PROMPTS",
    "bpe_file",
    "fill",
    "fingerprint",
    "image_fingerprint",
    "images",
    "native_state_dict",
    "openai_state_dict",
    "pixel_summary",
    "write_aesthetic_head",
    "write_bert_tokenizer",
    "write_clip",
    "write_clip_processor",
    "write_hpsv2",
    "write_imagereward",
    "write_pickscore",
]

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

# BLIP's image tower: always 64 per head and patches of 16 pixels.
IMAGEREWARD_VISION = {"image_size": 224, "layers": 2, "width": 128, "patch_size": 16}

# The keys of the published med_config.json. The score head wants a hidden size of 768.
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]

PROMPTS = [
    "a photo of an astronaut riding a horse on mars",
    "two red apples and 3.5 kg of pears, on a wooden table!",
    "“Café au lait”, a naïve façade – it’s déjà vu…",  # noqa: RUF001
    "一只戴着墨镜的猫，坐在沙发上。",  # noqa: RUF001
    "a 🐙 playing the 🎸 under ｆｕｌｌｗｉｄｔｈ neon ﬁreworks",  # noqa: RUF001
    "Tom &amp;amp; Jerry in a caf&eacute;, 5 &lt; 7",
    "  A   VERY\tLOUD\n\nPORTRAIT   OF A   KING  ",
    "",
    "a masterpiece, intricate clockwork dragonfly, " + "iridescent wings, brass gears, " * 20,
    "0123456789 #$%'()*+,-./:;=?@[\\]^_`{|}~ don't we'll they're",
    "portrait of an old fisherman mending nets at dawn, weathered hands, warm rim light, shallow "
    "depth of field, film grain, muted palette, award winning photograph, by the harbour wall",
]


def uniform(name, count):
    """Numbers in [-1, 1) from a hash of (name, index): float32, and exact on every machine."""

    mixed = np.arange(count, dtype=np.uint32)
    mixed *= np.uint32(0x9E3779B1)
    mixed += np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    mixed >>= np.uint32(8)  # 24 bits fit into a float32 without rounding
    return mixed.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def fill(name, shape):
    """The tensor of this name and shape, with the scale that its name asks for.

    The scales are such that the scores of different images and prompts clearly differ.
    """

    if name.endswith("logit_scale"):
        return torch.tensor(math.log(100.0))

    values = torch.from_numpy(uniform(name, math.prod(shape))).reshape(shape)

    if name.endswith("bias"):
        return values * 0.1
    if "ln_" in name or "norm" in name.lower():
        return values * 0.2 + 1.0
    if "pos" in name:
        return values * 0.2
    if "cls_token" in name or "class_embedding" in name or "embeddings.weight" in name:
        return values * 0.5
    if "token_embedding" in name:
        return values * 1.0

    # OpenAI stores its two projections transposed.
    transposed = name.endswith("proj") or name.endswith("text_projection")
    inputs = shape[0] if transposed else math.prod(shape[1:])
    return values * np.float32(gain(name) * math.sqrt(3.0 / inputs))


def gain(name):
    """Standard deviation that a matrix gives to the image of a unit input."""

    # Sharp attention: otherwise every image is pooled to nearly the same average. Any sharper, and
    # the rounding of another processor grows to 1e-4 on the way through the towers.
    if any(part in name for part in ("in_proj_weight", "qkv", "query", "key")):
        return 1.5
    # The entries of a unit vector are small; the published head makes up for that, too.
    return 2.0 if name.startswith("aesthetic/") else 1.0


def fingerprint(tensors, count=5):
    """Sum and sum of squares of all weights, and of a few by name: a changed formula is noticed.

    To be compared with a small relative tolerance, for the order of a sum is the machine's choice.
    """

    weights = {name: tensors[name] for name in sorted(tensors) if tensors[name].is_floating_point()}
    sums = {
        name: [float(w.double().sum()), float(w.double().square().sum())]
        for name, w in weights.items()
    }
    few = list(sums)[:: max(1, len(sums) // count)]
    every = [sum(column) for column in zip(*sums.values(), strict=True)]
    return {"all": every, **{name: sums[name] for name in few}}


# Images


def images():
    """Photo-like images of the sizes and modes at which preprocessings are known to part.

    With the shorter side at 224, the margins of 640x427, 225x337 and 500x374 are 111 and 75, where
    rounding down and rounding to even part; that of 448x301 is 109, where they agree. The short
    side of 448x301 becomes exactly 150.5 when the long one becomes 224. The long side of 224x200
    is 224 already. 31x47 is enlarged.
    """

    sizes = [
        (640, 427),
        (97, 131),
        (300, 224),
        (200, 150),
        (1024, 1024),
        (224, 200),
        (224, 224),
        (225, 337),
        (500, 374),
        (448, 301),
        (31, 47),
    ]
    made = {f"{width}x{height}": picture(width, height) for width, height in sizes}
    made["L"] = picture(240, 181).convert("L")
    made["RGBA"] = with_alpha(picture(181, 241))
    return made


def picture(width, height):
    """Gradients, ripples, sharp edges and grain, from exactly rounded operations only."""

    choice = (uniform(f"picture {width}x{height}", 32).astype(np.float64) + 1) / 2
    y, x = np.meshgrid(
        (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
    )

    grain = uniform(f"grain {width}x{height}", height * width * 3).reshape(height, width, 3)
    disc = (x - choice[0]) ** 2 + (y - choice[1]) ** 2 < 0.02 + 0.1 * choice[2]
    bar = np.abs(x * choice[3] + y * choice[4] - 0.5 * choice[5]) < 0.05
    ripple = wave(x * (3 + 20 * choice[6]) + y * (3 + 20 * choice[7]))

    channels = []
    for k in range(3):
        base, dx, dy, depth, disc_k, bar_k = choice[8 + 6 * k : 14 + 6 * k]
        light = (
            0.1 + 0.6 * base + 0.6 * (dx - 0.5) * x + 0.6 * (dy - 0.5) * y + 0.2 * depth * ripple
        )
        light = np.where(disc, 0.7 * disc_k + 0.3 * light, light)
        light = np.where(bar, bar_k, light)
        channels.append(light + 0.04 * grain[..., k])

    levels = np.floor(np.clip(np.stack(channels, -1), 0, 1) * 255 + 0.5)
    return Image.fromarray(levels.astype(np.uint8))


def wave(t):
    """A periodic parabola between -1 and 1, in place of a sine."""

    t = t - np.floor(t)
    return 8 * t * (1 - t) - 1


def with_alpha(image):
    width, height = image.size
    y, x = np.mgrid[:height, :width]
    alpha = np.where((x // 16 + y // 16) % 2 == 0, 255, (x * 255) // width)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def image_fingerprint(image):
    """Mode, size and integer sums of the pixels: a changed image is noticed."""

    pixels = np.asarray(image).astype(np.int64).ravel()
    weights = np.arange(pixels.size) % 251
    return [image.mode, *image.size, int(pixels.sum()), int((pixels * weights).sum())]


def pixel_summary(pixels):
    """Sum, sum of squares and 20 evenly spaced values of a preprocessed image, any shape."""

    flat = torch.as_tensor(pixels).double().flatten()
    index = [i * (len(flat) - 1) // 19 for i in range(20)]
    return {
        "sum": float(flat.sum()),
        "sum_of_squares": float(flat.square().sum()),
        "values": flat[index].tolist(),
    }


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


def pair(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


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


# LAION's aesthetic predictor


def write_aesthetic_head(path, width=768):
    """The linear layers of the aesthetic predictor v2, in the form of LAION's file."""

    shapes = {}
    for i, inputs, outputs in head_layers(width):
        shapes |= pair(f"layers.{i}", outputs, inputs)
    torch.save({name: fill(f"aesthetic/{name}", shape) for name, shape in shapes.items()}, path)
    return Path(path)


def head_layers(width):
    """Index, inputs and outputs of each linear layer. The gaps in the numbering are dropout."""

    return [(0, width, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)]


# ImageReward


def write_imagereward(directory, vision=IMAGEREWARD_VISION, text=MED_CONFIG):
    """ImageReward.pt, med_config.json, and the tokenizer's folder `bert-base-uncased`."""

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)

    shapes = imagereward_shapes(vision, text)
    state = {name: fill(f"imagereward/{name}", shape) for name, shape in shapes.items()}
    positions = torch.arange(text["max_position_embeddings"])[None]
    state["blip.text_encoder.embeddings.position_ids"] = positions

    torch.save(state, directory / "ImageReward.pt")
    write_json(directory / "med_config.json", text)
    write_bert_tokenizer(directory / "bert-base-uncased")
    return directory


def imagereward_shapes(vision, text):
    """Names and shapes of BLIP and of the score head, as in the published file.

    The two projections belong to BLIP's contrastive loss. The file has them, the score does not.
    """

    shapes = {
        **blip_vision_shapes("blip.visual_encoder", vision),
        **blip_text_shapes("blip.text_encoder", text, vision["width"]),
        **pair("blip.vision_proj", 256, vision["width"]),
        **pair("blip.text_proj", 256, text["hidden_size"]),
    }
    for i, inputs, outputs in head_layers(text["hidden_size"]):
        shapes |= pair(f"mlp.layers.{i}", outputs, inputs)
    return shapes


def blip_vision_shapes(prefix, vision):
    width, patch = vision["width"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    shapes = {
        f"{prefix}.cls_token": (1, 1, width),
        f"{prefix}.pos_embed": (1, patches + 1, width),
        **pair(f"{prefix}.patch_embed.proj", width, 3, patch, patch),
    }
    for i in range(vision["layers"]):
        block = f"{prefix}.blocks.{i}"
        shapes |= pair(f"{block}.norm1", width)
        shapes |= pair(f"{block}.attn.qkv", 3 * width, width)
        shapes |= pair(f"{block}.attn.proj", width, width)
        shapes |= pair(f"{block}.norm2", width)
        shapes |= pair(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= pair(f"{block}.mlp.fc2", width, 4 * width)
    return shapes | pair(f"{prefix}.norm", width)


def blip_text_shapes(prefix, text, image_width):
    width, inner = text["hidden_size"], text["intermediate_size"]
    shapes = {
        f"{prefix}.embeddings.word_embeddings.weight": (text["vocab_size"], width),
        f"{prefix}.embeddings.position_embeddings.weight": (text["max_position_embeddings"], width),
        **pair(f"{prefix}.embeddings.LayerNorm", width),
    }
    for i in range(text["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layer.{i}"
        shapes |= bert_attention(f"{layer}.attention", width, width)
        shapes |= bert_attention(f"{layer}.crossattention", width, image_width)
        shapes |= pair(f"{layer}.intermediate.dense", inner, width)
        shapes |= pair(f"{layer}.output.dense", width, inner)
        shapes |= pair(f"{layer}.output.LayerNorm", width)
    return shapes


def bert_attention(prefix, width, attended):
    return {
        **pair(f"{prefix}.self.query", width, width),
        **pair(f"{prefix}.self.key", width, attended),
        **pair(f"{prefix}.self.value", width, attended),
        **pair(f"{prefix}.output.dense", width, width),
        **pair(f"{prefix}.output.LayerNorm", width),
    }


def write_bert_tokenizer(directory):
    """A WordPiece tokenizer with the size and the special ids of bert-base-uncased."""

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = "\n".join(bert_vocabulary()) + "\n"
    (directory / "vocab.txt").write_text(text, encoding="utf-8")
    write_json(
        directory / "tokenizer_config.json",
        {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"},
    )
    write_json(directory / "config.json", {"model_type": "bert", "vocab_size": 30522})


def bert_vocabulary():
    """30522 distinct tokens: most words of the prompts split into several, a few are whole."""

    unused = [f"[unused{i}]" for i in range(994)]
    visible = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    others = list("‘’“”–…，。一上只在坐沙猫的")  # noqa: RUF001
    words = [
        "photo",
        "of",
        "an",
        "horse",
        "two",
        "and",
        "table",
        "portrait",
        "king",
        "amp",
        "wings",
    ]
    stems = ["astro", "rid", "appl", "mas", "intri", "irides", "weather", "fish", "hand", "light"]
    letters = [letter for letter in visible if letter.isalnum()]
    pieces = [a + b for a in letters[10:] for b in letters[10:]]

    tokens = ["[PAD]", *unused[:99], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *unused[99:]]
    tokens += [*visible, *others, *words, *stems, *pieces]
    tokens += [f"##{end}" for end in (*letters, *pieces, "naut", "ing", "work", "cent", "man")]
    tokens = list(dict.fromkeys(tokens))
    return tokens + [f"[filler{i}]" for i in range(30522 - len(tokens))]


def write_json(path, content, indent=2):
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
