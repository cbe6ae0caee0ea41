"""Tables of what `methods.py` found: figures with their standard errors, row by row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from formatting import console
from results import Column, Results
from torch import Tensor

from rwguidance.statistics import paired_difference, ratio_and_error
from rwguidance.support.randomness import generator_for
from rwguidance_testbed import metrics
from rwguidance_testbed.data import Drawings, load_names
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.prompt_sets import Prompt

NAMES = 100
"""Names among which the judge finds that of a picture."""

COPIES = 4
"""Real pictures of every prompt that distances are taken to."""


def table_of(case: str, results: Results, real: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one row for each cell and part of the prompts: figures with their standard errors.

    Arguments:
        case: Name of the model.
        results: Results of the case.
        real: The judge and, unless there are no drawings, the embeddings `reference` and `half` of
            real pictures.
    """

    names = [prompt.name for prompt in results.prompts]
    every = [name for part in load_names().values() for name in part]
    hits = lambda embedding, rows: metrics.right(
        real["judge"], embedding, [names[i] for i in rows], every, NAMES
    )
    table = []
    if real.get("half") is not None:
        found = hits(real["half"], range(len(names)))
        quality = metrics.compare(real["half"], real["reference"], found)
        table.append({"model": case, "method": "real pictures", **figures_of(quality)})
    columns = list(results.columns.values())
    embeddings = torch.cat([column.all().embedding for column in columns])
    found_by_column = hits(embeddings, [i for column in columns for i in column.rows]).split(
        [len(column.rows) for column in columns]
    )
    base_hits = dict(zip(results.columns, found_by_column, strict=True))["base", None]
    for column, found in zip(columns, found_by_column, strict=True):
        for part in ("all", "learned", "held out"):
            rows = [
                k for k, i in enumerate(column.rows) if part in ("all", results.prompts[i].part)
            ]
            if len(rows) < 2:
                continue
            row = {"model": case, **_gains(results, column, part, rows, found, base_hits)}
            if part == "all":
                row |= _costs(results, column)
                if real.get("reference") is not None:
                    embedding = column.all().embedding
                    row |= _distances(embedding, found, column.rows, real["reference"], len(names))
            table.append(row)
    return table


def _gains(
    results: Results,
    column: Column,
    part: str,
    rows: Sequence[int],
    found: Tensor,
    base_hits: Tensor,
) -> dict[str, Any]:
    """Returns the figures of a column on a part of its prompts, and its gains over the base."""

    looks, base = column.all(), results.columns["base", None].all()
    where = [column.rows[k] for k in rows]
    row = {
        "method": column.method,
        "nats": column.nats,
        "part": part,
        "prompts": len(rows),
        "proxy": float(looks.proxy[rows].mean()),
        "gold": float(looks.gold[rows].mean()),
        "right": float(found[rows].mean()),
        **_pair("proxy gain", paired_difference(looks.proxy[rows], base.proxy[where])),
        **_pair("gold gain", paired_difference(looks.gold[rows], base.gold[where])),
        **_pair("right gain", paired_difference(found[rows], base_hits[where])),
    }
    if column.nats is not None:
        way = results.targets[column.nats]["proxy"] - results.targets[0.0]["proxy"]
        gain = looks.proxy[rows] - base.proxy[where]
        row |= _pair("share", ratio_and_error(gain, way[where]))
    return row


def _costs(results: Results, column: Column) -> dict[str, float]:
    return {
        "calls": column.calls,
        "bank": column.bank,
        "seconds": sum(column.seconds) / len(column.seconds),
        "bank seconds": column.bank * results.draw_seconds,
    }


def targets_of(case: str, results: Results) -> list[dict[str, Any]]:
    """Returns the gains of the exactly tilted law, over prompts, for each strength."""

    table = []
    mean = results.targets[0.0]
    for nats, about in sorted(results.targets.items()):
        if nats == 0:
            continue
        n = len(about["proxy"])
        bank_error = lambda name, about=about, n=n: float(about[name].square().sum().sqrt()) / n
        row = {"model": case, "nats": nats, "prompts": n}
        for name in ("proxy", "gold"):
            row |= _pair(f"{name} gain", paired_difference(about[name], mean[name]))
            row[f"{name} gain error of the banks"] = bank_error(f"{name}_error")
        row["median ESS"] = float(about["ess"].median())
        row["median k"] = float(about["pareto_k"].nanmedian())
        row["mean beta"] = float(about["beta"].mean())
        table.append(row)
    return table


def steps_of(case: str, results: Results) -> list[dict[str, Any]]:
    """Returns how far each step may be trusted: medians over prompts."""

    table = []
    for column in results.columns.values():
        values = {name: torch.cat(parts) for name, parts in column.steps.items()}
        if not values or bool(values["ess"].isnan().all()):
            continue
        for step in range(values["ess"].shape[1]):
            row = {"model": case, "method": column.method, "nats": column.nats, "step": step + 1}
            for name, value in values.items():
                row[name] = float(value[:, step].nanmedian())
            tilted = values["ess_tilted"][:, step]
            row["reliable"] = float(tilted.ge(5).double().where(~tilted.isnan(), math.nan).mean())
            table.append(row)
    return table


def _pair(name: str, value: tuple[float, float]) -> dict[str, float]:
    return {name: value[0], f"{name} error": value[1]}


def figures_of(quality: metrics.Quality) -> dict[str, float]:
    """Returns the figures of a quality by name, with blanks."""

    return {key.replace("_", " "): value for key, value in asdict(quality).items()}


def _distances(
    embedding: Tensor, found: Tensor, rows: Sequence[int], reference: Tensor, n: int
) -> dict[str, float]:
    """Returns distances to real pictures.

    Of some of the prompts it is only the kernel distance, which does not depend on how many.
    """

    if len(rows) < 4:  # there is no third neighbor
        return {}
    own = [i + n * copy for copy in range(len(reference) // n) for i in rows]
    quality = figures_of(metrics.compare(embedding, reference[own], found))
    keep = ("kernel", "kernel error") if len(rows) < n else tuple(quality)[:5]
    return {key: quality[key] for key in keep}


def load_drawings(data: Path, purpose: str) -> Drawings | None:
    """Returns the drawings in a folder; None if there are none, and says what needs them."""

    try:
        return Drawings.load(data)
    except FileNotFoundError as error:
        console.print(f"[yellow]no {purpose}: {error}[/]")
        return None


def real_embeddings(
    judge: Towers, data: Path, prompts: Sequence[Prompt], drawings: Drawings | None = None
) -> dict[str, Any]:
    """Returns the judge, and its embeddings of real pictures of the prompts if there are any."""

    if drawings is None:
        drawings = load_drawings(data, "distances to real pictures")
    if drawings is None:
        return {"judge": judge}
    captions = [prompt.real for prompt in prompts]
    unseen = drawings.where("judge")
    generator = generator_for(0, "real pictures")
    pictures = metrics.real_pictures(unseen, captions, 1 + COPIES, generator)
    half, reference = metrics.embed(judge, pictures).split([len(prompts), COPIES * len(prompts)])
    return {"judge": judge, "reference": reference, "half": half}
