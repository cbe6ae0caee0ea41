r"""Image-text towers, trained on painted scenes and their captions, then on preferences.

    python -m rwguidance.testbed.towers judge --data FOLDER --out FOLDER
    python -m rwguidance.testbed.towers pick  --data FOLDER --out FOLDER
    python -m rwguidance.testbed.towers hps   --data FOLDER --out FOLDER

trains one of :mod:`rwguidance.testbed.encoders` to tell which caption belongs to which picture, and
with ``--start FOLDER --pairs FILE`` one that was trained so to tell which of two pictures is
preferred. The judge sees the judge's drawings, both others those of the proxies, of all names.

No two pictures of a batch show the same name; else a caption would often be true of another picture
than its own. Names alone would then tell captions apart, and towers would not learn what else
prompts say. So to every caption comes one that is false of its picture in one word: another
background, style or size, or a name of the same kind.

References:
    | Learning Transferable Visual Models From Natural Language Supervision
      (Radford et al., 2021), arXiv:2103.00020
    | When and why vision-language models behave like bags-of-words, and what to do about it?
      (Yuksekgonul et al., 2023), arXiv:2210.01936
    | Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation
      (Kirstain et al., 2023), arXiv:2305.01569
"""

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..outside import require
from .data import Drawing, Drawings, load_names, sources
from .encoders import KINDS, Towers, new, read
from .runs import Run, learning_rate
from .scenes import COLORS, Scene, paint, sample
from .scenes import KINDS as THINGS
from .words import save_tokenizer, texts

__all__ = [
    "Batch",
    "Pairs",
    "Pool",
    "contrastive",
    "distractor",
    "first_of",
    "measure",
    "preference",
    "roughen",
    "train",
]

_ROLES = {"judge": "judge", "pick": "proxy", "hps": "proxy"}
_SIZE_WORDS = {"small": "large", "large": "small"}
_LARGEST_SCALE = 100.0
_FRESH = 4


def contrastive(pictures: Tensor, captions: Tensor, others: Tensor, log_scale: Tensor) -> Tensor:
    r"""Cross-entropy of each picture's own caption, and of each caption's own picture.

    The logits are :math:`e^s \cos(x_i, y_j)`, the factor at most 100.

    Arguments:
        pictures: Embeddings with shape (B, D).
        captions: Of the captions of these pictures, in the same order.
        others: Of captions that are true of none of the pictures, with shape (M, D).
        log_scale: The scalar s.

    Returns:
        The mean of both, in float32.
    """

    x, y = (F.normalize(e.float(), dim=-1) for e in (pictures, torch.cat((captions, others))))
    logits = _factor(log_scale) * x @ y.T
    right = torch.arange(len(x))
    backward = F.cross_entropy(logits[:, : len(x)].T, right)
    return (F.cross_entropy(logits, right) + backward) / 2


def preference(
    first: Tensor, second: Tensor, captions: Tensor, label: Tensor, log_scale: Tensor
) -> Tensor:
    r"""The loss of Bradley and Terry, :math:`-\log \sigma(e^s (\cos(x_0, y) - \cos(x_1, y)))`.

    Arguments:
        first: Embeddings of the first picture of each pair, with shape (B, D).
        second: Of the second one.
        captions: Of what both were drawn for.
        label: 1 if the first is preferred, 0 if the second is, 0.5 for a tie, with shape (B,).
        log_scale: The scalar s.

    Returns:
        The mean of the cross-entropy, in float32.
    """

    x, z, y = (F.normalize(e.float(), dim=-1) for e in (first, second, captions))
    difference = _factor(log_scale) * ((x - z) * y).sum(-1)
    return F.binary_cross_entropy_with_logits(difference, label.float())


def distractor(
    scene: Scene, drawing: Drawing, relatives: Mapping[str, Sequence[str]], generator: Generator
) -> str:
    """A caption that is false of a scene in one respect that its own caption names.

    Arguments:
        scene: The scene.
        drawing: What it shows.
        relatives: Names of each kind of things.
        generator: Chooses the respect and the other word.
    """

    pick = lambda options: options[int(torch.randint(len(options), (), generator=generator))]
    name = _plain(drawing.name)
    named = name in scene.caption
    word = name if named else THINGS[drawing.kind]
    words = [_plain(other) for other in relatives[drawing.kind]] if named else THINGS.values()
    candidates = [other for other in words if other != word] or ["thing"]
    head, _, tail = scene.caption.partition(word)
    changes = [head + pick(candidates) + tail]
    size = re.search(r"\b(small|large)\b", head)
    if size:
        changes.append(head.replace(size[0], _SIZE_WORDS[size[0]]) + word + tail)
    ground = re.match(r" on an? (\w+) background", tail)
    if ground:
        color = pick([color for color in COLORS if color != ground[1]])
        article = "an" if color == "orange" else "a"
        rest = tail[ground.end() :]
        changes.append(f"{head}{word} on {article} {color} background{rest}")
    styles = {row["name"]: row["words"] for row in sources()["styles"]}
    own = f", {styles[drawing.style]} style"
    if own in tail:
        style = pick([words for words in styles.values() if words != styles[drawing.style]])
        changes.append(head + word + tail.replace(own, f", {style} style"))
    return str(pick(changes))


