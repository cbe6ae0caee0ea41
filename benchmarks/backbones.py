"""What guidance adds to a step of SDXL and SD3.5: time, memory and operations, random weights.

Run `python benchmarks/backbones.py`. With a GPU, the published architectures in bfloat16. Without
one, the same at an eighth of their width in float32, where banks weigh some sixty times as much as
they should; `--size full` builds the published ones there, too. Operations are always counted at
full size.

The table times a guided step beside an unguided one, and the estimators alone, around a model that
does nothing: the difference of two long times says little about what is short.

Every image is on its own (batch 1, no classifier-free guidance): the worst case for the ratios.
The published architectures are written out here, which makes the file longer than others.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import argparse
import math
import platform
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

if __name__ == "__main__":  # this folder's files are not the packages
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.importance import interleave, peak_bytes, table
from rwguidance import (
    Bank,
    ConditionalExpectation,
    GuidedModel,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    Model,
    Prediction,
    RectifiedSchedule,
    Tilt,
    backbones,
    sample,
)
from rwguidance.networks import LatentExpectation, LatentShift

SEED = 0
UNGUIDED, DECODING = "unguided", "decoding"
BANKS = (16, 64, 256)
PIXELS = 8
STEP_GOAL, IMAGE_GOAL = 0.03, 0.10
TILT = Tilt(lambda x, condition: x.flatten(1)[:, 0], 1.0)

console = Console(width=110)


@dataclass(frozen=True)
class Architecture:
    """A published model: what its classes are built from, and what the result must count.

    Arguments:
        denoiser: Keywords of its denoising network.
        billions: Parameters of that network.
        vae: Keywords of its AutoencoderKL.
        tokens: Rows of the text embedding.
        text: Width of the text embedding.
        pooled: Width of the pooled embedding.
        steps: Of one image, as the model's card has it.
        size: Of the image, in pixels.
    """

    denoiser: dict[str, Any]
    billions: float
    vae: dict[str, Any]
    tokens: int
    text: int
    pooled: int
    steps: int
    size: int = 1024

    @property
    def is_unet(self) -> bool:
        return "block_out_channels" in self.denoiser

    @property
    def latents(self) -> tuple[int, int, int]:
        return (self.vae["latent_channels"], self.size // PIXELS, self.size // PIXELS)

    def reduced(self, factor: int) -> "Architecture":
        """The same with every width divided; the text, the latents and the depth stay."""

        narrow = {**self.denoiser}
        if self.is_unet:
            narrow["block_out_channels"] = [w // factor for w in narrow["block_out_channels"]]
            narrow["attention_head_dim"] = [max(1, n // factor) for n in (5, 10, 20)]
            narrow["norm_num_groups"] = 8
        else:
            heads = max(1, narrow["num_attention_heads"] // factor)
            narrow["num_attention_heads"] = heads
            narrow["caption_projection_dim"] = heads * narrow["attention_head_dim"]
        vae = {**self.vae}
        vae["block_out_channels"] = [w // factor for w in vae["block_out_channels"]]
        vae["norm_num_groups"] = 16
        return Architecture(
            narrow, math.nan, vae, self.tokens, self.text, self.pooled, self.steps, self.size
        )


def vae_of(channels: int, **options: Any) -> dict[str, Any]:
    return {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": channels,
        "sample_size": 1024,
        **options,
    }


SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],  # numbers of heads of 64
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_VAE = vae_of(4, scaling_factor=0.13025)
SD3_VAE = vae_of(
    16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
)


def sd3_transformer(heads: int, layers: int, positions: int, dual: int) -> dict[str, Any]:
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "attention_head_dim": 64,
        "num_attention_heads": heads,
        "caption_projection_dim": 64 * heads,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": positions,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(dual)),
    }


ARCHITECTURES = {
    "sdxl": Architecture(SDXL_UNET, 2.567, SDXL_VAE, 77, 2048, 1280, 50),
    "sdxl-turbo": Architecture(SDXL_UNET, 2.567, SDXL_VAE, 77, 2048, 1280, 1, 512),
    "sd3.5-medium": Architecture(
        sd3_transformer(24, 24, 384, 13), 2.243, SD3_VAE, 333, 4096, 2048, 40
    ),
    "sd3.5-large": Architecture(
        sd3_transformer(38, 38, 192, 0), 8.057, SD3_VAE, 333, 4096, 2048, 28
    ),
}


def build_parts(architecture: Architecture) -> tuple[Any, Any]:
    """The denoiser and the VAE, without memory for their weights.

    Raises:
        ValueError: If the denoiser does not have the number of parameters that was published.
    """

    kind = "UNet2DConditionModel" if architecture.is_unet else "SD3Transformer2DModel"
    with torch.device("meta"):
        denoiser = getattr(diffusers, kind)(**architecture.denoiser)
        vae: Any = diffusers.AutoencoderKL(**architecture.vae)
    billions = count(denoiser) / 1e9
    if abs(billions - architecture.billions) > 0.005:  # never so for reduced ones, which have NaN
        raise ValueError(f"expected {architecture.billions} billion parameters, got {billions:.3f}")
    return denoiser.eval(), vae.eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Random weights that keep the scale of what passes through, in place of none."""

    module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5, generator=generator)
            else:
                value.fill_(float(name.endswith("weight")))


