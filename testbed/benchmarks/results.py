"""The results of `methods.py`, put together from its blocks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwguidance_testbed.prompt_sets import Prompt

SHOWN = 1.0
"""The strength of the tables that show one, in nats."""

SHEET_ROWS = 12


@dataclass(frozen=True)
class Looks:
    """The rewards, utilities and embeddings of N pictures, each with N rows."""

    proxy: Tensor
    gold: Tensor
    embedding: Tensor

    def __getitem__(self, index: Any) -> "Looks":
        return Looks(self.proxy[index], self.gold[index], self.embedding[index])


@dataclass
class Column:
    """The results of one cell, a method at a strength, from all blocks.

    Arguments:
        method: Name of the method.
        nats: Strength, in nats; None if the method has none.
        bank: Draws of each prompt that the method uses.
        calls: Network calls per picture, without the bank.
        rows: Numbers of the prompts that it ran on.
        looks: Rewards, utilities and embeddings of their pictures, by block.
        seconds: Seconds per picture, without the bank, by block.
        steps: Diagnostics by name, each with shape (N, K), by block.
    """

    method: str
    nats: float | None
    bank: int
    calls: float
    rows: list[int] = field(default_factory=list)
    looks: list[Looks] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: dict[str, list[Tensor]] = field(default_factory=dict)

    def all(self) -> Looks:
        """Returns the looks of all blocks in one."""

        keys = ("proxy", "gold", "embedding")
        return Looks(*(torch.cat([getattr(part, key) for part in self.looks]) for key in keys))


@dataclass(frozen=True)
class Results:
    """The results of a case.

    Arguments:
        prompts: Prompts in the order of the rows.
        columns: Cells by method and strength.
        targets: Figures of the tilted law by strength, 0 the model itself, and by prompt.
        draw_seconds: Seconds for one draw of a bank, decoded and scored.
        pictures: Pictures of the cells that are shown, of the first prompts.
    """

    prompts: Sequence[Prompt]
    columns: dict[tuple[str, float | None], Column]
    targets: dict[float, dict[str, Tensor]]
    draw_seconds: float
    pictures: dict[str, Tensor]


def read(files: Sequence[Path], prompts: Sequence[Prompt]) -> Results:
    """Returns the results of a case from the files of its blocks."""

    from safetensors import safe_open

    columns: dict[tuple[str, float | None], Column] = {}
    targets: dict[float, dict[str, list[Tensor]]] = {}
    pictures: dict[str, list[Tensor]] = {}
    seconds, start = [], 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        n = len(facts["texts"])
        for key, cell in facts["cells"].items():
            place = cell["method"], cell["nats"]
            if place not in columns:
                columns[place] = Column(*place, cell["bank"], cell["calls"])
            column = columns[place]
            column.rows += range(start, start + n)
            column.looks.append(
                Looks(*(tensors[f"{key}/{part}"] for part in ("proxy", "gold", "embedding")))
            )
            column.seconds.append(cell["seconds"])
            for name in ("ess", "ess_tilted", "pareto_k"):
                if f"{key}/{name}" in tensors:
                    column.steps.setdefault(name, []).append(tensors[f"{key}/{name}"])
        for key, value in tensors.items():
            kind, *rest = key.split("/")
            if kind == "target":
                targets.setdefault(float(rest[0]), {}).setdefault(rest[1], []).append(value)
            elif kind == "pictures":
                pictures.setdefault(rest[0], []).append(value)
        seconds.append(facts["draw_seconds"])
        start += n
    joined = {
        nats: {name: torch.cat(parts) for name, parts in about.items()}
        for nats, about in targets.items()
    }
    shown = {name: torch.cat(parts) for name, parts in pictures.items()}
    return Results(prompts, columns, joined, sum(seconds) / len(seconds), shown)
