"""Methods, their trials and budgets, and the cells of the comparison, kept as they end."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from rwguidance import networks
from rwguidance.generation import BestOfN, Network, NoiseGradient, Pool, Resample
from rwguidance.support.files import replacing
from rwguidance.support.randomness import generator_for

from . import finetune, learned
from .bed import Bed, Maker
from .counting import Spent, spent

__all__ = ["METHODS", "Cell", "Entry", "weights_of", "write_json"]

Trial = Mapping[str, Any]

SHIPPED, STEPS, STATES = 400 * 48, 4000, 96
"""Draws, steps and states of a step in the training of the network that comes with the test bed."""


@dataclass(frozen=True)
class Entry:
    """A method of the comparison.

    Arguments:
        group: "fine-tuner", "ours" or "existing".
        trials: Settings that are tried on development prompts, two for every method.
        part: "finetune", "learned", "shipped" or "draws".
        kind: What that part calls it.
        of_bank: Whether a budget is the number of draws of a bank, and not of pictures that the
            training makes itself.
    """

    group: str
    trials: tuple[Trial, Trial]
    part: str
    kind: str = ""
    of_bank: bool = False

    def budgets(self, asked: Sequence[int]) -> list[int]:
        """Returns the budgets of a curve; a method without training has one, of no pictures."""

        if self.part in ("draws", "shipped"):
            return [SHIPPED if self.part == "shipped" else 0]
        return [4 * n for n in asked[-2:]] if self.of_bank else list(asked)


METHODS: dict[str, Entry] = {
    "LoRA proximal": Entry(
        "fine-tuner",
        ({"near": 0.05, "rate": 1e-3}, {"near": 0.1, "rate": 1e-3}),
        "finetune",
        "draft",
    ),
    "LoRA": Entry("fine-tuner", ({"rate": 1e-4}, {"rate": 3e-4}), "finetune", "draft"),
    "gradient": Entry("ours", ({}, {"steps": 1200}), "learned", "gradient"),
    "output network": Entry(
        "ours", ({"loose": 1.0}, {"loose": 10.0, "calibrate": False}), "learned", "output"
    ),
    "noise network": Entry("ours", ({"strength": 1.0}, {"strength": 2.0}), "learned", "noise"),
    "best of n": Entry("existing", ({"n": 3}, {"n": 4}), "draws", "best"),
    "pool": Entry("ours", ({"bank": 32}, {"bank": 48}), "draws", "pool"),
    "resample": Entry("ours", ({"bank": 32}, {"bank": 48}), "draws", "resample"),
    "noise gradient": Entry(
        "existing", ({"size": 0.65, "bank": 32}, {"size": 1.0, "bank": 32}), "draws", "noise"
    ),
    "recommended": Entry(
        "ours",
        ({"learning_rate": 5e-4}, {"learning_rate": 2e-3}),
        "learned",
        "recommended",
        of_bank=True,
    ),
    "recommended, 19,200 draws": Entry("ours", ({"scale": 1.0}, {"scale": 2.0}), "shipped"),
    "ReNO": Entry("existing", ({"rate": 1.0}, {"rate": 5.0}), "draws", "reno"),
    "Diffusion-DPO": Entry(
        "fine-tuner",
        ({"beta": 0.02, "rate": 3e-4, "times": "run"}, {"beta": 0.2, "rate": 3e-4, "times": "run"}),
        "finetune",
        "dpo",
    ),
    "weighted regression": Entry(
        "fine-tuner",
        ({"rate": 3e-4, "times": "run"}, {"rate": 3e-4, "times": "uniform"}),
        "finetune",
        "weighted",
    ),
    "paper": Entry(
        "ours",
        ({"learning_rate": 1e-4}, {"learning_rate": 1e-3}),
        "learned",
        "paper",
        of_bank=True,
    ),
}
"""Methods by name, those first whose comparison matters most."""


def _draws(kind: str, trial: Trial) -> Maker:
    from ..rivals.pictures import ReNO

    if kind == "best":
        return Maker(BestOfN(trial["n"]))
    if kind in ("pool", "resample"):
        return Maker((Pool if kind == "pool" else Resample)(kl=1.0, bank=trial["bank"]))
    if kind == "reno":
        return Maker(ReNO(kl=1.0, iterations=8, rate=trial["rate"]))
    return Maker(NoiseGradient(kl=1.0, moves=1, **trial))


def _shipped(bed: Bed) -> Spent:
    """Returns what the training of the network that comes with the test bed took."""

    network: Any = networks.load("emoji-turbo-guide")
    condition = bed.backbone.condition(bed.training_prompts[:1])
    x, t = bed.backbone.draw_noise(1, generator_for(0, "cost")), bed.times[:1]
    step = spent(lambda: network.train().requires_grad_()(x, t, condition).sum().backward())
    return bed.draw * SHIPPED + step * (STEPS * STATES)


def weights_of(
    bed: Bed, folder: Path, name: str, trial: Trial, budgets: Sequence[int], seed: int
) -> Iterator[tuple[int, Callable[[], Maker], Spent]]:
    """Gives for each budget how pictures are made and what the training took, trained if need be.

    Arguments:
        bed: The test bed.
        folder: Folder in which weights are kept.
        name: Name of the method.
        trial: Settings.
        budgets: Budgets, ascending.
        seed: Seed of the training.
    """

    entry = METHODS[name]
    if entry.part == "draws":
        yield 0, lambda: _draws(entry.kind, trial), Spent()
        return
    if entry.part == "shipped":
        load = lambda: networks.load("emoji-turbo-guide")
        yield SHIPPED, lambda: Maker(Network(load(), scale=trial["scale"])), _shipped(bed)
        return
    place = lambda n: folder / f"{_key(name, trial, n, seed)}.safetensors"
    if not all(place(n).is_file() for n in budgets):
        train = finetune.fine_tuned if entry.part == "finetune" else learned.trained
        folder.mkdir(parents=True, exist_ok=True)
        for n, weights, cost in train(bed, entry.kind, trial, budgets, seed):
            with replacing(place(n)) as partial:
                save_file(weights, partial, {"spent": json.dumps(asdict(cost))})
    for n in budgets:
        with safe_open(place(n), "pt") as file:
            cost = Spent(**json.loads(file.metadata()["spent"]))
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        make = (
            (lambda weights=weights: finetune.maker_of(bed, weights))
            if entry.part == "finetune"
            else (lambda weights=weights: learned.maker_of(bed, entry.kind, trial, weights))
        )
        yield n, make, cost


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Cell:
    """A method's pictures of one split of prompts.

    Arguments:
        method: Name of the method; "base" is the model alone.
        trial: Settings.
        budget: Number of pictures or draws of the training.
        seed: Seed of training, noise and method.
        split: "development" or "report".
        prompts: Number of prompts.
        images: Number of pictures of each.
        draws: Number of draws of the target of each.
    """

    method: str
    trial: Mapping[str, Any]
    budget: int
    seed: int
    split: str
    prompts: int
    images: int
    draws: int

    def file(self, folder: Path) -> Path:
        return folder / "cells" / f"{_key(vars(self))}.json"

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Returns the row of the cell, if it was made."""

        path = self.file(folder)
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def write(self, folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps what was found of the cell, and returns its row."""

        row = {**vars(self), **found}
        write_json(self.file(folder), row)
        return row

    def picture(self, folder: Path) -> Path:
        """Returns the file of what a picture of the method takes."""

        return folder / "pictures" / f"{_key(self.method, self.trial)}.json"


def write_json(path: Path, value: Any) -> None:
    """Writes a value to a file, whole or not at all; makes the folder."""

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(value), encoding="utf-8")
