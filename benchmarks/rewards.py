"""Speed and memory of the zoo against the reference implementations, with the same random weights.

Run `python benchmarks/rewards.py`. The references run in an environment of their own, see
tests/rewards/references/README.md; name its interpreter in RWGUIDANCE_REFERENCE_PYTHON, or their
rows are left out. Ours and theirs open the same PNG files in every pass, and take turns.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import argparse
import functools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # in place of this folder, whose rewards.py is not the package

import rewards  # noqa: E402
import tiny_checkpoints as tiny  # noqa: E402
from rwguidance.support.outside import require  # noqa: E402

REFERENCE = os.environ.get("RWGUIDANCE_REFERENCE_PYTHON")
HPSV2_GOAL, PICKSCORE_GOAL, IMPORT_GOAL, MEMORY_GOAL = 3.0, 1.3, 1.3, 1.1
SHAPES = ((16, 1), (1, 16), (4, 4))

console = Console(width=100)


def architecture(name: str) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def write_checkpoints(folder: Path, name: str) -> dict[str, Path]:
    """HPSv2 and PickScore of one architecture, in the published formats, with random weights."""

    config = architecture(name)
    tiny.write_json(folder / "architecture.json", config)
    tiny.write_pickscore(folder / "pickscore", config=config)
    return {
        "hpsv2": tiny.write_hpsv2(folder / "hpsv2", config=config),
        "pickscore": folder / "pickscore",
    }


def write_images(folder: Path, n: int, size: int) -> list[str]:
    folder.mkdir()
    picture = tiny.picture(size, size)
    paths = []
    for i in range(n):
        paths.append(str(folder / f"{i}.png"))
        picture.rotate(i).save(paths[-1])
    return paths


def prompts_of(n: int) -> list[str]:
    return [f"a photo of {i} astronauts riding horses on mars, oil on canvas" for i in range(n)]


def our_seconds(
    name: str,
    path: Path,
    images: list[str],
    prompts: list[str],
    repeat: int,
    warm: bool,
    **options: Any,
) -> tuple[list[float], torch.Tensor]:
    """Seconds per pass over all pairs, and their scores; `warm` keeps the cache of prompts."""

    reward: Any = rewards.load(name, path, **options)
    seconds = []
    with torch.no_grad():
        for _ in range(repeat + 1):
            if not warm:
                reward.forget_prompts()
            start = time.perf_counter()
            scores = reward.score_matrix([Image.open(image) for image in images], prompts)
            seconds.append(time.perf_counter() - start)
    return seconds[1:], scores


def their_seconds(
    name: str, path: Path, images: list[str], prompts: list[str], repeat: int, folder: Path
) -> tuple[list[float], torch.Tensor]:
    """The same of the reference: one call per prompt, with all its images, as its users write."""

    cases = [{"images": images, "prompts": [prompt]} for prompt in prompts]
    (folder / "cases.json").write_text(json.dumps(cases))
    config = ["--config", folder / "architecture.json"] if name == "hpsv2" else []
    script = ROOT / "tests/rewards/references/run.py"
    command = [REFERENCE, script, name, "--checkpoint", path, *config]
    command += ["--cases", folder / "cases.json", "--out", folder / "out.json"]
    command += ["--repeat", repeat, "--threads", torch.get_num_threads()]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    result = json.loads((folder / "out.json").read_text())
    columns = [[row[0] for row in case] for case in result["scores"]]
    return result["seconds"], torch.tensor(columns).T


def throughput(name: str, repeat: int, size: int) -> None:
    goals = {"hpsv2": HPSV2_GOAL, "pickscore": PICKSCORE_GOAL}
    for reward, goal in goals.items():
        table = Table(
            title=f"{reward}, {name}, PNG files of {size} x {size}; goal: {goal} x the reference",
            title_justify="left",
            title_style="bold",
        )
        columns = ("images x prompts", "reference", "new prompts", "known prompts", "bfloat16, new")
        for column in (*columns, "largest diff.", "bfloat16 / spread"):
            table.add_column(column, justify="right")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            path = write_checkpoints(folder, name)[reward]
            options = {"architecture": architecture(name)} if reward == "hpsv2" else {}
            for n, m in SHAPES:
                images = write_images(folder / f"{n}x{m}", n, size)
                prompts = prompts_of(m)
                cold, scores = our_seconds(reward, path, images, prompts, repeat, False, **options)
                known, _ = our_seconds(reward, path, images, prompts, repeat, True, **options)
                narrow = {**options, "dtype": torch.bfloat16}
                half, moved = our_seconds(reward, path, images, prompts, repeat, False, **narrow)
                passes = (cold, known, half)
                ours = [n * m / statistics.median(seconds) for seconds in passes]
                if REFERENCE:
                    seconds, other = their_seconds(reward, path, images, prompts, repeat, folder)
                    base = n * m / statistics.median(seconds)
                    cells = [f"{base:.1f}", *(f"{v:.1f} ({v / base:.2f} x)" for v in ours)]
                    cells.append(f"{float((scores - other).abs().max()):.1e}")
                else:
                    cells = ["-", *(f"{v:.1f}" for v in ours), "-"]
                cells.append(f"{change_in_spreads(moved, scores):.1e}" if n > 1 else "-")
                table.add_row(f"{n} x {m}", *cells)
        console.print(table)
    console.print("Pairs per second, median of passes.\n")


def change_in_spreads(moved: torch.Tensor, scores: torch.Tensor) -> float:
    """Largest change of scores (n, m) over their standard deviation over the pictures of a prompt.

    What all pictures of a prompt have in common is left out, as it decides nothing.
    """

    change = moved - scores
    change = change - change.mean(0)
    return float((change.abs() / scores.std(0)).max())


def towers(name: str, repeat: int, device: str, dtype: torch.dtype) -> None:
    """Images per second with gradients to the pixels: what guidance pays for."""

    table = Table(title=f"pickscore, {name}, {device}, {dtype}", title_justify="left")
    for column in ("", "images / s", "forward and backward, images / s"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as place:
        path = write_checkpoints(Path(place), name)["pickscore"]
        for mode in ("reference", "fast"):
            reward = rewards.load("pickscore", path, device, dtype, preprocessing=mode)
            step = functools.partial(score_four, reward, device)
            rates = [4 / median_seconds(functools.partial(step, g), repeat) for g in (False, True)]
            table.add_row(f"preprocessing={mode!r}", *(f"{rate:.1f}" for rate in rates))
    console.print(table)


def recipe(name: str, repeat: int, size: int) -> None:
    """Scores 16 pictures of one prompt beside the model card's recipe in these transformers.

    The rows that take turns read the same PNG files in every pass. The tower in bfloat16 says how
    far its scores move, in standard deviations of the scores over the pictures.
    """

    table = Table(title=f"pickscore, {name}, 16 x 1; goal: 1.0 x the recipe", title_justify="left")
    for column in ("", "seconds", "x the recipe", "change / spread"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = write_checkpoints(folder, name)["pickscore"]
        images, prompts = write_images(folder / "images", 16, size), prompts_of(1)
        score = {
            "the model card's recipe": model_card(path, images, prompts),
            "ours": ours(path, images, prompts),
            "ours, bfloat16": ours(path, images, prompts, dtype=torch.bfloat16),
        }
        seconds: dict[str, list[float]] = {name: [] for name in score}
        scores = {}
        for _ in range(repeat + 1):
            for row, function in score.items():
                start = time.perf_counter()
                scores[row] = function()
                seconds[row].append(time.perf_counter() - start)
    base = scores["the model card's recipe"]
    least = {row: min(times[1:]) for row, times in seconds.items()}
    for row, values in scores.items():
        change = change_in_spreads(values[:, None], base[:, None])
        ratio = least["the model card's recipe"] / least[row]
        table.add_row(row, f"{least[row]:.3f}", f"{ratio:.2f}", f"{change:.1e}")
    console.print(table)


def ours(
    path: Path, images: list[str], prompts: list[str], **options: Any
) -> Callable[[], torch.Tensor]:
    reward: Any = rewards.load("pickscore", path, **options)

    def score() -> torch.Tensor:
        reward.forget_prompts()
        with torch.no_grad():
            return reward.score_matrix([Image.open(image) for image in images], prompts)[:, 0]

    return score


def model_card(path: Path, images: list[str], prompts: list[str]) -> Callable[[], torch.Tensor]:
    transformers: Any = require("transformers", "the model card needs", "rewards")
    model = transformers.CLIPModel.from_pretrained(path).eval()
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(path)
    processor = transformers.CLIPImageProcessor()
    embedding = lambda output: getattr(output, "pooler_output", output)
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)

    def score() -> torch.Tensor:
        pixels = processor(images=[Image.open(image) for image in images], return_tensors="pt")
        tokens = tokenizer(
            prompts, padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        with torch.no_grad():
            x = unit(embedding(model.get_image_features(**pixels)))
            y = unit(embedding(model.get_text_features(**tokens)))
            return model.logit_scale.exp() * (y @ x.T)[0]

    return score


def score_four(reward: rewards.Reward, device: str, gradient: bool) -> None:
    """Scores four images of 512 x 512, and takes the gradient; waits for the result."""

    x = torch.rand(4, 3, 512, 512, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.set_grad_enabled(gradient):
        values = reward(x.requires_grad_(gradient), prompts_of(4))
        result = torch.autograd.grad(values.sum(), x)[0].sum() if gradient else values
    result.cpu()


def median_seconds(function: Callable[[], None], repeat: int) -> float:
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def run_python(program: str) -> str:
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return output.stdout


def imports(repeat: int) -> None:
    program = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"
    seconds: dict[str, list[float]] = {"torch": [], "rewards": []}
    for _ in range(repeat + 1):
        for module, times in seconds.items():
            times.append(float(run_python(program.format(module))))
    median = {module: statistics.median(times[1:]) for module, times in seconds.items()}
    low = {module: min(times[1:]) for module, times in seconds.items()}
    console.print(
        f"import rewards / import torch: {median['rewards'] / median['torch']:.2f} "
        f"(minima {low['rewards'] / low['torch']:.2f}); goal: {IMPORT_GOAL}"
    )


def construction(name: str) -> None:
    """Peak memory of building PickScore, over the size of its weights."""

    # Resident memory beyond what importing the same libraries takes, hence a tiny one first. Linux
    # forgets the peak so far when a 5 is written to clear_refs.
    program = """
