"""What all pairs of an image tower and a text tower have in common."""

import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokenizer import CONTEXT_LENGTH

__all__ = ["MEAN", "STD", "PatchSelection", "Towers", "normalize", "text_config", "to_half"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


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


class PatchSelection(nn.Module):
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


def text_config(tokenizer: Any, width: int, dimension: int) -> dict[str, Any]:
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


def normalize(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=pictures.device) for values in (MEAN, STD))
    return (pictures - mean[:, None, None]) / std[:, None, None]


def to_half(module: nn.Module) -> dict[str, Tensor]:
    half = lambda v: v.half() if v.is_floating_point() else v
    return {name: half(value).contiguous() for name, value in module.state_dict().items()}
