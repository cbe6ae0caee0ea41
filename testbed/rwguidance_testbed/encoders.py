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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwguidance.support.outside import require
from rwguidance.support.randomness import seeded

from .tokenizer import CONTEXT_LENGTH, tokenize

__all__ = ["HPS", "KINDS", "Judge", "Pick", "Towers", "copy_image_tower", "new", "read"]

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
    def dimension(self) -> int:
        """Length of an embedding."""

    @property
    @abstractmethod
    def log_scale(self) -> Tensor:
        """Logarithm of what the cosine is multiplied by in training, a scalar."""

    @abstractmethod
    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        """Embeddings of pictures.

        Arguments:
            pictures: In [0, 1], with shape (B, 3, 64, 64).
            patches: Indices of those patches of each that a transformer sees, with shape (B, K),
                row by row from the upper left; None for all. Convolutions see all.

        Returns:
            Embeddings with shape (B, D).
        """

    @abstractmethod
    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Tokens of captions, those that are too long cut, with shape (B, L)."""

    @abstractmethod
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings of captions from their tokens, with shape (B, D)."""

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions, with shape (B, D)."""

        return self.embed_tokens(self.tokens(captions))

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
        widths: Sequence[int] = (48, 96, 160),
        text: int = 96,
        dimension: int = 128,
    ) -> None:
        super().__init__(tokenizer)
        transformers = require("transformers", "the test bed needs", "testbed")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer)
        self.settings: dict[str, Any] = {
            "widths": list(widths),
            "text": text,
            "dimension": dimension,
        }
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
    def dimension(self) -> int:
        return int(self.settings["dimension"])

    @property
    def log_scale(self) -> Tensor:
        return self.scale

    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        embedded: Tensor = self.picture(_normalize(pictures))
        return embedded

    def tokens(self, captions: Sequence[str]) -> Tensor:
        return tokenize(self.tokenizer, captions)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.text(tokens).text_embeds
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
        self.chosen = _PatchSelection()
        model.vision_model.embeddings.register_forward_hook(lambda *args: self.chosen(args[-1]))

    @property
    def dimension(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def log_scale(self) -> Tensor:
        return cast(Tensor, self.model.logit_scale)

    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        with self.chosen.set(patches):
            pooled = self.model.vision_model(pixel_values=_normalize(pictures)).pooler_output
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
        self.model.visual.patch_dropout = self.chosen = _PatchSelection()
        length = architecture["text_cfg"]["context_length"]
        self.tokenizer = open_clip.SimpleTokenizer(context_length=length)

    @property
    def dimension(self) -> int:
        return int(self.architecture["embed_dim"])

    @property
    def log_scale(self) -> Tensor:
        return cast(Tensor, self.model.logit_scale)

    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        with self.chosen.set(patches):
            embedded: Tensor = self.model.encode_image(_normalize(pictures))
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
        (folder / _HPS_CONFIG).write_text(text, encoding="utf-8")
        torch.save({"state_dict": _half(self.model)}, folder / _HPS_FILE)


def copy_image_tower(hps: HPS, pick: Pick) -> None:
    """Gives an HPS the image tower of a Pick of the same size.

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
            return Pick(tokenizer, _clip(tokenizer, *((32, 2, 32) if smoke else (128, 4, 96))))
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


class _PatchSelection(nn.Module):
    """Some of the patches of each picture, and the row before them that stands for the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.patches: Tensor | None = None

    @contextmanager
    def set(self, patches: Tensor | None) -> Iterator[None]:
        self.patches = patches
        try:
            yield
        finally:
            self.patches = None

    def forward(self, rows: Tensor) -> Tensor:
        if self.patches is None:
            return rows
        index = torch.cat((torch.zeros_like(self.patches[:, :1]), 1 + self.patches), dim=1)
        return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


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
        "hidden_act": "gelu",
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
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _normalize(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=pictures.device) for values in (_MEAN, _STD))
    return (pictures - mean[:, None, None]) / std[:, None, None]


def _half(module: nn.Module) -> dict[str, Tensor]:
    half = lambda v: v.half() if v.is_floating_point() else v
    return {name: half(value).contiguous() for name, value in module.state_dict().items()}
