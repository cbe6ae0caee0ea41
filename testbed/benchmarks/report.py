"""Tables, figures and contact sheets of what `methods.py` found."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rwguidance.generation.pictures import Cell, save_picture, save_sheet
from rwguidance.statistics import mean_and_error, ratio_and_error
from rwguidance.support.files import replacing
from rwguidance.support.randomness import generator_for
from rwguidance_testbed import metrics
from rwguidance_testbed.data import Drawings, load_names
from rwguidance_testbed.encoders import Towers

SHOWN = 1.0
"""The strength of the tables that show one, in nats."""

SHEET_ROWS = 12
NAMES = 100
COPIES = 4

console = Console(width=130)


@dataclass(frozen=True)
class Prompt:
    """What is asked for.

    Arguments:
        text: The prompt.
        name: Of the thing in it.
        part: Whether the generators learned the name: "learned" or "held out".
        real: The caption of real pictures of it: without the style, in which the thing may never
            have been drawn.
    """

    text: str
    name: str
    part: str
    real: str


@dataclass(frozen=True)
class Looks:
    """What is known of pictures, each with N rows: rewards, utilities, embeddings."""

    proxy: Tensor
    gold: Tensor
    embedding: Tensor

    def __getitem__(self, index: Any) -> "Looks":
        return Looks(self.proxy[index], self.gold[index], self.embedding[index])


@dataclass
class Column:
    """What all blocks say about one cell.

    Arguments:
        method: Its method.
        nats: Its strength.
        rows: Numbers of the prompts that it ran on.
        looks: Of their pictures.
        seconds: Of every block, per picture, without the bank.
        calls: Network calls per picture, likewise.
        bank: Draws of each prompt that it uses.
        steps: Diagnostics by name, (N, K).
    """

    method: str
    nats: float | None
    bank: int
    calls: float
    rows: list[int] = field(default_factory=list)
    looks: list[Looks] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: dict[str, list[Tensor]] = field(default_factory=dict)

    def all(self) -> Looks:
        keys = ("proxy", "gold", "embedding")
        return Looks(*(torch.cat([getattr(part, key) for part in self.looks]) for key in keys))


@dataclass(frozen=True)
class Results:
    """What was found for a case.

    Arguments:
        prompts: In the order of the rows.
        columns: By method and strength.
        targets: By strength, 0 the model itself: what is known of the tilted law, by prompt.
        draw_seconds: Of one draw of a bank, decoded and scored.
        pictures: Of the cells that are shown, of the first prompts.
    """

    prompts: Sequence[Prompt]
    columns: dict[tuple[str, float | None], Column]
    targets: dict[float, dict[str, Tensor]]
    draw_seconds: float
    pictures: dict[str, Tensor]


def read(files: Sequence[Path], prompts: Sequence[Prompt]) -> Results:
    """Puts the blocks of a case together."""

    from safetensors import safe_open

    columns: dict[tuple[str, float | None], Column] = {}
    targets: dict[float, dict[str, list[Tensor]]] = {}
    pictures: dict[str, list[Tensor]] = {}
    seconds, start = [], 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        n = len(facts["texts"])
        for key, cell in facts["cells"].items():
            place = cell["method"], cell["nats"]
            if place not in columns:
                columns[place] = Column(*place, cell["bank"], cell["calls"])
            column = columns[place]
            column.rows += range(start, start + n)
            column.looks.append(
                Looks(*(tensors[f"{key}/{part}"] for part in ("proxy", "gold", "embedding")))
            )
            column.seconds.append(cell["seconds"])
            for name in ("ess", "ess_tilted", "pareto_k"):
                if f"{key}/{name}" in tensors:
                    column.steps.setdefault(name, []).append(tensors[f"{key}/{name}"])
        for key, value in tensors.items():
            kind, *rest = key.split("/")
            if kind == "target":
                targets.setdefault(float(rest[0]), {}).setdefault(rest[1], []).append(value)
            elif kind == "pictures":
                pictures.setdefault(rest[0], []).append(value)
        seconds.append(facts["draw_seconds"])
        start += n
    joined = {
        nats: {name: torch.cat(parts) for name, parts in about.items()}
        for nats, about in targets.items()
    }
    shown = {name: torch.cat(parts) for name, parts in pictures.items()}
    return Results(prompts, columns, joined, sum(seconds) / len(seconds), shown)


def paired(after: Tensor, before: Tensor) -> tuple[float, float]:
    """Mean difference of pairs, and its standard error."""

    return mean_and_error(after.double() - before.double())


def table_of(case: str, results: Results, real: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row for each cell and part of the prompts: figures with their standard errors.

    Arguments:
        case: Name of the model.
        results: What was found.
        real: `judge` and, unless there are no drawings, the embeddings `reference` and `half` of
            real pictures.
    """

    every = [name for part in load_names().values() for name in part]
    base = results.columns["base", None].all()
    names = [prompt.name for prompt in results.prompts]
    hits = lambda embedding, rows: metrics.right(
        real["judge"], embedding, [names[i] for i in rows], every, NAMES
    )
    table = []
    if real.get("half") is not None:
        found = hits(real["half"], range(len(names)))
        quality = metrics.compare(real["half"], real["reference"], found)
        table.append({"model": case, "method": "real pictures", **figures_of(quality)})
    columns = list(results.columns.values())
    embeddings = torch.cat([column.all().embedding for column in columns])
    found_by_column = hits(embeddings, [i for column in columns for i in column.rows]).split(
        [len(column.rows) for column in columns]
    )
    base_hits = dict(zip(results.columns, found_by_column, strict=True))["base", None]
    for column, found in zip(columns, found_by_column, strict=True):
        looks = column.all()
        for part in ("all", "learned", "held out"):
            rows = [
                k for k, i in enumerate(column.rows) if part in ("all", results.prompts[i].part)
            ]
            if len(rows) < 2:
                continue
            where = [column.rows[k] for k in rows]
            row = {
                "model": case,
                "method": column.method,
                "nats": column.nats,
                "part": part,
                "prompts": len(rows),
                "proxy": float(looks.proxy[rows].mean()),
                "gold": float(looks.gold[rows].mean()),
                "right": float(found[rows].mean()),
                **_pair("proxy gain", paired(looks.proxy[rows], base.proxy[where])),
                **_pair("gold gain", paired(looks.gold[rows], base.gold[where])),
                **_pair("right gain", paired(found[rows], base_hits[where])),
            }
            if column.nats is not None:
                way = results.targets[column.nats]["proxy"] - results.targets[0.0]["proxy"]
                gain = looks.proxy[rows] - base.proxy[where]
                row |= _pair("share", ratio_and_error(gain, way[where]))
            if part == "all":
                row |= {
                    "calls": column.calls,
                    "bank": column.bank,
                    "seconds": sum(column.seconds) / len(column.seconds),
                    "bank seconds": column.bank * results.draw_seconds,
                }
                if real.get("reference") is not None:
                    row |= _distances(looks.embedding, found, where, real["reference"], len(names))
            table.append(row)
    return table


