"""Measures of generators and proxies, by the judge and the gold utility."""

import itertools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from formatting import console
from torch import Tensor

from rwguidance.samplers import sample
from rwguidance.statistics import mean_and_error
from rwguidance.support.randomness import generator_for
from rwguidance.tilt import RewardFunction
from rwguidance_testbed import metrics
from rwguidance_testbed.data import Drawings, load_names
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.gold import Gold
from rwguidance_testbed.network import prompts_of

CANDIDATES = 100
"""Names among which the judge finds that of a picture."""

COPIES = 4
"""Real pictures of every prompt that distances are taken to."""

PARTS = {"learned": "train", "held out": "held_out"}
REAL = "real pictures that they learned from"
OTHER = "other half of the real pictures compared with"


@dataclass(frozen=True)
class Sizes:
    """Numbers of prompts and pictures.

    Arguments:
        prompts: Number of prompts of each name: it alone and on backgrounds.
        names: Number of names whose modes are counted.
        each: Number of pictures of each of them.
        captions: Number of captions of learned and of held-out names, on whose pictures proxies are
            held against gold.
        pictures: Number of pictures of each caption by each generator.
    """

    prompts: int = 2
    names: int = 24
    each: int = 32
    captions: int = 120
    pictures: int = 4


Tick = Callable[[int], None]


def name_of(prompt: str) -> str:
    """Returns the name in a prompt."""

    return re.sub(r" on an? \w+ background$", "", prompt)


@torch.no_grad()
def draw(
    backbone: Any,
    prompts: Sequence[str],
    *stream: str,
    batch: int = 64,
    tick: Tick = lambda n: None,
) -> Tensor:
    """Draws one picture of each prompt, in [0, 1], with shape (N, 3, 64, 64)."""

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
    """Returns the mean over groups of their means, and its standard error; NaN has no part in it.

    Arguments:
        groups: Group of each value; groups are independent, values of one are not.
        values: Values with shape (N,).
    """

    known = ~values.isnan()
    return mean_and_error(values[known], itertools.compress(groups, known.tolist()))


def perplexity(shares: Tensor) -> float:
    """Returns the exponential of the entropy, a number of equally likely cases."""

    return float(torch.special.entr(shares).sum().exp())


