r"""Teachers: the ordinary differential equations of trained models, with guidance.

Both teachers, those of :mod:`rwguidance_testbed.flow` and :mod:`rwguidance_testbed.turbo`, follow
an ordinary differential equation with classifier-free guidance.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import flow, turbo
from ..tokenizer import tokenize
from ..training.attention import CountedAttention, unfused_processor

__all__ = ["FlowTeacher", "NoiseTeacher", "Teacher", "euler", "frozen_parts", "read_teacher"]

_PATH_STEPS = 8
"""Steps of the teacher from noise to data; it takes fewer from less noise."""


def euler(slope: Callable[[Tensor, int], Tensor], x: Tensor, sigmas: Sequence[float]) -> Tensor:
    r"""Follows :math:`dx / d\sigma` by Euler steps.

    Arguments:
        slope: Function that gives the derivative at a state and the i-th noise level.
        x: States at the first noise level.
        sigmas: Noise levels.

    Returns:
        The states at the last noise level.
    """

    for i in range(len(sigmas) - 1):
        x = x + (sigmas[i + 1] - sigmas[i]) * slope(x, i)
    return x


class FlowTeacher:
    r"""The ordinary differential equation of a flow, with guidance.

    Arguments:
        pipe: The StableDiffusion3Pipeline.
        guidance: Scale of classifier-free guidance.
        velocity: The function :func:`rwguidance_testbed.flow.predict_velocity`, or that compiled.
    """

    def __init__(
        self, pipe: Any, guidance: float, velocity: Callable[..., Tensor] = flow.predict_velocity
    ) -> None:
        self.pipe, self.guidance, self.velocity = pipe, guidance, velocity
        self.parts: Sequence[Any] = frozen_parts(pipe, "transformer")
        self.parts[0].set_attn_processor(CountedAttention())
        self.empty = tokenize(pipe.tokenizer, [""])
        self.shift = float(pipe.vae.config.shift_factor * pipe.vae.config.scaling_factor)

    @torch.no_grad()
    def follow(self, x: Tensor, sigmas: Sequence[float], tokens: Tensor) -> Tensor:
        r"""Takes states :math:`(1 - \sigma) x_0 + \sigma \epsilon` from one noise level to another.

        Arguments:
            x: States at the first noise level, with shape (B, C, H, W).
            sigmas: Noise levels in [0, 1], falling.
            tokens: Tokens of the captions, with shape (B, L).
        """

        both = torch.cat((tokens, self.empty.expand(len(tokens), -1)))

        def slope(x: Tensor, i: int) -> Tensor:
            t = torch.full((len(both),), sigmas[i])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                v = self.velocity(self.parts, torch.cat((x, x)), t, both, torch.zeros(len(both)))
            with_caption, without = v.float().chunk(2)
            return without + self.guidance * (with_caption - without)

        return euler(slope, x, sigmas)

    def clean(self, x: Tensor, step: int, sigma: float, tokens: Tensor) -> Tensor:
        r"""Takes states of a pipeline of the SDXL class, :math:`x_0 + \sigma \epsilon`, to the end.

        Latents of that class have no shift. The states it starts from are taken as pure noise.

        Arguments:
            x: States, with shape (B, C, H, W).
            step: Step of that noise level, from 0 to 999.
            sigma: The noise level.
            tokens: Tokens of the captions, with shape (B, L).
        """

        pure = step == 999
        top = 1.0 if pure else sigma / (1 + sigma)
        x = x / sigma if pure else (x - self.shift) / (1 + sigma)
        grid = torch.linspace(1, 0, _path_steps(step) + 1)
        sigmas = top * 2 * grid / (1 + grid)  # finer where paths bend
        return self.follow(x, sigmas.tolist(), tokens) + self.shift


class NoiseTeacher:
    r"""The ordinary differential equation of a model that predicts noise, with guidance.

    Arguments:
        pipe: The StableDiffusionXLPipeline.
        guidance: Scale of classifier-free guidance.
        noise: The function :func:`rwguidance_testbed.turbo.predict_noise`, or that compiled.
    """

    def __init__(
        self, pipe: Any, guidance: float, noise: Callable[..., Tensor] = turbo.predict_noise
    ) -> None:
        self.pipe, self.guidance, self.noise = pipe, guidance, noise
        self.unet, *encoders = frozen_parts(pipe, "unet")
        self.encoders = (encoders[0], encoders[1])
        self.unet.set_attn_processor(unfused_processor())
        alphas = pipe.scheduler.alphas_cumprod
        self.sigmas = ((1 - alphas) / alphas).sqrt().tolist()

    @torch.no_grad()
    def clean(self, x: Tensor, step: int, sigma: float, tokens: Tensor) -> Tensor:
        r"""Takes states :math:`x_0 + \sigma \epsilon` to the end, see `FlowTeacher`."""

        with torch.autocast("cpu", dtype=torch.bfloat16):
            text, pooled = turbo.embed_captions(self.encoders, tokens)
        # Without a caption the pipeline puts zeros.
        both = [torch.cat((part, torch.zeros_like(part))) for part in (text, pooled)]
        count = _path_steps(step)
        steps = [round((step + 1) * (count - i) / count) - 1 for i in range(count)]
        sigmas = [sigma, *(self.sigmas[step] for step in steps[1:]), 0.0]

        def slope(x: Tensor, i: int) -> Tensor:
            scaled = torch.cat((x, x)) / (1 + sigmas[i] ** 2) ** 0.5
            t = torch.full((len(scaled),), steps[i])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                noise = self.noise(self.unet, scaled, t, *both)
            with_caption, without = noise.float().chunk(2)
            return without + self.guidance * (with_caption - without)

        return euler(slope, x, sigmas)


Teacher = FlowTeacher | NoiseTeacher


def read_teacher(
    folder: Path,
    vae: Any,
    guidance: float,
    compile: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda function: function,
) -> Teacher:
    """Returns the teacher in a folder, of either class.

    Arguments:
        folder: Folder that :func:`rwguidance_testbed.flow.export` wrote.
        vae: The autoencoder.
        guidance: Scale of classifier-free guidance.
        compile: Function that compiles the function of the network, if that is wanted.

    Raises:
        ValueError: If the folder holds a pipeline of another class.
    """

    name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    if name == "StableDiffusion3Pipeline":
        return FlowTeacher(flow.read(folder, vae), guidance, compile(flow.predict_velocity))
    if name == "StableDiffusionXLPipeline":
        return NoiseTeacher(turbo.read(folder, vae), guidance, compile(turbo.predict_noise))
    raise ValueError(
        "teacher must hold a StableDiffusion3Pipeline or a StableDiffusionXLPipeline, "
        f"got a {name} in {folder}"
    )


def _path_steps(step: int) -> int:
    return math.ceil(_PATH_STEPS * (step + 1) / 1000)


def frozen_parts(pipe: Any, network: str) -> tuple[Any, Any, Any]:
    """Returns the network and both text encoders of a pipeline, frozen."""

    parts = [getattr(pipe, name) for name in (network, "text_encoder", "text_encoder_2")]
    first, second, third = (part.eval().requires_grad_(False) for part in parts)
    return first, second, third