def build(name: str, architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Any:
    """The backbone with random weights and no text encoders."""

    size = architecture.size
    pipe = pipeline(name, architecture, device, dtype)
    return backbones.from_pipeline(pipe, height=size, width=size).requires_grad_(False)


def pipeline(
    name: str, architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> Any:
    """The pipeline with random weights and no text encoders."""

    denoiser, vae = build_parts(architecture)
    for part in (denoiser, vae):
        fill(part, device, dtype)
    if architecture.is_unet:
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        scheduler = (
            diffusers.EulerAncestralDiscreteScheduler(**betas, timestep_spacing="trailing")
            if "turbo" in name
            else diffusers.EulerDiscreteScheduler(**betas, timestep_spacing="leading")
        )
        return diffusers.StableDiffusionXLPipeline(
            vae=vae,
            unet=denoiser,
            scheduler=scheduler,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            add_watermarker=False,
        )
    return diffusers.StableDiffusion3Pipeline(
        vae=vae,
        transformer=denoiser,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        text_encoder_2=None,
        text_encoder_3=None,
        tokenizer=None,
        tokenizer_2=None,
        tokenizer_3=None,
    )


def random_condition(
    architecture: Architecture, n: int, device: torch.device, dtype: torch.dtype
) -> backbones.TextCondition:
    generator = torch.Generator().manual_seed(SEED)
    normal = lambda *shape: torch.randn(n, *shape, generator=generator).to(device, dtype)
    embeddings = {
        "text": normal(architecture.tokens, architecture.text),
        "pooled": normal(architecture.pooled),
    }
    return backbones.TextCondition(("a prompt",) * n, embeddings)


def random_bank(architecture: Architecture, n: int, dtype: torch.dtype) -> Bank:
    generator = torch.Generator().manual_seed(SEED)
    x_0 = torch.randn(n, *architecture.latents, generator=generator).to(dtype)
    return Bank(x_0, ["a prompt"] * n, torch.randn(n, generator=generator))


def networks_for(
    architecture: Architecture, schedule: Any, factor: int
) -> tuple[LatentShift, LatentExpectation]:
    """Guidance networks, as many times narrower as the backbone; with a last layer that is used."""

    arguments = (
        architecture.latents[0],
        schedule,
        architecture.pooled,
        [w // factor for w in (64, 128, 256, 256)],
    )
    networks = LatentShift(*arguments), LatentExpectation(*arguments)
    for network in networks:
        nn.init.normal_(
            network.last.weight, std=1e-3, generator=torch.Generator().manual_seed(SEED)
        )
    return networks


def estimators_for(
    backbone: Any, architecture: Architecture, device: torch.device, factor: int
) -> dict[str, ConditionalExpectation]:
    estimators: dict[str, ConditionalExpectation] = {
        f"importance, bank of {n}": ImportanceSampling(
            random_bank(architecture, n, backbone.dtype), TILT
        )
        for n in BANKS
    }
    shift, expectation = networks_for(architecture, backbone.schedule, factor)
    estimators["network for the shift"] = LearnedShift(shift)
    estimators["network for log h"] = LearnedExpectation(expectation)
    return {name: estimator.to(device) for name, estimator in estimators.items()}


class Case:
    """A backbone with random weights, its estimators, and the states and prompts of one batch."""

    def __init__(
        self, name: str, device: torch.device, dtype: torch.dtype, factor: int, batch: int
    ) -> None:
        architecture = ARCHITECTURES[name]
        self.architecture = architecture.reduced(factor) if factor > 1 else architecture
        self.device, self.batch = device, batch
        self.backbone = build(name, self.architecture, device, dtype)
        self.estimators = estimators_for(self.backbone, self.architecture, device, factor)
        self.condition = random_condition(self.architecture, batch, device, dtype)
        self.x_t = self.backbone.draw_noise(batch, torch.Generator().manual_seed(SEED))

    def step(self, model: Model) -> Callable[[], object]:
        t, s = torch.tensor([0.9, 0.8], dtype=torch.float64)
        take = self.backbone.sampler.step
        return lambda: _finite(take(model, self.x_t, t, s, self.condition, _generator())[0])

    def image(self, model: Model) -> Callable[[], object]:
        """The whole image, for models of one step."""

        sampler, times = self.backbone.sampler, self.backbone.times(1)
        draw = lambda: sample(model, sampler, self.x_t, times, self.condition, _generator())
        return lambda: _finite(self.backbone.decode(draw()))

    def work(self, model: Model) -> Callable[[], object]:
        return self.image(model) if self.architecture.steps == 1 else self.step(model)

    def whole(self, parts: bool) -> dict[str, Callable[[], object]]:
        """The backbone unguided, then with each estimator around it unless only `parts` count."""

        functions = {UNGUIDED: self.work(self.backbone)}
        if not parts:
            for name, estimator in self.estimators.items():
                functions[name] = self.work(GuidedModel(self.backbone, estimator))
        functions[DECODING] = lambda: _finite(self.backbone.decode(self.x_t))
        return functions

    def alone(self) -> dict[str, Callable[[], object]]:
        """A step of a model that does nothing, then with each estimator around it."""

        echo = Echo(self.backbone.schedule)
        functions = {UNGUIDED: self.step(echo)}
        for name, estimator in self.estimators.items():
            functions[name] = self.step(GuidedModel(echo, estimator))
        return functions


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _finite(x: Tensor) -> Tensor:
    """Checks a result, which also waits for it."""

    if not bool(x.isfinite().all()):
        raise FloatingPointError("the random weights made inf or NaN")
    return x


def measure(case: Case, title: str, repeat: int, parts: bool) -> None:
    """Times a step, or the whole image if there is but one step, and prints a table."""

    functions, alone = case.whole(parts), case.alone()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unreliable estimates: the bank is random, too
        times, times_alone = interleave(functions, repeat), interleave(alone, 5 * repeat)
        peaks, peaks_alone = (
            {key: f"{peak(function, case.device) / 1e6:.1f}" for key, function in group.items()}
            for group in (functions, alone)
        )
    base = min(times[UNGUIDED])
    columns = ("s, median", "s, minimum", "added", "peak, MB")
    result = table(title, "", *columns, "alone, ms", "added", "peak, MB")
    for key in (UNGUIDED, *case.estimators, DECODING):
        cells = ["-"] * 7
        if key in times:
            cells[:2] = f"{statistics.median(times[key]):.4f}", f"{min(times[key]):.4f}"
            cells[3] = peaks[key]
        if key in times and key in case.estimators:
            cells[2] = f"{100 * (min(times[key]) / base - 1):+.2f} %"
        if key in case.estimators:
            extra = min(times_alone[key]) - min(times_alone[UNGUIDED])
            cells[4:] = f"{1e3 * extra:.2f}", f"{100 * extra / base:.3f} %", peaks_alone[key]
        result.add_row(key, *cells)
    console.print(result)
    steps = case.architecture.steps
    image = base if steps == 1 else steps * base + min(times[DECODING])
    print_bank(case.architecture, image / case.batch, case.backbone.dtype)


def peak(function: Callable[[], object], device: torch.device) -> int:
    """Most bytes held at once beyond weights, bank and states."""

    if device.type == "cpu":
        return peak_bytes(function)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def print_bank(architecture: Architecture, image: float, dtype: torch.dtype) -> None:
    """What the bank itself costs, which is not in the table."""

    for n in BANKS:
        size = n * math.prod(architecture.latents) * dtype.itemsize / 1e6
        console.print(
            f"A bank of {n} holds {size:.1f} MB and costs {n} images, {n * image:.1f} s, and their "
            f"rewards; over 1000 images of its prompt, {n / 10:.1f} % of each."
        )
    console.print()


class Echo(Model):
    """Stands in for a backbone where only the estimator counts."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        return Prediction(x_t, x_t, self.schedule.at(t, like=x_t))


def operations(function: Callable[[], object]) -> float:
    """Operations of matrix products, convolutions and attention, in units of 1e9."""

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / 1e9


def count_operations(name: str) -> None:
    """Operations at full size; what has weights is only traced, so it takes no memory."""

    architecture = ARCHITECTURES[name]
    meta = torch.device("meta")
    denoiser, vae = build_parts(architecture)
    x_t, t = torch.empty(1, *architecture.latents, device=meta), torch.full((1,), 0.9).double()
    text = torch.empty(1, architecture.tokens, architecture.text, device=meta)
    pooled = torch.empty(1, architecture.pooled, device=meta)
    added = {"text_embeds": pooled, "time_ids": torch.empty(1, 6, device=meta)}
    denoise: Callable[[], object] = (
        (lambda: denoiser(x_t, t.to(meta), text, added_cond_kwargs=added))
        if architecture.is_unet
        else (lambda: denoiser(x_t, text, pooled, t.to(meta)))
    )
    with meta:
        shift, expectation = networks_for(architecture, RectifiedSchedule(), 1)
    condition = backbones.TextCondition(("a prompt",), {"pooled": pooled})
    rows = {
        "denoiser": operations(denoise),
        DECODING: operations(lambda: vae.decode(x_t)),
        "network for the shift": operations(lambda: shift(x_t, t, condition)),
        "network for log h": operations(lambda: gradient(expectation, x_t, t, condition)),
    }
    real = torch.zeros(1, *architecture.latents)
    for n in BANKS:
        estimator = ImportanceSampling(random_bank(architecture, n, torch.float32), TILT)
        call = lambda: estimator(Echo(RectifiedSchedule()), real, 0.9, ["a prompt"])  # noqa: B023
        rows[f"importance, bank of {n}"] = operations(call)
    whole = rows["denoiser"] + (rows[DECODING] if architecture.steps == 1 else 0)
    what = "/ denoiser and decoding" if architecture.steps == 1 else "/ denoiser"
    title = f"Operations of {name} at {architecture.size} px, batch 1, full size"
    result = table(title, "", "parameters, 1e6", "1e9 operations", what)
    modules = {
        "denoiser": denoiser,
        DECODING: vae.decoder,
        "network for the shift": shift,
        "network for log h": expectation,
    }
    for key, value in rows.items():
        size = f"{count(modules[key]) / 1e6:,.1f}" if key in modules else "-"
        result.add_row(key, size, f"{value:,.3f}", f"{100 * value / whole:.4f} %")
    console.print(result)


def gradient(network: nn.Module, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        # The counter does not take leaves as inputs of modules.
        return torch.autograd.grad(network(x.clone(), t, condition).sum(), x)[0]


def main() -> None:
    diffusers.utils.logging.set_verbosity_error()
    names = list(ARCHITECTURES)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions, noisy figures")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--size", choices=("full", "reduced"), default=None)
    parser.add_argument("--parts", action="store_true", help="leave out the guided steps")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}, there are {', '.join(names)}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    console.print(
        f"{where}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch "
        f"{torch.__version__}, diffusers {diffusers.__version__}; seed {SEED}. Goals: importance "
        f"sampling with a bank of 64 adds at most {100 * STEP_GOAL:.0f} % to a step at 1024 px, "
        f"a network at most {100 * IMAGE_GOAL:.0f} % to an image of sdxl-turbo.\n"
    )
    full = arguments.size == "full" or (arguments.size is None and device.type == "cuda")
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if full else "float32"))
    factor, batch = 1 if full else 8, arguments.batch
    for name in arguments.names or names:
        count_operations(name)
        case = Case(name, device, dtype, factor, batch)
        what = "An image of one step, decoded" if case.architecture.steps == 1 else "A step"
        width = "full width" if full else f"1/{factor} of the width"
        title = f"{what}: {name}, {case.architecture.size} px, batch {batch}, {width}, {dtype}"
        measure(case, title, 3 if arguments.quick else 9, arguments.parts)


if __name__ == "__main__":
    main()
