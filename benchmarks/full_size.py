"""The first step of guidance at full size: does a bank of real latents still say anything there?

Run `python benchmarks/full_size.py --tae FOLDER`, with a folder that holds the encoders of TAESDXL
and TAESD3 in their original layout. Pictures of the test bed are enlarged to 512 px, and some to
1024 px, encoded once, and kept, so that a run that was broken off goes on, also with more draws.
Rewards are those of the small pictures, and beta moves each prompt by one nat.

A run begins from noise that knows nothing of the picture. There the shift should be the tilted mean
of the prompt less its mean, a direction that other draws know as well. Half of them, A, and the
other half, B, know it with independent errors, so that

    projection = E <s, d_A + d_B> / 2 E <d_A, d_B>

is free of bias: 1 is right. The cosine of s and d is told relative to that of the flat kernel,
which is what a bank of that size allows that knows no more. Errors are over prompts.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path[0] = str(Path(__file__).parents[1])  # this folder's files are not the packages

from rwguidance.backbones.autoencoders import load_autoencoder  # noqa: E402

import rwguidance as rw  # noqa: E402
from rwguidance import backbones, rewards  # noqa: E402
from rwguidance.generation.run import Run  # noqa: E402
from rwguidance.statistics import ratio_and_error  # noqa: E402
from rwguidance.store import Store  # noqa: E402
from rwguidance.support.digests import digest_of  # noqa: E402
from rwguidance.support.files import replacing  # noqa: E402
from rwguidance.support.randomness import generator_for  # noqa: E402

PROMPTS = (
    "red apple",
    "grinning face",
    "a hedgehog on a green background",
    "a rocket in the style of a pencil drawing",
    "purple heart",
    "a slice of pizza on a blue background",
)
MODELS = {"sdxl-turbo": ("taesdxl", "sdxl-turbo", 4), "sd3.5-large-turbo": ("taesd3", "sd3", 4)}
"""Model by name: its encoder, a tiny pipeline with its scheduler, and its number of steps."""

SIDES = {512: (len(PROMPTS), 512), 1024: (1, 128)}
"""Prompts and draws of each, at most, by the side of the pictures in pixels."""

BANK, SPLITS, STATES, SEED = 64, 8, 8, 0
PART, COMPARED = 32, 2
"""Draws that are kept in one file, and those that are also encoded in float32."""

NARROW = torch.bfloat16
console = Console(width=120)


class Still(rw.Model):
    """A model that does nothing: what is asked for is the shift alone."""

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> rw.Prediction:
        return rw.Prediction(x_t, x_t, self.schedule.at(t, like=x_t))


KERNELS: dict[str, Callable[[], rw.estimators.Kernel | None]] = {
    "exact kernel": lambda: None,
    "TargetESS(0.05)": lambda: rw.TargetESS(0.05),
    "LeaveOneOut()": lambda: rw.LeaveOneOut(),
    "flat (start)": lambda: None,
}


@dataclass(frozen=True)
class Encoded:
    """Draws of one prompt as latents (N, C, H, W), and their rewards (N,)."""

    prompt: str
    x_0: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class Latents:
    """Pictures of the test bed as latents of one encoder, kept in a folder."""

    run: Run
    encoder: str
    side: int
    arguments: argparse.Namespace

    def of(self, prompt: str, n: int) -> Encoded:
        """Returns the first draws of a prompt as a model sees them, kept or made now."""

        bank = self.run.bank(prompt, n, "full size")
        assert bank.rewards is not None
        parts = [self._part(prompt, first, bank.x_0) for first in range(0, n, PART)]
        return Encoded(prompt, torch.cat(parts)[:n].float(), bank.rewards.double())

    def error(self, draws: Encoded) -> float:
        """Returns the error of half precision, over the spread of a prompt's latents."""

        few = self.run.decode(
            self.run.bank(draws.prompt, len(draws.x_0), "full size").x_0[:COMPARED]
        )
        change = draws.x_0[:COMPARED] - self.encode(few, torch.float32)
        spread = draws.x_0 - draws.x_0.mean(0)
        return float(change.square().mean().sqrt() / spread.square().mean().sqrt())

    @torch.no_grad()
    def encode(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the latents of enlarged pictures, by a real encoder."""

        layout: Any = {"memory_format": torch.channels_last}
        vae: Any = load_autoencoder(self.arguments.tae, self.encoder, dtype).to(**layout)
        parts = []
        for picture in pictures.split(1):  # fits a cache best
            large = torch.nn.functional.interpolate(picture, self.side, mode="bicubic")
            large = 2 * large.clamp(0, 1) - 1
            parts.append(vae.encode(large.to(dtype).contiguous(**layout)).latents)
        return torch.cat(parts).contiguous()

    def _part(self, prompt: str, first: int, x_0: Tensor) -> Tensor:
        key = digest_of((self.encoder, prompt, str(self.side), str(first)), [])[:16]
        file = self.arguments.cache / f"{self.encoder}-{key}.safetensors"
        if not file.is_file():
            started = time.perf_counter()
            latents = self.encode(self.run.decode(x_0[first : first + PART]), NARROW)
            seconds = (time.perf_counter() - started) / len(latents)
            console.print(f"{self.encoder}, {self.side} px: {seconds:.2f} s a picture")
            with replacing(file) as partial:
                save_file({"x_0": latents}, partial)
        return load_file(file)["x_0"]


def drawing(arguments: argparse.Namespace) -> Run:
    """The run that draws pictures of the test bed, and keeps them."""

    arguments.cache.mkdir(parents=True, exist_ok=True)
    backbone: Any = backbones.load("emoji-flow")
    store = Store(arguments.cache / "draws")
    return Run(backbone, rewards.load("emoji-pick"), backbone.times(4), SEED, PART, store=store)


def one_nat(draws: Encoded) -> rw.Tilt:
    bank = rw.Bank(draws.x_0, rewards=draws.rewards)
    return rw.Tilt.for_kl(lambda x, _: x.flatten(1)[:, 0], bank, 1.0)


def effective(name: str, draws: Encoded, model: rw.Model, times: Tensor) -> dict[str, list[float]]:
    """Median effective draws of every kernel at the times of the steps; the first from noise."""

    tilt = one_nat(draws)
    found: dict[str, list[float]] = {}
    bank = rw.Bank(draws.x_0[:BANK], rewards=draws.rewards[:BANK])
    x_0 = draws.x_0[BANK : BANK + STATES]
    noise = normal(x_0.shape, name, draws.prompt, "steps")
    for kernel, make in KERNELS.items():
        estimator = rw.ImportanceSampling(bank, tilt, make())
        view = model.starting(float(times[0])) if kernel == "flat (start)" else model
        found[kernel] = []
        for t in times[:-1]:
            begins = t == times[0]
            scales = model.schedule.at(t, like=x_0)
            x_t = scales.sigma * noise if begins else model.schedule.perturb(x_0, t, noise)
            diagnostics = estimator(view, x_t, t).diagnostics
            found[kernel].append(float(diagnostics["ess_tilted"].median()))
    return found


def first_step(
    name: str, draws: Encoded, model: rw.Model, t: float
) -> dict[str, tuple[float, float]]:
    """Products of each kernel's shift, and of its direction, with the held-out direction."""

    tilt, n = one_nat(draws), len(draws.x_0)
    log_w = tilt.weigh(draws.rewards)
    flat_x = draws.x_0.flatten(1)
    found = {kernel: (0.0, 0.0) for kernel in (*KERNELS, "held out")}
    for split in range(SPLITS):
        order = torch.randperm(n, generator=generator_for(SEED, "split", draws.prompt, split))
        mine, rest = order[:BANK], order[BANK:]
        direction = [
            (log_w[half].softmax(0).to(flat_x) @ flat_x[half]) - flat_x[half].mean(0)
            for half in rest.chunk(2)
        ]
        square = float(direction[0] @ direction[1])
        found["held out"] = (found["held out"][0] + square, 0.0)
        mean = (direction[0] + direction[1]) / 2
        bank = rw.Bank(draws.x_0[mine], rewards=draws.rewards[mine])
        shape = (STATES, *draws.x_0.shape[1:])
        sigma = model.schedule.at(t, like=draws.x_0).sigma
        x_t = sigma * normal(shape, name, draws.prompt, "first", split)
        for kernel, make in KERNELS.items():
            view = model.starting(t) if kernel == "flat (start)" else model
            shift = rw.ImportanceSampling(bank, tilt, make())(view, x_t, t).shift.flatten(1)
            along = shift @ mean
            before, cosine = found[kernel], along / shift.norm(dim=1)
            found[kernel] = (before[0] + float(along.mean()), before[1] + float(cosine.mean()))
    return found


def normal(shape: tuple[int, ...] | torch.Size, *names: str | int) -> Tensor:
    return torch.randn(shape, generator=generator_for(SEED, *names))


def measured(name: str, side: int, run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of a model at one size, over the prompts."""

    encoder, pipe, steps = MODELS[name]
    backbone = backbones.from_pipeline(backbones.tiny(pipe))
    model, times = Still(backbone.schedule), backbone.times(steps)
    latents = Latents(run, encoder, side, arguments)
    prompts, n = (min(*pair) for pair in zip(SIDES[side], _given(arguments), strict=True))
    steps_of, products = [], []
    for prompt in PROMPTS[:prompts]:
        draws = latents.of(prompt, n)
        steps_of.append(effective(name, draws, model, times))
        products.append(first_step(name, draws, model, float(times[0])))
        console.print(f"{name}, {side} px: {prompt}")
    column = lambda kernel, part: torch.tensor([found[kernel][part] for found in products])
    rows = {}
    for kernel in KERNELS:
        rows[kernel] = {
            "effective draws": torch.tensor([one[kernel] for one in steps_of])
            .median(0)[0]
            .tolist(),
            "projection": ratio_and_error(column(kernel, 0), column("held out", 0)),
            "cosine / flat": ratio_and_error(column(kernel, 1), column("flat (start)", 1)),
        }
    length = column("held out", 0).mean().clamp_min(0).sqrt() / SPLITS**0.5
    bound = float(column("flat (start)", 1).mean() / SPLITS / length)
    return {
        "times": times.tolist(),
        "alpha at the first": float(model.schedule.alpha(times[0])),
        "side": side,
        "draws": n,
        "prompts": len(products),
        "error of bfloat16": latents.error(draws),
        "cosine of the flat kernel": bound,
        "kernels": rows,
    }


def _given(arguments: argparse.Namespace) -> tuple[int, int]:
    return arguments.prompts, arguments.draws


def show(name: str, figures: dict[str, Any]) -> None:
    table = Table(
        title=f"{name}: bank of {BANK} of {figures['draws']}, {figures['prompts']} prompts, 1 nat; "
        f"alpha = {figures['alpha at the first']:.3f} at the first step; "
        f"cosine of the flat kernel {figures['cosine of the flat kernel']:.2f}; "
        f"error of bfloat16 {figures['error of bfloat16']:.3f}",
        title_justify="left",
    )
    steps = [f"ESS at {t:.2f}" for t in figures["times"][:-1]]
    for label in ("kernel", *steps, "projection", "cosine / flat"):
        table.add_column(label, justify="left" if label == "kernel" else "right")
    pair = lambda value: f"{value[0]:.2f} +- {value[1]:.2f}"
    for kernel, row in figures["kernels"].items():
        table.add_row(
            kernel,
            *(f"{value:.1f}" for value in row["effective draws"]),
            pair(row["projection"]),
            pair(row["cosine / flat"]),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tae", type=Path, required=True, help="folder of the encoders")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="prompts, at most")
    parser.add_argument("--draws", type=int, default=512, help="draws a prompt, at most")
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--cache", type=Path, default=Path("out/full-size"))
    parser.add_argument("--out", type=Path, default=Path("out/full_size.json"))
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch")
    arguments = parser.parse_args()
    if not 1 <= arguments.prompts <= len(PROMPTS):
        parser.error(f"--prompts must lie in 1 to {len(PROMPTS)}, got {arguments.prompts}")
    if arguments.draws < 2 * BANK or arguments.draws % PART:
        parser.error(
            f"--draws must be a multiple of {PART}, at least {2 * BANK}, got {arguments.draws}"
        )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    run = drawing(arguments)
    figures = {
        f"{name}, {side} px": measured(name, side, run, arguments)
        for side in arguments.sides
        for name in arguments.models
    }
    for name, one in figures.items():
        show(name, one)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
