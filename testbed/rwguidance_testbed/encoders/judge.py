"""The judge: a small convolutional network on pictures and a transformer on captions."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwguidance.support.outside import require

from ..tokenizer import text_config, tokenize
from .base import Towers, half_precision_state, normalize

__all__ = ["Judge"]

_LOG_SCALE = math.log(1 / 0.07)  # where CLIP starts


class Judge(Towers):
    """A residual network on pictures and a transformer on captions.

    Arguments:
        tokenizer: Folder of the tokenizer.
        widths: Channels at 16 x 16, 8 x 8 and 4 x 4 positions.
        text: Width of the text tower.
        dimension: Length of the embeddings.
    """

    depends_on = ("settings", "tokenizer")

    def __init__(
        self,
        tokenizer: Path,
        widths: Sequence[int] = (48, 96, 160),
        text: int = 96,
        dimension: int = 128,
    ) -> None:
        super().__init__(tokenizer)
        transformers = require("transformers", "the test bed needs", "backbones")
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
        config = transformers.CLIPTextConfig(**text_config(self.tokenizer, text, dimension))
        self.text = transformers.CLIPTextModelWithProjection(config)
        self.scale = nn.Parameter(torch.tensor(_LOG_SCALE))

    @property
    def dimension(self) -> int:
        return int(self.settings["dimension"])

    @property
    def log_scale(self) -> Tensor:
        return self.scale

    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        embedded: Tensor = self.picture(normalize(pictures))
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
        (folder / "judge.json").write_bytes(json.dumps(self.settings).encode())
        save_file(half_precision_state(self), folder / "judge.safetensors", {"format": "pt"})

    @classmethod
    def read(cls, folder: Path) -> "Judge":
        from safetensors.torch import load_file

        settings = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        judge = cls(folder, **settings)
        judge.load_state_dict(load_file(folder / "judge.safetensors"))
        return judge

    @classmethod
    def new(cls, tokenizer: Path, smoke: bool) -> "Judge":
        return cls(tokenizer, (8, 8, 16), 32, 32) if smoke else cls(tokenizer)


class _Block(nn.Module):
    """A residual block of two convolutions."""

    depends_on = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(F.relu(self.norm(x)))))
        return x + y