def targets_of(case: str, results: Results) -> list[dict[str, Any]]:
    """What is known of the exactly tilted law, over prompts, for each strength."""

    table = []
    mean = results.targets[0.0]
    for nats, about in sorted(results.targets.items()):
        if nats == 0:
            continue
        n = len(about["proxy"])
        bank_error = lambda name, about=about, n=n: float(about[name].square().sum().sqrt()) / n
        row = {"model": case, "nats": nats, "prompts": n}
        for name in ("proxy", "gold"):
            row |= _pair(f"{name} gain", paired(about[name], mean[name]))
            row[f"{name} gain error of the banks"] = bank_error(f"{name}_error")
        row["median ESS"] = float(about["ess"].median())
        row["median k"] = float(about["pareto_k"].nanmedian())
        row["mean beta"] = float(about["beta"].mean())
        table.append(row)
    return table


def steps_of(case: str, results: Results) -> list[dict[str, Any]]:
    """How far each step may be trusted: medians over prompts."""

    table = []
    for column in results.columns.values():
        values = {name: torch.cat(parts) for name, parts in column.steps.items()}
        if not values or bool(values["ess"].isnan().all()):
            continue
        for step in range(values["ess"].shape[1]):
            row = {"model": case, "method": column.method, "nats": column.nats, "step": step + 1}
            for name, value in values.items():
                row[name] = float(value[:, step].nanmedian())
            tilted = values["ess_tilted"][:, step]
            row["reliable"] = float(tilted.ge(5).double().where(~tilted.isnan(), math.nan).mean())
            table.append(row)
    return table


