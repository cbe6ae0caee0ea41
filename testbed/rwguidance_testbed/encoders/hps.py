"""Towers in HPSv2's format: a CLIP of open_clip, a file with its configuration beside it.

HPSv2 is read with the tokenizer of open_clip, whose 49,408 tokens are fixed; so most of the rows of
its token embedding are never used, and it is narrow.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rwguidance.support.outside import require

from .base import PatchSelection, Towers, half_precision_state, normalize
from .pick import Pick

__all__ = ["HPS", "copy_image_tower"]

_FILE, _CONFIG = "HPS_v2_compressed.pt", "architecture.json"


class HPS(Towers):
    """A CLIP of open_clip.

    Arguments:
        architecture: Configuration of the CLIP: `embed_dim`, `vision_cfg`, `text_cfg`.
    """

    depends_on = ("architecture", "tokenizer")

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__(None)
        open_clip = require("open_clip", "the test bed's HPS needs", "rewards")
        self.architecture = architecture
        self.model = open_clip.CLIP(**architecture)
        self.model.visual.patch_dropout = self.selection = PatchSelection()
        length = architecture["text_cfg"]["context_length"]
        self.tokenizer = open_clip.SimpleTokenizer(context_length=length)

    @property
    def dimension(self) -> int:
        return int(self.architecture["embed_dim"])

    @property
    def log_scale(self) -> Tensor:
        return cast(Tensor, self.model.logit_scale)

    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        with self.selection.keeping(patches):
            embedded: Tensor = self.model.encode_image(normalize(pictures))
        return embedded

    def tokens(self, captions: Sequence[str]) -> Tensor:
        tokens: Tensor = self.tokenizer(list(captions))
        return tokens

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.model.encode_text(tokens)
        return embedded

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.architecture, indent=2)
        (folder / _CONFIG).write_bytes(text.encode())
        torch.save({"state_dict": half_precision_state(self.model)}, folder / _FILE)

    @classmethod
    def read(cls, folder: Path) -> "HPS":
        hps = cls(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
        state = torch.load(folder / _FILE, map_location="cpu", weights_only=True)
        hps.model.load_state_dict(state["state_dict"])
        return hps

    @classmethod
    def new(cls, tokenizer: Path, smoke: bool) -> "HPS":
        width, layers = (32, 2) if smoke else (128, 4)
        vision = {"image_size": 64, "patch_size": 8, "layers": layers, "width": width}
        text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 2}
        return cls({"embed_dim": 128, "vision_cfg": {**vision, "head_width": 32}, "text_cfg": text})


def copy_image_tower(hps: HPS, pick: Pick) -> None:
    """Copies the image tower of a Pick to an HPS of the same size.

    Both published rewards were fine-tuned from the same CLIP, too.
    """

    ours, theirs = hps.model.visual, pick.model.vision_model
    rows = lambda layer, kind: torch.cat(
        [layer.self_attn.get_parameter(f"{part}_proj.{kind}") for part in "qkv"]
    )
    with torch.no_grad():
        ours.class_embedding.copy_(theirs.embeddings.class_embedding)
        ours.positional_embedding.copy_(theirs.embeddings.position_embedding.weight)
        ours.conv1.weight.copy_(theirs.embeddings.patch_embedding.weight)
        ours.proj.copy_(pick.model.visual_projection.weight.T)
        pairs = [(ours.ln_pre, theirs.pre_layrnorm), (ours.ln_post, theirs.post_layernorm)]
        for block, layer in zip(ours.transformer.resblocks, theirs.encoder.layers, strict=True):
            block.attn.in_proj_weight.copy_(rows(layer, "weight"))
            block.attn.in_proj_bias.copy_(rows(layer, "bias"))
            pairs += [(block.ln_1, layer.layer_norm1), (block.ln_2, layer.layer_norm2)]
            pairs += [(block.attn.out_proj, layer.self_attn.out_proj)]
            pairs += [(block.mlp.c_fc, layer.mlp.fc1), (block.mlp.c_proj, layer.mlp.fc2)]
        for mine, other in pairs:
            mine.load_state_dict(other.state_dict())