def centers_of(
    judge: Towers, drawings: Drawings, names: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """Returns mean embeddings of the paintings of each drawing of a name, by name, (K, D)."""

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
    """Counts the drawings over which a name's pictures spread, mean over names and its error.

    A picture counts for the drawing whose paintings have the nearest mean embedding. Of real
    pictures, which are spread evenly, it is as many as drawings if the judge tells them apart.

    Arguments:
        judge: The judge.
        centers: Mean embeddings that :func:`centers_of` returned for the drawings that the
            generators learned.
        pictures: Pictures by name, each with shape (N, 3, 64, 64).
    """

    found = []
    for name, some in pictures.items():
        nearest = (metrics.embed(judge, some) @ centers[name].T).argmax(1)
        shares = torch.bincount(nearest, minlength=len(centers[name])).double() / len(nearest)
        found.append(perplexity(shares))
    return mean_and_error(torch.tensor(found))


def measure_generators(
    generators: Mapping[str, Any],
    judge: Towers,
    drawings: Drawings | None,
    sizes: Sizes,
    tick: Tick = lambda n: None,
) -> list[dict[str, Any]]:
    """Returns the table of generators, real pictures first if there are drawings.

    Arguments:
        generators: Generators by name.
        judge: The judge.
        drawings: All drawings; None leaves out distances and modes.
        sizes: Numbers of pictures.
        tick: Function that is told how many pictures were drawn.
    """

    names = load_names()
    texts = {
        part: prompts_of(names[key], sizes.prompts * len(names[key])) for part, key in PARTS.items()
    }
    sets: dict[str, dict[str, Tensor]] = {}
    seconds: dict[str, float] = {}
    if drawings is not None:
        own, stream = drawings.where("generator"), generator_for(0, "real")
        sets[REAL] = {
            part: metrics.real_pictures(own, some, 1, stream) for part, some in texts.items()
        }
    for name, backbone in generators.items():
        started = time.perf_counter()
        sets[name] = {part: draw(backbone, some, part, tick=tick) for part, some in texts.items()}
        seconds[name] = (time.perf_counter() - started) / sum(map(len, texts.values()))
    rows: dict[str, dict[str, Any]] = {}
    looks: dict[str, tuple[Tensor, Tensor]] = {}
    for label, pictures in sets.items():
        accuracies, looks[label] = _accuracies(judge, pictures, texts)
        rows[label] = {"method": label, "seconds": seconds.get(label), **accuracies}
    if drawings is None:
        return list(rows.values())
    rows = {OTHER: {"method": OTHER}, **rows}
    for label, row in _distances(judge, drawings.where("judge"), texts["learned"], looks).items():
        rows[label] |= row
    for label, row in _modes(generators, judge, own, list(sets), sizes, tick).items():
        rows[label] |= row
    return list(rows.values())


def _accuracies(
    judge: Towers, pictures: Mapping[str, Tensor], texts: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """Returns how often the judge finds the name, and what it found of learned names.

    The latter are the embeddings of the pictures, and the probabilities by picture.
    """

    row: dict[str, float] = {}
    looks = {}
    for part, key in (("learned", "right"), ("held out", "right, held out")):
        embedded = metrics.embed(judge, pictures[part])
        found = _right(judge, embedded, texts[part])
        names = [name_of(text) for text in texts[part]]
        row[key], row[f"{key} error"] = mean_over(names, found)
        looks[part] = embedded, found
    return row, looks["learned"]


def _right(judge: Towers, embedded: Tensor, texts: Sequence[str]) -> Tensor:
    every = [name for part in load_names().values() for name in part]
    names = [name_of(text) for text in texts]
    return metrics.right(judge, embedded, names, every, CANDIDATES)


def _distances(
    judge: Towers,
    unseen: Drawings,
    texts: Sequence[str],
    looks: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, dict[str, float]]:
    """Returns distances to real pictures of drawings that no generator has seen, by set.

    Another half of the real pictures is a set, too.
    """

    stream = generator_for(0, "reference")
    reference, other = (
        metrics.embed(judge, metrics.real_pictures(unseen, texts, copies, stream))
        for copies in (COPIES, 1)
    )
    looks = {OTHER: (other, _right(judge, other, texts)), **looks}
    rows = {}
    for label, (embedded, found) in looks.items():
        quality = _figures(metrics.compare(embedded, reference, found))
        rows[label] = {k: value for k, value in quality.items() if not k.startswith("right")}
    return rows


def _modes(
    generators: Mapping[str, Any],
    judge: Towers,
    own: Drawings,
    labels: Sequence[str],
    sizes: Sizes,
    tick: Tick,
) -> dict[str, dict[str, float]]:
    """Returns among how many of its drawings a name's pictures spread, by set."""

    learned = load_names()["train"]
    some = learned[:: len(learned) // sizes.names]
    centers, stream = centers_of(judge, own, some), generator_for(0, "real modes")
    rows = {}
    for label in labels:
        draws = {
            name: draw(generators[label], [name] * sizes.each, "modes", name, tick=tick)
            if label in generators
            else metrics.real_pictures(own, [name], sizes.each, stream)
            for name in some
        }
        count, error = modes(judge, centers, draws)
        rows[label] = {"drawings": count, "drawings error": error}
    return rows


@torch.no_grad()
def measure_proxies(
    proxies: Mapping[str, RewardFunction],
    generators: Mapping[str, Any],
    gold: Gold,
    sizes: Sizes,
    tick: Tick = lambda n: None,
) -> list[dict[str, Any]]:
    """Measures how often proxies prefer what gold prefers, of all pairs of a caption's pictures.

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


def _figures(quality: metrics.Quality) -> dict[str, float]:
    """Returns the figures of a quality by name, with blanks."""

    return {key.replace("_", " "): value for key, value in asdict(quality).items()}


def load_drawings(data: Path, purpose: str) -> Drawings | None:
    """Returns the drawings in a folder; None if there are none, and says what needs them."""

    try:
        return Drawings.load(data)
    except FileNotFoundError as error:
        console.print(f"[yellow]no {purpose}: {error}[/]")
        return None
