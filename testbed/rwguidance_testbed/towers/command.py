r"""Image-text towers, trained on painted scenes and their captions, then on preferences.

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

References:
    | Scaling Language-Image Pre-training via Masking (Li et al., 2022), arXiv:2212.00794
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rwguidance.support.outside import require
from rwguidance.support.randomness import seeded

from ..data import Drawings
from ..encoders import HPS, KINDS, Pick, Towers, copy_image_tower, new, read
from ..tokenizer import tokenizer_corpus, train_tokenizer
from ..training.cards import write_card
from ..training.loop import Run, learning_rate, move_averages
from ..training.muon import Muon, groups
from .accuracy import measure
from .augmentation import cutout, deform
from .buffer import ROLES, PictureBuffer, training_drawings
from .losses import AlignmentHead, contrastive_loss
from .preference_pairs import Pairs

__all__ = ["train"]

_USES = 4
_SMOOTHING = 0.1


def train(
    kind: str,
    data: Path = Path("out/testbed"),
    out: Path | None = None,
    steps: int = 10_000,
    batch: int = 64,
    peak: float = 1e-3,
    kept: int = 2048,
    seed: int | None = None,
    threads: int = 1,
    vae: Path | None = None,
    vision: Path | None = None,
    start: Path | None = None,
    pairs: Path | None = None,
    compiled: bool = False,
    resume: bool = True,
    smoke: bool = False,
) -> None:
    """Trains towers and writes them to `out`, with figures and a card.

    Arguments:
        kind: "judge", "pick" or "hps".
        data: Folder of the drawings.
        out: Folder to write to, the state of the run beside it. Default: "emoji-" and the kind, in
            `data`; "-contrastive" is added to both rewards as long as they saw no preferences.
        steps: In all.
        batch: Pictures of a step, or pairs.
        peak: The largest learning rate.
        kept: Painted pictures kept at a time.
        seed: Of weights, pictures and batches. Default: another for every kind.
        threads: Of PyTorch.
        vae: Folder of the autoencoder. Default: the shipped one.
        vision: Folder of a "pick", with whose image tower "hps" starts.
        start: Folder of towers to start from, with a new optimizer; `pairs` needs it.
        pairs: Preferences to learn instead of captions, a parquet file, see `Pairs`.
        compiled: Whether to compile the networks first: needs a compiler of C++ and two minutes.
        resume: Whether to go on where an earlier run was.
        smoke: Tiny towers, for tests.

    Raises:
        ValueError: If the kind is unknown, `pairs` is given without `start`, or `vision` with
            another kind than "hps" or with `start`.
    """

    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if pairs is not None and start is None:
        raise ValueError("start must be a folder of towers trained on captions if pairs are given")
    if vision is not None and (kind != "hps" or start is not None):
        raise ValueError('vision must be given with kind "hps" and without start alone')
    torch.set_num_threads(threads)
    seed = 1 + list(KINDS).index(kind) if seed is None else seed
    suffix = "" if kind == "judge" or pairs is not None else "-contrastive"
    out = data / f"emoji-{kind}{suffix}" if out is None else out
    drawings = Drawings.load(data)
    words = out.with_name(f"{out.name}-words")
    if start is not None:
        towers = read(kind, start)
    else:
        if kind != "hps":
            train_tokenizer(tokenizer_corpus(drawings), words)
        towers = new(kind, words, smoke, seed)
    if vision is not None:
        copy_image_tower(cast(HPS, towers), cast(Pick, read("pick", vision)))
    for module in towers.modules():  # the fused kernel is slow on a CPU's way back
        if hasattr(module, "config"):
            cast(Any, module).config._attn_implementation = "eager"
    average = copy.deepcopy(towers).eval().requires_grad_(False)
    with seeded(seed):
        head = AlignmentHead(towers.dimension)
    modules = {"towers": towers, "head": head, "average": average}
    parts = [towers] if pairs is not None else [towers, head]
    optimizer = Muon(groups(parts), lr=peak, weight_decay=0.05)
    generator = Generator().manual_seed(seed)
    made_with = {
        "data": drawings,
        "weights": towers,
        "head": head,
        "batch": batch,
        "peak": peak,
        "kept": kept,
        "seed": seed,
    }
    run = Run(
        out.with_name(f"{out.name}.state"), modules, optimizer, generator, made_with=made_with
    )
    if resume and run.restore():
        print(f"going on at step {run.step}")
    if pairs is None:
        diffusers = require("diffusers", "the test bed needs", "testbed")
        vae = vae or Path(__file__).parents[1] / "weights" / "emoji-vae"
        autoencoder = diffusers.AutoencoderKL.from_pretrained(vae).eval().requires_grad_(False)
        fresh = max(1, batch // 2 // _USES)
        buffer = PictureBuffer(
            training_drawings(drawings, kind), kept // 2, fresh, seed, run.step, autoencoder
        )
        loss = _captions_loss(towers, head, buffer, batch, run, steps, compiled)
        final: Callable[[], dict[str, float]] = lambda: measure(
            average, drawings, ROLES[kind], 8 if smoke else 1000
        )
    else:
        known = Pairs(pairs)
        loss = _pairs_loss(towers, known, batch, run, steps)
        final = lambda: _agreements(average, known)
    rate = lambda step: learning_rate(step, steps, peak, max(1, min(100, steps // 10)), 0.5)
    weights: list[Tensor] = list(towers.parameters())
    means: list[Tensor] = list(average.parameters())

    run.train(steps, batch, rate, loss, lambda step: move_averages(means, weights, step, 0.998))
    average.write(out)
    figures = {**final(), "steps": steps, "batch": batch, "peak": peak, "seed": seed}
    figures["minutes"] = round(run.seconds / 60, 1)
    settings = f"--steps {steps} --batch {batch} --peak {peak} --kept {kept} --seed {seed}"
    if start is not None:
        settings += f" --start .../{start.name}"
    if vision is not None:
        settings += f" --vision .../{vision.name}"
    if pairs is not None:
        settings += f" --pairs {pairs.name}"
    learned = "painted scenes and their captions"
    if pairs is not None:
        learned += ", then pairs of pictures with preferences"
    _write_card(out, kind, towers, figures, learned, settings)
    print(json.dumps(figures, indent=2))


def _captions_loss(
    towers: Towers,
    head: AlignmentHead,
    buffer: PictureBuffer,
    batch: int,
    run: Run,
    steps: int,
    compiled: bool,
) -> Callable[[], Tensor]:
    embed = torch.compile(_embed_both, dynamic=False) if compiled else _embed_both

    def loss() -> Tensor:
        drawn = buffer.batch(batch // 2, run.generator)
        buffer.advance(run.step)
        pictures = drawn.pictures.transpose(0, 1).flatten(0, 1).float() / 255
        pictures = cutout(deform(pictures, run.generator), run.generator)
        patches = _patches(len(pictures), run, steps)
        first, second = zip(*drawn.captions, strict=True)
        with _quick():
            tokens = towers.tokens([*first, *second, *drawn.others])
            x, y = embed(towers, pictures, patches, tokens)
        pairs, (*captions, others) = x.float().chunk(2), y.float().chunk(3)
        # What is false of a first picture may be true of the second one.
        own = [
            contrastive_loss(pairs[i], captions[i], false, towers.log_scale, _SMOOTHING)
            for i, false in enumerate((others, others[:0]))
        ]
        return (own[0] + own[1]) / 2 + head(*pairs)

    return loss


def _embed_both(
    towers: Towers, pictures: Tensor, patches: Tensor | None, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    return towers.embed_pictures(pictures, patches), towers.embed_tokens(tokens)


def _patches(count: int, run: Run, steps: int) -> Tensor | None:
    """Half of the 64 patches of each picture, in the last fifth of the steps all."""

    if run.step >= 0.8 * steps:
        return None
    return torch.rand(count, 64, generator=run.generator).argsort(1)[:, :32]


def _pairs_loss(
    towers: Towers, pairs: Pairs, batch: int, run: Run, steps: int
) -> Callable[[], Tensor]:
    learned, _ = pairs.split()

    def loss() -> Tensor:
        index = learned[torch.randint(len(learned), (batch,), generator=run.generator)]
        patches = _patches(2 * batch, run, steps)
        with _quick():
            return pairs.loss(towers, index, patches)

    return loss


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


@contextmanager
def _quick() -> Iterator[None]:
    """Half precision, and attention without the fused kernel, slow on a CPU's way back."""

    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def _write_card(
    folder: Path,
    kind: str,
    towers: nn.Module,
    figures: Mapping[str, float],
    learned: str,
    settings: str,
) -> None:
    count = sum(p.numel() for p in towers.parameters()) / 1e6
    write_card(
        folder,
        f"Image-text towers of the test bed, {count:.1f} million parameters, stored in half "
        "precision; see `rwguidance_testbed.encoders`.",
        f'Drawings of eight emoji styles of the role "{ROLES[kind]}", of all names that are no '
        "flags, symbols or people.",
        f"On {learned}. See `rwguidance_testbed.towers`.",
        f"towers {kind} {settings}",
        "See `rwguidance_testbed.towers.measure` and `Pairs.agreement`.",
        figures,
    )
