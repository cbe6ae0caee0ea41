"""ImageReward's BLIP with its tokenizer, and heads of linear layers, as LAION's predictor is."""

from pathlib import Path

import torch

from .weights import fill, pair, write_json

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
