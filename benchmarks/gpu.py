"""One run on a machine with a GPU, of at most eight minutes, that writes a table of Markdown.

Run `python benchmarks/gpu.py`; nothing is downloaded. Rows come in the order of their worth and
are written when they are done: estimators on the GPU beside the CPU; SDXL-Turbo, SD3.5 Large Turbo
and FLUX.2-klein of the published sizes with random weights in bfloat16, unguided, with banks and
with a network of 72 MB; a reward with a ViT-H beside a loop over single images, as its reference
code has it; the decoding of banks. `--path NAME=FOLDER` with real weights also makes pictures and
scores them, by PickScore if its folder is given, too. `--smoke` rehearses all of it on the CPU.
"""

import argparse
import gc
import math
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from PIL import Image
from torch import Tensor

if __name__ == "__main__":  # this folder's files are not the packages
    sys.path[0] = str(Path(__file__).parents[1])

import rwguidance as rw
from benchmarks.backbones import ARCHITECTURES, build_parts, fill
from benchmarks.gpu_estimators import differences
from benchmarks.subjects import NAMES, PROMPT, Subject, options, published, tiny
from rwguidance import backbones, rewards
from rwguidance.networks import GuidanceNetwork
from rwguidance.store import Store

BANKS = (64, 16, 256)
VIT_H = "ViT-H-14"
SMALL_VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 64, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
}
TILT = rw.Tilt(lambda x, condition: x.flatten(1)[:, 0], 1.0)


class Row(NamedTuple):
    """Seconds an image and the peak of memory in GB, NaN where there are none, and a remark."""

    seconds: float = math.nan
    memory: float = math.nan
    note: str = ""


Work = Iterator[tuple[str, Callable[[], Row]]]
"""Names of rows, and functions that measure them."""


