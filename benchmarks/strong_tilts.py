"""Strong tilts in the plane: annealed banks beside banks of the law alone, in multiples of a floor.

Run `python benchmarks/strong_tilts.py`; with `--out` it goes on where it stopped. Laws are mixtures
of components N(mean, I / 2), the reward is minus the squared distance from (0, 2.5), and its
strength 1 or 3, up to 7.5 nats. For each, 1,000 guided samples are held against 1,000 exact draws:
the W2 distance by exact transport over its mean between sets of exact draws, the floor, which is 1
where nothing is wrong.
"""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor

import rwguidance as rw
from rwguidance import toy
from rwguidance.support.files import replacing

DTYPE = torch.float64
LAWS = {
    "one": ([1.0], [[0.0, 0.0]]),
    "pair": ([0.5, 0.5], [[-2.5, 0.0], [2.5, 0.0]]),
    "uneven": ([0.2, 0.8], [[-2.5, 0.0], [2.5, 0.0]]),
    "uncentred": ([0.5, 0.5], [[-4.0, 0.0], [1.0, 0.0]]),
}
STRENGTHS = (1.0, 3.0)
TIMES = torch.linspace(1, 0, 51, dtype=DTYPE)
SAMPLES, FLOORS = 1000, 5


def law_of(name: str) -> toy.GaussianMixture:
    weights, means = (torch.tensor(values, dtype=DTYPE) for values in LAWS[name])
    covariances = (0.5 * torch.eye(2, dtype=DTYPE)).expand(len(means), 2, 2)
    return toy.GaussianMixture(weights.log(), means, covariances)


def noise(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=DTYPE)


def w2(a: Tensor, b: Tensor) -> float:
    from scipy.optimize import linear_sum_assignment

    squares = torch.cdist(a, b).square().numpy()
    rows, columns = linear_sum_assignment(squares)
    return math.sqrt(squares[rows, columns].mean())


def cell(name: str, strength: float, seed: int, first: int, draws: int) -> dict[str, float]:
    """Distances of one law, strength and seed over the floor, by method, and what banks hold.

    Stages are guided by the bank so far, and would inherit the share of each mode that it gives
    them; the weights of a stochastic sampler's steps mend that.
    """

    law, generator = law_of(name), Generator().manual_seed(seed)
    reward = toy.Quadratic(torch.tensor([0.0, 2.5], dtype=DTYPE), 2 * torch.eye(2, dtype=DTYPE))
    tilt, model = rw.Tilt(reward, 1 / strength), law.model(rw.RectifiedSchedule())
    exact = [law.tilted(tilt).sample(SAMPLES, generator) for _ in range(FLOORS + 1)]
    floor = statistics.mean(w2(exact[0], other) for other in exact[1:])

    def ratio(bank: rw.Bank) -> float:
        guided = rw.GuidedModel(model, rw.ImportanceSampling(bank, tilt))
        x = rw.sample(guided, rw.Heun(), noise(SAMPLES, generator), TIMES)
        return w2(x, exact[0]) / floor

    banks: dict[str, Callable[[], rw.Bank]] = {
        "annealed": lambda: rw.Bank(law.sample(first, generator)).anneal(
            model,
            tilt,
            noise,
            TIMES,
            draws=draws,
            sampler=rw.DDIM(eta=1.0),
            batch_size=draws,
            generator=generator,
        ),
        "2,000 draws": lambda: rw.Bank(law.sample(2000, generator)).scored(tilt),
        "20,000 draws": lambda: rw.Bank(law.sample(20_000, generator)).scored(tilt),
    }
    found = {}
    for method, make in banks.items():
        bank = make()
        found[method] = ratio(bank)
        if method == "annealed":
            found["draws"] = float(len(bank))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=8000, help="draws of the law itself")
    parser.add_argument("--draws", type=int, default=3000, help="draws of a stage")
    parser.add_argument("--laws", nargs="+", choices=[*LAWS], default=[*LAWS])
    parser.add_argument("--out", type=Path, help="a file of JSON for all figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", rw.UnreliableEstimate)
    cells = [(name, strength) for name in given.laws for strength in STRENGTHS]
    runs = [(*one, seed) for one in cells for seed in range(given.seeds)]
    done = {}
    if given.out is not None and given.out.exists():
        done = {tuple(key): figures for key, figures in json.loads(given.out.read_text("utf-8"))}
    for run in track(runs, console=Console(stderr=True)):
        key = (*run, given.first, given.draws)
        if key not in done:
            done[key] = cell(*key)
            if given.out is not None:
                with replacing(given.out) as partial:
                    partial.write_text(json.dumps([*done.items()], indent=1), encoding="utf-8")
    found = {
        (name, strength): [
            done[name, strength, seed, given.first, given.draws] for seed in range(given.seeds)
        ]
        for name, strength in cells
    }
    methods = list(found[cells[0]][0])
    table = Table(title="W2 to the exact law over the floor, mean and standard error of seeds")
    for column in ("law, strength", *methods):
        table.add_column(column, justify="right")
    for (name, strength), rows in found.items():
        columns = [[row[method] for row in rows] for method in methods]
        table.add_row(f"{name}, {strength:g}", *map(_shown, columns))
    Console(width=100).print(table)


def _shown(values: list[float]) -> str:
    mean = statistics.mean(values)
    if mean > 100:
        return f"{mean:,.0f}"
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean:.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
