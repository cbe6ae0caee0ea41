"""Files of preference data, encoded: latents and rewards of their pictures, row by row."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..generation.scores import score_pairs
from ..store import Column, Drawer
from ..tilt import RewardFunction
from .layouts import Dirty, Layout, Ranked
from .pictures import read_picture
from .row_log import Row, RowLog
from .sources import Source

__all__ = ["Encoder", "Featured", "Shelf"]

_DECODERS = 8


class Featured(Protocol):
    """A tower of a reward, such as :class:`rewards.towers.EmbeddingReward`."""

    def features(self, images: Tensor, prompts: Any) -> Tensor:
        """Returns features of images, each for its prompt, with shape (B, F)."""


@dataclass(frozen=True)
class Shelf:
    """Where what is made of one file of data is kept.

    Arguments:
        log: What was found in its rows.
        latents: Column of the latents, an entry for each picture of the rows that are kept.
        rewards: Columns of rewards by name, likewise; NaN where a reward failed.
        features: Columns of features by name, likewise.
    """

    log: RowLog
    latents: Column
    rewards: Mapping[str, Column]
    features: Mapping[str, Column]

    @classmethod
    def of(
        cls,
        drawer: Drawer,
        folder: Path,
        batch: int,
        rewards: Mapping[str, str],
        features: Mapping[str, str],
    ) -> "Shelf":
        """Returns the shelf of a file of data.

        Arguments:
            drawer: Its drawer.
            folder: Folder for the file of rows.
            batch: Number of rows in a batch.
            rewards: Fingerprints of rewards by name.
            features: Fingerprints of towers by name.
        """

        log = RowLog(folder / f"{drawer.folder.name}.jsonl", batch)
        scored = {n: drawer.column(f"rewards/{n}", {"reward": key}) for n, key in rewards.items()}
        seen = {n: drawer.column(f"features/{n}", {"tower": key}) for n, key in features.items()}
        return cls(log, drawer.column("x_0"), scored, seen)

    @property
    def columns(self) -> list[Column]:
        """All columns."""

        return [self.latents, *self.rewards.values(), *self.features.values()]


@dataclass(frozen=True)
class Encoder:
    """Makes latents and rewards of the rows of data, batch by batch.

    Arguments:
        encode: Function from images, (B, 3, H, W) in [0, 1], to latents.
        rewards: Rewards by name.
        size: Height and width of images, in pixels.
        layout: Layout of the rows.
        batch: Number of rows in a batch; its pictures go through the networks together.
        features: Towers by name, whose features are wanted.
        device: Device on which networks see pictures; None is the CPU.
    """

    encode: Callable[[Tensor], Tensor]
    rewards: Mapping[str, RewardFunction]
    size: tuple[int, int]
    layout: Layout
    batch: int
    features: Mapping[str, Featured] = field(default_factory=dict)
    device: torch.device | None = None

    def fill(self, source: Source, shelf: Shelf, report: Callable[[int], None]) -> None:
        """Makes what is missing of a file of data; goes on where a killed process stopped.

        Arguments:
            source: The file.
            shelf: Where its entries are kept.
            report: Is told the number of rows that are done.

        Raises:
            ValueError: If the file cannot be read, or latents or features are not finite; names the
                file.
            OSError: If the disk fails.
        """

        shelf.log.mend()
        for column in shelf.columns:
            column.repair(range(len(column)))
        known, complete = shelf.log.read()
        first = self._first_missing(known, shelf)
        if complete and first >= len(known):
            return
        report(first)
        picture = sum(len(row.ranks) for row in known[:first])
        with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
            for start, rows, images, last in self._batches(source, first, pool):
                self._add(source, shelf, picture, rows, images)
                if start >= len(known):
                    shelf.log.extend(rows, last)
                picture += len(images)
                report(start + len(rows))
        for column in shelf.columns:
            column.settle()

    def _first_missing(self, known: Sequence[Row], shelf: Shelf) -> int:
        """Returns the number of the first row of the first batch of which something is missing."""

        ends = list(accumulate(len(row.ranks) for row in known))
        pictures = range(ends[-1] if ends else 0)
        gaps = [gap.start for column in shelf.columns for gap in column.missing(pictures)]
        row = bisect_right(ends, min(gaps)) if gaps else len(known)
        return row // self.batch * self.batch if gaps else row

    def _batches(
        self, source: Source, start: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, list[Row], list[Tensor], bool]]:
        """Yields first row, rows and pictures of each batch, and whether it is the last one."""

        rows = source.rows(start)
        batch = list(islice(rows, self.batch))
        while True:
            following = list(islice(rows, self.batch))
            found = list(pool.map(lambda row: self._read(source, row), batch))
            images = [image for _, part in found for image in part]
            yield start, [row for row, _ in found], images, not following
            start, batch = start + len(batch), following
            if not batch:
                return

    def _read(self, source: Source, row: Mapping[str, Any]) -> tuple[Row, list[Tensor]]:
        try:
            ranked: Ranked = self.layout.read(row)
            images = [read_picture(part, source.path, self.size) for part in ranked.pictures]
        except Dirty as error:
            return Row(problem=str(error)), []
        return Row(ranked.caption, ranked.ranks, ranked.group), images

    @torch.no_grad()
    def _add(
        self,
        source: Source,
        shelf: Shelf,
        start: int,
        rows: Sequence[Row],
        images: Sequence[Tensor],
    ) -> None:
        """Adds what is missing of a batch of pictures: latents, rewards, features."""

        if not images:
            return
        here = range(start, start + len(images))
        pictures = torch.stack(list(images)).to(self.device or "cpu")
        if shelf.latents.missing(here):
            latents = _finite(self.encode(pictures), f"{source.path}: latents")
            shelf.latents.append(start, latents, durable=False)
        captions = [row.caption for row in rows for _ in row.ranks]
        for name, column in shelf.rewards.items():
            if column.missing(here):
                values = score_pairs(self.rewards[name], pictures, captions).values
                column.append(start, values, durable=False)
        for name, column in shelf.features.items():
            if column.missing(here):
                found = self.features[name].features(pictures, captions)
                column.append(start, _finite(found, f"{source.path}: features"), durable=False)


def _finite(values: Tensor, what: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise ValueError(f"{what} are not finite in {values.dtype}")
    return values
