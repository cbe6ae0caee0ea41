r"""The flow teacher of the test bed: a small StableDiffusion3Pipeline, trained from scratch.

.. code-block:: text

    python -m rwguidance_testbed.flow --data FOLDER --vae FOLDER --out FOLDER

trains the transformer and two text encoders together on the generators' drawings of the names to
learn, in the latents of :mod:`rwguidance_testbed.vae`, and writes a folder that
``diffusers.StableDiffusion3Pipeline.from_pretrained`` reads, given the autoencoder:

.. code-block:: python

    pipe = StableDiffusion3Pipeline.from_pretrained(
        folder, vae=AutoencoderKL.from_pretrained(vae_folder), text_encoder_3=None, tokenizer_3=None
    )
    pipe("a red apple on a blue background", height=64, width=64, max_sequence_length=1)

There is no third text encoder. In its place the pipeline puts `max_sequence_length` zeros, 256
unless told otherwise; the model is trained to do its work with any number of them from 1 to 256,
and with one it is fastest.

The loss is that of a rectified flow: :math:`\|v(x_t, t) - (x_1 - x_0)\|^2` where
:math:`x_t = (1 - t) x_0 + t x_1`, noise :math:`x_1`, and :math:`t` of the logit-normal law, with
the caption left out one time in ten. What is written are moving averages of the weights.

References:
    | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis
      (Esser et al., 2024), arXiv:2403.03206
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.outside import require
from rwguidance.support.randomness import seeded

from . import commands
from .data import Drawings, load_names
from .tokenizer import text_config, tokenize, tokenizer_corpus, train_tokenizer
from .training.attention import CountedAttention, unfuse_attention
from .training.buffer import LatentBuffer
from .training.cards import write_figures
from .training.ema import ExponentialMovingAverage
from .training.loop import Run, learning_rate
from .training.muon import Muon, groups
from .training.options import BufferedOptions
from .training.sheets import check_prompts, write_sheet
from .vae import read as read_vae

__all__ = [
    "CAPTION_DROPOUT",
    "OPTIONS",
    "drop_captions",
    "embed_captions",
    "export",
    "flow_matching_loss",
    "log_counts",
    "new",
    "predict_velocity",
    "read",
    "train",
    "velocity",
    "write_teacher",
]

OPTIONS = BufferedOptions(steps=40_000, batch=64, peak=2e-3, kept=12_288)
"""Default options of the training."""

CAPTION_DROPOUT = 0.1
"""Share of captions left out in training, for guidance needs a model without them, too."""

_PARTS = ("transformer", "text_encoder", "text_encoder_2")
_MOST_ZEROS = 256  # what the pipeline appends unless told otherwise


def new(vae: Any, tokenizer: Any, smoke: bool = False, seed: int = 0) -> Any:
    """Returns a StableDiffusion3Pipeline with random weights.

    Arguments:
        vae: The autoencoder.
        tokenizer: Tokenizer of both text encoders.
        smoke: Whether the model is tiny, for tests.
        seed: Seed of the weights.
    """

    diffusers = require("diffusers", "the test bed needs", "backbones")
    transformers = require("transformers", "the test bed needs", "backbones")
    width, heads, layers = (32, 1, 2) if smoke else (160, 5, 5)
    text = 32 if smoke else 96
    config = transformers.CLIPTextConfig(**text_config(tokenizer, text, text))
    with seeded(seed):
        return diffusers.StableDiffusion3Pipeline(
            transformer=diffusers.SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=vae.config.latent_channels,
                out_channels=vae.config.latent_channels,
                num_layers=layers,
                attention_head_dim=width // heads,
                num_attention_heads=heads,
                joint_attention_dim=2 * text,
                caption_projection_dim=width,
                pooled_projection_dim=2 * text,
                pos_embed_max_size=8,
                qk_norm="rms_norm",
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=transformers.CLIPTextModelWithProjection(config),
            tokenizer=tokenizer,
            text_encoder_2=transformers.CLIPTextModelWithProjection(config),
            tokenizer_2=tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
        )


def read(folder: Path, vae: Any) -> Any:
    """Returns the pipeline that :func:`export` wrote, in single precision, with an autoencoder."""

    diffusers = require("diffusers", "the test bed needs", "backbones")
    with seeded(0):  # what is read replaces random weights
        pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
            folder, vae=vae, text_encoder_3=None, tokenizer_3=None
        )
    for name in _PARTS[1:]:
        getattr(pipe, name).float()
    return pipe


def flow_matching_loss(
    parts: Sequence[nn.Module],
    latents: Tensor,
    tokens: Tensor,
    generator: Generator,
    velocity: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Returns the loss of a rectified flow, see the module.

    Arguments:
        parts: Transformer and the two text encoders; the transformer with `CountedAttention`.
        latents: Scaled latents, with shape (B, C, H, W).
        tokens: Tokens of the captions, those left out already empty, with shape (B, L).
        generator: Source of times, noise, and how many zeros follow the tokens.
        velocity: The function :func:`predict_velocity`, or that compiled.
    """

    t = torch.randn(len(latents), generator=generator).sigmoid()
    noise = torch.randn(latents.shape, generator=generator)
    x_t = torch.lerp(latents, noise, t[:, None, None, None])
    counts = log_counts(len(latents), generator)
    predicted = (velocity or predict_velocity)(parts, x_t, t, tokens, counts)
    return (predicted.float() - (noise - latents)).square().mean()


