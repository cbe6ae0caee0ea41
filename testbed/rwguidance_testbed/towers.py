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
    | Learning Transferable Visual Models From Natural Language Supervision
      (Radford et al., 2021), arXiv:2103.00020
    | When and why vision-language models behave like bags-of-words, and what to do about it?
      (Yuksekgonul et al., 2023), arXiv:2210.01936
    | Supervised Contrastive Learning (Khosla et al., 2020), arXiv:2004.11362
    | Scaling Language-Image Pre-training via Masking (Li et al., 2022), arXiv:2212.00794
    | Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation
      (Kirstain et al., 2023), arXiv:2305.01569
"""

import copy
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rwguidance.support.outside import require
from rwguidance.support.randomness import seeded

from .data import Drawing, Drawings, load_names, sources
from .encoders import HPS, KINDS, Pick, Towers, copy_image_tower, new, read
from .gold import prefer
from .scenes import COLORS, KIND_WORDS, Scene, on_background, render, sample_scenes, straight_quotes
from .tokenizer import tokenizer_corpus, train_tokenizer
from .training.cards import write_card
from .training.loop import Run, learning_rate, move_averages
from .training.muon import Muon, groups

__all__ = [
    "AlignmentHead",
    "Batch",
    "Pairs",
    "PictureBuffer",
    "blur",
    "contrastive_loss",
    "cutout",
    "deform",
    "hard_negative",
    "jitter_colors",
    "measure",
    "preference_loss",
    "top_one_accuracy",
    "train",
]

_ROLES = {"judge": "judge", "pick": "proxy", "hps": "proxy"}
_SIZE_WORDS = {"small": "large", "large": "small"}
_LARGEST_SCALE = 100.0
_USES = 4
_BEND = 0.12
_SMOOTHING = 0.1
_ENCODED = 8
_SIDED = re.compile("left|right|clock")
_THINGS = (
    "activities",
    "animals-nature",
    "food-drink",
    "objects",
    "smileys-emotion",
    "travel-places",
)


def contrastive_loss(
    pictures: Tensor,
    captions: Tensor,
    others: Tensor,
    log_scale: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of each picture's own caption, and of each caption's own picture.

    The logits are :math:`e^s \cos(x_i, y_j)`, the factor at most 100.

    Arguments:
        pictures: Embeddings with shape (B, D).
        captions: Of the captions of these pictures, in the same order.
        others: Of captions that are true of none of the pictures, with shape (M, D).
        log_scale: The scalar s.
        smoothing: Share of the target that all candidates get alike.

    Returns:
        The mean of both, in float32.
    """

    x, y = (F.normalize(e.float(), dim=-1) for e in (pictures, torch.cat((captions, others))))
    logits = _factor(log_scale) * x @ y.T
    right = torch.arange(len(x))
    backward = F.cross_entropy(logits[:, : len(x)].T, right, label_smoothing=smoothing)
    return (F.cross_entropy(logits, right, label_smoothing=smoothing) + backward) / 2


def preference_loss(
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


def hard_negative(
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
    name = straight_quotes(drawing.name)
    named = name in scene.caption
    word = name if named else KIND_WORDS[drawing.kind]
    words = (
        [straight_quotes(other) for other in relatives[drawing.kind]]
        if named
        else KIND_WORDS.values()
    )
    candidates = [other for other in words if other != word] or ["thing"]
    head, _, tail = scene.caption.partition(word)
    changes = [head + pick(candidates) + tail]
    size = re.search(r"\b(small|large)\b", head)
    if size:
        changes.append(head.replace(size[0], _SIZE_WORDS[size[0]]) + word + tail)
    ground = re.match(r" on an? (\w+) background", tail)
    if ground:
        color = pick([color for color in COLORS if color != ground[1]])
        changes.append(f"{head}{word} {on_background(color)}{tail[ground.end() :]}")
    styles = {row["name"]: row["words"] for row in sources()["styles"]}
    own = f", {styles[drawing.style]} style"
    if own in tail:
        style = pick([words for words in styles.values() if words != styles[drawing.style]])
        changes.append(head + word + tail.replace(own, f", {style} style"))
    return str(pick(changes))


def jitter_colors(pixels: Tensor, generator: Generator) -> Tensor:
    """Drawings as other hands might draw them: other colors, other contrast, some with an outline.

    Arguments:
        pixels: Red, green, blue and alpha in [0, 1], premultiplied, with shape (B, 4, H, W).
        generator: Says how.
    """

    count = len(pixels)
    color, alpha = pixels[:, :3], pixels[:, 3:]
    saturation, contrast, light, gray = torch.rand(4, count, 1, 1, 1, generator=generator)
    saturation = torch.where(gray < 0.1, 0.0, 0.5 + saturation)
    mean = color.mean(1, keepdim=True)
    color = mean + (color - mean) * saturation
    middle = color.sum((1, 2, 3)) / (3 * alpha.sum((1, 2, 3))).clamp(min=1.0)
    middle = middle[:, None, None, None] * alpha
    color = middle * (0.8 + 0.4 * light) + (color - middle) * (0.6 + 0.8 * contrast)
    color = color.clamp(min=0).minimum(alpha)
    outlined = torch.rand(count, 1, 1, 1, generator=generator) < 0.2
    alpha = torch.where(outlined, F.max_pool2d(alpha, 5, stride=1, padding=2), alpha)
    return torch.cat((color, alpha), dim=1)


def blur(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures more or less blurred, as generators do, up to means over 5 x 5 pixels.

    Arguments:
        pictures: With shape (B, C, H, W).
        generator: Says by how much.
    """

    mix = 3 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    means = lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    once = means(pictures)
    x = torch.lerp(pictures, once, (mix / 2).clamp(max=1))
    return torch.lerp(x, means(once), (mix - 2).clamp(min=0))


def deform(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures sheared, stretched and bent, lighter or darker.

    Few drawings of a name are known, and those of other styles have other proportions. Areas stay
    as they are on average, for captions speak of sizes. What comes in from outside has the color of
    the border.

    Arguments:
        pictures: In [0, 1], with shape (B, 3, H, W).
        generator: Says by how much.
    """

    count, _, height, width = pictures.shape
    stretch, shear, angle = 2 * torch.rand(3, count, generator=generator) - 1
    longer, angle, shear = (0.25 * stretch).exp(), math.pi / 15 * angle, 0.25 * shear
    zero = torch.zeros(count)
    triangle = torch.stack((longer, shear, zero, 1 / longer), dim=1).unflatten(1, (2, 2))
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack((cos, -sin, sin, cos), dim=1).unflatten(1, (2, 2))
    matrix = torch.cat((turn @ triangle, torch.zeros(count, 2, 1)), dim=2)
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    bend = _BEND * (2 * torch.rand(count, 2, 4, 4, generator=generator) - 1)
    bend = F.interpolate(bend, (height, width), mode="bilinear", align_corners=True)
    grid += bend.permute(0, 2, 3, 1)
    pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    light = torch.rand(count, 1, 1, 1, generator=generator)
    return (pictures * (0.85 + 0.3 * light)).clamp(0, 1)


def cutout(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures with a square hole of their mean color, of at most 0.3 of the side, anywhere.

    Arguments:
        pictures: With shape (B, C, H, W).
        generator: Says where, and how large.
    """

    count, _, height, width = pictures.shape
    place = torch.rand(count, 2, generator=generator)
    size = 0.3 * torch.rand(count, 1, generator=generator)
    inside = lambda where, n: (torch.linspace(0, 1, n) - where[:, None]).abs() < size / 2
    hole = inside(place[:, 0], height)[:, None, :, None] & inside(place[:, 1], width)[:, None, None]
    return torch.where(hole, pictures.mean((2, 3), keepdim=True), pictures)


@dataclass(frozen=True)
class Batch:
    """Pairs of pictures that show the same name in different hands, captions and false captions.

    Arguments:
        pictures: Of type uint8, with shape (B, 2, 3, 64, 64).
        captions: Two for each pair.
        others: One that is false of the first picture, for each pair.
        names: What each pair shows.
    """

    pictures: Tensor
    captions: list[tuple[str, str]]
    others: list[str]
    names: list[str]


class PictureBuffer:
    """Painted pictures, some of which are replaced at every step: painting is slower than learning.

    What it holds at a step is a function of the step and the seed, so that a run which goes on
    there sees the same pictures.

    Arguments:
        parts: Drawings to paint, as many pairs from each part.
        size: Pairs kept.
        fresh: Pairs replaced in a step.
        seed: Of the pictures.
        step: Where the run is.
        vae: An autoencoder through which an eighth of the pictures go, for generated pictures come
            out of it; None for none.
    """

    def __init__(
        self,
        parts: Sequence[Drawings],
        size: int,
        fresh: int,
        seed: int,
        step: int = 0,
        vae: Any = None,
    ) -> None:
        self.parts, self.fresh, self.seed, self.vae = parts, fresh, seed, vae
        self.relatives: dict[str, list[str]] = {}
        for kind, name in sorted({(e.kind, e.name) for part in parts for e in part.entries}):
            self.relatives.setdefault(kind, []).append(name)
        self.partners = [_partners(part) for part in parts]
        self.count = max(1, size // fresh)
        numbers = range(step, step + self.count)
        painted = {number % self.count: self._paint(number) for number in numbers}
        self.chunks = [painted[slot] for slot in range(self.count)]

    def advance(self, step: int) -> None:
        """Goes from `step` to the next: replaces the oldest pictures."""

        self.chunks[step % self.count] = self._paint(step + self.count)

    def batch(self, count: int, generator: Generator) -> Batch:
        """Pairs with different names, at random.

        Raises:
            ValueError: If there are fewer names than pairs wanted.
        """

        where: dict[str, tuple[int, int]] = {}
        for index in torch.randperm(self.count * self.fresh, generator=generator).tolist():
            slot, row = divmod(index, self.fresh)
            where.setdefault(self.chunks[slot].names[row], (slot, row))
            if len(where) == count:
                break
        if len(where) < count:
            raise ValueError(
                f"batch must be at most twice the number of names in the buffer, {len(where)}, "
                f"got {2 * count}"
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
        which = number % len(self.parts)
        part = self.parts[which]
        uniform = lambda: float(torch.rand((), generator=generator))
        pick = lambda options: options[int(uniform() * len(options))]
        first = sample_scenes(part, self.fresh, generator)
        second = []
        for scene in first:
            index = pick(self.partners[which][scene.drawing])
            one = Drawings([part.entries[index]], part.pixels[index : index + 1])
            second.append(replace(sample_scenes(one, 1, generator)[0], drawing=index))
        scenes = [*first, *second]
        entries = [part.entries[scene.drawing] for scene in scenes]
        false = [
            hard_negative(scene, part.entries[scene.drawing], self.relatives, generator)
            for scene in first
        ]
        captions = [scene.caption for scene in scenes]
        pixels = part.pixels[[scene.drawing for scene in scenes]].float() / 255
        other = (255 * jitter_colors(pixels, generator)).round().byte()
        seen = [
            replace(scene, drawing=i, hue=_hue(scene, entry, uniform()))
            for i, (scene, entry) in enumerate(zip(scenes, entries, strict=True))
        ]
        pictures = blur(render(Drawings(entries, other), seen), generator)
        mirrored = torch.rand(len(scenes), generator=generator) < 0.5
        mirrored &= torch.tensor([not _SIDED.search(entry.name) for entry in entries])
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
        if self.vae is not None:
            pictures[::_ENCODED] = _encoded(self.vae, pictures[::_ENCODED])
        return Batch(
            torch.stack((255 * pictures).round().byte().chunk(2), dim=1),
            list(zip(captions[: self.fresh], captions[self.fresh :], strict=True)),
            false,
            [entry.name for entry in entries[: self.fresh]],
        )


class Pairs:
    """Pairs of pictures with preferences, from a file with the columns of Pick-a-Pic.

    These are `caption`, `jpg_0` and `jpg_1` (encoded pictures, of any format that Pillow reads),
    `label_0` and `label_1` (1 and 0, 0 and 1, or 0.5 both); and, where preferences were drawn by a
    known utility, `utility_0` and `utility_1`.

    Arguments:
        path: A parquet file.
        size: Pixels along a side that the pictures must have.

    Raises:
        ValueError: If a column is missing, labels do not add to 1, or a picture has another size.
    """

    def __init__(self, path: Path, size: int = 64) -> None:
        parquet = require("pyarrow.parquet", "reading preferences needs", "rewards")
        columns = ["caption", "jpg_0", "jpg_1", "label_0", "label_1"]
        there = set(parquet.read_schema(path).names)
        missing = set(columns) - there
        if missing:
            raise ValueError(f"{path} must have the columns {columns}, lacks {sorted(missing)}")
        known = [name for name in ("utility_0", "utility_1") if name in there]
        table = parquet.read_table(path, columns=[*columns, *known]).to_pydict()
        labels = torch.tensor([table["label_0"], table["label_1"]], dtype=torch.float32)
        if not torch.equal(labels.sum(0), torch.ones(labels.shape[1])):
            raise ValueError(f"in {path}, label_0 and label_1 must add to 1 in every row")
        self.captions: list[str] = table["caption"]
        self.labels = labels[0]
        self.clean: Tensor | None = None
        """What would be preferred without noise, 0.5 for ties, if utilities are known."""
        if len(known) == 2:
            self.clean = prefer(torch.tensor([table[name] for name in known]).T)
        self.pictures = torch.empty(len(self.captions), 2, 3, size, size, dtype=torch.uint8)
        for i in (0, 1):
            for row, raw in enumerate(table[f"jpg_{i}"]):
                self.pictures[row, i] = _decode(raw, size)
        """Of type uint8, with shape (N, 2, 3, size, size)."""

    def __len__(self) -> int:
        return len(self.captions)

    def split(self, share: int = 16) -> tuple[Tensor, Tensor]:
        """Indices of pairs to learn from and, one caption in `share`, of pairs to check with."""

        order = {caption: i for i, caption in enumerate(sorted(set(self.captions)))}
        kept = torch.tensor([order[caption] % share == share - 1 for caption in self.captions])
        return (~kept).nonzero()[:, 0], kept.nonzero()[:, 0]

    def loss(self, towers: Towers, index: Tensor, patches: Tensor | None = None) -> Tensor:
        """The loss of :func:`preference_loss` on some of the pairs.

        Arguments:
            towers: The towers.
            index: Which pairs, with shape (B,).
            patches: What is seen of the pictures, see `Towers.embed_pictures`, with shape (2 B, K).
        """

        first, second, captions = self._embed(towers, index, patches)
        return preference_loss(first, second, captions, self.labels[index], towers.log_scale)

    @torch.no_grad()
    def agreement(self, towers: Towers, index: Tensor, clean: bool = False) -> float:
        """How often the towers prefer what is preferred, among pairs without ties.

        Arguments:
            towers: The towers.
            index: Which pairs, with shape (N,).
            clean: Whether preferences are those that utilities have without noise.

        Raises:
            ValueError: If utilities are not known.
        """

        labels = self.clean if clean else self.labels
        if labels is None:
            raise ValueError("clean agreement needs the columns utility_0 and utility_1")
        index = index[labels[index] != 0.5]
        right = []
        for part in index.split(64):
            x, z, y = (F.normalize(e.float(), dim=-1) for e in self._embed(towers, part))
            difference = ((x - z) * y).sum(-1)
            right.append((difference > 0) == (labels[part] > 0.5))
        return float(torch.cat(right).float().mean())

    def _embed(
        self, towers: Towers, index: Tensor, patches: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        pictures = self.pictures[index].flatten(0, 1).float() / 255
        both = towers.embed_pictures(pictures, patches)
        first, second = both.unflatten(0, (len(index), 2)).unbind(1)
        return first, second, towers.embed_captions([self.captions[i] for i in index.tolist()])


def top_one_accuracy(scores: Tensor, right: Tensor, count: int, generator: Generator) -> float:
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
    candidates = unit(towers.embed_captions([straight_quotes(name) for name in every]))
    parts = {
        "name_of_other_drawings": drawings.where("generator", names["train"]),
        "name_held_out_from_generators": drawings.where("generator", names["held_out"]),
        "name_of_own_drawings": drawings.where(role, names["train"]),
    }
    figures = {}
    for key, part in parts.items():
        scenes = sample_scenes(part, count, generator)
        x = unit(_embed_scenes(towers, part, scenes))
        own = torch.tensor([every.index(part.entries[s.drawing].name) for s in scenes])
        among = min(100, len(every))
        figures[key] = top_one_accuracy(x @ candidates.T, own, among, generator)
    part = parts["name_of_other_drawings"]
    grounds = {tuple(c / 255 for c in color): i for i, color in enumerate(COLORS.values())}
    scenes = [s for s in sample_scenes(part, 3 * count, generator) if s.background in grounds]
    endings = [f" {on_background(color)}" for color in COLORS]
    right = [grounds[s.background] for s in scenes]
    figures["background"] = _endings(towers, part, scenes, endings, right)
    styles = {row["name"]: f", {row['words']} style" for row in sources()["styles"]}
    scenes = sample_scenes(part, count, generator)
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
    run = Run(out.with_name(f"{out.name}.state"), modules, optimizer, generator)
    if resume and run.restore():
        print(f"going on at step {run.step}")
    if pairs is None:
        diffusers = require("diffusers", "the test bed needs", "testbed")
        vae = vae or Path(__file__).with_name("weights") / "emoji-vae"
        autoencoder = diffusers.AutoencoderKL.from_pretrained(vae).eval().requires_grad_(False)
        fresh = max(1, batch // 2 // _USES)
        buffer = PictureBuffer(_own(drawings, kind), kept // 2, fresh, seed, run.step, autoencoder)
        loss = _captions_loss(towers, head, buffer, batch, run, steps, compiled)
        final: Callable[[], dict[str, float]] = lambda: measure(
            average, drawings, _ROLES[kind], 8 if smoke else 1000
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


class AlignmentHead(nn.Module):
    """What is compared of two pictures of the same name: a linear function of their embeddings.

    Arguments:
        dimension: Of the embeddings.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.project = nn.Linear(dimension, dimension // 2, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of :func:`contrastive_loss` between both pictures of each pair."""

        first, second = self.project(first.float()), self.project(second.float())
        return contrastive_loss(first, second, second[:0], self.log_scale)


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


def _partners(part: Drawings) -> list[list[int]]:
    """For each drawing those of its name in other styles, or itself if there are none."""

    same: dict[str, list[int]] = {}
    for i, entry in enumerate(part.entries):
        same.setdefault(entry.name, []).append(i)
    return [[j for j in same[entry.name] if j != i] or [i] for i, entry in enumerate(part.entries)]


def _hue(scene: Scene, entry: Drawing, uniform: float) -> float:
    """The hue of a scene; of one in five turned by up to 90 degrees, if the name has no color.

    Arguments:
        scene: The scene.
        entry: What it shows.
        uniform: A random number in [0, 1].
    """

    if uniform > 0.2 or set(COLORS) & set(re.findall("[a-z]+", entry.name)):
        return scene.hue
    return scene.hue + 900.0 * (uniform - 0.1)


@torch.no_grad()
def _encoded(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures as the autoencoder gives them back."""

    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = vae.encode(2 * pictures - 1).latent_dist.mode()
        decoded: Tensor = vae.decode(latents).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


@contextmanager
def _quick() -> Iterator[None]:
    """Half precision, and attention without the fused kernel, slow on a CPU's way back."""

    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def _own(drawings: Drawings, kind: str) -> tuple[Drawings, ...]:
    """The drawings of a kind's role: of names that prompts have, and of these and more things."""

    names, role = load_names(), _ROLES[kind]
    asked = [*names["train"], *names["held_out"]]
    things = [*asked, *(entry.name for entry in drawings.entries if entry.group in _THINGS)]
    return drawings.where(role, asked), drawings.where(role, things)


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
    names = sorted({straight_quotes(entry.name) for entry in part.entries})
    captions = [name + ending for name in names for ending in endings]
    y = torch.cat(
        [towers.embed_captions(captions[i : i + 256]) for i in range(0, len(captions), 256)]
    )
    y = F.normalize(y.float(), dim=-1).unflatten(0, (len(names), len(endings)))
    own = y[[names.index(straight_quotes(part.entries[s.drawing].name)) for s in scenes]]
    scores = torch.einsum("nd,nkd->nk", _embed_scenes(towers, part, scenes).float(), own)
    return float((scores.argmax(1) == torch.tensor(right)).float().mean())


def _embed_scenes(towers: Towers, part: Drawings, scenes: Sequence[Scene]) -> Tensor:
    rows = range(0, len(scenes), 64)
    return torch.cat([towers.embed_pictures(render(part, scenes[i : i + 64])) for i in rows])


def _decode(raw: bytes, size: int) -> Tensor:
    import numpy

    image = require("PIL.Image", "reading preferences needs", "testbed")
    picture = image.open(io.BytesIO(raw)).convert("RGB")
    if picture.size != (size, size):
        raise ValueError(f"pictures must have {size} x {size} pixels, got {picture.size}")
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()


def _factor(log_scale: Tensor) -> Tensor:
    return log_scale.float().exp().clamp(max=_LARGEST_SCALE)


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
        f'Drawings of eight emoji styles of the role "{_ROLES[kind]}", of all names that are no '
        "flags, symbols or people.",
        f"On {learned}. See `rwguidance_testbed.towers`.",
        f"towers {kind} {settings}",
        "See `rwguidance_testbed.towers.measure` and `Pairs.agreement`.",
        figures,
    )


if __name__ == "__main__":
    require("typer", "the command needs", "testbed").run(train)
