"""The result file, made of the cells that there are."""

import argparse
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwguidance.statistics import mean_and_error
from rwguidance.support.files import replacing

from . import full_size, ratios
from .bed import GOLD, Bed
from .gains import by_part, gains, less, of_prompts
from .methods import METHODS

__all__ = ["COLUMNS", "RESULTS", "keep_targets", "read_rows", "summary", "written"]

RESULTS = Path(__file__).resolve().parent.parent / "results" / "alignment_cost.json"
COLUMNS = ("emoji-pick", "emoji-hps", GOLD, "emoji-match", "energy", "diversity")
TOLD_BY_PART = (GOLD, "energy")
"""What is told of learned names and of names held out."""

SPLITS = ("development", "report")

Rows = list[dict[str, Any]]


def _prompts(given: argparse.Namespace, split: str) -> int:
    return given.tuning_prompts if split == "development" else given.prompts


def _target(given: argparse.Namespace, split: str) -> Path:
    folder: Path = given.out
    return folder / f"target-{split}-{_prompts(given, split)}.json"


def keep_targets(bed: Bed, given: argparse.Namespace) -> None:
    """Keeps means of the tilted law and of the base model, so that a report needs no model."""

    for split in SPLITS:
        target = bed.target(split, _prompts(given, split), given.draws)
        text = json.dumps({"means": target.means, "base": target.base})
        with replacing(_target(given, split)) as partial:
            partial.write_text(text, encoding="utf-8")


def read_rows(given: argparse.Namespace, split: str) -> Rows:
    """Returns the rows of a split, of the sizes that are asked for."""

    files = sorted((given.out / "cells").glob("*.json"))
    rows = [json.loads(file.read_text("utf-8")) for file in files]
    sizes = {"split": split, "prompts": _prompts(given, split)}
    sizes |= {"images": given.images, "draws": given.draws}
    known = lambda row: row["method"] == "base" or row["method"] in METHODS
    return [r for r in rows if known(r) and all(r[k] == v for k, v in sizes.items())]


def command(given: argparse.Namespace, rows: Rows) -> str:
    """Returns the command that makes rows, but for the folders."""

    there = {row["method"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    names = [name for name in METHODS if name in there]
    sizes = {"prompts": given.prompts, "tuning-prompts": given.tuning_prompts}
    sizes |= {"images": given.images, "draws": given.draws}
    words = [f"--{name} {value}" for name, value in sizes.items()]
    for name, values in (("budgets", given.budgets), ("seeds", seeds), ("methods", names)):
        words.append(f"--{name} {shlex.join(map(str, values))}")
    return f"python -m benchmarks.alignment_cost run {' '.join(words)}"


def written(given: argparse.Namespace) -> None:
    """Writes the result file: ratios, a row for each method, trial and budget, and all trials."""

    curves, rows, law = {}, {}, {}
    for split in SPLITS:
        target = json.loads(_target(given, split).read_text("utf-8"))
        rows[split] = read_rows(given, split)
        law[split] = {
            name: less(values, target["base"][name]) for name, values in target["means"].items()
        }
        group_of = lambda name: METHODS[name].group
        curves[split] = ratios.curves(rows[split], law[split][GOLD], group_of)
    found = {
        "command": command(given, rows["report"]),
        "prompts": given.prompts,
        "development prompts": given.tuning_prompts,
        "pictures of a prompt and seed": given.images,
        "draws of a target": given.draws,
        **ratios.cost_ratios(curves["development"], curves["report"]),
        "tilted law": {name: mean_and_error(gain) for name, gain in law["report"].items()},
        "tilted law by part": by_part(law["report"][GOLD], "report"),
        "full size": _at_full_size(curves["report"]),
        "rows": [summary(rows["report"], one) for one in curves["report"]],
        "trials": [summary(rows["development"], one) for one in curves["development"]],
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with replacing(given.results) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _at_full_size(curves: Sequence[ratios.Curve]) -> dict[str, Any]:
    """Returns what was counted at full size, and what the cheapest that reach gold cost there."""

    full = full_size.RESULT
    if not full.is_file():
        return {}
    known = json.loads(full.read_text("utf-8"))
    kinds = ("output network", "LoRA proximal")
    both = [
        ratios.at_law([c for c in curves if c.method == k], METHODS[k].group, False) for k in kinds
    ]
    shown = [None if one is None else {"method": one.method, "budget": one.budget} for one in both]
    moved = full_size.transferred(shown[0], shown[1], known, ratios.PICTURES[-1])
    recipes = {name: model["recipes"] for name, model in known.items() if "recipes" in model}
    return {"budgets": shown, "recipes": recipes, "measured numbers of pictures": moved}


def summary(rows: Sequence[Mapping[str, Any]], one: ratios.Curve) -> dict[str, Any]:
    """Returns figures of a curve's point over seeds: gains over the base model, and costs.

    Arguments:
        rows: Rows of one split.
        one: The point.
    """

    base = {row["seed"]: row for row in rows if row["method"] == "base"}
    key = (one.method, dict(one.trial), one.budget)
    own = [r for r in rows if (r["method"], r["trial"], r["budget"]) == key and r["seed"] in base]
    mean = lambda get: statistics.mean(get(row) for row in own)
    found: dict[str, Any] = {
        "method": one.method,
        "group": one.group,
        "trial": dict(one.trial),
        "budget": one.budget,
        "seeds": sorted(row["seed"] for row in own),
    }
    found |= gains(own, base, COLUMNS)
    for name in TOLD_BY_PART:
        found[f"{name} gain by part"] = by_part(of_prompts(own, base, name), rows[0]["split"])
    found["precision"], found["recall"] = (
        mean(lambda r: r["precision"]),
        mean(lambda r: r["recall"]),
    )
    found["gold less the tilted law's"] = mean_and_error(list(one.gold))
    for part in ("training", "picture"):
        for kind in ("operations", "seconds", "memory"):
            found[f"{part} {kind}"] = mean(lambda r, p=part, k=kind: r[p][k])
    found["operations with pictures"] = {n: one.operations(n) for n in ratios.PICTURES}
    found["reaches gold"], found["reaches at the law"] = one.reaches(False), one.reaches(True)
    return found
