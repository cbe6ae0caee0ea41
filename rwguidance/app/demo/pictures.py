"""Pictures: small text-to-image models, aligned with a reward that was learned from preferences.

The reward is a proxy: preferences were drawn by a gold utility, and so one sees what alignment with
the one does to the other, and to the utility's prompt term alone, the match. All figures are those
of :func:`rwguidance.evaluation.evaluate`, which holds every method against the exactly tilted law.
"""

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...backbone import Backbone
from ...evaluation import BASE, Results, evaluate
from ...evaluation.judges import Embedding
from ...evaluation.table import Table
from ...generation import Method, Store
from ...generation.console import Terminal
from ...support.files import replacing
from ...support.image_files import opened
from ...tilt import RewardFunction

if TYPE_CHECKING:
    from rich.table import Table as Grid

__all__ = ["Case", "Pairs", "Settings", "Task", "align", "run", "write_csv"]

_ABOUT = (
    "Base: means. Others: gains over base from the same noise, ± standard error over prompts. "
    "Proxy: the learned reward. Gold: what it was learned from. Share: of the exactly tilted law's "
    "gain. Energy: distance to that law in the judge's embedding, times 100. Calls of the network: "
    "per picture, + per prompt for draws that its pictures share."
)

_FIGURES = ("proxy", "gold", "match", "judge energy")


@dataclass(frozen=True)
class Settings:
    """How much is drawn.

    Arguments:
        images: Number of pictures per prompt and method.
        nats: Strength, in nats.
        target: Number of draws per prompt that stand for the tilted law.
        batch: Number of pictures that are drawn at once.
    """

    images: int = 4
    nats: float = 1.0
    target: int = 144
    batch: int = 64


@dataclass(frozen=True)
class Case:
    """A model and how it is aligned.

    Arguments:
        name: Name of the model.
        backbone: The model.
        steps: Steps of its sampler.
        methods: Methods by label; the sheet shows the first.
    """

    name: str
    backbone: Backbone
    steps: int
    methods: Mapping[str, Method]


@dataclass(frozen=True)
class Task:
    """What is asked for, and what says how good it became.

    Arguments:
        prompts: Prompts.
        proxy: Reward to which the models are aligned.
        gold: Utility by which preferences were drawn.
        match: The prompt's term of it alone.
        judge: Embedding in which laws are compared.
    """

    prompts: Sequence[str]
    proxy: RewardFunction
    gold: RewardFunction
    match: RewardFunction
    judge: Embedding


@dataclass(frozen=True)
class Pairs:
    """Pictures from the same noise, with shape (P, images, 3, H, W)."""

    model: str
    base: Tensor
    aligned: Tensor


def run(
    cases: Sequence[Case], task: Task, out: Path, settings: Settings | None = None, seed: int = 0
) -> list[Path]:
    """Runs the demo on pictures and returns the files it wrote: a contact sheet and a table.

    A folder of each model beside them has what :func:`rwguidance.evaluation.evaluate` wrote, so
    that a demo that was stopped goes on.

    Arguments:
        cases: The models.
        task: The prompts, and what says what is good.
        out: Folder to write to; made if missing.
        settings: How much is drawn; None is the default.
        seed: Seed of everything.

    Raises:
        RuntimeError: If a picture or a figure of it could not be made.
    """

    from rich.console import Console

    from .figures import draw_pictures

    settings = settings or Settings()
    console, started = Console(), time.perf_counter()
    tables, lines, pairs = dict[str, Table](), list[dict[str, Any]](), []
    for case in cases:
        results = align(case, task, out, settings, seed)
        tables[case.name] = Table.of(results)
        lines += _lines(case, tables[case.name], settings.images)
        pairs.append(_pairs(case, results))
    files = [out / "emoji.png", out / "emoji.csv"]
    draw_pictures(task.prompts, pairs, files[0])
    write_csv(files[1], lines)
    console.print(
        f"{len(task.prompts)} prompts, {settings.images} pictures each, {settings.nats:g} nats. "
        f"{_ABOUT}",
        highlight=False,
    )
    console.print(_grid(lines))
    for name, table in tables.items():
        for sentence in table.sentences:
            console.print(f"{name}: {sentence}", highlight=False, markup=False)
    console.print(f"done in {time.perf_counter() - started:.0f} s; look at")
    for path in files:
        console.print(f"  {path}", soft_wrap=True)
    return files


