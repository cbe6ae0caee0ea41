"""Runs the comparison: `python -m benchmarks.rivals toys`, which goes on where it was stopped."""

import argparse
from pathlib import Path

import torch

from . import toys
from .laws import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("part", choices=["toys"])
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*toys.REPORT])
    parser.add_argument("--out", type=Path, default=Path("out/rivals"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    toys.confirmed(given.out, toys.tuned(given.out, given.families), given.seeds)


if __name__ == "__main__":
    main()
