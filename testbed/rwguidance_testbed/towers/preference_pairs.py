"""Pairs of pictures with preferences, read from the columns of Pick-a-Pic."""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rwguidance.support.outside import require

from ..encoders import Towers
from ..gold import prefer
from .losses import preference_loss

__all__ = ["Pairs"]


class Pairs:
    """Pairs of pictures with preferences, from a file with the columns of Pick-a-Pic.

    These are `caption`, `jpg_0` and `jpg_1` (encoded pictures, of any format that Pillow reads),
    `label_0` and `label_1` (1 and 0, 0 and 1, or 0.5 both); and, where preferences were drawn by a
    known utility, `utility_0` and `utility_1`.

    Arguments:
        path: Parquet file to read.
        size: Pixels along a side that the pictures must have.

    Raises:
        ValueError: If a column is missing, labels do not add to 1, or a picture has another size.
    """

    depends_on = ("captions", "labels", "clean", "pictures")

    def __init__(self, path: Path, size: int = 64) -> None:
        parquet = require("pyarrow.parquet", "reading preferences needs", "rewards")
        columns = ["caption", "jpg_0", "jpg_1", "label_0", "label_1"]
        there = set(parquet.read_schema(path).names)
        missing = set(columns) - there
        if missing:
            raise ValueError(f"{path} must have the columns {columns}, lacks {sorted(missing)}")
        known = [name for name in ("utility_0", "utility_1") if name in there]
        table = parquet.read_table(path, columns=[*columns, *known]).to_pydict()
        labels = torch.tensor([table["label_0"], table["label_1"]], dtype=torch.float32)
        if not torch.equal(labels.sum(0), torch.ones(labels.shape[1])):
            raise ValueError(f"in {path}, label_0 and label_1 must add to 1 in every row")
        self.captions: list[str] = table["caption"]
        self.labels = labels[0]
        self.clean: Tensor | None = None
        """Preferences without noise, 0.5 for ties, if utilities are known."""
        if len(known) == 2:
            self.clean = prefer(torch.tensor([table[name] for name in known]).T)
        self.pictures = torch.empty(len(self.captions), 2, 3, size, size, dtype=torch.uint8)
        for i in (0, 1):
            for row, raw in enumerate(table[f"jpg_{i}"]):
                self.pictures[row, i] = _decode(raw, size)
        """Of type uint8, with shape (N, 2, 3, size, size)."""

    def __len__(self) -> int:
        return len(self.captions)

    def split(self, share: int = 16) -> tuple[Tensor, Tensor]:
        """Returns indices of pairs to learn from and, one caption in `share`, to check with."""

        order = {caption: i for i, caption in enumerate(sorted(set(self.captions)))}
        kept = torch.tensor([order[caption] % share == share - 1 for caption in self.captions])
        return (~kept).nonzero()[:, 0], kept.nonzero()[:, 0]

    def loss(self, towers: Towers, index: Tensor, patches: Tensor | None = None) -> Tensor:
        """Returns the preference loss on some of the pairs.

        Arguments:
            towers: The towers.
            index: Indices of the pairs, with shape (B,).
            patches: Patches of the pictures that are seen, see `Towers.embed_pictures`, with shape
                (2 B, K).
        """

        first, second, captions = self._embed(towers, index, patches)
        return preference_loss(first, second, captions, self.labels[index], towers.log_scale)

    @torch.no_grad()
    def agreement(self, towers: Towers, index: Tensor, clean: bool = False) -> float:
        """Returns how often the towers prefer what is preferred, among pairs without ties.

        Arguments:
            towers: The towers.
            index: Indices of the pairs, with shape (N,).
            clean: Whether preferences are those that utilities have without noise.

        Raises:
            ValueError: If utilities are not known.
        """

        labels = self.clean if clean else self.labels
        if labels is None:
            raise ValueError("clean agreement needs the columns utility_0 and utility_1")
        index = index[labels[index] != 0.5]
        right = []
        for part in index.split(64):
            x, z, y = (F.normalize(e.float(), dim=-1) for e in self._embed(towers, part))
            difference = ((x - z) * y).sum(-1)
            right.append((difference > 0) == (labels[part] > 0.5))
        return float(torch.cat(right).float().mean())

    def _embed(
        self, towers: Towers, index: Tensor, patches: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        pictures = self.pictures[index].flatten(0, 1).float() / 255
        both = towers.embed_pictures(pictures, patches)
        first, second = both.unflatten(0, (len(index), 2)).unbind(1)
        return first, second, towers.embed_captions([self.captions[i] for i in index.tolist()])


def _decode(raw: bytes, size: int) -> Tensor:
    import numpy

    image = require("PIL.Image", "reading preferences needs", "rewards")
    picture = image.open(io.BytesIO(raw)).convert("RGB")
    if picture.size != (size, size):
        raise ValueError(f"pictures must have {size} x {size} pixels, got {picture.size}")
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()
