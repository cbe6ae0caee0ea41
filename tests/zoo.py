"""Every reward of the zoo, small: built from files in the formats of the published ones."""

from importlib.metadata import version
from itertools import pairwise

import torch

import rewards
import tiny_checkpoints as tiny

CLIP_768 = {**tiny.CLIP_CONFIG, "embed_dim": 768}

OPTIONS = {
    "pickscore": {},
    "hpsv2": {"architecture": tiny.HPSV2_CONFIG},
    "hpsv2.1": {"architecture": tiny.HPSV2_CONFIG},
    "clipscore": {},
    "imagereward": {"verify": False},
    "aesthetic": {"verify": False},
    "aesthetic-v2.5": {},
}
"""What the tiny files need besides their path."""

TWO_TOWERS = ("pickscore", "hpsv2", "hpsv2.1", "clipscore")
EIGHT_BIT = ("pickscore", "clipscore", "imagereward", "aesthetic", "aesthetic-v2.5")


def can_be_double(name):
    """Whether finite differences of a reward can be taken: in float64.

    Before version 5, transformers builds no causal mask of CLIP's in float64.
    """

    clip = name in ("pickscore", "clipscore", "emoji-pick", "emoji-match")
    return not clip or int(version("transformers").split(".")[0]) >= 5


def write(name, folder):
    """Writes the files of a reward, and returns the path that `rewards.load` takes."""

    if name == "pickscore":
        tiny.write_pickscore(folder)
    elif name == "hpsv2":
        return tiny.write_hpsv2(folder)
    elif name == "hpsv2.1":
        return tiny.write_hpsv2(folder, name="HPS_v2.1_compressed.pt")
    elif name == "clipscore":
        tiny.write_clip(folder)
    elif name == "imagereward":
        tiny.write_imagereward(folder)
    elif name == "aesthetic":
        tiny.write_clip(folder, projection_dim=768, config=CLIP_768)
        tiny.write_aesthetic_head(folder / "sac+logos+ava1-l14-linearMSE.pth")
    elif name == "aesthetic-v2.5":
        write_siglip(folder)
    else:
        raise KeyError(name)
    return folder


def write_siglip(folder):
    """A SigLIP as `save_pretrained` writes it, and a bfloat16 head of linear layers."""

    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = SiglipConfig(
        text_config={
            **tower,
            "num_attention_heads": 2,
            "vocab_size": 32,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={**tower, "num_attention_heads": 2, "image_size": 384, "patch_size": 64},
    )
    with torch.random.fork_rng(devices=[]):
        model = SiglipModel(config)
    state = {
        name: tiny.fill(name, value.shape).reshape(value.shape)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    model.save_pretrained(folder)

    widths = [64, 32, 16, 8, 4, 1]
    head = {}
    for i, (width, following) in enumerate(pairwise(widths)):
        head[f"layers.{2 * i}.weight"] = tiny.fill(f"head.{i}.weight", (following, width))
        head[f"layers.{2 * i}.bias"] = tiny.fill(f"head.{i}.bias", (following,))
    half = {name: value.bfloat16() for name, value in head.items()}
    torch.save(half, folder / "aesthetic_predictor_v2_5.pth")


def load(name, path, **options):
    return rewards.load(name, path, **{**OPTIONS[name], **options})
