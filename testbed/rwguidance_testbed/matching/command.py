r"""The few-step models of the test bed, matched to the law of their teacher.

.. code-block:: text

    python -m rwguidance_testbed.matching walk --teacher FOLDER --data FOLDER --out FILE
    python -m rwguidance_testbed.matching match flow  --teacher FOLDER --paths FILE --start FOLDER
    python -m rwguidance_testbed.matching match turbo --teacher FOLDER --paths FILE --start FOLDER

Students of :mod:`rwguidance_testbed.distill` learn by squared errors, so where they cannot follow
their teacher they draw means. Here they go on by :mod:`.objective`, which compares laws. Before,
`walk` paints pictures and follows a path of the teacher from noise for each of their captions.

Runs end by the clock. With `--device cuda` minutes are worth what hours are on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.randomness import generator_for

from .. import flow, turbo
from ..data import Drawings, load_names
from ..distill.teachers import frozen_parts
from ..tokenizer import tokenize
from ..training.attention import CountedAttention, unfused_processor
from ..training.capture import captured
from ..training.cards import write_figures
from ..training.ema import ExponentialMovingAverage
from ..training.options import compute_on
from ..training.sheets import check_prompts, write_sheet
from ..training.timed import TimedRun, adam, rate_after, set_rate
from ..vae import read as read_vae
from . import paths as files
from .objective import Matching, Networks
from .pool import Captions, Pool, paint
from .scores import Discriminator, GuidedVelocity, Velocity, trainable_copy
from .students import FlowStudent, Student, TurboStudent, flow_sigmas

__all__ = ["MATCHING", "MatchingOptions", "match", "walk"]

_BETAS = {"student": (0.9, 0.99), "fake": (0.9, 0.99), "discriminator": (0.0, 0.99)}
"""Decay rates of the moments; without momentum a discriminator follows what it judges."""


@dataclass(frozen=True, kw_only=True)
class MatchingOptions:
    """Options of matching.

    Arguments:
        minutes: Minutes of the run.
        alone: Share of the run in which the student learns from paths alone.
        batch: Pictures of a step, a multiple of six.
        peak: Largest learning rate of the student.
        critic: Largest learning rate of its critics.
        critics: Steps of the critics for each of the student's.
        adversarial: Size of the discriminator's gradient, that of the teacher's being one.
        paired: Weight of the regression on paths.
        guidance: Scale of the teacher's classifier-free guidance.
        device: Device of PyTorch.
        threads: Threads of PyTorch.
        seed: Seed of captions and noise.
    """

    minutes: float = 60.0
    alone: float = 0.3
    batch: int = 384
    peak: float = 3e-4
    critic: float = 4e-4
    critics: int = 2
    adversarial: float = 0.5
    paired: float = 0.25
    guidance: float = 2.0
    device: str = "cpu"
    threads: int = 1
    seed: int = 0


MATCHING = MatchingOptions()
"""Default options of matching."""


def walk(
    teacher: Path = Path("out/testbed/emoji-flow-teacher"),
    data: Path = Path("out/testbed"),
    vae: Path = Path("out/testbed/emoji-vae"),
    out: Path = Path("out/testbed/paths.safetensors"),
    painted: int = 131_072,
    guidance: float = 2.0,
    device: str = "cpu",
    threads: int = 1,
    seed: int = 0,
) -> None:
    """Paints pictures, follows a path of the teacher for each of their captions, and keeps both.

    Arguments:
        teacher: Folder of the teacher.
        data: Folder of the drawings.
        vae: Folder of the autoencoder.
        out: File to write.
        painted: Number of pictures.
        guidance: Scale of classifier-free guidance.
        device: Device of PyTorch.
        threads: Threads of PyTorch.
        seed: Seed of pictures and noise.
    """

    place = compute_on(device, threads)
    drawings = Drawings.load(data).where("generator", load_names()["train"])
    autoencoder = read_vae(vae).to(place)
    tokenizer = flow.read(teacher, autoencoder).tokenizer
    pool = paint(drawings, autoencoder, tokenizer, painted, seed)
    guide, captions = _teacher(teacher, vae, pool, guidance, place)
    generator = _generator(place, seed, "paths")
    paths = files.walk(guide, captions, pool.latents.shape[1:], flow_sigmas(), generator)
    files.save(out, pool, paths)


def match(
    kind: str,
    teacher: Path = Path("out/testbed/emoji-flow-teacher"),
    paths: Path = Path("out/testbed/paths.safetensors"),
    start: Path | None = None,
    out: Path | None = None,
    vae: Path = Path("out/testbed/emoji-vae"),
    options: MatchingOptions = MATCHING,
) -> None:
    """Matches a student to the law of its teacher, and writes it with contact sheets beside it.

    Arguments:
        kind: Kind of the student, "flow" or "turbo".
        teacher: Folder of the teacher.
        paths: File that `walk` wrote.
        start: Folder of the student to start from. Default: "emoji-" and the kind, beside the
            teacher.
        out: Folder to write to, the state of the run beside it. Default: that of the start with
            "-matched".
        vae: Folder of the autoencoder.
        options: Options of matching.

    Raises:
        ValueError: If the kind is unknown, or the batch not a multiple of six.
    """

    if kind not in ("flow", "turbo"):
        raise ValueError(f"kind must be flow or turbo, got {kind!r}")
    if options.batch % 6 or options.batch < 6:
        raise ValueError(f"batch must be a multiple of six, got {options.batch}")
    device = compute_on(options.device, options.threads)
    start = teacher.with_name(f"emoji-{kind}") if start is None else start
    out = start.with_name(f"{start.name}-matched") if out is None else out
    pool, walked = files.load(paths, device)
    guide, captions = _teacher(teacher, vae, pool, options.guidance, device)
    pipe = (flow if kind == "flow" else turbo).read(start, read_vae(vae))
    networks = Networks(
        _student(kind, pipe, pool, captions, options.batch, device).to(device),
        guide,
        Velocity(trainable_copy(guide.transformer)),
        Discriminator(guide.transformer),
    )
    average = ExponentialMovingAverage([networks.student.network])
    run = _run(networks, average, out.with_suffix(".state"), options)
    run.restore()
    aims = (options.batch, options.adversarial, options.paired)
    matching = Matching(networks, run.optimizers, pool, walked, captions, *aims, run.generator)
    _train(run, matching, average, options)
    _write(pipe, average.modules[0], start / "tokenizer", out)
    figures = {"steps": run.step, "pictures_seen": run.step * options.batch}
    write_figures(out, {**figures, "minutes": round(run.seconds / 60, 1)})


def _teacher(
    folder: Path, vae: Path, pool: Pool, guidance: float, device: torch.device
) -> tuple[GuidedVelocity, Captions]:
    """Returns the velocity of a teacher, frozen, and the captions of a pool as it sees them."""

    pipe = flow.read(folder, read_vae(vae))
    captions, empty = _words(pipe, flow.embed_captions, pool.tokens, device)
    transformer, *_ = frozen_parts(pipe, "transformer")
    transformer.to(device).set_attn_processor(CountedAttention())
    return GuidedVelocity(transformer, guidance, empty), captions


def _words(
    pipe: Any,
    embed: Callable[..., tuple[Tensor, Tensor]],
    tokens: Tensor,
    device: torch.device,
) -> tuple[Captions, tuple[Tensor, Tensor]]:
    """Returns the embeddings of captions and of the empty one, by the encoders of a pipeline."""

    encoders = [pipe.text_encoder.eval().to(device), pipe.text_encoder_2.eval().to(device)]
    captions = Captions(embed, encoders, tokens)
    with torch.no_grad():
        empty = embed(encoders, tokenize(pipe.tokenizer, [""]).to(device))
    for encoder in encoders:
        encoder.cpu()
    return captions, empty


def _student(
    kind: str, pipe: Any, pool: Pool, captions: Captions, batch: int, device: torch.device
) -> Student:
    if kind == "flow":
        return FlowStudent(pipe.transformer, captions)
    pipe.unet.set_attn_processor(unfused_processor())
    words, _ = _words(pipe, turbo.embed_captions, pool.tokens, device)
    config = pipe.vae.config
    return TurboStudent(pipe.unet, words, config.shift_factor * config.scaling_factor, batch)


def _run(
    networks: Networks, average: ExponentialMovingAverage, state: Path, options: MatchingOptions
) -> TimedRun:
    """Returns a run that trains the student and its critics."""

    device, trained = torch.device(options.device), networks.trained()
    optimizers = {
        name: adam(part.parameters(), device, _BETAS[name]) for name, part in trained.items()
    }
    modules = {**trained, "average": average.modules[0]}
    return TimedRun(state, modules, optimizers, _generator(device, options.seed, "matching"))


def _train(
    run: TimedRun, matching: Matching, average: ExponentialMovingAverage, options: MatchingOptions
) -> None:
    """Takes the steps: on paths alone, then of critics and student in turn."""

    regress, learn, match = (
        captured(step, run.generator) for step in (matching.regress, matching.learn, matching.match)
    )
    for share in run.steps(options.minutes, matching.losses):
        for name, optimizer in matching.optimizers.items():
            peak = options.peak if name == "student" else options.critic
            set_rate(optimizer, rate_after(share, peak))
        if share < options.alone:
            regress()
            if share > 0.7 * options.alone:  # the critics need some time to know the student
                learn()
        else:
            for _ in range(options.critics):
                learn()
            match()
        average.update(run.step)


def _write(pipe: Any, network: nn.Module, tokenizer: Path, out: Path) -> None:
    """Writes the pipeline that a student started from, with another network, and its sheets."""

    name, counts = ("transformer", (4,)) if hasattr(pipe, "transformer") else ("unet", (1, 4))
    pipe.register_modules(**{name: network.cpu()})
    flow.export(pipe, tokenizer, out)
    for count in counts:
        path = out.with_name("sheets") / f"{out.name}-{count}.png"
        write_sheet(pipe, check_prompts(), path, guidance=0.0, steps=count)


def _generator(device: torch.device, seed: int, name: str) -> Generator:
    return Generator(device).manual_seed(generator_for(seed, name).initial_seed())
