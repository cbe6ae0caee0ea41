"""The reviewers' questions: what strength, scale, eta, size, data and bad rewards do to alignment.

`python -m benchmarks.alignment_curves scale nats` runs sweeps on reported prompts, goes on where it
was stopped, and writes benchmarks/results/alignment_curves.json of all points that there are.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwguidance import networks
from rwguidance.evaluation.appearance import APPEARANCE
from rwguidance.generation import Network, PlugInMean, Pool
from rwguidance.generation.run import Run
from rwguidance.statistics import mean_and_error

from .alignment import learned
from .alignment.bed import PROXY, Bed, Maker
from .alignment.gains import gains, less
from .alignment.methods import Cell, write_json
from .alignment.report import COLUMNS

RESULTS = Path(__file__).resolve().parent / "results" / "alignment_curves.json"
SPOILED = ("noisy", "sparse", "binary", "biased")
SIZES = {"tiny": 2, "small": 8, "paper": 72}
"""Networks by name, with their megabytes for a shift of SDXL; that of 24 MB has no name."""

BANK = 5120
"""Draws that networks of the shift and of log h learn from."""

SCALAR = {"network": "small", "learning_rate": 1e-3}
"""A network of log h that is small enough to be trained for each eta and seed."""

Make = Callable[[Bed, int], Maker]


@dataclass(frozen=True)
class Spoiled:
    """A reward that is worse than the proxy it is made of.

    Arguments:
        proxy: The proxy.
        kind: "noisy", "sparse", "binary" or "biased".
    """

    proxy: Callable[..., Tensor]
    kind: str

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        values = self.proxy(images, prompts)
        if self.kind == "binary":  # above the mean of what the model draws, or not
            return (values > 0.9).to(values)
        if self.kind == "sparse":  # nothing but the best fifth says anything
            return (values - 2.3).clamp(min=0)
        if self.kind == "biased":  # brightness that nobody asked for
            return values + 4 * images.mean((1, 2, 3))
        # Noise that belongs to the picture, as large as the proxy varies.
        share = (images.double().flatten(1).sum(1) * 1e4).frac()
        return values + 1.5 * torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)).to(values)


class OrModel(Maker):
    """Pictures of a method, or of the model where the reward is constant and the method refuses."""

    def states(self, run: Run, prompt: str, n: int) -> Tensor:
        try:
            return super().states(run, prompt, n)
        except ValueError:
            return Maker().states(run, prompt, n)


def _network(scale: float) -> Make:
    return lambda bed, seed: Maker(Network(networks.load("emoji-turbo-guide"), scale=scale))


def _trained(kind: str, budget: int, scale: float = 1.0, **trial: Any) -> Make:
    def make(bed: Bed, seed: int) -> Maker:
        weights = _weights(bed, kind, budget, tuple(trial.items()), seed)
        maker = learned.maker_of(bed, kind, trial, weights)
        if scale == 1:
            return maker
        assert isinstance(maker.method, Network)
        return Maker(replace(maker.method, scale=scale))

    return make


@lru_cache(8)  # seeds of points that differ in their scale alone, which follow each other
def _weights(
    bed: Bed, kind: str, budget: int, trial: tuple[tuple[str, Any], ...], seed: int
) -> learned.Weights:
    ((_, weights, _),) = learned.trained(bed, kind, dict(trial), [budget], seed)
    return weights


def _pool(nats: float) -> Make:
    return lambda bed, seed: OrModel(Pool(kl=nats, bank=32 if nats <= 2 else 96))


def _plug_in(scale: float) -> Make:
    return lambda bed, seed: Maker(PlugInMean(kl=1.0, bank=32, scale=scale))


SWEEPS: dict[str, dict[str, Make]] = {
    "scale": {f"network, scale {v:g}": _network(v) for v in (0.5, 1, 2, 4, 8)}
    | {f"plug-in, scale {v:g}": _plug_in(v) for v in (0.5, 1, 2, 4, 8)},
    "nats": {f"pool, {v:g} nats": _pool(v) for v in (0.25, 0.5, 1, 2, 4)},
    "reward": {f"pool, {kind} reward": _pool(1) for kind in SPOILED},
    "eta": {
        f"log h, eta {eta:g}, scale {scale}": _trained("paper", BANK, scale, eta=eta, **SCALAR)
        for eta in (0.0, 0.1, 1.0, 10.0)
        for scale in (4, 16, 64)
    },
    "size": {
        f"output network of {size} MB": _trained(
            "output", 320, network=name, loose=10.0, calibrate=False
        )
        for name, size in SIZES.items()
    },
    "data": {
        f"{BANK // each} prompts x {each} draws": _trained("recommended", BANK, each=each)
        for each in (16, 64, 256)
    },
}
"""Points of each sweep by name, and how they are made."""


def nats_of(sweep: str, name: str) -> float:
    """Returns the strength of the tilted law that a point is compared with."""

    return float(_word(name)) if sweep == "nats" else 1.0


def _word(name: str) -> str:
    """Returns what the points of a sweep differ in, the first word behind the comma."""

    return name.split(", ")[-1].split()[0]


def point(
    bed: Bed, given: argparse.Namespace, sweep: str, name: str, seed: int, nats: float
) -> dict[str, Any]:
    """Returns the row of a point, or of the base model, made if need be."""

    trial = {"sweep": sweep}
    cell = Cell(name, trial, 0, seed, "report", given.prompts, given.images, given.draws)
    row = cell.read(given.out)
    if row is None:
        if sweep == "reward" and name != "base":
            bed = replace(bed, other=Spoiled(bed.rewards[PROXY], _word(name)))
        maker = Maker() if name == "base" else SWEEPS[sweep][name](bed, seed)
        target = bed.target("report", given.prompts, given.draws, nats)
        chosen = bed.prompts("report", given.prompts)
        row = cell.write(given.out, bed.measured(maker, target, chosen, given.images, seed))
    return row


def law(bed: Bed, given: argparse.Namespace, nats: float) -> dict[str, Any]:
    """Returns gains of the tilted law itself over the base model, of the rewards that are known."""

    target = bed.target("report", given.prompts, given.draws, nats)
    found: dict[str, Any] = {"seeds": []}
    for name, means in target.means.items():
        found[f"{name} gain"] = mean_and_error(less(means, target.base[name]))
    return found


def command(given: argparse.Namespace) -> str:
    """Returns the sizes of a run as options."""

    sizes = {"prompts": given.prompts, "images": given.images, "draws": given.draws}
    words = [f"--{name} {value}" for name, value in sizes.items()]
    return " ".join((*words, "--seeds", *map(str, given.seeds)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment_curves")
    parser.add_argument("sweeps", nargs="*", default=[*SWEEPS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=48, help="reported prompts")
    parser.add_argument("--images", type=int, default=4, help="pictures of a prompt and seed")
    parser.add_argument("--draws", type=int, default=256, help="draws of a target")
    parser.add_argument("--out", type=Path, default=Path("out/alignment-curves"))
    parser.add_argument("--cache", type=Path, help="draws of the base model; default: in --out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    unknown = set(given.sweeps) - set(SWEEPS)
    if unknown:
        parser.error(f"sweeps must be some of {', '.join(SWEEPS)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    bed = Bed(given.cache or given.out / "draws")
    known = json.loads(given.results.read_text("utf-8")) if given.results.is_file() else {}
    for sweep in given.sweeps:
        for name in SWEEPS[sweep]:
            nats = nats_of(sweep, name)
            common = "all" if nats == 1 else f"{nats:g} nats"
            base = {seed: point(bed, given, common, "base", seed, nats) for seed in given.seeds}
            rows = [point(bed, given, sweep, name, seed, nats) for seed in given.seeds]
            known.setdefault(sweep, {})[name] = {
                "seeds": given.seeds,
                **gains(rows, base, (*COLUMNS, *APPEARANCE)),
            }
            if sweep == "nats":
                known[sweep][f"tilted law, {nats:g} nats"] = law(bed, given, nats)
            known["command"] = f"python -m benchmarks.alignment_curves {command(given)}"
            known["prompts"], known["pictures of a prompt and seed"] = given.prompts, given.images
            write_json(given.results, known)
            print(sweep, name, known[sweep][name], flush=True)


if __name__ == "__main__":
    main()