def log_counts(count: int, generator: Generator) -> Tensor:
    """Returns logarithms of how many zeros follow the tokens of captions, uniform up to log 256.

    Arguments:
        count: Number of captions.
        generator: Source of the random numbers.
    """

    uniform = torch.rand(count, generator=generator, device=generator.device)
    return uniform * math.log(_MOST_ZEROS)


def predict_velocity(
    parts: Sequence[nn.Module], x_t: Tensor, t: Tensor, tokens: Tensor, log_count: Tensor
) -> Tensor:
    """Returns the velocity at noisy latents.

    Arguments:
        parts: Networks as those of :func:`flow_matching_loss`.
        x_t: Noisy latents, with shape (B, C, H, W).
        t: Times in [0, 1], with shape (B,).
        tokens: Tokens of the captions, with shape (B, L).
        log_count: Logarithm of how many zeros follow the tokens, with shape (B,).
    """

    transformer, *encoders = parts
    return velocity(transformer, x_t, t, *embed_captions(encoders, tokens), log_count)


def embed_captions(encoders: Sequence[nn.Module], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the embeddings of captions that the transformer sees, of each token and pooled.

    Arguments:
        encoders: Both text encoders.
        tokens: Tokens of the captions, with shape (B, L).

    Returns:
        Embeddings with shapes (B, L + 1, D), the last of each the zeros that follow, and (B, E).
    """

    outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    text = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return torch.cat((text, torch.zeros_like(text[:, :1])), dim=1), pooled


def velocity(
    transformer: nn.Module,
    x_t: Tensor,
    t: Tensor,
    text: Tensor,
    pooled: Tensor,
    log_count: Tensor,
) -> Tensor:
    """Returns the velocity at noisy latents, given the embeddings of :func:`embed_captions`.

    Arguments:
        transformer: The transformer, with `CountedAttention`.
        x_t: Noisy latents, with shape (B, C, H, W).
        t: Times in [0, 1], with shape (B,).
        text: Embeddings of the tokens, with shape (B, L + 1, D).
        pooled: Embeddings of the captions, with shape (B, E).
        log_count: Logarithm of how many zeros follow the tokens, with shape (B,).
    """

    for processor in cast(Any, transformer).attn_processors.values():
        processor.log_count = log_count
    predicted: Tensor = transformer(
        hidden_states=x_t,
        timestep=1000 * t,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return predicted


def drop_captions(tokens: Tensor, empty: Tensor, generator: Generator) -> Tensor:
    """Returns tokens in which one caption in ten, at random, is replaced by the empty one.

    Arguments:
        tokens: Tokens of the captions, with shape (B, L).
        empty: Tokens of the empty caption, with shape (1, L).
        generator: Source of the random numbers.
    """

    dropped = torch.rand(len(tokens), 1, generator=generator) < CAPTION_DROPOUT
    return torch.where(dropped, empty, tokens)


def export(pipe: Any, tokenizer: Path, folder: Path) -> None:
    """Writes a pipeline, of this class or that of `turbo`, in half precision without autoencoder.

    Arguments:
        pipe: The pipeline; not changed.
        tokenizer: Folder of its tokenizer.
        folder: Folder to write to.
    """

    pipe.save_config(folder)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        # As it was learned: what versions of transformers write is not what all of them read.
        if folder / name != tokenizer:
            shutil.copytree(tokenizer, folder / name, dirs_exist_ok=True)
    network = "transformer" if hasattr(pipe, "transformer") else "unet"
    for name in (network, *_PARTS[1:]):
        part = copy.deepcopy(getattr(pipe, name)).half()
        if name == network:
            part.register_to_config(_name_or_path="")  # not where it was started from
            part.save_pretrained(folder / name)
        else:
            part.save_pretrained(folder / name, state_dict=_named_for_all(part))


def _named_for_all(encoder: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a text encoder under names that every version of transformers reads.

    In its version 5 a text encoder without projection lost the prefix of its names, and version 4
    takes names without it for those of another model.
    """

    named = lambda name: name if name.startswith("text_") else f"text_model.{name}"
    return {named(name): value for name, value in encoder.state_dict().items()}


def write_teacher(pipe: Any, tokenizer: Path, out: Path, run: Run, smoke: bool) -> None:
    """Writes a teacher, of this class or that of `turbo`, with a contact sheet beside it.

    Arguments:
        pipe: The pipeline.
        tokenizer: Folder of its tokenizer.
        out: Folder to write to.
        run: Run that trained it.
        smoke: Whether the sheet is of few prompts.
    """

    export(pipe, tokenizer, out)
    write_figures(out, run.figures())
    prompts = check_prompts()[: 4 if smoke else None]
    write_sheet(pipe, prompts, out.with_name("sheets") / f"{out.name}-{run.seen:08d}.png")


def train(
    data: Path = Path("out/testbed"),
    vae: Path = Path("out/testbed/emoji-vae"),
    out: Path = Path("out/testbed/emoji-flow-teacher"),
    seed: int = 0,
    every: int = 1000,
    start: Path | None = None,
    options: BufferedOptions = OPTIONS,
) -> None:
    """Trains the flow teacher and writes it to `out`, with contact sheets beside it.

    Arguments:
        data: Folder of the drawings.
        vae: Folder of the autoencoder.
        out: Folder to write to; the state of the run lies beside it.
        seed: Seed of weights, pictures and noise.
        every: Steps between two exports with a contact sheet.
        start: Folder of an exported model to start from, with a new optimizer.
        options: Options of the training.
    """

    torch.set_num_threads(options.threads)
    drawings, autoencoder = Drawings.load(data), read_vae(vae)
    words = (start or out) / "tokenizer"
    if start is None:
        tokenizer = train_tokenizer(tokenizer_corpus(drawings), words)
        pipe = new(autoencoder, tokenizer, options.smoke, seed)
    else:
        pipe = read(start, autoencoder)
    average = ExponentialMovingAverage(_parts_of(pipe))
    own = drawings.where("generator", load_names()["train"])
    made_with = {"data": own, "weights": _parts_of(pipe), "vae": autoencoder, "seed": seed}
    run = _run(pipe, average, out.with_suffix(".state"), start, made_with, options)
    # Pictures are drawn anew after an interruption: others than those of the steps before.
    pictures = Generator().manual_seed(seed + 1 + run.step)
    buffer = LatentBuffer(own, autoencoder, pipe.tokenizer, options.kept, pictures)
    components = {**pipe.components, **dict(zip(_PARTS, average.modules, strict=True))}
    averaged = type(pipe)(**components)
    run.train(
        options.steps,
        options.batch,
        lambda step: learning_rate(step, options.steps, options.peak),
        _batch_loss(pipe, buffer, run.generator, options),
        lambda: write_teacher(averaged, words, out, run, options.smoke),
        every,
    )


def _parts_of(pipe: Any) -> list[Any]:
    return [getattr(pipe, name) for name in _PARTS]


def _run(
    pipe: Any,
    average: ExponentialMovingAverage,
    state: Path,
    start: Path | None,
    made_with: Mapping[str, Any],
    options: BufferedOptions,
) -> Run:
    """Returns a run that trains the network and the text encoders of a pipeline."""

    parts = [part.train() for part in _parts_of(pipe)]
    parts[0].set_attn_processor(CountedAttention())
    for encoder in parts[1:]:
        unfuse_attention(encoder)
    names = [*_PARTS, *(f"average_{name}" for name in _PARTS)]
    modules = dict(zip(names, [*parts, *average.modules], strict=True))
    optimizer = Muon(groups(parts), lr=options.peak)
    generator = Generator().manual_seed(made_with["seed"])
    run = Run(state, modules, optimizer, generator, {**made_with, **options.deciding}, average)
    if start is not None:
        before = json.loads((start / "figures.json").read_text(encoding="utf-8"))
        run.seen, run.seconds = before["pictures_seen"], 60 * before["minutes"]
    if options.resume:
        run.restore()
    return run


def _batch_loss(
    pipe: Any, buffer: LatentBuffer, generator: Generator, options: BufferedOptions
) -> Callable[[], Tensor]:
    parts, empty = _parts_of(pipe), tokenize(pipe.tokenizer, [""])
    velocity = options.compile(predict_velocity)

    def loss() -> Tensor:
        buffer.renew(max(1, options.batch // 8))
        latents, tokens = buffer.batch(options.batch, generator)
        tokens = drop_captions(tokens, empty, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return flow_matching_loss(parts, latents, tokens, generator, velocity)

    return loss


if __name__ == "__main__":
    commands.run(train)
