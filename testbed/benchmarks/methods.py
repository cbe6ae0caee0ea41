"""Every method of the core on pictures: what it gains, what it costs, and how far it is from exact.

Run `python testbed/benchmarks/methods.py`. For every prompt the model draws a bank, which all
methods and strengths share, and every method starts from the noise of the same base picture. The
strength is the divergence of the target from the model, in nats, for each prompt by itself. The
target is known from the bank: its mean reward is the self-normalized one. `share` is the part of
the way there that a method goes, on average over prompts; 1 is exact, more is overshoot.

Finished blocks of prompts are kept, and the same command goes on where it was stopped.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from block import Block, Case
from catalog import Picked, methods_of
from formatting import console
from report import report
from results import SHOWN, read
from rich.progress import Progress
from tables import real_embeddings

import backbones
import rewards
from rwguidance.networks import LatentShift
from rwguidance.networks import load as load_network
from rwguidance.support.files import replacing
from rwguidance.support.randomness import seeded
from rwguidance_testbed import encoders, flow, shipped, vae
from rwguidance_testbed.data import SIZE, Drawing, Drawings, load_names
from rwguidance_testbed.network import FILE as NETWORK_FILE
from rwguidance_testbed.prompt_sets import Prompt, prompts_of
from rwguidance_testbed.tokenizer import train_tokenizer

SHIPPED_NETWORKS = {"emoji-turbo": "emoji-turbo-guide"}


def run_case(
    case: Case, prompts: Sequence[Prompt], out: Path, block: int, restart: bool, progress: Progress
) -> list[Path]:
    """Runs all blocks of a case that are not there yet, and returns the files of all.

    Raises:
        ValueError: If the folder holds blocks of other settings.
    """

    from safetensors.torch import save_file

    folder = out / "blocks" / case.name
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(case.settings(prompts, block)))
    label = folder / "settings.json"
    if label.exists() and not restart:
        found = json.loads(label.read_text(encoding="utf-8"))
        differ = [key for key in settings if found.get(key) != settings[key]]
        if differ:
            raise ValueError(
                f"{folder} holds results of other settings: {', '.join(differ)} differ; write "
                "elsewhere with --out, or replace them with --restart"
            )
    elif restart:
        for path in folder.glob("*.safetensors"):
            path.unlink()
    with replacing(label) as partial:
        partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")

    parts = [prompts[start : start + block] for start in range(0, len(prompts), block)]
    files = [folder / f"{number:04d}.safetensors" for number in range(len(parts))]
    cells = lambda number: (
        2 + sum(len(method.strengths) for method in case.methods if not number % method.every)
    )
    work = [cells(number) * len(part) for number, part in enumerate(parts)]
    task = progress.add_task(case.name, total=sum(work))
    for number, (part, path) in enumerate(zip(parts, files, strict=True)):
        if path.exists():
            progress.advance(task, work[number])
            continue
        one = Block(case, part, number)
        n = len(part)
        one.run(lambda n=n: progress.advance(task, n))
        tensors = {key: value.contiguous() for key, value in one.tensors.items()}
        with replacing(path) as partial:
            save_file(tensors, partial, {"facts": json.dumps(one.facts)})
    return files


def split_name(text: str) -> tuple[str, str | None]:
    """Returns name and path of ``NAME[=PATH]``."""

    name, _, path = text.partition("=")
    return name, path or None


def load_cases(arguments: argparse.Namespace) -> list[Case]:
    """Returns the cases that were asked for, with trained models."""

    import diffusers

    diffusers.logging.set_verbosity_error()
    if arguments.judge is None:
        judge = shipped.judge()
    else:
        judge = encoders.read("judge", Path(arguments.judge)).eval().requires_grad_(False)
    reward_name, path = split_name(arguments.reward)
    reward = rewards.load(reward_name, path)
    networks = dict(map(split_name, arguments.network))
    for name, guide in SHIPPED_NETWORKS.items():
        if reward_name == "emoji-pick" and guide in shipped.names():
            networks.setdefault(name, str(shipped.folder(guide) / NETWORK_FILE))
    cases = []
    for text in arguments.backbone or ["emoji-flow", "emoji-turbo"]:
        name, path = split_name(text)
        backbone = backbones.load(name, path)
        dtype = getattr(torch, arguments.decoder)
        backbone.pipe.vae.to(dtype=dtype, memory_format=torch.channels_last)
        steps = arguments.steps or len(backbone.times()) - 1
        network = networks.get(name)
        methods = methods_of(
            steps, network=None if network is None else load_network(network).float()
        )
        cases.append(Case(name, backbone, reward, judge, methods, steps, seed=arguments.seed))
    return cases


def smoke_cases(folder: Path) -> tuple[list[Case], Drawings]:
    """Returns cases of tiny models with random weights, and drawings of colored squares."""

    every = [name for part in load_names().values() for name in part]
    pixels = torch.zeros(len(every), 4, SIZE, SIZE, dtype=torch.uint8)
    for i in range(len(every)):
        pixels[i, 3, 20:60, 20:60] = 255
        pixels[i, :3, 20:60, 20:60] = torch.tensor([i, 255 - i, 37 * i % 256]).byte()[:, None, None]
    drawings = Drawings([Drawing(n, "noto", "x", "y", (), "judge") for n in every], pixels)
    tokenizer = train_tokenizer(every, folder, 700)
    judge, proxy = (encoders.new(kind, folder, smoke=True) for kind in ("judge", "pick"))
    proxy.write(folder / "pick")
    reward = rewards.load("pickscore", folder / "pick")
    pipe = flow.new(vae.new(smoke=True), tokenizer, smoke=True)
    shifted = pipe.scheduler.from_config(pipe.scheduler.config, shift=3.0)
    pipe.register_modules(scheduler=shifted)
    turbo = backbones.tiny("sdxl-turbo")
    options = {
        "flow": (backbones.from_pipeline(pipe, height=64, width=64, max_sequence_length=1), 4),
        "turbo": (backbones.from_pipeline(turbo, height=32, width=32), 1),
    }
    cases = []
    for name, (backbone, steps) in options.items():
        with seeded(0):
            network = LatentShift(backbone.channels, backbone.schedule, None, [32])
        methods = methods_of(steps, 4, 8, 12, 2, network if steps == 1 else None)
        methods = [method for method in methods if not isinstance(method, Picked) or method.n <= 8]
        backbone.requires_grad_(False)
        cases.append(Case(name, backbone, reward, judge, methods, steps, 8, 12, 2, 0, (SHOWN,)))
    return cases, drawings


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command."""

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    shipped_one = "default: the shipped one"
    add("--backbone", action="append", metavar="NAME[=FOLDER]", help="emoji-flow, emoji-turbo")
    add("--reward", default="emoji-pick", metavar="NAME[=PATH]", help="what is aligned to")
    add("--judge", default=None, metavar="FOLDER", help=f"the judge; {shipped_one}")
    add("--network", action="append", default=[], metavar="NAME=FILE", help=shipped_one)
    add("--steps", type=int, default=None, help="of the sampler; default: each backbone's own")
    add("--prompts", type=int, default=200)
    add("--block", type=int, default=8, help="prompts that are sampled at once")
    add("--seed", type=int, default=0)
    add("--data", type=Path, default=Path("out/testbed"), help="folder of the drawings")
    add("--out", type=Path, default=Path("out/testbed-results"))
    add("--decoder", choices=("bfloat16", "float32"), default="bfloat16", help="its precision")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--restart", action="store_true", help="replace results of other settings")
    add("--smoke", action="store_true", help="tiny models, in seconds")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark, and returns its table."""

    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    drawings = None
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            cases, drawings = smoke_cases(Path(folder))
    else:
        cases = load_cases(arguments)
    prompts = prompts_of(arguments.prompts, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with Progress(console=console) as progress:
        files = {
            case.name: run_case(
                case, prompts, arguments.out, arguments.block, arguments.restart, progress
            )
            for case in cases
        }
    found = {name: read(paths, prompts) for name, paths in files.items()}
    real = real_embeddings(cases[0].judge, arguments.data, prompts, drawings)
    about = (
        f"{len(prompts)} prompts, seed {arguments.seed}, decoder in {arguments.decoder}; "
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}."
    )
    table = report(found, real, arguments.out, about)
    console.print(f"{time.perf_counter() - start:.0f} seconds")
    return table


if __name__ == "__main__":
    main()
