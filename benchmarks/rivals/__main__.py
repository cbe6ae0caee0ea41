"""Runs the comparison: `python -m benchmarks.rivals toys`, which goes on where it was stopped."""

import argparse
from pathlib import Path

import torch

from . import report, testbed, toys
from .laws import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("part", choices=["toys", "testbed", "report"])
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--calls", type=int, nargs="+", default=[*toys.CALLS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*toys.REPORT])
    parser.add_argument("--out", type=Path, default=Path("out/rivals"))
    parser.add_argument("--subset", type=int, default=48, help="reported prompts of the test bed")
    parser.add_argument("--tuning-subset", type=int, default=12, help="development prompts")
    parser.add_argument("--images", type=int, default=16, help="pictures of a prompt")
    parser.add_argument("--cache", type=Path, help="draws of the test bed; default: in --out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part == "report":
        report.written(given.out)
        return
    if given.part == "toys":
        settings = toys.tuned(given.out, given.families)
        toys.confirmed(given.out, settings, given.seeds, given.calls)
        return
    cache = given.cache or given.out / "draws"
    chosen = testbed.tuned(given.out, cache, given.tuning_subset, given.images)
    testbed.confirmed(given.out, cache, chosen, given.subset, given.images)


if __name__ == "__main__":
    main()