import rewards, transformers
def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
rewards.load("pickscore", {tiny!r})
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
reward = rewards.load("pickscore", {path!r})
print(status("VmHWM") - before, sum(p.numel() * p.element_size() for p in reward.parameters()))
sum(float(p.sum()) for p in reward.parameters())
print(status("VmHWM") - before)
"""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny.write_pickscore(folder / "tiny")
        tiny.write_pickscore(folder / "large", config=architecture(name))
        output = run_python(
            program.format(tiny=str(folder / "tiny"), path=str(folder / "large"))
        ).split()
    built, weights, touched = map(int, output)
    console.print(
        f"constructing pickscore ({name}, {weights / 1e9:.2f} GB): peak {built / weights:.2f} of "
        f"its weights, {touched / weights:.2f} once all were read; goal: {MEMORY_GOAL}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, noisy figures")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch")
    parser.add_argument("--architecture", default="ViT-B-32", help="an open_clip configuration")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    parser.add_argument("--device", default=None, help="also towers on this device, such as cuda")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    repeat = 2 if arguments.quick else 7

    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, Python {platform.python_version()}\n"
    )
    throughput(arguments.architecture, repeat, arguments.size)
    recipe(arguments.architecture, repeat, arguments.size)
    if arguments.device is not None:
        towers("ViT-H-14", repeat, arguments.device, torch.bfloat16)
    else:
        towers(arguments.architecture, repeat, "cpu", torch.float32)
    imports(2 if arguments.quick else 5)
    construction(arguments.architecture)


if __name__ == "__main__":
    main()
