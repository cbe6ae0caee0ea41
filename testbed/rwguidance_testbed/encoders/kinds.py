"""The three kinds of towers by name, made anew or read.

All take pictures of 64 x 64 pixels. :class:`~rwguidance_testbed.encoders.judge.Judge` is stored as
this package pleases, :class:`~rwguidance_testbed.encoders.pick.Pick` as PickScore is, and
:class:`~rwguidance_testbed.encoders.hps.HPS` as HPSv2 is.
"""

import json
from pathlib import Path

import torch

from rwguidance.support.outside import require
from rwguidance.support.randomness import seeded

from .base import Towers
from .hps import CONFIG, FILE, HPS
from .judge import Judge
from .pick import Pick, new_clip

__all__ = ["KINDS", "new", "read"]

KINDS: dict[str, type[Towers]] = {"judge": Judge, "pick": Pick, "hps": HPS}
"""What there is, by the name that the command takes."""


def new(kind: str, tokenizer: Path, smoke: bool = False, seed: int = 0) -> Towers:
    """Towers with random weights.

    Arguments:
        kind: One of `KINDS`.
        tokenizer: Folder of a tokenizer; "hps" has its own.
        smoke: Tiny ones, for tests.
        seed: Of the weights.
    """

    with seeded(seed):
        if kind == "judge":
            return Judge(tokenizer, (8, 8, 16), 32, 32) if smoke else Judge(tokenizer)
        if kind == "pick":
            return Pick(tokenizer, new_clip(tokenizer, *((32, 2, 32) if smoke else (128, 4, 96))))
        width, layers = (32, 2) if smoke else (128, 4)
        vision = {"layers": layers, "width": width, "head_width": 32}
        text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 2}
        return HPS(
            {
                "embed_dim": 128,
                "vision_cfg": {"image_size": 64, "patch_size": 8, **vision},
                "text_cfg": text,
            }
        )


def read(kind: str, folder: Path) -> Towers:
    """What :meth:`Towers.write` wrote, in single precision.

    Arguments:
        kind: One of `KINDS`.
        folder: Where it lies.
    """

    from safetensors.torch import load_file

    with seeded(0):  # what is read replaces random weights
        if kind == "judge":
            settings = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
            judge = Judge(folder, **settings)
            judge.load_state_dict(load_file(folder / "judge.safetensors"))
            return judge
        if kind == "pick":
            transformers = require("transformers", "the test bed needs", "testbed")
            return Pick(folder, transformers.CLIPModel.from_pretrained(folder).float())
        hps = HPS(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        state = torch.load(folder / FILE, map_location="cpu", weights_only=True)
        hps.model.load_state_dict(state["state_dict"])
        return hps