def _pair(name: str, value: tuple[float, float]) -> dict[str, float]:
    return {name: value[0], f"{name} error": value[1]}


def figures_of(quality: metrics.Quality) -> dict[str, float]:
    return {key.replace("_", " "): value for key, value in asdict(quality).items()}


def _distances(
    embedding: Tensor, found: Tensor, rows: Sequence[int], reference: Tensor, n: int
) -> dict[str, float]:
    """Distances; of some prompts only the kernel distance, which does not depend on how many."""

    if len(rows) < 4:  # there is no third neighbor
        return {}
    own = [i + n * copy for copy in range(len(reference) // n) for i in rows]
    quality = figures_of(metrics.compare(embedding, reference[own], found))
    keep = ("kernel", "kernel error") if len(rows) < n else tuple(quality)[:5]
    return {key: quality[key] for key in keep}


def load_drawings(data: Path, purpose: str) -> Drawings | None:
    """The drawings in a folder; None if there are none, and says what they are needed for."""

    try:
        return Drawings.load(data)
    except FileNotFoundError as error:
        console.print(f"[yellow]no {purpose}: {error}[/]")
        return None


def real_embeddings(
    judge: Towers, data: Path, prompts: Sequence[Prompt], drawings: Drawings | None = None
) -> dict[str, Any]:
    """The judge, and its embeddings of real pictures of the prompts if there are drawings."""

    if drawings is None:
        drawings = load_drawings(data, "distances to real pictures")
    if drawings is None:
        return {"judge": judge}
    captions = [prompt.real for prompt in prompts]
    unseen = drawings.where("judge")
    generator = generator_for(0, "real pictures")
    pictures = metrics.real_pictures(unseen, captions, 1 + COPIES, generator)
    half, reference = metrics.embed(judge, pictures).split([len(prompts), COPIES * len(prompts)])
    return {"judge": judge, "reference": reference, "half": half}


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({k: v for k, v in shown.items() if v is not None and v != "nan"})


COLUMNS = (
    ("proxy gain", 3),
    ("share", 2),
    ("gold gain", 3),
    ("right", 3),
    ("right gain", 3),
    ("kernel", 4),
    ("frechet", 3),
    ("precision", 2),
    ("recall", 2),
    ("calls", 0),
    ("seconds", 3),
    ("bank", 0),
)


SHORT = (
    ("proxy gain", 2),
    ("share", 2),
    ("gold gain", 2),
    ("right gain", 3),
    ("kernel", 4),
    ("calls", 0),
    ("bank", 0),
)
"""Of the table that the documentation has."""

PRINTED = ("proxy gain", "share", "gold gain", "right gain", "kernel", "calls", "bank")

PARTS = (("proxy", 3), ("gold", 3), ("right", 3), ("proxy gain", 3), ("gold gain", 3))


def cell_of(row: Mapping[str, Any], name: str, digits: int) -> str:
    """A figure with its standard error, as a table shows it."""

    value = row.get(name)
    if value is None:
        return ""
    error = row.get(f"{name} error")
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def shown_rows(table: Sequence[Mapping[str, Any]], nats: float) -> list[Mapping[str, Any]]:
    """Rows of all prompts at one strength, or without any."""

    whole = [row for row in table if row.get("part", "all") == "all"]
    return [row for row in whole if row.get("nats") in (None, nats)]


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, int]]) -> str:
    """A table of markdown."""

    heads = ["method", *(name for name, _ in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = [str(row["method"]), *(cell_of(row, name, digits) for name, digits in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def print_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, int]]
) -> None:
    """The same on the screen."""

    screen = Table(title=title, title_justify="left")
    for head in ("method", *(head for head, _ in columns)):
        screen.add_column(head, justify="left" if head == "method" else "right")
    for row in rows:
        cells = [cell_of(row, head, digits) for head, digits in columns]
        screen.add_row(str(row["method"]), *cells)
    console.print(screen)


def across(table: Sequence[Mapping[str, Any]], name: str, digits: int) -> str:
    """A table of markdown of one figure, a column for each strength."""

    strengths = sorted({row["nats"] for row in table if row.get("nats") is not None})
    whole = [row for row in table if row.get("part") == "all" and row["nats"] is not None]
    found = {(row["method"], row["nats"]): cell_of(row, name, digits) for row in whole}
    rule = "|" + " --- |" * (1 + len(strengths))
    lines = ["| nats | " + " | ".join(map(str, strengths)) + " |", rule]
    for method in dict.fromkeys(row["method"] for row in whole):
        cells = [found.get((method, nats), "") for nats in strengths]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


DRAWN = (
    "importance",
    "importance, first step",
    "15 % ESS",
    "pooled to 1 x 1",
    "plug-in",
    "soft best of 16",
    "network",
)
"""Methods in the figures; all are in the tables."""


def drawfigures_of(
    table: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Rewards against strength, gold against proxy and against cost, effective draws by step."""

    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9), layout="tight")
    axes: Any = figure.subplots(2, 3).flat
    whole = [row for row in table if row.get("part") == "all"]
    lines = {name: [row for row in whole if row["method"] == name] for name in DRAWN}
    lines = {name: rows for name, rows in lines.items() if rows}
    for axis, name in zip(axes, ("proxy gain", "gold gain", "right gain"), strict=False):
        for method, rows in lines.items():
            points = [row for row in rows if row["nats"] is not None]
            _curve(axis, points, "nats", name, method)
        if name != "right gain":
            _curve(axis, targets, "nats", name, "exactly tilted", "k--")
        axis.set(xlabel="strength, nats", ylabel=name, xscale="log")
        axis.set_xticks([row["nats"] for row in targets], [row["nats"] for row in targets])
        axis.minorticks_off()
        axis.axhline(0, color="gray", lw=0.5)
    axes[0].legend(fontsize=7)

    over, cost, ess_axis = axes[3], axes[4], axes[5]
    best = [row for row in whole if row["method"].startswith("best of")]
    for method, rows in {**lines, "best of n": best}.items():
        _curve(over, rows, "proxy gain", "gold gain", method)
    _curve(over, targets, "proxy gain", "gold gain", "exactly tilted", "k--")
    over.set(xlabel="proxy gain", ylabel="gold gain")
    for row in whole:
        if row["nats"] in (None, SHOWN) and row["method"] != "base":
            calls = row["calls"] + row["bank"] * row["calls"]
            cost.errorbar(calls, row["gold gain"], row["gold gain error"], fmt="o", ms=3)
            cost.annotate(row["method"], (calls, row["gold gain"]), fontsize=5)
    cost.set(xlabel="network calls of one picture and its bank", ylabel="gold gain", xscale="log")
    for method in dict.fromkeys(row["method"] for row in steps):
        points = [row for row in steps if row["method"] == method and row["nats"] == SHOWN]
        points = [row for row in points if not math.isnan(row["ess_tilted"])]
        ess_axis.plot(
            [row["step"] for row in points],
            [row["ess_tilted"] for row in points],
            "o-",
            ms=3,
            label=method,
        )
    ess_axis.axhline(5, color="gray", lw=0.5)
    ess_axis.set(xlabel="step", ylabel=f"median effective draws, {SHOWN} nats", yscale="log")
    ess_axis.legend(fontsize=6)
    figure.savefig(path, dpi=130)


def _curve(
    axis: Any, rows: Sequence[Mapping[str, Any]], x: str, y: str, label: str, style: str = "o-"
) -> None:
    axis.errorbar(
        [row[x] for row in rows],
        [row[y] for row in rows],
        [row[f"{y} error"] for row in rows],
        fmt=style,
        ms=3,
        lw=1,
        capsize=2,
        label=label,
    )


SHEET = ("base", "importance", "15 % ESS", "pooled to 1 x 1", "plug-in", "network")


def draw_sheet(results: Results, out: Path, name: str) -> None:
    """The first prompts: pictures of some methods beside the base picture, from the same noise."""

    methods = [method for method in SHEET if method in results.pictures]
    folder = out / "pictures" / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(results.prompts[:SHEET_ROWS]):
        cells = []
        for method in methods:
            if i < len(results.pictures[method]):
                path = folder / f"{i:02d}-{method.replace(' ', '-').replace('%', '')}.png"
                facts = {"prompt": prompt.text, "method": method}
                save_picture(results.pictures[method][i].float() / 255, path, facts)
                cells.append(Cell(path, method))
        rows.append((prompt.text, [cells]))
    title = f"{name}: base, and methods at {SHOWN} nats, from the same noise"
    save_sheet(rows, out / f"{name}-sheet.png", title)


def report(
    found: Mapping[str, Results], real: Mapping[str, Any], out: Path, about: str
) -> list[dict[str, Any]]:
    """Writes tables, a page fragment and figures of all models, and prints what is shown."""

    everything, all_targets, all_steps, page = [], [], [], [about]
    for name, results in found.items():
        table = table_of(name, results, real)
        targets, steps = targets_of(name, results), steps_of(name, results)
        everything += table
        all_targets += targets
        all_steps += steps
        rows = shown_rows(table, SHOWN)
        printed = [(head, digits) for head, digits in COLUMNS if head in PRINTED]
        print_table(f"{name}, {SHOWN} nats", rows, printed)
        exact = [{"method": f"{row['nats']} nats", **row} for row in targets]
        parts = [row for row in table if row.get("part") in ("learned", "held out")]
        parts = [
            {**row, "method": f"{row['method']}, {row['part']} names"}
            for row in parts
            if row["method"] in ("base", "importance", "network") and row["nats"] in (None, SHOWN)
        ]
        page += [
            f"## {name}",
            f"At {SHOWN} nats:",
            markdown(rows, COLUMNS),
            "The exactly tilted law, from the banks:",
            markdown(
                exact, (("proxy gain", 3), ("gold gain", 3), ("median ESS", 1), ("median k", 2))
            ),
            "Share of the way to the exact mean reward, by strength:",
            across(table, "share", 2),
            "Gain in gold utility, by strength:",
            across(table, "gold gain", 3),
            "Learned and held-out names:",
            markdown(
                parts,
                (("proxy", 3), ("gold", 3), ("right", 3), ("proxy gain", 3), ("gold gain", 3)),
            ),
            f"Effective draws at each step, median over prompts, {SHOWN} nats:",
            markdown(
                [
                    {**row, "method": f"{row['method']}, step {row['step']}"}
                    for row in steps
                    if row["nats"] == SHOWN and not math.isnan(row["ess"])
                ],
                (("ess", 1), ("ess_tilted", 1), ("pareto_k", 2), ("reliable", 2)),
            ),
        ]
        with replacing(out / f"{name}-shown.md") as partial:
            partial.write_text(markdown(rows, SHORT) + "\n", encoding="utf-8")
        drawfigures_of(table, targets, steps, out / f"{name}.png")
        if results.pictures:
            draw_sheet(results, out, name)
    write_csv(everything, out / "results.csv")
    write_csv(all_targets, out / "targets.csv")
    write_csv(all_steps, out / "steps.csv")
    with replacing(out / "results.md") as partial:
        partial.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    console.print(f"written to {out}")
    return everything
