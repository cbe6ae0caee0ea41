"""What the trained models of the test bed are worth, by the judge and the gold utility.

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
import itertools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from methods import split_name
from report import (
    COPIES,
    console,
    figures_of,
    load_drawings,
    markdown,
    print_table,
    write_csv,
)
from report import NAMES as CANDIDATES
from rich.progress import Progress
from torch import Tensor

import backbones
import rewards
from rwguidance.samplers import sample
from rwguidance.statistics import mean_and_error
from rwguidance.support.files import replacing
from rwguidance.support.randomness import generator_for
from rwguidance.tilt import RewardFunction
from rwguidance_testbed import metrics, shipped
from rwguidance_testbed.data import Drawings, load_names
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.gold import Gold
from rwguidance_testbed.network import prompts_of
from rwguidance_testbed.training.sheets import check_prompts, write_sheet

PARTS = {"learned": "train", "held out": "held_out"}
REAL = "real pictures that they learned from"
OTHER = "other half of the real pictures compared with"
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


@dataclass(frozen=True)
class Sizes:
    """How much is drawn.

    Arguments:
        prompts: Of each name: it alone and on backgrounds.
        names: Names whose modes are counted.
        each: Pictures of each of them.
        captions: Of learned and of held-out names, on whose pictures proxies are held against gold.
        pictures: Of each caption and generator.
    """

    prompts: int = 2
    names: int = 24
    each: int = 32
    captions: int = 120
    pictures: int = 4


Tick = Callable[[int], None]


def name_of(prompt: str) -> str:
    """What a prompt asks for."""

    return re.sub(r" on an? \w+ background$", "", prompt)


def load_generator(name: str, path: str | None, **options: Any) -> Any:
    backbone = backbones.load(name, path, **options).eval().requires_grad_(False)
    # Decoding is most of the work, and faster so.
    backbone.pipe.vae.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    return backbone


@torch.no_grad()
def draw(
    backbone: Any,
    prompts: Sequence[str],
    *stream: str,
    batch: int = 64,
    tick: Tick = lambda n: None,
) -> Tensor:
    """One picture of each prompt in [0, 1], with shape (N, 3, 64, 64)."""

    pictures = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        generator = generator_for(0, *stream, str(start))
        noise = backbone.draw_noise(len(some), generator)
        condition = backbone.condition(some)
        times = backbone.times()
        x_0 = sample(backbone, backbone.sampler, noise, times, condition, generator)
        pictures.append(backbone.decode(x_0).float())
        tick(len(some))
    return torch.cat(pictures)


def mean_over(groups: Sequence[str], values: Tensor) -> tuple[float, float]:
    """The mean over groups of their means, and its standard error; NaN has no part in it.

    Arguments:
        groups: Of each value; groups are independent, values of one are not.
        values: With shape (N,).
    """

    known = ~values.isnan()
    return mean_and_error(values[known], itertools.compress(groups, known.tolist()))


def perplexity(shares: Tensor) -> float:
    """The exponential of the entropy: how many equally likely cases are as uncertain."""

    return float(torch.special.entr(shares).sum().exp())


def centers_of(
    judge: Towers, drawings: Drawings, names: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """Mean embeddings of the paintings of each drawing of a name, by name, with shape (K, D)."""

    found = {}
    for name in names:
        own = drawings.where(names=[name])
        centers = []
        for i in range(len(own)):
            one = Drawings([own.entries[i]], own.pixels[i : i + 1])
            painted = metrics.real_pictures(one, [name], 64, generator_for(seed, "modes", name))
            embedded = metrics.embed(judge, painted)
            centers.append(torch.nn.functional.normalize(embedded, dim=1).mean(0))
        found[name] = torch.stack(centers)
    return found


def modes(
    judge: Towers, centers: Mapping[str, Tensor], pictures: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Among how many of its drawings a name's pictures spread, mean over names and its error.

    A picture counts for the drawing whose paintings have the nearest mean embedding. Of real
    pictures, which are spread evenly, it is as many as drawings if the judge tells them apart.

    Arguments:
        judge: The judge.
        centers: What :func:`centers_of` returned for the drawings that the generators learned.
        pictures: By name, each with shape (N, 3, 64, 64).
    """

    found = []
    for name, some in pictures.items():
        nearest = (metrics.embed(judge, some) @ centers[name].T).argmax(1)
        shares = torch.bincount(nearest, minlength=len(centers[name])).double() / len(nearest)
        found.append(perplexity(shares))
    return mean_and_error(found)


