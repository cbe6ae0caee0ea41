"""The records of an evaluation on disk: one file for each prompt, written at once or not at all.

A record holds what was found of a prompt: rewards, embeddings and costs of the pictures of every
cell, draws that stand for the tilted law, and what failed. Its metadata has the digest of the
tensors, so that one that was damaged is known, named, and made again.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.tensors import read_tensor_file, write_tensor_file
from .results import BASE, COSTS, Cell, Failure, Pictures, Results
from .targets import Draws

__all__ = ["Found", "Record", "collect", "read", "write"]


@dataclass(frozen=True)
class Found:
    r"""The M pictures of one prompt in one cell.

    Arguments:
        rewards: Rewards by name, float64, with shape (M,); NaN where there is none.
        embeddings: Embeddings by name, with shape (M, D).
        costs: Costs of the pictures, as :data:`~rwguidance.evaluation.results.COSTS` orders them.
        facts: Facts that the method states.
        file: Path of a picture that was kept, from the folder of the evaluation, or empty.
    """

    rewards: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]
    costs: Sequence[float]
    facts: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""


@dataclass(frozen=True)
class Record:
    """What was found of one prompt.

    Arguments:
        prompt: The prompt.
        cells: Pictures by cell; one that failed is not among them.
        draws: Draws that stand for the tilted law; None if there are none.
        failures: What could not be had.
    """

    prompt: str
    cells: Mapping[Cell, Found]
    draws: Draws | None
    failures: Sequence[Failure] = ()


def write(record: Record, path: Path) -> None:
    """Writes a record, atomically.

    Raises:
        OSError: If it cannot be written.
    """

    tensors: dict[str, Tensor] = {}
    for number, found in enumerate(record.cells.values()):
        tensors[f"{number}/costs"] = torch.tensor(found.costs, dtype=torch.float64)
        _add(tensors, str(number), found.rewards, found.embeddings)
    if record.draws is not None:
        _add(tensors, "draws", record.draws.rewards, record.draws.embeddings)
    tensors = {key: value.cpu().contiguous() for key, value in tensors.items()}
    about = {
        "prompt": record.prompt,
        "cells": [
            {"method": cell.method, "nats": cell.nats, "facts": found.facts, "file": found.file}
            for cell, found in record.cells.items()
        ],
        "strengths": None if record.draws is None else list(record.draws.strengths),
        "failures": [[failure.place, failure.reason] for failure in record.failures],
    }
    text = json.dumps(about, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensor_file(path, tensors, {"about": text})


def read(path: Path) -> Record | None:
    """Returns a record; None if there is none, or it is damaged.

    Warns:
        RuntimeWarning: If it is damaged; names the file.
    """

    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensor_file(path)
        if "sha256" not in metadata:
            raise ValueError("it has no digest")
        about = json.loads(metadata["about"])
    except (OSError, KeyError, ValueError) as error:
        warnings.warn(f"{path} is damaged ({error}): made again", RuntimeWarning, stacklevel=2)
        return None
    prompt = about["prompt"]
    cells = {}
    for number, cell in enumerate(about["cells"]):
        rewards, embeddings = _take(tensors, str(number))
        costs = tensors[f"{number}/costs"].tolist()
        found = Found(rewards, embeddings, costs, cell["facts"], cell["file"])
        cells[Cell(cell["method"], cell["nats"])] = found
    draws = None
    if about["strengths"] is not None:
        draws = Draws(*_take(tensors, "draws"), about["strengths"])
    failures = [Failure(prompt, *failure) for failure in about["failures"]]
    return Record(prompt, cells, draws, failures)


def collect(records: Sequence[Record], settings: Mapping[str, Any], folder: Path) -> Results:
    """Returns the results of all prompts that have a base.

    Arguments:
        records: Records of the prompts that are finished, in their order.
        settings: Settings of the plan.
        folder: Folder of the evaluation.
    """

    cells = [BASE, *(Cell(*cell) for cell in settings["cells"])]
    whole = [record for record in records if BASE in record.cells]
    return Results(
        plan=settings,
        prompts=[record.prompt for record in whole],
        aligned=settings["rewards"][0],
        rewards=settings["rewards"],
        embeddings=settings["embeddings"],
        strengths=settings["strengths"],
        cells={cell: _column(whole, cell, folder) for cell in cells} if whole else {},
        draws=[record.draws for record in whole],
        failures=[one for record in records for one in record.failures],
    )


def _column(records: Sequence[Record], cell: Cell, folder: Path) -> Pictures:
    """Returns the pictures of one cell, NaN where it failed."""

    found = [record.cells.get(cell) for record in records]
    everything = [one for record in records for one in record.cells.values()]

    def stack(kind: str) -> dict[str, Tensor]:
        like = {name: value for one in everything for name, value in getattr(one, kind).items()}
        columns = {}
        for name, value in like.items():
            blank = torch.full_like(value, torch.nan)
            rows = [blank if one is None else getattr(one, kind).get(name, blank) for one in found]
            columns[name] = torch.stack(rows)
        return columns

    nothing = [torch.nan] * len(COSTS)
    costs = [nothing if one is None else one.costs for one in found]
    return Pictures(
        rewards=stack("rewards"),
        embeddings=stack("embeddings"),
        costs=dict(zip(COSTS, torch.tensor(costs, dtype=torch.float64).unbind(1), strict=True)),
        facts=[{} if one is None else one.facts for one in found],
        files={i: folder / one.file for i, one in enumerate(found) if one and one.file},
    )


def _add(
    tensors: dict[str, Tensor],
    place: str,
    rewards: Mapping[str, Tensor],
    embeddings: Mapping[str, Tensor],
) -> None:
    for kind, values in (("rewards", rewards), ("embeddings", embeddings)):
        tensors.update({f"{place}/{kind}/{name}": value for name, value in values.items()})


def _take(tensors: Mapping[str, Tensor], place: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns rewards and embeddings that :func:`_add` put under a place."""

    kinds: dict[str, dict[str, Tensor]] = {"rewards": {}, "embeddings": {}}
    for key, value in tensors.items():
        there, _, rest = key.partition("/")
        kind, _, name = rest.partition("/")
        if there == place and kind in kinds:
            kinds[kind][name] = value
    return kinds["rewards"], kinds["embeddings"]
