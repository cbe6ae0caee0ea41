"""The trained networks that come with the test bed, on all reported prompts.

`python -m benchmarks.alignment.shipped` goes on where it was stopped and writes
benchmarks/results/shipped_networks.json. They were chosen among many trials on development prompts,
so they are no part of the comparison in which every method has two.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from rwguidance import networks
from rwguidance.generation import ChangeNetwork, NoiseNetwork
from rwguidance.generation.networks import OfNetwork
from rwguidance.statistics import mean_and_error

from .bed import GOLD, Bed, Maker, Target
from .gains import by_part, gains, less, of_prompts
from .methods import Cell, write_json
from .report import COLUMNS, TOLD_BY_PART

RESULT = Path(__file__).resolve().parent.parent / "results" / "shipped_networks.json"

SHIPPED: dict[str, type[OfNetwork]] = {
    "emoji-turbo-change": ChangeNetwork,
    "emoji-turbo-noise": NoiseNetwork,
}
"""Networks by name, and the methods that they are for."""


def row(bed: Bed, given: argparse.Namespace, target: Target, name: str, seed: int) -> Any:
    """Returns the row of a network, or of the base model, made if need be."""

    cell = Cell(name, {}, 0, seed, "report", given.prompts, given.images, given.draws)
    found = cell.read(given.out)
    if found is None:
        maker = Maker(SHIPPED[name](networks.load(name)) if name in SHIPPED else None)
        chosen = bed.prompts("report", given.prompts)
        found = cell.write(given.out, bed.measured(maker, target, chosen, given.images, seed))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment.shipped")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--images", type=int, default=3, help="pictures of a prompt and seed")
    parser.add_argument("--draws", type=int, default=256, help="draws of a target")
    parser.add_argument("--out", type=Path, default=Path("out/alignment"))
    parser.add_argument("--cache", type=Path, help="draws of the base model; default: in --out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bed = Bed(given.cache or given.out / "draws")
    target = bed.target("report", given.prompts, given.draws)
    made = lambda name: [row(bed, given, target, name, seed) for seed in given.seeds]
    base = {one["seed"]: one for one in made("base")}
    law = less(target.means[GOLD], target.base[GOLD])
    found: dict[str, Any] = {
        "prompts": given.prompts,
        "pictures of a prompt and seed": given.images,
        "draws of a target": given.draws,
        "seeds": given.seeds,
        "tilted law": {GOLD: mean_and_error(law)},
        "tilted law by part": by_part(law, "report"),
    }
    for name in SHIPPED:
        rows = made(name)
        found[name] = gains(rows, base, COLUMNS)
        found[name]["gold less the tilted law's"] = mean_and_error(
            less(of_prompts(rows, base, GOLD), law)
        )
        for what in TOLD_BY_PART:
            parts = by_part(of_prompts(rows, base, what), "report")
            found[name][f"{what} gain by part"] = parts
        write_json(RESULT, found)
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