@dataclass
class Report:
    """A table that grows row by row, on the disk and on the screen.

    Arguments:
        path: The file.
        minutes: Time after which no further row is begun.
    """

    path: Path
    minutes: float
    started: float = field(default_factory=time.monotonic)

    def begin(self, device: torch.device) -> None:
        """Writes the head, with the name of the device."""

        gpu = device.type == "cuda"
        where = torch.cuda.get_device_name(device) if gpu else f"CPU, {platform.machine()}"
        versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")
        self._write(f"{where}; {versions}\n")
        self._write("| what | s an image | peak, GB | |\n| --- | ---: | ---: | --- |")

    def add(self, name: str, measure: Callable[[], Row]) -> None:
        """Measures a row and writes it, or why there is none."""

        row = Row(note=f"not begun after {self.minutes:g} minutes")
        if time.monotonic() - self.started < 60 * self.minutes:
            try:
                row = measure()
            except Exception as error:  # the others are worth as much
                row = Row(note=f"failed: {type(error).__name__}: {' '.join(str(error).split())}")
        cells = [_number(row.seconds, ".4f"), _number(row.memory, ".2f"), row.note]
        self._write(f"| {name} | {' | '.join(cells)} |")

    def _write(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


class Machine(NamedTuple):
    """The device, and how often everything is done on it.

    Arguments:
        device: The device.
        smoke: Whether it is a rehearsal.
    """

    device: torch.device
    smoke: bool

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of pipelines."""

        return torch.float32 if self.smoke else torch.bfloat16

    def timed(self, function: Callable[[], object], images: int = 1, note: str = "") -> Row:
        """The least of three times after a first one, per image, and the peak of memory."""

        gpu, seconds = self.device.type == "cuda", []
        function()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(1 if self.smoke else 3):
            started = time.perf_counter()
            function()
            if gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else math.nan
        return Row(min(seconds) / images, peak, note)


class Grid(torch.nn.Module):
    """A network for pictures in front of states that are rows of tokens.

    Arguments:
        network: The network.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        side = math.isqrt(x_t.shape[1])
        shift: Tensor = self.network(x_t.mT.unflatten(2, (side, side)), t, condition)
        return shift.flatten(2).mT


class Look(rw.ConditionalExpectation):
    """An estimator that changes nothing, and keeps the shape of the states and their path."""

    def forward(
        self, model: rw.Model, x_t: Tensor, t: Tensor, condition: Any = None
    ) -> rw.Estimate:
        self.shape, self.schedule = x_t.shape[1:], model.schedule
        prediction = model(x_t, t, condition)
        return rw.Estimate(prediction, x_t.new_zeros(len(x_t)), torch.zeros_like(prediction.mean))


class Guided:
    """A pipeline and its rows: unguided, with banks, with a network.

    Arguments:
        name: Name of the pipeline.
        machine: Where it runs.
    """

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine = name, machine
        self.base = math.nan
        self.subject: Subject
        self.look = Look()

    def rows(self) -> Work:
        """Yields the rows; the pipeline lives from the first of them to the last."""

        banks = (2, 4) if self.machine.smoke else BANKS
        yield f"{self.name}, unguided", self.unguided
        for n in banks:
            yield f"{self.name}, importance, bank of {n}", partial(self.with_bank, n)
        yield f"{self.name}, network of 72 MB", self.with_network
        self.__dict__.clear()

    def unguided(self) -> Row:
        device, dtype = self.machine.device, self.machine.dtype
        started = time.perf_counter()
        smoke = self.machine.smoke
        self.subject = tiny(self.name) if smoke else published(self.name, device, dtype)
        took = time.perf_counter() - started
        self._call(self.look)
        row = self.machine.timed(lambda: self._call(None))
        self.base = row.seconds
        count = sum(p.numel() for p in self.subject.denoiser.parameters()) / 1e9
        note = f"{count:.2f} billion parameters, states {tuple(self.look.shape)}"
        return row._replace(note=f"{note}, made in {took:.0f} s")

    def with_bank(self, n: int) -> Row:
        generator = torch.Generator().manual_seed(0)
        x_0 = torch.randn(n, *self.look.shape, generator=generator).to(self.machine.dtype)
        bank = rw.Bank(x_0, [PROMPT] * n, torch.randn(n, generator=generator))
        return self._guided(rw.ImportanceSampling(bank, TILT))

    def with_network(self) -> Row:
        tokens = len(self.look.shape) == 2
        channels = self.look.shape[-1] if tokens else self.look.shape[0]
        preset = "tiny" if self.machine.smoke else "paper"
        network: Any = GuidanceNetwork.preset(preset, channels, self.look.schedule)
        return self._guided(rw.LearnedShift(Grid(network) if tokens else network))

    def _guided(self, estimator: rw.ConditionalExpectation) -> Row:
        estimator = estimator.to(self.machine.device)
        row = self.machine.timed(lambda: self._call(estimator))
        return row._replace(note=f"{row.seconds / self.base - 1:+.1%}")

    def _call(self, estimator: rw.ConditionalExpectation | None) -> None:
        pipe = backbones.guide(self.subject.pipe, estimator, condition=[PROMPT])
        pipe(**self.subject.call(1), output_type="pt", generator=torch.Generator().manual_seed(0))


def estimator_rows(machine: Machine) -> Work:
    """Yields a row for every estimator: how far the device is from the CPU."""

    for name, measure in differences(machine.device).items():
        yield name, partial(_differing, measure)


def _differing(measure: Callable[[], tuple[float, float]]) -> Row:
    return Row(note="shift {:.1e}, log h {:.1e}".format(*measure()))


def reward_rows(machine: Machine) -> Work:
    """Yields rows of HPSv2 with random weights, beside a loop over images on the same network."""

    n, side = (4, 32) if machine.smoke else (32, 512)
    images = [Image.effect_noise((side, side), 60 + i).convert("RGB") for i in range(n)]
    prompts = [f"a photo of {i} astronauts riding horses on mars" for i in range(n)]
    loaded: dict[str, Any] = {}

    def ours(dtype: torch.dtype) -> Row:
        if not loaded:
            loaded["reward"] = _random_hpsv2(machine)
        reward = loaded["reward"].to(dtype)

        def scored() -> None:
            reward.forget_prompts()
            reward(images, prompts)

        with torch.no_grad():
            row = machine.timed(scored, n)
        return row._replace(note=f"{1 / row.seconds:.1f} images/s")

    def theirs() -> Row:
        reward = loaded["reward"].float()
        with torch.no_grad(), torch.autocast(machine.device.type, torch.bfloat16):
            row = machine.timed(lambda: _one_by_one(reward, images, prompts, machine.device), n)
        return row._replace(note=f"{1 / row.seconds:.1f} images/s")

    yield "HPSv2 (ViT-H), float32", lambda: ours(torch.float32)
    yield "HPSv2 (ViT-H), image by image under autocast, as its reference", theirs
    yield "HPSv2 (ViT-H), bfloat16", lambda: ours(torch.bfloat16)


def _random_hpsv2(machine: Machine) -> Any:
    import open_clip

    config: Any = SMALL_VIT if machine.smoke else open_clip.get_model_config(VIT_H)
    with torch.device("meta"):
        network = open_clip.CLIP(**config)
    fill(network, machine.device, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "HPS_v2_compressed.pt"
        torch.save({"state_dict": network.state_dict()}, file)
        del network
        reward: Any = rewards.load("hpsv2", file, architecture=config, verify=False)
        return reward.to(machine.device)


def _one_by_one(reward: Any, images: list[Any], prompts: list[str], device: torch.device) -> None:
    import open_clip

    prepare = open_clip.image_transform(reward.size, is_train=False, resize_mode="longest")
    for image, prompt in zip(images, prompts, strict=True):
        pixels = prepare(image).unsqueeze(0).to(device)
        features = reward.model(pixels, reward.tokenizer([prompt]).to(device))
        float((features[0] @ features[1].T).diagonal())


def decoding_rows(machine: Machine) -> Work:
    """Yields rows of the decoding of latents of a bank, by SDXL's autoencoder at 1024 pixels."""

    shape = (2, 4, 8, 8) if machine.smoke else (8, 4, 128, 128)
    layouts = {
        "float32": (torch.float32, torch.contiguous_format),
        "bfloat16": (torch.bfloat16, torch.contiguous_format),
        "bfloat16, channels_last": (torch.bfloat16, torch.channels_last),
    }

    def decoded(dtype: torch.dtype, layout: torch.memory_format) -> Row:
        vae: Any = backbones.tiny("sdxl-turbo").vae
        if not machine.smoke:
            vae = build_parts(ARCHITECTURES["sdxl"])[1]
            fill(vae, machine.device, dtype)
        vae.to(dtype).to(memory_format=layout)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        latents = latents.to(machine.device, dtype).to(memory_format=layout)
        with torch.no_grad():
            return machine.timed(lambda: vae.decode(latents), len(latents))

    for name, (dtype, layout) in layouts.items():
        yield f"decoding, {name}", partial(decoded, dtype, layout)


def picture_rows(name: str, paths: dict[str, str], machine: Machine, out: Path) -> Work:
    """Yields a row of pictures by real weights, without and with guidance, and their rewards."""

    def made() -> Row:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            paths[name], torch_dtype=machine.dtype, local_files_only=True
        ).to(machine.device)
        pipe.set_progress_bar_config(disable=True)
        scorer = "pickscore" if "pickscore" in paths else "jpeg"
        reward = rewards.load(scorer, paths.get("pickscore"), device=machine.device)
        prompt, n = "a lighthouse in a storm, oil on canvas", 4 if machine.smoke else 64
        call = options(name, 32 if machine.smoke else None)
        bank = backbones.draw(pipe, prompt, n, store=Store(out / "draws"), **call)
        tilt = rw.Tilt.for_kl(reward, bank, nats=0.3 if machine.smoke else 1.0)
        estimator = rw.ImportanceSampling(bank, tilt)
        means = []
        for kind, estimate in (("base", None), ("guided", estimator)):
            guided = backbones.guide(pipe, estimate)
            generators = [torch.Generator().manual_seed(1000 + i) for i in range(4)]
            images = guided([prompt] * 4, generator=generators, **call).images
            for i, image in enumerate(images):
                image.save(out / f"{name}-{i}-{kind}.png")
            means.append(float(reward(images, [prompt] * 4).mean()))
        row = machine.timed(lambda: guided(prompt, generator=generators[0], **call))
        return row._replace(note=f"mean {scorer} {means[0]:.4g}, guided {means[1]:.4g}")

    yield f"{name}, published weights, bank of its own", made


def work(machine: Machine, paths: dict[str, str], out: Path) -> Work:
    """Yields all rows."""

    yield from estimator_rows(machine)
    for name in NAMES:
        if name in paths:
            yield from picture_rows(name, paths, machine, out)
    for name in NAMES:
        yield from Guided(name, machine).rows()
        gc.collect()
        torch.cuda.empty_cache()
    yield from reward_rows(machine)
    yield from decoding_rows(machine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins after that")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="a rehearsal on the CPU")
    given = parser.parse_args()
    paths = dict(text.partition("=")[::2] for text in given.path)
    if unknown := set(paths) - {*NAMES, "pickscore"}:
        parser.error(f"--path must name some of {', '.join(NAMES)}, pickscore, got {unknown}")
    if not given.smoke and not torch.cuda.is_available():
        parser.error("there is no GPU: --smoke rehearses on the CPU")
    warnings.simplefilter("ignore")  # of unreliable estimates: banks are random, too
    diffusers.utils.logging.set_verbosity_error()
    machine = Machine(torch.device("cpu" if given.smoke else "cuda"), given.smoke)
    report = Report(given.out / "gpu.md", given.minutes)
    report.begin(machine.device)
    for name, measure in work(machine, paths, given.out):
        report.add(name, measure)


if __name__ == "__main__":
    main()
