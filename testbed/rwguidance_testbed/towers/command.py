r"""Image-text towers, trained on painted scenes and their captions, then on preferences.

.. code-block:: bash

    python -m rwguidance_testbed.towers judge --data FOLDER --out FOLDER
    python -m rwguidance_testbed.towers pick  --data FOLDER --out FOLDER
    python -m rwguidance_testbed.towers hps   --data FOLDER --out FOLDER

trains one of :mod:`rwguidance_testbed.encoders` to tell which caption belongs to which picture, and
with ``--start FOLDER --pairs FILE`` one that was trained so to tell which of two pictures is
preferred. The judge sees the judge's drawings, both others those of the proxies: of the names that
prompts have and, as often, of these and all other things.

A batch is made of pairs of pictures that show the same name, from other hands if there are, and no
name twice; else a caption would often be true of another picture than its own. Towers learn

- which caption belongs to which picture, among the first pictures of all pairs and among the second
  ones. Names alone would tell captions apart, and towers would not learn what else prompts say. So
  to every caption of a first picture comes one that is false of it in one word: another background,
  style or size, or a name of the same kind;
- which second picture shows the same as which first one, by a linear function of the embeddings:
  few hands draw a name, and what is common to them is learned from the other names, too.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.randomness import seeded

from .. import shipped
from ..data import Drawings
from ..encoders import HPS, KINDS, Pick, Towers, copy_image_tower, new, read
from ..tokenizer import tokenizer_corpus, train_tokenizer
from ..training.attention import unfuse_attention
from ..training.cards import write_card
from ..training.ema import ExponentialMovingAverage
from ..training.loop import Run, learning_rate
from ..training.muon import Muon, groups
from ..training.options import BufferedOptions
from ..vae import read as read_vae
from .accuracy import measure
from .buffer import ROLES, PictureBuffer, training_drawings
from .losses import AlignmentHead
from .objectives import captions_loss, preferences_loss
from .preference_pairs import Pairs

__all__ = ["OPTIONS", "train"]

OPTIONS = BufferedOptions(steps=10_000, batch=64, peak=1e-3, kept=2048)
"""Default options of the training; a batch is of so many pictures, or pairs with preferences."""

_USES = 4
"""Number of times that a painted picture is used, on average. Painting is slower than learning, but
at eight uses the judge's loss on fresh pictures was well above that on those in use."""


def train(
    kind: str,
    data: Path = Path("out/testbed"),
    out: Path | None = None,
    seed: int | None = None,
    vae: Path | None = None,
    vision: Path | None = None,
    start: Path | None = None,
    pairs: Path | None = None,
    options: BufferedOptions = OPTIONS,
) -> None:
    """Trains towers and writes them to `out`, with figures and a card.

    Arguments:
        kind: Kind of the towers, "judge", "pick" or "hps".
        data: Folder of the drawings.
        out: Folder to write to, the state of the run beside it. Default: "emoji-" and the kind, in
            `data`; "-contrastive" is added to both rewards as long as they saw no preferences.
        seed: Seed of weights, pictures and batches. Default: another for every kind.
        vae: Folder of the autoencoder. Default: the shipped one.
        vision: Folder of a "pick", with whose image tower "hps" starts.
        start: Folder of towers to start from, with a new optimizer; `pairs` needs it.
        pairs: Parquet file of preferences to learn instead of captions, see `Pairs`.
        options: Options of the training.

    Raises:
        ValueError: If the kind is unknown, `pairs` is given without `start`, or `vision` with
            another kind than "hps" or with `start`.
    """

    _check(kind, vision, start, pairs)
    torch.set_num_threads(options.threads)
    seed = 1 + list(KINDS).index(kind) if seed is None else seed
    suffix = "" if kind == "judge" or pairs is not None else "-contrastive"
    out = data / f"emoji-{kind}{suffix}" if out is None else out
    drawings = Drawings.load(data)
    towers = _towers(kind, drawings, out, vision, start, seed, options.smoke)
    if pairs is None:
        run, figures = _learn_captions(towers, kind, drawings, vae, out, seed, options)
    else:
        run, figures = _learn_preferences(towers, Pairs(pairs), out, seed, options)
    _average(run).write(out)
    figures |= {"steps": options.steps, "batch": options.batch, "peak": options.peak, "seed": seed}
    figures["minutes"] = run.figures()["minutes"]
    command = f"towers {kind} {_settings(seed, vision, start, pairs, options)}"
    _write_card(out, kind, towers, figures, pairs is not None, command)
    print(json.dumps(figures, indent=2))


def _check(kind: str, vision: Path | None, start: Path | None, pairs: Path | None) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if pairs is not None and start is None:
        raise ValueError("start must be a folder of towers trained on captions if pairs are given")
    if vision is not None and (kind != "hps" or start is not None):
        raise ValueError('vision must be given with kind "hps" and without start alone')


