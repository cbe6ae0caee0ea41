r"""The teacher of the test bed's turbo model: a small StableDiffusionXLPipeline.

.. code-block:: text

    python -m rwguidance_testbed.turbo --data FOLDER --vae FOLDER --words FOLDER --out FOLDER

trains the network on the generators' drawings of the names to learn, with the text encoders of
:mod:`rwguidance_testbed.flow`, which stay as they are. What it writes is a folder that
``diffusers.StableDiffusionXLPipeline.from_pretrained`` reads, given the autoencoder.

The network predicts the noise. Its error is weighted as one of the velocity, by
:math:`1 / \alpha_t^2`: else the largest noise, which matters most to a model of few steps, would
hardly count. Captions are left out as the pipeline leaves them out, by zeros.

The network starts out by giving back its input. It has to: at the largest noise, an error in the
noise is one 15 times as large in the clean sample. And that is hard to learn, because group
normalization divides by a standard deviation which, over 8 x 8 positions, differs from sample to
sample. So a copy of the input is kept in groups whose deviation two large constants set.

References:
    | SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis
      (Podell et al., 2023), arXiv:2307.01952
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.outside import require
from rwguidance.support.randomness import seeded

from . import commands
from .data import Drawings, load_names
from .flow import CAPTION_DROPOUT, write_teacher
from .flow import read as read_flow
from .training.attention import unfused_processor
from .training.buffer import LatentBuffer
from .training.ema import ExponentialMovingAverage
from .training.loop import Run, learning_rate
from .training.muon import Muon, groups
from .training.options import BufferedOptions
from .vae import read as read_vae

__all__ = [
    "OPTIONS",
    "SCHEDULE",
    "SIZES",
    "denoising_loss",
    "embed_captions",
    "initialize_to_identity",
    "new",
    "predict_noise",
    "read",
    "train",
]

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
"""The noise schedule of SDXL and of SDXL-Turbo."""

SIZES = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)
"""Sizes of pictures, of which the pipeline tells the network: original, cropped, wanted."""

OPTIONS = BufferedOptions(steps=10_000, batch=256, peak=2e-3, kept=12_288)
"""Default options of the training."""

_PARTS = ("unet", "text_encoder", "text_encoder_2")
_LARGE = 20.0  # beside it the input, of variance 1, hardly changes the deviation of its group


def new(words: Any, smoke: bool = False, seed: int = 0) -> Any:
    """Returns a StableDiffusionXLPipeline with a random network.

    Arguments:
        words: Pipeline of the flow, whose autoencoder, tokenizers and text encoders are taken.
        smoke: Whether the network is tiny, for tests.
        seed: Seed of the weights.
    """

    diffusers = require("diffusers", "the test bed needs", "backbones")
    transformers = require("transformers", "the test bed needs", "backbones")
    widths, heads, groups = ((32, 32), (1, 1), 4) if smoke else ((64, 144), (2, 4), 8)
    text = words.text_encoder.config
    with seeded(seed):
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=words.vae.config.latent_channels,
            out_channels=words.vae.config.latent_channels,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=1,
            attention_head_dim=heads,  # their number, whatever its name
            use_linear_projection=True,
            norm_num_groups=groups,
            cross_attention_dim=2 * text.hidden_size,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=text.projection_dim + len(SIZES) * 8,
        )
        first = transformers.CLIPTextModel(text)
    initialize_to_identity(unet)
    _copy_weights(words.text_encoder, first)
    return diffusers.StableDiffusionXLPipeline(
        vae=words.vae,
        text_encoder=first,
        text_encoder_2=copy.deepcopy(words.text_encoder_2),
        tokenizer=words.tokenizer,
        tokenizer_2=words.tokenizer_2,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
        add_watermarker=False,
    )


@torch.no_grad()
def initialize_to_identity(unet: Any) -> None:
    r"""Sets weights of a UNet so that it gives back its input, see the module.

    The input travels by the outermost skip connection, each channel with both signs, for
    :math:`\mathrm{silu}(x) - \mathrm{silu}(-x) = x`. Everything else is as it was drawn, but that
    the last layer does not read it.

    Arguments:
        unet: UNet2DConditionModel whose last resolution is wide enough.

    Raises:
        ValueError: If it is not.
    """

    groups, size = unet.conv_norm_out.num_groups, unet.conv_norm_out.num_channels
    size //= groups
    pairs = (size - 2) // 2  # in each group, beside the two constants
    used = -(-unet.config.in_channels // pairs)
    if used > groups:
        raise ValueError(
            f"unet must have room for {used} groups of its last normalization, has {groups}"
        )
    last = unet.up_blocks[-1].resnets[-1]
    rows = slice(0, used * size)
    skip = last.conv_shortcut.weight.shape[1] - unet.conv_in.weight.shape[0]
    for layer in (unet.conv_in, last.conv_shortcut, last.conv2):
        layer.weight[rows], layer.bias[rows] = 0.0, 0.0
    for row in range(rows.stop):
        last.conv_shortcut.weight[row, skip + row] = 1.0
    unet.conv_out.weight.zero_()
    unet.conv_out.bias.zero_()
    scale = ((2 * _LARGE**2 + 2 * pairs) / size) ** 0.5
    unet.conv_norm_out.weight[rows] = scale
    for group in range(used):
        start = group * size
        unet.conv_in.bias[start + size - 2] = _LARGE
        unet.conv_in.bias[start + size - 1] = -_LARGE
        for pair in range(pairs):
            channel = group * pairs + pair
            for sign, row in ((1.0, start + 2 * pair), (-1.0, start + 2 * pair + 1)):
                if channel < unet.config.in_channels:
                    unet.conv_in.weight[row, channel, 1, 1] = sign
                    unet.conv_out.weight[channel, row, 1, 1] = sign


def read(folder: Path, vae: Any) -> Any:
    """Returns the pipeline that :func:`rwguidance_testbed.flow.export` wrote, with an autoencoder.

    Arguments:
        folder: Folder of the pipeline.
        vae: The autoencoder.

    Returns:
        The pipeline, in single precision.
    """

    diffusers = require("diffusers", "the test bed needs", "backbones")
    with seeded(0):  # what is read replaces random weights
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
            folder, vae=vae, add_watermarker=False
        )
    for name in _PARTS[1:]:
        getattr(pipe, name).float()
    return pipe


@torch.no_grad()
def embed_captions(encoders: tuple[nn.Module, nn.Module], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the embeddings of captions that the network sees, of each token and pooled.

    Arguments:
        encoders: Both text encoders.
        tokens: Tokens of the captions, with shape (B, L).

    Returns:
        Embeddings with shapes (B, L, D) and (B, E).
    """

    first, second = (encoder(tokens, output_hidden_states=True) for encoder in encoders)
    return torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1), second[0]