def measure_generators(
    generators: Mapping[str, Any],
    judge: Towers,
    drawings: Drawings | None,
    sizes: Sizes,
    tick: Tick = lambda n: None,
) -> list[dict[str, Any]]:
    """The table of generators, real pictures first if there are drawings."""

    names = load_names()
    every = [name for part in names.values() for name in part]
    texts = {
        part: prompts_of(names[key], sizes.prompts * len(names[key])) for part, key in PARTS.items()
    }
    things = {part: [name_of(text) for text in some] for part, some in texts.items()}
    sets: dict[str, dict[str, Tensor]] = {}
    seconds: dict[str, float] = {}
    for name, backbone in generators.items():
        started = time.perf_counter()
        sets[name] = {part: draw(backbone, some, part, tick=tick) for part, some in texts.items()}
        seconds[name] = (time.perf_counter() - started) / sum(map(len, texts.values()))
    if drawings is not None:
        own, stream = drawings.where("generator"), generator_for(0, "real")
        real = {part: metrics.real_pictures(own, some, 1, stream) for part, some in texts.items()}
        sets = {REAL: real, **sets}
    rows: dict[str, dict[str, Any]] = {}
    looks: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    for label, pictures in sets.items():
        row = rows[label] = {"method": label, "seconds": seconds.get(label)}
        for part, key in (("learned", "right"), ("held out", "right, held out")):
            embedded = metrics.embed(judge, pictures[part])
            found = metrics.right(judge, embedded, things[part], every, CANDIDATES)
            row[key], row[f"{key} error"] = mean_over(things[part], found)
            looks[label, part] = embedded, found
    if drawings is None:
        return list(rows.values())
    unseen, stream = drawings.where("judge"), generator_for(0, "reference")
    reference, other = (
        metrics.embed(judge, metrics.real_pictures(unseen, texts["learned"], copies, stream))
        for copies in (COPIES, 1)
    )
    rows = {OTHER: {"method": OTHER}, **rows}
    found = metrics.right(judge, other, things["learned"], every, CANDIDATES)
    looks[OTHER, "learned"] = other, found
    for label, row in rows.items():
        embedded, found = looks[label, "learned"]
        quality = figures_of(metrics.compare(embedded, reference, found))
        row |= {key: value for key, value in quality.items() if not key.startswith("right")}
    some = names["train"][:: len(names["train"]) // sizes.names]
    centers, stream = centers_of(judge, own, some), generator_for(0, "real modes")
    for label in sets:
        draws = {
            name: draw(generators[label], [name] * sizes.each, "modes", name, tick=tick)
            if label in generators
            else metrics.real_pictures(own, [name], sizes.each, stream)
            for name in some
        }
        rows[label]["drawings"], rows[label]["drawings error"] = modes(judge, centers, draws)
    return list(rows.values())


@torch.no_grad()
def measure_proxies(
    proxies: Mapping[str, RewardFunction],
    generators: Mapping[str, Any],
    gold: Gold,
    sizes: Sizes,
    tick: Tick = lambda n: None,
) -> list[dict[str, Any]]:
    """How often proxies prefer what gold prefers, of all pairs of new pictures of a caption.

    Pairs are of one generator and of two. Those of learned names are "all pairs", for proxies know
    all names. Errors are over names.
    """

    names = load_names()
    rows: dict[str, dict[str, Any]] = {name: {"method": name} for name in proxies}
    for part, key in PARTS.items():
        # Other captions than those of the generators, as far as there are.
        captions = prompts_of(names[key], min(sizes.captions, 13 * len(names[key])), seed=1)
        texts = [text for text in captions for _ in range(sizes.pictures)]
        pictures = torch.stack(
            [
                draw(one, texts, "pairs", part, name, tick=tick).unflatten(0, (len(captions), -1))
                for name, one in generators.items()
            ],
            dim=1,
        ).flatten(1, 2)
        count = pictures.shape[1]
        i, j = torch.triu_indices(count, count, offset=1)
        prompts = [text for text in captions for _ in range(count)]
        utility = gold(pictures.flatten(0, 1), prompts).unflatten(0, (-1, count)).double()
        for name, proxy in proxies.items():
            score = torch.cat(
                [
                    proxy(some, prompts[64 * k : 64 * k + len(some)])
                    for k, some in enumerate(pictures.flatten(0, 1).split(64))
                ]
            ).unflatten(0, (-1, count))
            wanted, got = ((x[:, i] - x[:, j]).sign() for x in (utility, score.double()))
            agreed = torch.where(wanted == 0, math.nan, (1 + wanted * got) / 2)
            groups = [name_of(text) for text in captions for _ in range(len(i))]
            head = "all pairs" if part == "learned" else "held-out names"
            rows[name][head], rows[name][f"{head} error"] = mean_over(groups, agreed.flatten())
    return list(rows.values())


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--backbone", action="append", metavar="NAME[=FOLDER]", help="default: those shipped")
    add("--reward", action="append", metavar="NAME[=PATH]", help="default: those shipped")
    add("--data", type=Path, default=Path("out/testbed"), help="folder of the drawings")
    add("--out", type=Path, default=Path("out/testbed-models"))
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--smoke", action="store_true", help="few pictures, in seconds")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    import diffusers

    diffusers.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    there = shipped.names()
    known = lambda *names: [name for name in names if name in there]
    asked = arguments.backbone or known("emoji-flow", "emoji-turbo")
    generators, slower = {}, {}
    for text in asked:
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
        tables = {
            "generators": measure_generators(
                generators | slower, gold.judge, drawings, sizes, tick
            ),
            "proxies": measure_proxies(proxies, generators, gold, sizes, tick),
        }
    prompts = check_prompts()[: 4 if arguments.smoke else None]
    for name, backbone in generators.items():
        scale = backbone.guidance_scale or 0.0
        steps = len(backbone.times()) - 1
        backbone.pipe.vae.float()
        path = arguments.out / f"{name}.png"
        write_sheet(backbone.pipe, prompts, path, guidance=scale, steps=steps)
    page = []
    for title, columns in (("generators", GENERATORS), ("proxies", PROXIES)):
        print_table(title, tables[title], columns)
        write_csv(tables[title], arguments.out / f"{title}.csv")
        page.append(markdown(tables[title], columns).replace("| method |", "| |", 1))
    with replacing(arguments.out / "models.md") as partial:
        partial.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    console.print(f"written to {arguments.out}")
    return tables


if __name__ == "__main__":
    main()
