"""The toys: cells that are kept, trials on the development seed, and a table."""

import hashlib
import json
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Generator, Tensor

import rwguidance as rw
from rwguidance.support.files import replacing

from .counting import CountedModel, CountedReward
from .laws import FAMILIES, Problem
from .methods import METHODS, Case

DEVELOPMENT, REPORT = 0, (1, 2, 3)
TUNING_CALLS = 64
CALLS = (64, 256)
TUNING_OUTPUTS, OUTPUTS = 128, 256
ON_DEVELOPMENT = {"damping": ("pair, 1", "pair, 3", "uncentred, 1", "uncentred, 3")}
"""Laws of a family on which methods are tuned, where these are not all."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a method on a law.

    Arguments:
        family: Family of the law.
        law: Name of the law.
        method: Name of the method.
        calls: Number of calls of the network for a state, at most.
        seed: Seed of every random number.
        outputs: Number of states.
        settings: Settings of the method.
    """

    family: str
    law: str
    method: str
    calls: int
    seed: int
    outputs: int
    settings: dict[str, Any]

    def run(self) -> Found:
        """The measures of the states, or the reason why there are none."""

        problem, generator = FAMILIES[self.family][self.law](self.seed), Generator()
        generator.manual_seed(1000 + self.seed)
        reward = CountedReward(problem.reward)
        model = CountedModel(problem.law.model(rw.RectifiedSchedule()))
        d, tilt = math.prod(problem.law.event), rw.Tilt(reward, problem.beta)
        case = Case(model, tilt, d, self.outputs, self.calls, generator)
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rw.UnreliableEstimate)
                x = METHODS[self.method][0](case, **self.settings)
        except (ValueError, FloatingPointError) as error:
            return {"failed": str(error)}
        if not bool(x.isfinite().all()):
            return {"failed": "states are not finite"}
        seconds = time.process_time() - started
        spent = {"network": model.calls / len(x), "reward": reward.calls / len(x)}
        return {**measured(problem, x.detach(), self.seed), **spent, "seconds": seconds}


def measured(problem: Problem, x: Tensor, seed: int) -> Found:
    """Distance to the tilted law over that of its draws, share of the gain, and diversity."""

    generator = Generator().manual_seed(2000 + seed)
    exact = [problem.target(len(x), generator) for _ in range(4)]
    floor = statistics.mean(problem.distance(exact[0], other) for other in exact[1:])
    plain, reward = problem.law.sample(4 * len(x), generator), problem.reward
    gain = float(reward(torch.cat(exact)).mean() - reward(plain).mean())
    spread = lambda y: float(torch.pdist(y).mean())
    return {
        "distance": statistics.mean(problem.distance(x, one) for one in exact) / floor,
        "share": (float(reward(x).mean()) - float(reward(plain).mean())) / gain,
        "diversity": spread(x) / spread(exact[0]),
    }


def kept(cell: Cell, folder: Path) -> Found:
    """The measures of a cell, from its file if there is one."""

    name = hashlib.sha256(json.dumps(vars(cell), sort_keys=True).encode()).hexdigest()
    path = folder / "cells" / f"{name[:24]}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["found"]
    found = cell.run()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps({"cell": vars(cell), "found": found}), encoding="utf-8")
    return found


def tuned(folder: Path, families: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The best of the trials of each method, for a family, by family and method.

    The best has the least mean logarithm of the distance, on the development seed; a trial that
    fails on a law is taken to be a hundred times as far as it should be. All trials are written to
    `trials.json`.
    """

    keys = [(family, method) for family in families for method in METHODS]
    chosen, log = {}, []
    for family, method in track(keys, "tuning", console=Console(stderr=True)):
        trials: list[dict[str, Any]] = []
        for settings in METHODS[method][1]:
            cells = [
                Cell(family, law, method, TUNING_CALLS, DEVELOPMENT, TUNING_OUTPUTS, settings)
                for law in ON_DEVELOPMENT.get(family, FAMILIES[family])
            ]
            distances = [kept(cell, folder).get("distance", 100.0) for cell in cells]
            score = statistics.mean(math.log(d) for d in distances)
            trials.append({"settings": settings, "distances": distances, "score": score})
        chosen[family, method] = min(trials, key=lambda trial: trial["score"])["settings"]
        log.append({"family": family, "method": method, "trials": trials})
    with replacing(folder / "trials.json") as partial:
        partial.write_text(json.dumps(log, indent=1), encoding="utf-8")
    return chosen


def confirmed(
    folder: Path,
    chosen: dict[tuple[str, str], dict[str, Any]],
    seeds: Sequence[int],
    calls: Sequence[int],
) -> list[Found]:
    """The chosen settings on the seeds that are reported, one row for each run."""

    cells = [
        Cell(family, law, method, number, seed, OUTPUTS, settings)
        for number in calls
        for seed in seeds
        for (family, method), settings in chosen.items()
        for law in FAMILIES[family]
    ]
    rows = []
    for cell in track(cells, "confirming", console=Console(stderr=True)):
        rows.append({**vars(cell), **kept(cell, folder)})
    with replacing(folder / "toys.json") as partial:
        partial.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows
