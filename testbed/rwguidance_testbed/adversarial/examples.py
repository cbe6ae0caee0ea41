"""Pictures to learn from: painted ones, and what the flow draws from known noise.

The flow draws some of the painted pictures' captions, and names that are recombined from words of
learned ones, in as many captions as a group has pictures.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from rwguidance.support.randomness import generator_for

from .. import flow, turbo
from ..data import Drawings, load_names
from ..scenes import COLORS, on_background, render, sample_scenes, straight_quotes
from ..tokenizer import tokenize
from ..training.attention import CountedAttention
from ..vae import encode
from .critic import GROUP, Words
from .names import recombined_names

__all__ = ["Counts", "Examples", "Pipelines", "drawn_by_flow", "make_examples", "noisy", "words"]

_PART = 64  # pictures painted, encoded or drawn at a time
_ON_BACKGROUND = 0.3  # share of the captions of recombined names that name a background


@dataclass(frozen=True)
class Pipelines:
    """Pipelines that examples come from.

    Arguments:
        teacher: The flow of many steps, by whose embeddings pictures are judged.
        flow: The flow of four steps, which draws.
        student: The pipeline of one step, which is trained.
    """

    teacher: Any
    flow: Any
    student: Any


@dataclass(frozen=True)
class Counts:
    """Numbers of examples.

    Arguments:
        painted: Painted pictures.
        pairs: The first of these, whose captions the flow draws as well.
        recombined: Recombined names; the flow draws a group of pictures of each.
    """

    painted: int
    pairs: int
    recombined: int


@dataclass(frozen=True)
class Examples:
    """Pictures and captions: first those of recombined names, then painted ones.

    Arguments:
        latents: Latents of pictures, with shape (N, C, H, W); those of recombined names are the
            flow's.
        seen: Embeddings of the captions as a critic sees them, of each token and pooled.
        given: Those that the student is given.
        noise: Noise from which the flow drew the captions of the first, with shape (M, C, H, W), M
            at most N.
        ends: Latents that it drew from there, with the same shape.
        names: Numbers of the names, those of recombined ones after those of learned ones, with
            shape (N,).
        bare: Whether a caption is the name alone, with or without an article, with shape (N,).
        recombined: Number of pictures of recombined names, `GROUP` of each in a row.
        table: Embeddings of the names, with shape (names, E).
    """

    latents: Tensor
    seen: Words
    given: Words
    noise: Tensor
    ends: Tensor
    names: Tensor
    bare: Tensor
    recombined: int
    table: Tensor


def noisy(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Returns states between latents and noise, of shape (B, C, H, W), at times of shape (B,)."""

    return torch.lerp(latents, noise, t[:, None, None, None])


@torch.no_grad()
def words(pipe: Any, captions: Sequence[str]) -> Words:
    """Returns embeddings of captions as the network of a pipeline sees them.

    Arguments:
        pipe: Pipeline of a flow, or of the class of the student.
        captions: Captions.
    """

    encoders = (pipe.text_encoder.eval(), pipe.text_encoder_2.eval())
    embed: Callable[..., Words] = (flow if hasattr(pipe, "transformer") else turbo).embed_captions
    return embed(encoders, tokenize(pipe.tokenizer, list(captions)))


@torch.no_grad()
def drawn_by_flow(pipe: Any, noise: Tensor, captions: Words) -> Tensor:
    """Returns what the flow of four steps draws from noise, but for its last step.

    That starts from a noise level of a hundredth, so it changes hardly anything.

    Arguments:
        pipe: The pipeline.
        noise: Standard normal noise, with shape (B, C, H, W).
        captions: Embeddings of the captions.
    """

    pipe.transformer.eval().set_attn_processor(CountedAttention())
    pipe.scheduler.set_timesteps(4)
    sigmas, once, x = pipe.scheduler.sigmas.tolist(), torch.zeros(len(noise)), noise
    for upper, lower in itertools.pairwise(sigmas[:4]):
        v = flow.velocity(pipe.transformer, x, once + upper, *captions, once)
        x = x + (lower - upper) * v
    return x


_Rows = dict[str, Tensor]


def make_examples(drawings: Drawings, pipes: Pipelines, counts: Counts, seed: int) -> Examples:
    """Paints pictures and draws others with the flow.

    Arguments:
        drawings: Drawings of the learned names.
        pipes: The pipelines.
        counts: Numbers of examples.
        seed: Seed of pictures, names and noise.
    """

    learned = sorted({entry.name for entry in drawings.entries})
    others = load_names()["held_out"]
    generator = generator_for(seed, "recombined")
    recombined = recombined_names(learned, others, counts.recombined, generator)
    rows = _of_names(recombined, len(learned), pipes, generator)
    first = len(rows)
    for start in range(0, counts.painted, _PART):
        size = min(_PART, counts.painted - start)
        paired = min(size, max(0, counts.pairs - start))
        source = generator_for(seed, "painted", start)
        rows.append(_painted(drawings, learned, pipes, size, paired, source))
    all_of = lambda key, part: torch.cat([row[key] for row in part])
    return Examples(
        torch.cat([row["ends"] for row in rows[:first]] + [row["latents"] for row in rows[first:]]),
        (all_of("seen", rows), all_of("seen_pooled", rows)),
        (all_of("given", rows), all_of("given_pooled", rows)),
        all_of("noise", rows),
        all_of("ends", rows),
        all_of("names", rows),
        all_of("bare", rows),
        GROUP * len(recombined),
        words(pipes.teacher, [straight_quotes(name) for name in learned + recombined])[1],
    )


def _of_names(
    names: Sequence[str], first: int, pipes: Pipelines, generator: Generator
) -> list[_Rows]:
    captions = []
    for name in (name for name in names for _ in range(GROUP)):
        color = list(COLORS)[int(torch.randint(len(COLORS), (), generator=generator))]
        named = float(torch.rand((), generator=generator)) < _ON_BACKGROUND
        captions.append(f"{straight_quotes(name)} {on_background(color)}" if named else name)
    numbers = first + torch.arange(len(names)).repeat_interleave(GROUP)
    rows = []
    for start in range(0, len(captions), _PART):
        part, number = captions[start : start + _PART], numbers[start : start + _PART]
        row = _drawn(pipes, part, len(part), generator)
        rows.append({**row, "names": number, "bare": torch.zeros(len(part), dtype=torch.bool)})
    return rows


def _painted(
    drawings: Drawings,
    learned: Sequence[str],
    pipes: Pipelines,
    count: int,
    paired: int,
    generator: Generator,
) -> _Rows:
    scenes = sample_scenes(drawings, count, generator)
    names = [drawings.entries[scene.drawing].name for scene in scenes]
    captions = [scene.caption for scene in scenes]
    without = [re.sub("^an? ", "", caption) for caption in captions]
    bare = [text == straight_quotes(name) for text, name in zip(without, names, strict=True)]
    with torch.no_grad():
        latents = encode(pipes.teacher.vae, render(drawings, scenes))
    return {
        **_drawn(pipes, captions, paired, generator),
        "latents": latents.half(),
        "names": torch.tensor([learned.index(name) for name in names]),
        "bare": torch.tensor(bare),
    }


def _drawn(pipes: Pipelines, captions: Sequence[str], count: int, generator: Generator) -> _Rows:
    """Returns embeddings of captions, and what the flow draws for the first of them."""

    seen, given = words(pipes.teacher, captions), words(pipes.student, captions)
    config = pipes.flow.transformer.config
    shape = (count, config.in_channels, config.sample_size, config.sample_size)
    noise, ends = torch.randn(shape, generator=generator), torch.zeros(shape)
    if count:
        ends = drawn_by_flow(pipes.flow, noise, words(pipes.flow, captions[:count]))
    found = {"noise": noise, "ends": ends, "seen": seen[0], "seen_pooled": seen[1]}
    found |= {"given": given[0], "given_pooled": given[1]}
    return {name: value.half() for name, value in found.items()}