def roughen(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures sheared and stretched, and more or less blurred, saturated and bright.

    Few drawings of a name are known, and those of other styles have other proportions; generators
    blur. Areas stay as they are, for captions speak of sizes. What comes in from outside has the
    color of the border.

    Arguments:
        pictures: In [0, 1], with shape (B, 3, H, W).
        generator: Says by how much.
    """

    count = len(pictures)
    stretch, shear, angle = 2 * torch.rand(3, count, generator=generator) - 1
    longer, angle, shear = (0.25 * stretch).exp(), math.pi / 15 * angle, 0.25 * shear
    zero = torch.zeros(count)
    triangle = torch.stack((longer, shear, zero, 1 / longer), dim=1).unflatten(1, (2, 2))
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack((cos, -sin, sin, cos), dim=1).unflatten(1, (2, 2))
    matrix = torch.cat((turn @ triangle, torch.zeros(count, 2, 1)), dim=2)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    mix, color, light = torch.rand(3, count, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    x = torch.lerp(pictures, blurred, mix)
    gray = x.mean(1, keepdim=True)
    return ((gray + (x - gray) * (0.75 + 0.5 * color)) * (0.85 + 0.3 * light)).clamp(0, 1)


@dataclass(frozen=True)
class Batch:
    """Pictures, captions and false captions.

    Arguments:
        pictures: Of type uint8, with shape (B, 3, 64, 64).
        captions: One for each.
        others: One that is false, for each.
        names: What each picture shows.
    """

    pictures: Tensor
    captions: list[str]
    others: list[str]
    names: list[str]


class Pool:
    """Painted pictures, some of which are replaced at every step: painting is slower than learning.

    What it holds at a step is a function of the step and the seed, so that a run which goes on
    there sees the same pictures.

    Arguments:
        parts: Drawings to paint, as many pictures from each part.
        size: Pictures kept.
        fresh: Pictures replaced in a step.
        seed: Of the pictures.
        step: Where the run is.
    """

    def __init__(
        self, parts: Sequence[Drawings], size: int, fresh: int, seed: int, step: int = 0
    ) -> None:
        self.parts, self.fresh, self.seed = parts, fresh, seed
        self.relatives: dict[str, list[str]] = {}
        for kind, name in sorted({(e.kind, e.name) for part in parts for e in part.entries}):
            self.relatives.setdefault(kind, []).append(name)
        self.count = max(1, size // fresh)
        numbers = range(step, step + self.count)
        painted = {number % self.count: self._paint(number) for number in numbers}
        self.chunks = [painted[slot] for slot in range(self.count)]

    def advance(self, step: int) -> None:
        """Goes from `step` to the next: replaces the oldest pictures."""

        self.chunks[step % self.count] = self._paint(step + self.count)

    def batch(self, count: int, generator: Generator) -> Batch:
        """Pictures with different names, at random.

        Raises:
            ValueError: If there are fewer names than pictures wanted.
        """

        where: dict[str, tuple[int, int]] = {}
        for index in torch.randperm(self.count * self.fresh, generator=generator).tolist():
            slot, row = divmod(index, self.fresh)
            where.setdefault(self.chunks[slot].names[row], (slot, row))
            if len(where) == count:
                break
        if len(where) < count:
            raise ValueError(
                f"batch must be at most the number of names in the pool, {len(where)}, got {count}"
            )
        chosen = [(self.chunks[slot], row) for slot, row in where.values()]
        return Batch(
            torch.stack([chunk.pictures[row] for chunk, row in chosen]),
            [chunk.captions[row] for chunk, row in chosen],
            [chunk.others[row] for chunk, row in chosen],
            list(where),
        )

    def _paint(self, number: int) -> Batch:
        generator = Generator().manual_seed(1_000_003 * self.seed + number)
        part = self.parts[number % len(self.parts)]
        scenes = sample(part, self.fresh, generator)
        entries = [part.entries[scene.drawing] for scene in scenes]
        false = [
            distractor(scene, entry, self.relatives, generator)
            for scene, entry in zip(scenes, entries, strict=True)
        ]
        pictures = (255 * paint(part, scenes)).round().byte()
        captions = [scene.caption for scene in scenes]
        return Batch(pictures, captions, false, [entry.name for entry in entries])


class Pairs:
    """Pairs of pictures with preferences, from a file with the columns of Pick-a-Pic.

    These are `caption`, `jpg_0` and `jpg_1` (encoded pictures, of any format that Pillow reads),
    `label_0` and `label_1` (1 and 0, 0 and 1, or 0.5 both).

    Arguments:
        path: A parquet file.
        size: Pixels along a side that the pictures must have.

    Raises:
        ValueError: If a column is missing, labels do not add to 1, or a picture has another size.
    """

    def __init__(self, path: Path, size: int = 64) -> None:
        parquet = require("pyarrow.parquet", "reading preferences needs", "rewards")
        columns = ["caption", "jpg_0", "jpg_1", "label_0", "label_1"]
        missing = set(columns) - set(parquet.read_schema(path).names)
        if missing:
            raise ValueError(f"{path} must have the columns {columns}, lacks {sorted(missing)}")
        table = parquet.read_table(path, columns=columns).to_pydict()
        labels = torch.tensor([table["label_0"], table["label_1"]], dtype=torch.float32)
        if not torch.equal(labels.sum(0), torch.ones(labels.shape[1])):
            raise ValueError(f"in {path}, label_0 and label_1 must add to 1 in every row")
        self.captions: list[str] = table["caption"]
        self.labels = labels[0]
        self.pictures = torch.stack(
            [torch.stack([_decode(raw, size) for raw in table[f"jpg_{i}"]]) for i in (0, 1)], dim=1
        )
        """Of type uint8, with shape (N, 2, 3, size, size)."""

    def __len__(self) -> int:
        return len(self.captions)

    def split(self, share: int = 16) -> tuple[Tensor, Tensor]:
        """Indices of pairs to learn from and, one caption in `share`, of pairs to check with."""

        order = {caption: i for i, caption in enumerate(sorted(set(self.captions)))}
        kept = torch.tensor([order[caption] % share == share - 1 for caption in self.captions])
        return (~kept).nonzero()[:, 0], kept.nonzero()[:, 0]

    def loss(self, towers: Towers, index: Tensor) -> Tensor:
        """The loss of :func:`preference` on some of the pairs."""

        first, second, captions = self._embed(towers, index)
        return preference(first, second, captions, self.labels[index], towers.log_scale)

    @torch.no_grad()
    def agreement(self, towers: Towers, index: Tensor) -> float:
        """How often the towers prefer what is preferred, among pairs without ties."""

        index = index[self.labels[index] != 0.5]
        right = []
        for part in index.split(64):
            x, z, y = (F.normalize(e.float(), dim=-1) for e in self._embed(towers, part))
            difference = ((x - z) * y).sum(-1)
            right.append((difference > 0) == (self.labels[part] > 0.5))
        return float(torch.cat(right).float().mean())

    def _embed(self, towers: Towers, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = towers.embed_pictures(self.pictures[index].flatten(0, 1).float() / 255)
        first, second = both.unflatten(0, (len(index), 2)).unbind(1)
        return first, second, towers.embed_captions([self.captions[i] for i in index.tolist()])


def first_of(scores: Tensor, right: Tensor, count: int, generator: Generator) -> float:
    """How often the right candidate scores highest among itself and others chosen at random.

    Arguments:
        scores: Of all candidates, with shape (N, M).
        right: Index of the right one, with shape (N,).
        count: Candidates that are compared, the right one counted in, at most M.
        generator: Chooses the others.
    """

    own = scores.gather(1, right[:, None])
    order = torch.rand(scores.shape, generator=generator)
    order.scatter_(1, right[:, None], 2.0)  # the right one is not among the others
    others = scores.gather(1, order.argsort(dim=1)[:, : count - 1])
    return float((own > others).all(dim=1).float().mean())


@torch.no_grad()
def measure(
    towers: Towers, drawings: Drawings, role: str, count: int = 1000, seed: int = 0
) -> dict[str, float]:
    """How often towers find the right name among 100, and the right background and style.

    Arguments:
        towers: The towers.
        drawings: All of them.
        role: Whose drawings the towers learned from.
        count: Pictures of each kind.
        seed: Of pictures and candidates.

    Returns:
        The share of right names on drawings of the generators, of names that these learn and of
        names that they do not, and on drawings that the towers know; the share of right backgrounds
        among 12 and styles among 8, on drawings of the generators. Names are compared with 99
        others of both lists, or with all if there are fewer.
    """

    names = load_names()
    known = {entry.name for entry in drawings.entries}
    every = [name for part in names.values() for name in part if name in known]
    generator = Generator().manual_seed(seed)
    unit = lambda e: F.normalize(e.float(), dim=-1)
    candidates = unit(towers.embed_captions([_plain(name) for name in every]))
    parts = {
        "name_of_other_drawings": drawings.where("generator", names["train"]),
        "name_held_out_from_generators": drawings.where("generator", names["held_out"]),
        "name_of_own_drawings": drawings.where(role, names["train"]),
    }
    figures = {}
    for key, part in parts.items():
        scenes = sample(part, count, generator)
        x = unit(_embed_scenes(towers, part, scenes))
        own = torch.tensor([every.index(part.entries[s.drawing].name) for s in scenes])
        among = min(100, len(every))
        figures[key] = first_of(x @ candidates.T, own, among, generator)
    part = parts["name_of_other_drawings"]
    grounds = {tuple(c / 255 for c in color): i for i, color in enumerate(COLORS.values())}
    scenes = [s for s in sample(part, 3 * count, generator) if s.background in grounds]
    endings = [f" on {'an' if c == 'orange' else 'a'} {c} background" for c in COLORS]
    right = [grounds[s.background] for s in scenes]
    figures["background"] = _endings(towers, part, scenes, endings, right)
    styles = {row["name"]: f", {row['words']} style" for row in sources()["styles"]}
    scenes = sample(part, count, generator)
    right = [list(styles).index(part.entries[s.drawing].style) for s in scenes]
    figures["style"] = _endings(towers, part, scenes, list(styles.values()), right)
    return {key: round(value, 4) for key, value in figures.items()}


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
    start: Path | None = None,
    pairs: Path | None = None,
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
        start: Folder of towers to start from, with a new optimizer; `pairs` needs it.
        pairs: Preferences to learn instead of captions, a parquet file, see `Pairs`.
        resume: Whether to go on where an earlier run was.
        smoke: Tiny towers, for tests.

    Raises:
        ValueError: If the kind is unknown, or `pairs` is given without `start`.
    """

    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if pairs is not None and start is None:
        raise ValueError("start must be a folder of towers trained on captions if pairs are given")
    torch.set_num_threads(threads)
    seed = 1 + list(KINDS).index(kind) if seed is None else seed
    suffix = "" if kind == "judge" or pairs is not None else "-contrastive"
    out = data / f"emoji-{kind}{suffix}" if out is None else out
    drawings = Drawings.load(data)
    if start is None:
        words = out.with_name(f"{out.name}-words")
        if kind != "hps":
            save_tokenizer(texts(drawings), words)
        towers = new(kind, words, smoke, seed)
    else:
        towers = read(kind, start)
    optimizer = torch.optim.AdamW(_groups(towers), lr=peak, betas=(0.9, 0.98))
    generator = Generator().manual_seed(seed)
    run = Run(out.with_name(f"{out.name}.state"), {"towers": towers}, optimizer, generator)
    if resume and run.restore():
        print(f"going on at step {run.step}")
    if pairs is None:
        loss = _captions_loss(towers, _own(drawings, kind), batch, kept, seed, run)
        final: Callable[[], dict[str, float]] = lambda: measure(
            towers.eval(), drawings, _ROLES[kind], 8 if smoke else 1000
        )
    else:
        loss, final = _pairs_loss(towers, Pairs(pairs), batch, generator)
    recent: list[float] = []

    def after(step: int, value: float) -> None:
        recent.append(value)
        if step % 100 == 0 or step == steps:
            line = {"step": step, "loss": round(sum(recent) / len(recent), 4), "seen": run.seen}
            recent.clear()
            print(json.dumps({**line, "minutes": round(run.seconds / 60, 1)}), flush=True)

    run.train(steps, batch, lambda step: learning_rate(step, steps, peak), loss, after)
    figures = {**final(), "steps": steps, "batch": batch, "peak": peak, "seed": seed}
    figures["minutes"] = round(run.seconds / 60, 1)
    towers.write(out)
    (out / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    (out / "README.md").write_text(_card(kind, towers, figures, pairs), encoding="utf-8")
    print(json.dumps(figures, indent=2))


def _captions_loss(
    towers: Towers, parts: Sequence[Drawings], batch: int, kept: int, seed: int, run: Run
) -> Callable[[], Tensor]:
    pool = Pool(parts, kept, max(1, batch // _FRESH), seed, run.step)

    def loss() -> Tensor:
        drawn = pool.batch(batch, run.generator)
        pool.advance(run.step)
        pictures = roughen(drawn.pictures.float() / 255, run.generator)
        with _quick():
            x = towers.embed_pictures(pictures)
            y, others = towers.embed_captions(drawn.captions + drawn.others).split(batch)
        return contrastive(x, y, others, towers.log_scale)

    return loss


def _pairs_loss(
    towers: Towers, pairs: Pairs, batch: int, generator: Generator
) -> tuple[Callable[[], Tensor], Callable[[], dict[str, float]]]:
    learned, checked = pairs.split()

    def loss() -> Tensor:
        index = learned[torch.randint(len(learned), (batch,), generator=generator)]
        with _quick():
            return pairs.loss(towers, index)

    def final() -> dict[str, float]:
        towers.eval()
        parts = {"pairs_learned": learned, "pairs_of_other_captions": checked}
        return {
            f"agreement_on_{key}": round(pairs.agreement(towers, index), 4)
            for key, index in parts.items()
            if len(index)
        }

    return loss, final


@contextmanager
def _quick() -> Iterator[None]:
    """Half precision, and attention without the fused kernel, slow on a CPU's way back."""

    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def _own(drawings: Drawings, kind: str) -> tuple[Drawings, ...]:
    """The drawings of a kind's role: three times of the names that prompts have, once of all."""

    names = load_names()
    role = _ROLES[kind]
    asked = drawings.where(role, [*names["train"], *names["held_out"]])
    return asked, asked, asked, drawings.where(role)


def _groups(towers: nn.Module) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors and the scale, which do not."""

    weights = list(towers.parameters())
    return [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]


def _endings(
    towers: Towers,
    part: Drawings,
    scenes: Sequence[Scene],
    endings: Sequence[str],
    right: Sequence[int],
) -> float:
    """How often the right ending of a name scores highest."""

    if not scenes:
        return float("nan")
    names = sorted({_plain(entry.name) for entry in part.entries})
    captions = [name + ending for name in names for ending in endings]
    y = torch.cat(
        [towers.embed_captions(captions[i : i + 256]) for i in range(0, len(captions), 256)]
    )
    y = F.normalize(y.float(), dim=-1).unflatten(0, (len(names), len(endings)))
    own = y[[names.index(_plain(part.entries[s.drawing].name)) for s in scenes]]
    scores = torch.einsum("nd,nkd->nk", _embed_scenes(towers, part, scenes).float(), own)
    return float((scores.argmax(1) == torch.tensor(right)).float().mean())


def _embed_scenes(towers: Towers, part: Drawings, scenes: Sequence[Scene]) -> Tensor:
    rows = range(0, len(scenes), 64)
    return torch.cat([towers.embed_pictures(paint(part, scenes[i : i + 64])) for i in rows])


def _decode(raw: bytes, size: int) -> Tensor:
    import numpy

    image = require("PIL.Image", "reading preferences needs", "testbed")
    picture = image.open(io.BytesIO(raw)).convert("RGB")
    if picture.size != (size, size):
        raise ValueError(f"pictures must have {size} x {size} pixels, got {picture.size}")
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()


def _factor(log_scale: Tensor) -> Tensor:
    return log_scale.float().exp().clamp(max=_LARGEST_SCALE)


def _plain(name: str) -> str:
    """A name as captions have it."""

    return re.sub("[\u2018-\u201d]", "'", name)


def _card(kind: str, towers: nn.Module, figures: Mapping[str, float], pairs: Path | None) -> str:
    count = sum(p.numel() for p in towers.parameters()) / 1e6
    learned = "pairs of pictures with preferences" if pairs else "painted scenes and their captions"
    option = " --start CONTRASTIVE --pairs FILE" if pairs else ""
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in figures.items())
    return f"""---
license: mit
---

# emoji-{kind}

Image-text towers of the test bed, {count:.1f} million parameters, stored in half precision; see
`rwguidance.testbed.encoders`.

**Data.** Drawings of eight emoji styles of the role "{_ROLES[kind]}", of all names. Credits and
licenses are in `rwguidance/testbed/NOTICE`.

**Training.** On {learned}, by

    python -m rwguidance.testbed.towers {kind} --steps {figures["steps"]} \\
        --batch {figures["batch"]} --peak {figures["peak"]}{option}

**Quality.** See `rwguidance.testbed.towers.measure`.

| figure | value |
|---|---|
{rows}
"""


if __name__ == "__main__":
    require("typer", "the command needs", "testbed").run(train)
