"""Particles in 30 dimensions: twisted SMC beside resampling, at equal calls of the network.

Run `python benchmarks/particles.py`. The law is a mixture of 40 components of unit covariance with
means uniform in [-20, 20]^30, the reward -|x|^2 / 2, and its temperature as given: 200 is weak, 50
strong. A method has so many draws of so many steps, of one call each, and gives as many weighted
states; guided ones have equal weights. Rows state, over seeds:

- `distance`: sliced W2 of as many states, resampled by weight, to the tilted law, in data units,
- `components`: total variation distance between the shares that the components have and those of
  the tilted law, in [0, 1],
- `spread`: mean squared distance of states to the mean of their component, per dimension, over
  that of the tilted law, where 1 is right,
- `reward`: the mean reward less that of the tilted law, in units of the reward's standard deviation
  under it,
- `effective`: effective draws at the end, and `ancestors` that they have,
- `log Z`: the estimate less the exact value, in nats.

The row `exact` draws as many states from the tilted law itself: nothing can be better but by luck.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor

import rwguidance as rw
from rwguidance import toy
from rwguidance.diagnostics import sliced_wasserstein
from rwguidance.weights import ess, log_mean_exp, systematic

DTYPE = torch.float64
DIMENSIONS, COMPONENTS = 30, 40
COLUMNS = ("distance", "components", "spread", "reward", "effective", "ancestors", "log Z")
Found = dict[str, float]


def law_of(generator: Generator) -> toy.GaussianMixture:
    means = 40 * torch.rand(COMPONENTS, DIMENSIONS, generator=generator, dtype=DTYPE) - 20
    return toy.GaussianMixture(torch.zeros(COMPONENTS), means, torch.eye(DIMENSIONS)[None])


class Problem:
    """One mixture, one temperature, and so many draws of so many steps."""

    def __init__(self, beta: float, draws: int, steps: int, seed: int) -> None:
        self.generator = Generator().manual_seed(seed)
        self.law, self.draws = law_of(self.generator), draws
        self.tilt = rw.Tilt(toy.Quadratic(torch.zeros(DIMENSIONS), torch.eye(DIMENSIONS)), beta)
        target = self.law.tilted(self.tilt)
        assert isinstance(target, toy.GaussianMixture)
        self.target = target
        self.model = self.law.model(rw.RectifiedSchedule())
        self.times = torch.linspace(1, 0, steps + 1, dtype=DTYPE)
        self.many, equal = target.sample(10_000, self.generator), torch.zeros(10_000, dtype=DTYPE)
        self.shares, self.scatter = self._shares(self.many, equal), self._scatter(self.many, equal)
        self.rewards = self.tilt.score(self.many)

    def noise(self) -> Tensor:
        return torch.randn(self.draws, DIMENSIONS, generator=self.generator, dtype=DTYPE)

    def _nearest(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.target.means).argmin(1)

    def _shares(self, x: Tensor, log_w: Tensor) -> Tensor:
        shares = torch.zeros(COMPONENTS, dtype=DTYPE)
        return shares.index_add(0, self._nearest(x), log_w.softmax(0))

    def _scatter(self, x: Tensor, log_w: Tensor) -> float:
        squares = (x - self.target.means[self._nearest(x)]).square().mean(1)
        return float(log_w.softmax(0) @ squares)

    def judged(self, x: Tensor, log_w: Tensor, ancestors: int, weighs: bool = True) -> Found:
        """The columns of weighted states; those that know Z weigh with it."""

        reward = float(log_w.softmax(0) @ self.tilt.score(x))
        log_z = float(log_mean_exp(log_w) - self.law.log_normalizer(self.tilt))
        picks = systematic(log_w, self.draws, self.generator)
        distance = sliced_wasserstein(x[picks], self.many, 64, self.generator)
        return {
            "distance": distance,
            "components": float((self._shares(x, log_w) - self.shares).abs().sum()) / 2,
            "spread": self._scatter(x, log_w) / self.scatter,
            "reward": (reward - float(self.rewards.mean())) / float(self.rewards.std()),
            "effective": float(ess(log_w)),
            "ancestors": float(ancestors),
            "log Z": log_z if weighs else math.nan,
        }

    def exact(self) -> Found:
        x = self.target.sample(self.draws, self.generator)
        return self.judged(x, torch.zeros(self.draws, dtype=DTYPE), self.draws, weighs=False)

    def resampled(self) -> Found:
        """Draws of the model, by the steps that are best for it, weighed at the end."""

        x = rw.sample(self.model, rw.DDIM(), self.noise(), self.times)
        return self.judged(x, self.tilt(x), self.draws)

    def guided(self) -> Found:
        """The exact shift, without weights."""

        model = rw.GuidedModel(self.model, toy.Oracle(self.law, self.tilt))
        x = rw.sample(model, rw.DDIM(), self.noise(), self.times)
        return self.judged(x, torch.zeros(self.draws, dtype=DTYPE), self.draws, weighs=False)

    def particles(self, twist: rw.ConditionalExpectation, **settings: Any) -> Found:
        made = rw.TwistedSMC(self.tilt, twist, **settings).sample(
            self.model, rw.DDIM(eta=1.0), self.noise(), self.times, generator=self.generator
        )
        return self.judged(made.x_0, made.log_w[0], int(made.distinct))


METHODS: dict[str, Callable[[Problem], Found]] = {
    "exact": Problem.exact,
    "resampling": Problem.resampled,
    "... noisy steps": lambda p: p.particles(rw.LookAhead(p.tilt), threshold=0.0),
    "SMC, look-ahead": lambda p: p.particles(rw.LookAhead(p.tilt)),
    "... below t = 0.5": lambda p: p.particles(rw.LookAhead(p.tilt), window=(0.0, 0.5)),
    "SMC, exact log h": lambda p: p.particles(toy.Oracle(p.law, p.tilt), scale=0.0),
    "... guided": lambda p: p.particles(toy.Oracle(p.law, p.tilt)),
    "guidance, exact": Problem.guided,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--betas", type=float, nargs="+", default=[200.0, 50.0])
    parser.add_argument("--out", type=Path, help="a file of JSON for all figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(beta, steps) for beta in given.betas for steps in given.steps]
    runs = [(*cell, seed) for cell in cells for seed in range(given.seeds)]
    found: dict[tuple[float, int, str], list[Found]] = {}
    for beta, steps, seed in track(runs, console=Console(stderr=True)):
        problem = Problem(beta, given.draws, steps, seed)
        for name, method in METHODS.items():
            found.setdefault((beta, steps, name), []).append(method(problem))
    for beta, steps in cells:
        table = Table(title=f"beta {beta:g}, {given.draws} draws of {steps} steps")
        table.add_column("")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for name in METHODS:
            rows = found[beta, steps, name]
            table.add_row(name, *(_shown([row[c] for row in rows]) for c in COLUMNS))
        Console(width=120).print(table)
    if given.out is not None:
        kept = [{"beta": b, "steps": s, "method": n, "seeds": v} for (b, s, n), v in found.items()]
        given.out.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def _shown(values: list[float]) -> str:
    mean = statistics.mean(values)
    if math.isnan(mean):
        return ""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean:.0f} ± {error:.0f}" if abs(mean) >= 10 else f"{mean:.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