def _towers(
    kind: str,
    drawings: Drawings,
    out: Path,
    vision: Path | None,
    start: Path | None,
    seed: int,
    smoke: bool,
) -> Towers:
    """Returns the towers to train."""

    words = out.with_name(f"{out.name}-words")
    if start is not None:
        towers = read(kind, start)
    else:
        if kind != "hps":
            train_tokenizer(tokenizer_corpus(drawings), words)
        towers = new(kind, words, smoke, seed)
    if vision is not None:
        copy_image_tower(cast(HPS, towers), cast(Pick, read("pick", vision)))
    for module in towers.modules():
        if hasattr(module, "config"):
            unfuse_attention(module)
    return towers


def _learn_captions(
    towers: Towers,
    kind: str,
    drawings: Drawings,
    vae: Path | None,
    out: Path,
    seed: int,
    options: BufferedOptions,
) -> tuple[Run, dict[str, float]]:
    with seeded(seed):
        head = AlignmentHead(towers.dimension)
    autoencoder = read_vae(vae or shipped.folder("emoji-vae"))
    made_with = {"data": drawings, "vae": autoencoder, "seed": seed}
    run = _run({"towers": towers, "head": head}, out, made_with, options)
    parts, fresh = training_drawings(drawings, kind), max(1, options.batch // 2 // _USES)
    buffer = PictureBuffer(parts, options.kept // 2, fresh, seed, run.step, autoencoder)
    _train(run, captions_loss(towers, head, buffer, run, options), options)
    return run, measure(_average(run), drawings, ROLES[kind], 8 if options.smoke else 1000)


def _learn_preferences(
    towers: Towers, pairs: Pairs, out: Path, seed: int, options: BufferedOptions
) -> tuple[Run, dict[str, float]]:
    run = _run({"towers": towers}, out, {"pairs": pairs, "seed": seed}, options)
    _train(run, preferences_loss(towers, pairs, run, options), options)
    return run, _agreements(_average(run), pairs)


def _run(
    learned: Mapping[str, nn.Module],
    out: Path,
    made_with: Mapping[str, Any],
    options: BufferedOptions,
) -> Run:
    average = ExponentialMovingAverage([learned["towers"]], decay=0.998)
    optimizer = Muon(groups(learned.values()), lr=options.peak, weight_decay=0.05)
    modules = {**learned, "average": average.modules[0]}
    state, generator = (
        out.with_name(f"{out.name}.state"),
        Generator().manual_seed(made_with["seed"]),
    )
    made_with = {**made_with, **learned, **options.deciding}
    run = Run(state, modules, optimizer, generator, made_with, average)
    if options.resume:
        run.restore()
    return run


def _train(run: Run, loss: Callable[[], Tensor], options: BufferedOptions) -> None:
    warmup = max(1, min(100, options.steps // 10))
    rate = lambda step: learning_rate(step, options.steps, options.peak, warmup, tail=0.5)
    run.train(options.steps, options.batch, rate, loss)


def _average(run: Run) -> Towers:
    return cast(Towers, run.modules["average"])


def _agreements(towers: Towers, pairs: Pairs) -> dict[str, float]:
    names = ("pairs_learned", "pairs_of_other_captions")
    parts = {name: part[:4096] for name, part in zip(names, pairs.split(), strict=True)}
    figures = {
        f"{kind}agreement_on_{name}": pairs.agreement(towers, part, kind == "clean_")
        for name, part in parts.items()
        for kind in ("", "clean_")
        if len(part) and (kind == "" or pairs.clean is not None)
    }
    return {name: round(value, 4) for name, value in figures.items()}


def _settings(
    seed: int,
    vision: Path | None,
    start: Path | None,
    pairs: Path | None,
    options: BufferedOptions,
) -> str:
    """Returns the options of the command that made towers."""

    settings = (
        f"--steps {options.steps} --batch {options.batch} --peak {options.peak} "
        f"--kept {options.kept} --seed {seed}"
    )
    if start is not None:
        settings += f" --start .../{start.name}"
    if vision is not None:
        settings += f" --vision .../{vision.name}"
    if pairs is not None:
        settings += f" --pairs {pairs.name}"
    return settings


def _write_card(
    folder: Path,
    kind: str,
    towers: nn.Module,
    figures: Mapping[str, float],
    preferences: bool,
    command: str,
) -> None:
    learned = "painted scenes and their captions"
    if preferences:
        learned += ", then pairs of pictures with preferences"
    count = sum(p.numel() for p in towers.parameters()) / 1e6
    write_card(
        folder,
        f"Image-text towers of the test bed, {count:.1f} million parameters, stored in half "
        "precision; see `rwguidance_testbed.encoders`.",
        f'Drawings of eight emoji styles of the role "{ROLES[kind]}", of all names that are no '
        "flags, symbols or people.",
        f"On {learned}. See `rwguidance_testbed.towers`.",
        command,
        "See `rwguidance_testbed.towers.measure` and `Pairs.agreement`.",
        figures,
    )
