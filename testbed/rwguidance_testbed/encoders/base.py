"""The abstract pair of an image tower and a text tower, and what its kinds share."""

import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MEAN", "STD", "PatchSelection", "Towers", "half_precision_state", "normalize"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in the pictures of CLIP, which its image processors subtract."""

STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the same, by which they divide."""

_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


class Towers(nn.Module):
    """A dual encoder: embeddings of pictures and of captions, whose cosine says how they match.

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
        """Logarithm of the factor of the cosine in training, a scalar."""

    @abstractmethod
    def embed_pictures(self, pictures: Tensor, patches: Tensor | None = None) -> Tensor:
        """Returns embeddings of pictures.

        Arguments:
            pictures: Pictures in [0, 1], with shape (B, 3, 64, 64).
            patches: Indices of the patches of each picture that a transformer sees, row by row from
                the upper left, with shape (B, K); None for all. Convolutions see all.

        Returns:
            Embeddings with shape (B, D).
        """

    @abstractmethod
    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Returns tokens of captions, truncated to the context length L, with shape (B, L)."""

    @abstractmethod
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Returns embeddings of captions from their tokens, with shape (B, D)."""

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Returns embeddings of captions, with shape (B, D)."""

        return self.embed_tokens(self.tokens(captions))

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the model to a folder in half precision; the model itself does not change."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path) -> "Towers":
        """Returns the model that :meth:`write` wrote, in single precision."""

    @classmethod
    @abstractmethod
    def new(cls, tokenizer: Path, smoke: bool) -> "Towers":
        """Returns a model with random weights.

        Arguments:
            tokenizer: Folder of a tokenizer.
            smoke: Whether the model is tiny, for tests.
        """

    def forward(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Returns the cosine of each picture and its caption, in float32, with shape (B,)."""

        x, y = self.embed_pictures(pictures).float(), self.embed_captions(captions).float()
        return F.cosine_similarity(x, y, dim=-1)

    def _write_tokenizer(self, folder: Path) -> None:
        # As it was learned: what versions of transformers write is not what all of them read.
        if self.tokenizer_folder is not None and self.tokenizer_folder != folder:
            for name in _TOKENIZER:
                shutil.copyfile(self.tokenizer_folder / name, folder / name)


class PatchSelection(nn.Module):
    """A layer that keeps some patches of each picture, and the class token before them."""

    depends_on = ()

    def __init__(self) -> None:
        super().__init__()
        self.patches: Tensor | None = None

    @contextmanager
    def keeping(self, patches: Tensor | None) -> Iterator[None]:
        """Keeps patches with these indices, of shape (B, K), within the context; None keeps all."""

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


def normalize(pictures: Tensor) -> Tensor:
    """Returns pictures standardized by the moments of CLIP's pictures, channel by channel."""

    mean, std = (torch.tensor(values, device=pictures.device) for values in (MEAN, STD))
    return (pictures - mean[:, None, None]) / std[:, None, None]


def half_precision_state(module: nn.Module) -> dict[str, Tensor]:
    """Returns the state of a module, its floating-point tensors in half precision."""

    half = lambda v: v.half() if v.is_floating_point() else v
    return {name: half(value).contiguous() for name, value in module.state_dict().items()}
