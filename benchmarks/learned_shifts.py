"""Learned shifts in the plane beside the banks that trained them, in multiples of a floor.

Run `python benchmarks/learned_shifts.py`; with `--out` it goes on where it stopped. The laws,
strengths and distances are those of `strong_tilts.py`. For each of them and each seed a bank is
drawn, for the strong tilts an annealed one, and networks are trained on it; bank and networks guide
the same noise, and the ratio of their distances is at most 1 where the network is not the worse of
the two.
"""

import argparse
import json
import math
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor

if __name__ == "__main__":  # this folder's files are not the packages
    sys.path[0] = str(Path(__file__).parents[1])

import rwguidance as rw
from benchmarks.strong_tilts import DTYPE, LAWS, SAMPLES, STRENGTHS, TIMES, law_of, noise, w2
from rwguidance import toy
from rwguidance.networks import ShiftMLP
from rwguidance.support.files import replacing
from rwguidance.training import EstimatedShiftObjective, ShiftObjective, train

FLOORS = 5
SCHEDULE = rw.RectifiedSchedule()


class Narrow(torch.nn.Module):
    """A network in single precision under states in double."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.network(x_t.float(), t, condition).double()


def trained(objective: Any, steps: int, width: int, seed: int) -> rw.LearnedShift:
    network = ShiftMLP((2,), SCHEDULE, width=width, depth=4, seed=seed)
    train(network, objective, steps, learning_rate=3e-3, seed=seed, max_norm=1.0)
    return rw.LearnedShift(Narrow(network))


def cell(name: str, strength: float, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """Distances of one law, strength and seed over the floor, by method."""

    law, generator = law_of(name), Generator().manual_seed(seed)
    reward = toy.Quadratic(torch.tensor([0.0, 2.5], dtype=DTYPE), 2 * torch.eye(2, dtype=DTYPE))
    tilt, model = rw.Tilt(reward, 1 / strength), law.model(SCHEDULE)
    exact = [law.tilted(tilt).sample(SAMPLES, generator) for _ in range(FLOORS + 1)]
    floor = statistics.mean(w2(exact[0], other) for other in exact[1:])
    start = noise(SAMPLES, generator)

    def distance(estimator: rw.ConditionalExpectation) -> float:
        with torch.no_grad():
            x = rw.sample(rw.GuidedModel(model, estimator), rw.Heun(), start, TIMES)
        return w2(x, exact[0]) / floor

    bank = rw.Bank(law.sample(given.draws, generator)).scored(tilt)
    if strength > 1:  # of which a bank of the law alone holds next to nothing
        bank = bank.anneal(model, tilt, noise, TIMES, sampler=rw.Heun(), generator=generator)
    found = {"draws": float(len(bank)), "exact": distance(toy.Oracle(law, tilt))}
    found["bank"] = distance(rw.ImportanceSampling(bank, tilt))
    rounded = bank.to(dtype=torch.float32)
    for name, kind in (("weighted", ShiftObjective), ("estimated", EstimatedShiftObjective)):
        objective = kind(model, rounded, tilt, batch_size=given.batch_size)
        found[name] = distance(trained(objective, given.steps, given.width, seed))
    found["estimated / bank"] = found["estimated"] / found["bank"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1000, help="draws of a bank or a stage")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--laws", nargs="+", choices=[*LAWS], default=[*LAWS])
    parser.add_argument("--out", type=Path, help="a file of JSON for all figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", rw.UnreliableEstimate)
    cells = [(name, strength) for name in given.laws for strength in STRENGTHS]
    settings = (given.draws, given.steps, given.batch_size, given.width)
    runs = [(*one, seed, *settings) for seed in range(given.seeds) for one in cells]
    done = {}
    if given.out is not None and given.out.exists():
        done = {tuple(key): figures for key, figures in json.loads(given.out.read_text("utf-8"))}
    for run in track(runs, console=Console(stderr=True)):
        if run not in done:
            done[run] = cell(*run[:3], given)
            if given.out is not None:
                with replacing(given.out) as partial:
                    partial.write_text(json.dumps([*done.items()], indent=1), encoding="utf-8")
    found = {one: [done[run] for run in runs if run[:2] == one] for one in cells}
    Console(width=100).print(_table(found))


def _table(found: dict[tuple[str, float], list[dict[str, float]]]) -> Table:
    table = Table(title="W2 to the exact law over the floor; mean and standard error over seeds")
    methods = ("exact", "bank", "weighted", "estimated", "estimated / bank")
    for column in ("law, strength", "draws", *methods):
        table.add_column(column, justify="right")
    for (name, strength), rows in found.items():
        draws = f"{statistics.mean(row['draws'] for row in rows):,.0f}"
        columns = [[row[method] for row in rows] for method in methods]
        table.add_row(f"{name}, {strength:g}", draws, *map(_shown, columns))
    return table


def _shown(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
