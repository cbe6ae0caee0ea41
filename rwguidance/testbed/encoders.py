"""The three pairs of an image tower and a text tower: the judge, and two in published formats.

All take pictures of 64 x 64 pixels. :class:`Judge` is a small convolutional network and stored as
this package pleases. :class:`Pick` is a ``CLIPModel`` of transformers, a folder as PickScore's with
model, tokenizer and image processor. :class:`HPS` is a CLIP of open_clip, a file as HPSv2's with
its configuration beside it. HPSv2 is read with the tokenizer of open_clip, whose 49,408 tokens are
fixed; so most of the rows of its token embedding are never used, and it is narrow.
"""

import copy
import json
import math
import shutil
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..outside import require
from ..randomness import seeded
from .words import LENGTH

__all__ = ["HPS", "KINDS", "Judge", "Pick", "Towers", "new", "read"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_SCALE = math.log(1 / 0.07)
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_HPS_FILE, _HPS_CONFIG = "HPS_v2_compressed.pt", "architecture.json"


class Towers(nn.Module):
    """Embeddings of pictures and of captions whose cosine says how well they match.

    Arguments:
        tokenizer: Folder of the tokenizer that is written with the model; None if it has none.
    """

    def __init__(self, tokenizer: Path | None) -> None:
        super().__init__()
        self.tokenizer_folder = tokenizer

    @property
    @abstractmethod
    def log_scale(self) -> Tensor:
        """Logarithm of what the cosine is multiplied by in training, a scalar."""

    @abstractmethod
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Embeddings of pictures in [0, 1] with shape (B, 3, 64, 64); shape (B, D)."""

    @abstractmethod
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions, with shape (B, D)."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the model in half precision, in its format; itself it does not change."""

    def forward(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """The cosine of each picture and its caption, in float32, with shape (B,)."""

        x, y = self.embed_pictures(pictures).float(), self.embed_captions(captions).float()
        return F.cosine_similarity(x, y, dim=-1)

    def _write_tokenizer(self, folder: Path) -> None:
        # As it was learned: what versions of transformers write is not what all of them read.
        if self.tokenizer_folder is not None and self.tokenizer_folder != folder:
            for name in _TOKENIZER:
                shutil.copyfile(self.tokenizer_folder / name, folder / name)


class Judge(Towers):
    """A residual network on pictures and a transformer on captions, see :func:`new`.

    Arguments:
        tokenizer: Folder of its tokenizer.
        widths: Channels at 16 x 16, 8 x 8 and 4 x 4 positions.
        text: Width of the text tower.
        dimension: Of the embeddings.
    """

    def __init__(
        self,
        tokenizer: Path,
        widths: Sequence[int] = (48, 96, 192),
        text: int = 96,
        dimension: int = 128,
    ) -> None:
        super().__init__(tokenizer)
        transformers = require("transformers", "the test bed needs", "testbed")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer)
        self.settings = {"widths": list(widths), "text": text, "dimension": dimension}
        first, second, third = widths
        self.picture = nn.Sequential(
            nn.Conv2d(3, first, 6, stride=4, padding=1),
            _Block(first),
            nn.Conv2d(first, second, 2, stride=2),
            _Block(second),
            nn.Conv2d(second, third, 2, stride=2),
            _Block(third),
            _Block(third),
            nn.GroupNorm(8, third),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(third),
            nn.Linear(third, dimension),
        )
        config = transformers.CLIPTextConfig(**_text_config(self.tokenizer, text, dimension))
        self.text = transformers.CLIPTextModelWithProjection(config)
        self.scale = nn.Parameter(torch.tensor(_SCALE))

    @property
    def log_scale(self) -> Tensor:
        return self.scale

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        embedded: Tensor = self.picture(_normalize(pictures))
        return embedded

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        embedded: Tensor = self.text(**_tokens(self.tokenizer, captions)).text_embeds
        return embedded

    def write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self._write_tokenizer(folder)
        (folder / "judge.json").write_text(json.dumps(self.settings), encoding="utf-8")
        save_file(_half(self), folder / "judge.safetensors", {"format": "pt"})


class Pick(Towers):
    """A CLIPModel of transformers.

    Arguments:
        tokenizer: Folder of its tokenizer.
        model: The model.
    """

    def __init__(self, tokenizer: Path, model: Any) -> None:
        super().__init__(tokenizer)
        transformers = require("transformers", "the test bed needs", "testbed")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer)
        self.model = model

    @property
    def log_scale(self) -> Tensor:
        return cast(Tensor, self.model.logit_scale)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=_normalize(pictures)).pooler_output
        embedded: Tensor = self.model.visual_projection(pooled)
        return embedded

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        pooled = self.model.text_model(**_tokens(self.tokenizer, captions)).pooler_output
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
            "image_mean": _MEAN,
            "image_std": _STD,
            "resample": 3,
            "size": size,
        }
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(processor, indent=2), encoding="utf-8")


class HPS(Towers):
    """A CLIP of open_clip.

    Arguments:
        architecture: Its configuration: `embed_dim`, `vision_cfg`, `text_cfg`.
    """

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__(None)
        open_clip = require("open_clip", "the test bed's HPS needs", "rewards")
        self.architecture = architecture
        self.model = open_clip.CLIP(**architecture)
        length = architecture["text_cfg"]["context_length"]
        self.tokenizer = open_clip.SimpleTokenizer(context_length=length)

    @property
    def log_scale(self) -> Tensor:
        return cast(Tensor, self.model.logit_scale)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        embedded: Tensor = self.model.encode_image(_normalize(pictures))
        return embedded

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        embedded: Tensor = self.model.encode_text(self.tokenizer(list(captions)))
        return embedded

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.architecture, indent=2)
        (folder / _HPS_CONFIG).write_text(text, encoding="utf-8")
        torch.save({"state_dict": _half(self.model)}, folder / _HPS_FILE)


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
            return Pick(tokenizer, _clip(tokenizer, *((32, 2, 32) if smoke else (192, 4, 96))))
        width, layers = (32, 2) if smoke else (160, 5)
        vision = {"layers": layers, "width": width, "head_width": 32}
        text = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
        return HPS(
            {
                "embed_dim": 128,
                "vision_cfg": {"image_size": 64, "patch_size": 8, **vision},
                "text_cfg": {**text, "width": 32 if smoke else 64, "heads": 1 if smoke else 2},
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
        hps = HPS(json.loads((folder / _HPS_CONFIG).read_text(encoding="utf-8")))
        state = torch.load(folder / _HPS_FILE, map_location="cpu", weights_only=True)
        hps.model.load_state_dict(state["state_dict"])
        return hps


class _Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(F.relu(self.norm(x)))))
        return x + y


def _clip(tokenizer: Path, width: int, layers: int, text: int) -> Any:
    transformers = require("transformers", "the test bed needs", "testbed")
    words = transformers.CLIPTokenizer.from_pretrained(tokenizer)
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": 128,
    }
    config = transformers.CLIPConfig(
        text_config=_text_config(words, text, 128), vision_config=vision, projection_dim=128
    )
    return transformers.CLIPModel(config)


def _text_config(tokenizer: Any, width: int, dimension: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": dimension,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 32,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _tokens(tokenizer: Any, captions: Sequence[str]) -> Any:
    return tokenizer(
        list(captions), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )


def _normalize(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=pictures.device) for values in (_MEAN, _STD))
    return (pictures - mean[:, None, None]) / std[:, None, None]


def _half(module: nn.Module) -> dict[str, Tensor]:
    half = lambda v: v.half() if v.is_floating_point() else v
    return {name: half(value).contiguous() for name, value in module.state_dict().items()}