def predict_noise(
    unet: nn.Module, x_t: Tensor, step: Tensor, text: Tensor, pooled: Tensor
) -> Tensor:
    """Returns the noise that the network predicts at noisy latents of 64 x 64 pictures.

    Arguments:
        unet: The network.
        x_t: Noisy latents of a variance-preserving path, with shape (B, C, H, W).
        step: Steps, from 0 to 999, with shape (B,).
        text: Embeddings of the tokens, with shape (B, L, D).
        pooled: Embeddings of the captions, with shape (B, E).
    """

    # Made where the latents are: a copy to a device could not be part of a graph of kernels.
    sizes = torch.stack([x_t.new_full((len(x_t),), size) for size in SIZES], dim=1)
    added = {"text_embeds": pooled, "time_ids": sizes}
    noise: Tensor = unet(x_t, step, text, added_cond_kwargs=added, return_dict=False)[0]
    return noise


def denoising_loss(
    unet: nn.Module,
    latents: Tensor,
    text: Tensor,
    pooled: Tensor,
    alphas: Tensor,
    generator: Generator,
    predict: Callable[..., Tensor] = predict_noise,
) -> Tensor:
    """Returns the squared error of the noise, weighted as the module says.

    Arguments:
        unet: The network.
        latents: Scaled latents, with shape (B, C, H, W).
        text: Embeddings of the tokens, with shape (B, L, D).
        pooled: Embeddings of the captions, with shape (B, E).
        alphas: Squares of the scales of the signal, by step, with shape (1000,).
        generator: Source of steps, noise, and which captions are left out.
        predict: The function :func:`predict_noise`, or that compiled.
    """

    step = torch.randint(len(alphas), (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    kept = (torch.rand(len(latents), generator=generator) >= CAPTION_DROPOUT).float()
    square = alphas[step][:, None, None, None]
    x_t = square.sqrt() * latents + (1 - square).sqrt() * noise
    predicted = predict(unet, x_t, step, text * kept[:, None, None], pooled * kept[:, None])
    return ((predicted.float() - noise).square() / square).mean()


def train(
    data: Path = Path("out/testbed"),
    vae: Path = Path("out/testbed/emoji-vae"),
    words: Path = Path("out/testbed/emoji-flow-teacher"),
    out: Path = Path("out/testbed/emoji-turbo-teacher"),
    seed: int = 0,
    every: int = 500,
    options: BufferedOptions = OPTIONS,
) -> None:
    """Trains the teacher and writes it to `out`, with contact sheets beside it.

    Arguments:
        data: Folder of the drawings.
        vae: Folder of the autoencoder.
        words: Folder of the flow teacher, whose text encoders are taken at the start.
        out: Folder to write to; the state of the run lies beside it.
        seed: Seed of weights, pictures and noise.
        every: Steps between two exports with a contact sheet.
        options: Options of the training.
    """

    torch.set_num_threads(options.threads)
    own = Drawings.load(data).where("generator", load_names()["train"])
    autoencoder = read_vae(vae)
    pipe = new(read_flow(words, autoencoder), options.smoke, seed)
    average = ExponentialMovingAverage([pipe.unet])
    pipe.unet.train().set_attn_processor(unfused_processor())
    parts = {name: getattr(pipe, name) for name in _PARTS}
    modules = {**parts, "average": average.modules[0]}
    optimizer = Muon(groups([pipe.unet]), lr=options.peak)
    generator = Generator().manual_seed(seed)
    made_with = {"data": own, "weights": parts, "vae": autoencoder, "seed": seed}
    made_with |= options.deciding
    run = Run(out.with_suffix(".state"), modules, optimizer, generator, made_with, average)
    if options.resume:
        run.restore()
    # Pictures are drawn anew after an interruption: others than those of the steps before.
    pictures = Generator().manual_seed(seed + 1 + run.step)
    buffer = LatentBuffer(own, autoencoder, pipe.tokenizer, options.kept, pictures)
    components = {**pipe.components, "unet": average.modules[0]}
    averaged = type(pipe)(**components, add_watermarker=False)
    run.train(
        options.steps,
        options.batch,
        lambda step: learning_rate(step, options.steps, options.peak),
        _batch_loss(pipe, buffer, generator, options),
        lambda: write_teacher(averaged, words / "tokenizer", out, run, options.smoke),
        every,
    )


def _batch_loss(
    pipe: Any, buffer: LatentBuffer, generator: Generator, options: BufferedOptions
) -> Callable[[], Tensor]:
    encoders = (pipe.text_encoder.eval(), pipe.text_encoder_2.eval())
    shift = pipe.vae.config.shift_factor * pipe.vae.config.scaling_factor
    alphas = pipe.scheduler.alphas_cumprod
    predict = options.compile(predict_noise)

    def loss() -> Tensor:
        buffer.renew(max(1, options.batch // 8))
        latents, tokens = buffer.batch(options.batch, generator)
        latents = latents + shift  # which pipelines of this class leave out
        with torch.autocast("cpu", dtype=torch.bfloat16):
            text, pooled = embed_captions(encoders, tokens)
            return denoising_loss(pipe.unet, latents, text, pooled, alphas, generator, predict)

    return loss


def _copy_weights(projected: nn.Module, plain: nn.Module) -> None:
    """Copies a text encoder without its projection, which the first one of SDXL does not have."""

    bare = lambda name: name.removeprefix("text_model.")  # that depends on transformers' version
    weights = {bare(name): value for name, value in projected.state_dict().items()}
    plain.load_state_dict({name: weights[bare(name)] for name in plain.state_dict()})


if __name__ == "__main__":
    commands.run(train)
