"""Tables of what `methods.py` found: figures with their standard errors, row by row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from formatting import console
from results import Prompt, Results
from torch import Tensor

from rwguidance.support.randomness import generator_for
from rwguidance_testbed import metrics
from rwguidance_testbed.data import Drawings, load_names
from rwguidance_testbed.encoders import Towers

NAMES = 100
COPIES = 4


def paired(after: Tensor, before: Tensor) -> tuple[float, float]:
    """Mean difference of pairs, and its standard error."""

    difference = after.double() - before.double()
    return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))


def ratio(gain: Tensor, target: Tensor) -> tuple[float, float]:
    """Ratio of the means of pairs, and its standard error, by linearization."""

    share = float(gain.mean() / target.mean())
    rest = gain - share * target
    return share, float(rest.std()) / math.sqrt(len(rest)) / abs(float(target.mean()))


def table_of(case: str, results: Results, real: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row for each cell and part of the prompts: figures with their standard errors.

    Arguments:
        case: Name of the model.
        results: What was found.
        real: `judge` and, unless there are no drawings, the embeddings `reference` and `half` of
            real pictures.
    """

    every = [name for part in load_names().values() for name in part]
    base = results.columns["base", None].all()
    names = [prompt.name for prompt in results.prompts]
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
        looks = column.all()
        for part in ("all", "learned", "held out"):
            rows = [
                k for k, i in enumerate(column.rows) if part in ("all", results.prompts[i].part)
            ]
            if len(rows) < 2:
                continue
            where = [column.rows[k] for k in rows]
            row = {
                "model": case,
                "method": column.method,
                "nats": column.nats,
                "part": part,
                "prompts": len(rows),
                "proxy": float(looks.proxy[rows].mean()),
                "gold": float(looks.gold[rows].mean()),
                "right": float(found[rows].mean()),
                **_pair("proxy gain", paired(looks.proxy[rows], base.proxy[where])),
                **_pair("gold gain", paired(looks.gold[rows], base.gold[where])),
                **_pair("right gain", paired(found[rows], base_hits[where])),
            }
            if column.nats is not None:
                way = results.targets[column.nats]["proxy"] - results.targets[0.0]["proxy"]
                gain = looks.proxy[rows] - base.proxy[where]
                row |= _pair("share", ratio(gain, way[where]))
            if part == "all":
                row |= {
                    "calls": column.calls,
                    "bank": column.bank,
                    "seconds": sum(column.seconds) / len(column.seconds),
                    "bank seconds": column.bank * results.draw_seconds,
                }
                if real.get("reference") is not None:
                    row |= _distances(looks.embedding, found, where, real["reference"], len(names))
            table.append(row)
    return table


def targets_of(case: str, results: Results) -> list[dict[str, Any]]:
    """What is known of the exactly tilted law, over prompts, for each strength."""

    table = []
    mean = results.targets[0.0]
    for nats, about in sorted(results.targets.items()):
        if nats == 0:
            continue
        n = len(about["proxy"])
        bank_error = lambda name, about=about, n=n: float(about[name].square().sum().sqrt()) / n
        row = {"model": case, "nats": nats, "prompts": n}
        for name in ("proxy", "gold"):
            row |= _pair(f"{name} gain", paired(about[name], mean[name]))
            row[f"{name} gain error of the banks"] = bank_error(f"{name}_error")
        row["median ESS"] = float(about["ess"].median())
        row["median k"] = float(about["pareto_k"].nanmedian())
        row["mean beta"] = float(about["beta"].mean())
        table.append(row)
    return table


def steps_of(case: str, results: Results) -> list[dict[str, Any]]:
    """How far each step may be trusted: medians over prompts."""

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
    return {key.replace("_", " "): value for key, value in asdict(quality).items()}


def _distances(
    embedding: Tensor, found: Tensor, rows: Sequence[int], reference: Tensor, n: int
) -> dict[str, float]:
    """Distances; of some prompts only the kernel distance, which does not depend on how many."""

    if len(rows) < 4:  # there is no third neighbor
        return {}
    own = [i + n * copy for copy in range(len(reference) // n) for i in rows]
    quality = figures_of(metrics.compare(embedding, reference[own], found))
    keep = ("kernel", "kernel error") if len(rows) < n else tuple(quality)[:5]
    return {key: quality[key] for key in keep}


def load_drawings(data: Path, purpose: str) -> Drawings | None:
    """The drawings in a folder; None if there are none, and says what they are needed for."""

    try:
        return Drawings.load(data)
    except FileNotFoundError as error:
        console.print(f"[yellow]no {purpose}: {error}[/]")
        return None


def real_embeddings(
    judge: Towers, data: Path, prompts: Sequence[Prompt], drawings: Drawings | None = None
) -> dict[str, Any]:
    """The judge, and its embeddings of real pictures of the prompts if there are drawings."""

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
