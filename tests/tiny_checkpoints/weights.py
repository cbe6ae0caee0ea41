"""Weights by formula: a hash of the name and index of each entry."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch


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


def pair(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def write_json(path, content, indent=2):
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
