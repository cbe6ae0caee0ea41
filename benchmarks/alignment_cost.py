"""What alignment costs: fine-tuners against networks, noise and draws, on the model of one step.

`python -m benchmarks.alignment_cost run` goes on where it was stopped; `report` makes the result
file of what there is. All methods are aligned to one proxy. Settings are chosen on development
prompts, of as many trials of each method, with seed 0; what is reported is of other prompts.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .alignment import ratios, report
from .alignment.bed import Bed, Maker
from .alignment.counting import Spent
from .alignment.methods import METHODS, Cell, Trial, weights_of, write_json


def rows_of(
    bed: Bed, given: argparse.Namespace, name: str, trial: Trial, split: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Gives the rows of a trial at all its budgets, made if need be."""

    prompts = given.tuning_prompts if split == "development" else given.prompts
    sizes = (split, prompts, given.images, given.draws)
    made: Iterator[tuple[int, Callable[[], Maker], Spent]]
    if name == "base":
        budgets, made = [0], iter([(0, Maker, Spent())])
    else:
        budgets = METHODS[name].budgets(given.budgets)
        made = weights_of(bed, given.out / "weights", name, trial, budgets, seed)
    cells = [Cell(name, trial, n, seed, *sizes) for n in budgets]
    found = [cell.read(given.out) for cell in cells]
    if all(row is not None for row in found):
        yield from (row for row in found if row is not None)
        return
    target = bed.target(split, prompts, given.draws)
    chosen, file = bed.prompts(split, prompts), cells[0].picture(given.out)
    for cell, (_, make, cost) in zip(cells, made, strict=True):
        row = cell.read(given.out)
        if row is None:
            maker = make()
            if not file.is_file():  # all budgets and seeds have it in common
                write_json(file, vars(bed.picture(maker)))
            measured = bed.measured(maker, target, chosen, given.images, seed)
            costs = {"training": vars(cost), "picture": json.loads(file.read_text("utf-8"))}
            row = cell.write(given.out, {**measured, **costs})
        yield row


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part == "run":
        run(given)
    report.written(given)


def run(given: argparse.Namespace) -> None:
    """Makes all rows: trials on development prompts, then the chosen ones, seed by seed."""

    bed = Bed(given.cache or given.out / "draws")
    for seed in given.seeds:
        for name in ("base", *given.methods):
            began = time.perf_counter()
            trials: Sequence[Trial] = [{}] if name == "base" else METHODS[name].trials
            for trial in trials if seed == 0 else ():
                list(rows_of(bed, given, name, trial, "development", seed))
            known = [r for r in report.read_rows(given, "development") if r["method"] == name]
            for trial in ratios.chosen([] if name == "base" else known):
                list(rows_of(bed, given, name, trial, "report", seed))
            report.keep_targets(bed, given)
            print(f"seed {seed}, {name}: {time.perf_counter() - began:.0f} s", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment_cost")
    parser.add_argument("part", choices=["run", "report"])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--budgets", type=int, nargs="+", default=[80, 160, 320, 640, 1280, 2560])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=200, help="reported prompts")
    parser.add_argument("--tuning-prompts", type=int, default=24, help="development prompts")
    parser.add_argument("--images", type=int, default=4, help="pictures of a prompt and seed")
    parser.add_argument("--draws", type=int, default=256, help="draws of a target")
    parser.add_argument("--out", type=Path, default=Path("out/alignment"))
    parser.add_argument("--cache", type=Path, help="draws of the base model; default: in --out")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
