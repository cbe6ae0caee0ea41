"""Commands that go on after an interruption, each as a small run in a folder."""

import hashlib
import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

import backbones
import pixel_law
import preference_files
import scored_folders
from evaluations import tensors_of
from path_model import PathModel
from rewards.scoring import plan, score
from rwguidance import Bank, networks
from rwguidance.evaluation import evaluate, load_results
from rwguidance.generation import BestOfN, Store
from rwguidance.preparation import Preparation, Prepared, prepare_draws, prepare_pairs
from rwguidance.trainer import Settings, Training, fit
from rwguidance.training import EstimatedShiftObjective, train

__all__ = ["COMMANDS", "Command", "Line", "differing", "ready", "run_quietly", "whole"]


# Before any child is forked: each would import all that they need anew.
CALL = {"num_inference_steps": 1, "guidance_scale": 0.0, "height": 16, "width": 16}
PIPELINE = backbones.tiny("sdxl-turbo")
PIPELINE.set_progress_bar_config(disable=True)
PIPELINE("a", output_type="latent", **CALL)
torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).step()
importlib.import_module("accelerate")


class Line(NamedTuple):
    """One line of the table: what was done, how often, and what was wrong each time it was."""

    what: str
    tries: int
    failures: list[str]


class Command(NamedTuple):
    """A command that goes on where it stopped.

    Arguments:
        name: Its name.
        run: A function of a folder that begins the work there, or goes on.
        outcome: A function of a folder that returns what must not depend on faults.
        batch: Owner and name of the function that is called once for every batch.
        stores: Whether it keeps draws in the folder "store" beside its results.
        prepare: A function of a folder that puts there what the command reads.
    """

    name: str
    run: Callable[[Path], Any]
    outcome: Callable[[Path], dict[str, str]]
    batch: tuple[Any, str]
    stores: bool = False
    prepare: Callable[[Path], Any] = lambda root: None


class Affine(torch.nn.Module):
    """The smallest network."""

    depends_on = ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Squares:
    """An objective that says what it depends on: nothing."""

    depends_on = ()

    def __call__(self, network: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": network(torch.randn(3, 1, generator=generator)).square().mean()}


def generated(root: Path) -> None:
    pixel_law.run(
        root / "out", BestOfN(3), images=2, batch_size=1, steps=2, store=Store(root / "store")
    )


def painted(root: Path) -> None:
    images = root / "images"
    if not images.exists():
        images.mkdir()
        for i in range(6):
            Image.new("RGB", (4, 4 + i), (40 * i, 9, 9)).save(images / f"{i}.png")


def scored(root: Path) -> None:
    images = root / "images"
    (root / "out").mkdir(exist_ok=True)
    rewards = {"brightness": scored_folders.Brightness()}
    score(plan(images), rewards, root / "out" / "scores.csv", batch_size=2)


def evaluated(root: Path) -> None:
    evaluate(
        backbone=pixel_law.Law(),
        reward=pixel_law.Brightness(),
        prompts=("ab", "abcdef"),
        methods={"best of 3": BestOfN(3)},
        out=root / "out",
        strengths=(1.0,),
        images=2,
        steps=2,
        target_draws=4,
        shown=1,
        batch_size=2,
        store=Store(root / "store"),
    )


def trained(root: Path) -> torch.Tensor:
    (root / "out").mkdir(exist_ok=True)
    return train(Affine(), Squares(), 18, checkpoint=root / "out" / "run.pt", save_every=3)


def written(root: Path) -> None:
    if not (root / "a.parquet").exists():
        preference_files.pick_a_pic(root / "a.parquet")


def prepared(root: Path) -> None:
    job = preference_files.job(root / "out")
    prepare_pairs(job, [root / "a.parquet"], (16, 16))


def drawn(root: Path) -> Bank:
    store = Store(root / "store")
    return backbones.draw(PIPELINE, ["a", "b"], 2, batch_size=1, store=store, **CALL)


def pairs_of(root: Path) -> dict[str, str]:
    data = Prepared(root / "out")
    pairs = [pair for split in ("train", "validation") for pair in data.pairs(split)]
    return {str(i): str((pair.x_0.tolist(), *pair[1:])) for i, pair in enumerate(pairs)}


def gathered(root: Path) -> None:
    if not (root / "data" / "prepared.json").exists():
        job = Preparation(
            backbone=PathModel(),
            out=root / "data",
            rewards={"light": preference_files.Light()},
            validation=0.5,
        )
        prepare_draws(job, [f"a picture {i}" for i in range(6)], 8)


def fitted(root: Path) -> None:
    settings = Settings(nats=(0.3,), network="tiny", steps=6, batch_size=4, warm_up=0, average=0.9)
    job = Training(data=root / "data", out=root / "out", settings=settings, save_every=2)
    fit(job, PathModel())


def network_of(root: Path) -> dict[str, str]:
    out = root / "out"
    tensors = networks.load(out).state_dict()
    found = {name: str(value.tolist()) for name, value in tensors.items()}
    return {**found, "report": (out / "report.json").read_text()}


def files_of(root: Path) -> dict[str, str]:
    """Digests of the files in the folder of results."""

    files = sorted(path for path in (root / "out").rglob("*") if path.is_file())
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    return {path.relative_to(root).as_posix(): digest(path) for path in files}


def numbers_of(root: Path) -> dict[str, str]:
    found = tensors_of(load_results(root / "out"))
    return {str(key): str(value.tolist()) for key, value in found.items()}


def table_of(root: Path) -> dict[str, str]:
    names = {name: digest for name, digest in files_of(root).items() if "record" not in name}
    return names  # the record names the folder


COMMANDS = {
    command.name: command
    for command in (
        Command("generate", generated, files_of, (pixel_law.Law, "forward"), True),
        Command(
            "score",
            scored,
            table_of,
            (scored_folders.Brightness, "forward"),
            prepare=painted,
        ),
        Command("evaluate", evaluated, numbers_of, (pixel_law.Law, "forward"), True),
        Command(
            "train",
            trained,
            lambda root: {"losses": str(trained(root).tolist())},
            (Squares, "__call__"),
        ),
        Command(
            "fit",
            fitted,
            network_of,
            (EstimatedShiftObjective, "__call__"),
            prepare=gathered,
        ),
        Command(
            "prepare",
            prepared,
            pairs_of,
            (preference_files.Model, "encode"),
            prepare=written,
        ),
        Command(
            "draw",
            drawn,
            lambda root: {str(i): str(x.tolist()) for i, x in enumerate(drawn(root).x_0)},
            (importlib.import_module("backbones.draw")._Run, "states"),
            True,
        ),
    )
}
"""The commands."""


def ready(command: Command, root: Path) -> Path:
    """Makes a folder with what a command reads, and returns it."""

    root.mkdir(parents=True, exist_ok=True)
    command.prepare(root)
    return root


def differing(found: dict[str, str], expected: dict[str, str]) -> str:
    """Names of what is not as it should be, or nothing."""

    keys = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    return ", ".join(f"{key} ({found.get(key, 'lost')[:60]})" for key in keys[:3])


def run_quietly(command: Command, root: Path) -> None:
    """Runs a command, which may warn of what it has found."""

    ready(command, root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command.run(root)


def whole(command: Command, root: Path) -> dict[str, str]:
    """Runs a command to its end, and returns what came of it and what it has left behind."""

    run_quietly(command, root)
    found = command.outcome(root)
    left = [path for path in root.rglob("*") if path.name == ".lock" or ".partial" in path.name]
    return {**found, "left behind": json.dumps(sorted(path.name for path in left))}
