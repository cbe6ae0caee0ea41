r"""The one-step model of the test bed, trained further against a critic, so that it varies more.

.. code-block:: text

    python -m rwguidance_testbed.adversarial --data FOLDER --vae FOLDER --teacher FOLDER \
        --flow FOLDER --start FOLDER --out FOLDER

paints pictures, draws some of their captions and recombined names with the flow of four steps,
trains a reader of names, and goes on with the training of a model of
:mod:`rwguidance_testbed.distill` by :mod:`rwguidance_testbed.adversarial.objective`, at its one
step. What it writes is the change, a LoRA:

.. code-block:: python

    pipe.load_lora_weights(folder)
    pipe.fuse_lora()
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from rwguidance.support.randomness import seeded

from .. import turbo
from ..data import Drawings, load_names
from ..flow import read as read_flow
from ..training.attention import unfused_processor
from ..training.cards import write_figures
from ..training.ema import ExponentialMovingAverage
from ..training.sheets import check_prompts, write_sheet
from ..training.timed import TimedRun, adam, set_rate
from ..vae import read as read_vae
from . import lora
from .critic import Critic, Features, Words
from .examples import Counts, Pipelines, make_examples, words
from .objective import Networks, Weights, Widening
from .reader import Reader, train_reader

__all__ = ["OPTIONS", "WideningOptions", "draw_one_step", "rates", "widen"]

_ALONE = 0.01  # share of the run in which the critic learns alone
_RISE = 0.03  # share after that in which the student's rate rises
_EVERY = 10  # steps between two projections
_BETAS = {"student": (0.5, 0.99), "critic": (0.0, 0.99)}
_DECAY = 0.998  # of the average that is written


@dataclass(frozen=True, kw_only=True)
class WideningOptions:
    """Options of the training.

    Arguments:
        minutes: Minutes of the run, after examples are made and the reader is trained.
        painted: Number of painted pictures.
        pairs: Number of these whose captions the flow draws as well.
        recombined: Number of recombined names.
        groups: Groups of pictures of a step.
        peak: Largest learning rate of the student.
        critic: Largest learning rate of the critic.
        blocks: Blocks of the teacher whose features critic and reader see.
        reading: Steps of the reader.
        rank: Rank of the change of each matrix.
        threads: Threads of PyTorch.
        seed: Seed of weights, pictures, captions and noise.
    """

    minutes: float = 97.0
    painted: int = 20_480
    pairs: int = 12_288
    recombined: int = 2560
    groups: int = 12
    peak: float = 4e-5
    critic: float = 6e-4
    blocks: int = 4
    reading: int = 500
    rank: int = 16
    threads: int = 1
    seed: int = 0


OPTIONS = WideningOptions()
"""Default options of the training."""


def widen(
    data: Path = Path("out/testbed"),
    vae: Path = Path("out/testbed/emoji-vae"),
    teacher: Path = Path("out/testbed/emoji-flow-teacher"),
    flow: Path = Path("out/testbed/emoji-flow"),
    start: Path = Path("out/testbed/emoji-turbo"),
    out: Path = Path("out/testbed/emoji-turbo-wide"),
    options: WideningOptions = OPTIONS,
) -> None:
    """Trains a model of one step and writes its change, with figures, a contact sheet beside it.

    Arguments:
        data: Folder of the drawings.
        vae: Folder of the autoencoder.
        teacher: Folder of the flow on whose features the critic rests.
        flow: Folder of the flow of four steps.
        start: Folder of the model to start from.
        out: Folder to write to, the state of the run beside it.
        options: Options of the training.
    """

    torch.set_num_threads(options.threads)
    autoencoder = read_vae(vae)
    guide, few = (read_flow(folder, autoencoder) for folder in (teacher, flow))
    pipe = turbo.read(start, autoencoder)
    unet = _trainable(pipe)
    base = copy.deepcopy(unet).requires_grad_(False)
    run, average = _train(data, Pipelines(guide, few, pipe), base, out, options)
    found = average.modules[0]
    lost = lora.project(found, base, options.rank)
    lora.write(out, found, base, options.rank)
    pipe.register_modules(unet=found)
    write_sheet(pipe, check_prompts(), out.with_name("sheets") / f"{out.name}.png", 0, 0.0, 1)
    figures = {"steps": run.step, "minutes": round(run.seconds / 60, 1), "rank": options.rank}
    figures |= asdict(_counts(options)) | {"lost_at_the_end": round(lost, 4)}
    write_figures(out, figures)


def _train(
    data: Path, pipes: Pipelines, base: Any, out: Path, options: WideningOptions
) -> tuple[TimedRun, ExponentialMovingAverage]:
    drawings = Drawings.load(data).where("generator", load_names()["train"])
    examples = make_examples(drawings, pipes, _counts(options), options.seed)
    unet, transformer = pipes.student.unet, pipes.teacher.transformer
    features = Features(transformer, options.blocks, words(pipes.teacher, [""]))
    critic, reader = _judges(transformer.config, options)
    average = ExponentialMovingAverage([unet], _DECAY)
    trained = {"student": unet, "critic": critic}
    optimizers = {
        name: adam(module.parameters(), torch.device("cpu"), _BETAS[name])
        for name, module in trained.items()
    }
    modules = {**trained, "reader": reader, "average": average.modules[0]}
    generator = Generator().manual_seed(options.seed)
    run = TimedRun(out.with_suffix(".state"), modules, optimizers, generator)
    if not run.restore():
        train_reader(reader, features, examples, options.reading, options.seed)
    reader.eval().requires_grad_(False)
    config = pipes.student.vae.config
    shift = float(config.shift_factor * config.scaling_factor)
    kept = float(pipes.student.scheduler.alphas_cumprod[-1])
    draw = lambda noise, captions: draw_one_step(unet, noise, captions, kept, shift)
    read = lambda x, t: reader(*features.without_captions(x, t), examples.table)
    networks = Networks(draw, features, critic, read)
    rest = (optimizers, examples, options.groups, Weights(), generator)
    widening = Widening(networks, *rest)
    for share in run.steps(options.minutes, widening.losses):
        for name, rate in rates(share, options).items():
            set_rate(optimizers[name], rate)
        widening.step(run.step, alone=share < _ALONE)
        if run.step % _EVERY == _EVERY - 1:
            lora.project(unet, base, options.rank)
        average.update(run.step)
    return run, average


def _trainable(pipe: Any) -> Any:
    """Returns the UNet of a pipeline, in the layout and with the attention that train fastest."""

    unet = pipe.unet.float().train()
    unet.set_attn_processor(unfused_processor())
    return unet.to(memory_format=torch.channels_last)


def _counts(options: WideningOptions) -> Counts:
    return Counts(options.painted, options.pairs, options.recombined)


def _judges(config: Any, options: WideningOptions) -> tuple[Critic, Reader]:
    width = config.num_attention_heads * config.attention_head_dim
    pooled, patches = config.pooled_projection_dim, (config.sample_size // config.patch_size) ** 2
    with seeded(options.seed):
        critic = Critic(options.blocks, width, pooled)
        return critic, Reader(options.blocks, width, patches, pooled)


def rates(share: float, options: WideningOptions) -> dict[str, float]:
    """Returns the learning rates of "student" and "critic": constant, then falling to zero.

    They fall linearly in the second half. The student's is zero while the critic learns alone, and
    rises after that.

    Arguments:
        share: Share of the run that has passed, from 0 to 1.
        options: Options of the training.
    """

    late = min(1.0, 2 * (1 - share))
    rising = min(1.0, max(0.0, (share - _ALONE) / _RISE))
    return {"student": options.peak * late * rising, "critic": options.critic * late}


def draw_one_step(unet: Any, noise: Tensor, captions: Words, kept: float, shift: float) -> Tensor:
    """Draws latents of the flow from noise, as the pipeline of one step does.

    Arguments:
        unet: The student.
        noise: Standard normal noise, with shape (B, C, H, W).
        captions: Embeddings of the captions, of each token and pooled.
        kept: Square of the scale of the signal at the largest noise.
        shift: What latents of its class have more than those of the flow.
    """

    step = noise.new_full((len(noise),), 999.0)
    x = ((1 - kept) ** 0.5 * noise).contiguous(memory_format=torch.channels_last)
    predicted = turbo.predict_noise(unet, x, step, *captions)
    return ((1 - kept) / kept) ** 0.5 * (noise - predicted) - shift