def align(case: Case, task: Task, out: Path, settings: Settings, seed: int) -> Results:
    """Returns the results of a model's methods on the prompts of a task; see :func:`run`."""

    terminal = Terminal()
    # Expected after the first step, and what comes of it is in the table.
    with terminal.warnings(), terminal.bars() as report:
        results = evaluate(
            case.backbone,
            task.proxy,
            task.prompts,
            out / case.name,
            case.methods,
            aligned="proxy",
            held_out={"gold": task.gold, "match": task.match},
            embeddings={"judge": task.judge},
            strengths=(settings.nats,),
            images=settings.images,
            seeds=(seed,),
            steps=case.steps,
            batch_size=settings.batch,
            target_draws=settings.target,
            shown=len(task.prompts),
            restart=True,
            store=Store(out / "draws"),
            report=report,
        )
    for failure in results.failures:
        raise RuntimeError(f"{case.name}, {failure.place}, {failure.prompt}: {failure.reason}")
    return results


def _pairs(case: Case, results: Results) -> Pairs:
    """Returns the first picture of every prompt, by the model and by the first method."""

    first = next(cell for cell in results.cells if cell != BASE)
    base, aligned = (
        torch.stack([_read(files[number]) for number in range(len(results.prompts))])[:, None]
        for files in (results.cells[cell].files for cell in (BASE, first))
    )
    return Pairs(case.name, base, aligned)


def _read(path: Path) -> Tensor:
    """Returns a picture in [0, 1], with shape (3, H, W)."""

    import numpy as np

    with opened(path) as image:
        levels = np.array(image.convert("RGB"))
    return torch.from_numpy(levels).permute(2, 0, 1) / 255


def _lines(case: Case, table: Table, images: int) -> list[dict[str, Any]]:
    """Returns the rows of a model as the table on disk has them.

    A figure of the base, and any energy distance, is itself; others are gains over the base. Calls
    of the network and seconds are those of a picture; those of draws that all pictures of a prompt
    share are stated beside them, once per prompt.
    """

    lines = []
    for row in table.rows:
        line: dict[str, Any] = {"model": case.name, "method": row["method"]}
        for name in _FIGURES:
            plain = row["method"] == BASE.method or name == "judge energy"
            kept = name if plain else f"{name} gain"
            line |= {name: row.get(kept, ""), f"{name} error": row.get(f"{kept} error", "")}
        line |= {key: row.get(key, "") for key in ("share", "share error", "few")}
        method = case.methods.get(row["method"])
        streams = [] if method is None else method.streams(images)
        shares = any(one.number == 1 and one.n for one in streams)
        for name in ("calls", "seconds"):
            all_ = row.get(f"{name} with draws", 0.0)
            line[name] = row[name] if shares else all_
            line[f"shared {name}"] = images * (all_ - line[name])
        lines.append(line)
    for row in (row for row in table.rows if "judge base energy" in row):
        lines[0]["judge energy"] = row["judge base energy"]  # from the target of the methods
        lines[0]["judge energy error"] = row["judge base energy error"]
    return lines


def _grid(lines: Sequence[Mapping[str, Any]]) -> "Grid":
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    for name in ("proxy", "share", "gold", "energy", "calls"):
        grid.add_column(name, justify="right", no_wrap=True)
    model = None
    for line in lines:
        if line["model"] != model:
            model = line["model"]
            grid.add_section()
            grid.add_row(f"[bold]{model}[/bold]")
        star = "*" if line["few"] else ""
        shared = f" + {line['shared calls']:.0f}" if line["shared calls"] else ""
        grid.add_row(
            line["method"],
            _with_error(line, "proxy", 2),
            _with_error(line, "share", 2, star=star),
            _with_error(line, "gold", 2),
            _with_error(line, "judge energy", 0, 100, star),
            f"{line['calls']:.0f}{shared}" if line["calls"] else "",
        )
    return grid


def _with_error(
    line: Mapping[str, Any], name: str, digits: int, factor: float = 1.0, star: str = ""
) -> str:
    value, error = line[name], line[f"{name} error"]
    if value == "":
        return ""
    return f"{factor * value:.{digits}f} ± {factor * error:.{digits}f}{star}"


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows with the same keys as comma-separated values."""

    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
