"""Towers in PickScore's format: a CLIPModel of transformers with tokenizer and image processor."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from rwguidance.support.outside import require

from ..tokenizer import text_config, tokenize
from .base import MEAN, STD, PatchSelection, Towers, normalize

__all__ = ["Pick"]


class Pick(Towers):
    """A CLIPModel of transformers.

    Arguments:
        tokenizer: Folder of the tokenizer.
        model: The CLIPModel.
    """

    depends_on = ("tokenizer",)

    def __init__(self, tokenizer: Path, model: Any) -> None:
        super().__init__(tokenizer)
        transformers = require("transformers", "the test bed needs", "backbones")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer)
        self.model = model
        self.selection = PatchSelection()
        embeddings = model.vision_model.embeddings
        embeddings.register_forward_hook(lambda *args: self.selection(args[-1]))

    @property
    def dimension(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def log_scale(self) -> Tensor:
        return cast(Tensor, self.model.logit_scale)

    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        with self.selection.keeping(patches):
            pooled = self.model.vision_model(pixel_values=normalize(pictures)).pooler_output
        embedded: Tensor = self.model.visual_projection(pooled)
        return embedded

    def tokens(self, captions: Sequence[str]) -> Tensor:
        return tokenize(self.tokenizer, captions)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        pooled = self.model.text_model(tokens).pooler_output
        embedded: Tensor = self.model.text_projection(pooled)
        return embedded

    def write(self, folder: Path) -> None:
        copy.deepcopy(self.model).half().save_pretrained(folder)
        self._write_tokenizer(folder)
        size = self.model.config.vision_config.image_size
        processor = {
            "crop_size": size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": MEAN,
            "image_std": STD,
            "resample": 3,
            "size": size,
        }
        path = folder / "preprocessor_config.json"
        path.write_bytes(json.dumps(processor, indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> "Pick":
        transformers = require("transformers", "the test bed needs", "backbones")
        return cls(folder, transformers.CLIPModel.from_pretrained(folder).float())

    @classmethod
    def new(cls, tokenizer: Path, smoke: bool) -> "Pick":
        width, layers, text = (32, 2, 32) if smoke else (128, 4, 96)
        return cls(tokenizer, _new_clip(tokenizer, width, layers, text))


def _new_clip(folder: Path, width: int, layers: int, text_width: int) -> Any:
    transformers = require("transformers", "the test bed needs", "backbones")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    text = text_config(tokenizer, text_width, 128)
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": 128,
        "hidden_act": "gelu",
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    return transformers.CLIPModel(config)
