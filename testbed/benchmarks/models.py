"""The worth of the trained models of the test bed, by the judge and the gold utility.

Run `python testbed/benchmarks/models.py`. Generators are asked for every name, with and without a
background; the judge says whether it finds the name among 100, and how far pictures are from real
ones of drawings that no generator has seen. Beside them stand the real pictures that generators
learned from, which are what a perfect generator would make, and as many of the drawings that
distances are taken to. Proxies are held against the gold utility on pairs of new pictures.

Distances and modes need the drawings, `--data`; without them they are left out.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from formatting import console, markdown, print_table, write_csv
from measures import Sizes, load_drawings, measure_generators, measure_proxies
from rich.progress import Progress

import backbones
import rewards
from rwguidance.support.files import replacing
from rwguidance_testbed import shipped
from rwguidance_testbed.training.sheets import check_prompts, write_sheet

GENERATORS = (
    ("right", 3),
    ("right, held out", 3),
    ("frechet", 3),
    ("kernel", 4),
    ("precision", 2),
    ("recall", 2),
    ("drawings", 2),
    ("seconds", 3),
)
PROXIES = (("all pairs", 3), ("held-out names", 3))


def split_name(text: str) -> tuple[str, str | None]:
    """Returns name and path of ``NAME[=PATH]``."""

    name, _, path = text.partition("=")
    return name, path or None


def load_generator(name: str, path: str | None, **options: Any) -> Any:
    """Returns a generator, frozen, its decoder in half precision."""

    backbone = backbones.load(name, path, **options).eval().requires_grad_(False)
    # Decoding is most of the work, and faster so.
    backbone.pipe.vae.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    return backbone


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command."""

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--backbone", action="append", metavar="NAME[=FOLDER]", help="default: those shipped")
    add("--reward", action="append", metavar="NAME[=PATH]", help="default: those shipped")
    add("--data", type=Path, default=Path("out/testbed"), help="folder of the drawings")
    add("--out", type=Path, default=Path("out/testbed-models"))
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--smoke", action="store_true", help="few pictures, in seconds")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Runs the benchmark, and returns its tables."""

    import diffusers

    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    diffusers.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    there = shipped.names()
    known = lambda *names: [name for name in names if name in there]
    generators, slower = {}, {}
    for text in arguments.backbone or known("emoji-flow", "emoji-turbo", "emoji-turbo-wide"):
        name, path = split_name(text)
        generators[name] = load_generator(name, path)
        if name == "emoji-turbo":
            slower[f"{name}, four steps"] = load_generator(name, path, steps=4)
    asked = arguments.reward or known("emoji-pick", "emoji-hps")
    proxies = {split_name(text)[0]: rewards.load(*split_name(text)).eval() for text in asked}
    gold = shipped.gold()
    drawings = load_drawings(arguments.data, "distances and modes")
    sizes = Sizes(1, 2, 4, 3, 2) if arguments.smoke else Sizes()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress:
        task = progress.add_task("pictures", total=None)
        tick = lambda n: progress.update(task, advance=n)
        every = generators | slower
        tables = {
            "generators": measure_generators(every, gold.judge, drawings, sizes, tick),
            "proxies": measure_proxies(proxies, generators, gold, sizes, tick),
        }
    write_sheets(generators, arguments.out, 4 if arguments.smoke else None)
    write_tables(tables, arguments.out)
    return tables


def write_sheets(generators: Mapping[str, Any], out: Path, count: int | None) -> None:
    """Writes a contact sheet of every generator, of so many prompts or of all."""

    prompts = check_prompts()[:count]
    for name, backbone in generators.items():
        scale = backbone.guidance_scale or 0.0
        steps = len(backbone.times()) - 1
        backbone.pipe.vae.float()
        write_sheet(backbone.pipe, prompts, out / f"{name}.png", guidance=scale, steps=steps)


def write_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """Prints the tables and writes them, as files and as a page."""

    page = []
    for title, columns in (("generators", GENERATORS), ("proxies", PROXIES)):
        print_table(title, tables[title], columns)
        write_csv(tables[title], out / f"{title}.csv")
        page.append(markdown(tables[title], columns).replace("| method |", "| |", 1))
    with replacing(out / "models.md") as partial:
        partial.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    console.print(f"written to {out}")


if __name__ == "__main__":
    main()
