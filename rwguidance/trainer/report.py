"""The report of a training: report.json with all figures, and report.html, one page to read."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor

from ..evaluation import Results, write_page, write_table
from ..evaluation.curves import Line, Panel, Point, inline
from ..evaluation.markup import box, grid, items, paragraph, section
from ..evaluation.measured import Measured
from ..evaluation.table import Table
from ..support.files import replacing
from .lengths import Lengths
from .unseen import Level

__all__ = ["Findings", "write_report"]

JSON, PAGE = "report.json", "report.html"


@dataclass(frozen=True)
class Findings:
    """What is known of a trained network.

    Arguments:
        facts: What was trained, for what and with what, by name.
        losses: The loss of every step, with shape (steps,).
        levels: Agreement with unseen banks, by strength.
        weights: Explained variance of the weights, by strength and level; of log h alone.
        lengths: What the calibration found; None without one.
        pictures: The evaluation of pictures; None without one.
        left_out: Reasons why something is not there.
        curves: Figures of unseen prompts during the training, by name and step.
    """

    facts: Mapping[str, Any]
    losses: Tensor
    levels: Mapping[float, Sequence[Level]] = field(default_factory=dict)
    weights: Mapping[float, Mapping[float, float]] = field(default_factory=dict)
    lengths: Lengths | None = None
    pictures: Results | None = None
    left_out: Sequence[str] = ()
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def doubts(self) -> list[str]:
        """Sentences that a reader should know before believing the figures."""

        levels = [(nats, one) for nats, some in self.levels.items() for one in some]
        said = [text for nats, one in levels for text in _doubts(nats, one)]
        missed = {} if self.lengths is None else self.lengths.missed
        return said + [
            f"at {nats:g} nats there is no calibration: {why}" for nats, why in missed.items()
        ]


def write_report(findings: Findings, folder: Path, pictures: Path) -> None:
    """Writes the report, and the table and the page of its pictures.

    Arguments:
        findings: The findings.
        folder: The folder of report.json and report.html.
        pictures: The folder of the pictures' evaluation.

    Raises:
        OSError: If a file cannot be written.
    """

    table = None
    if findings.pictures is not None and findings.pictures.prompts:
        table = write_table(findings.pictures, pictures)
        with suppress(ImportError):  # its table says the same without curves
            write_page(findings.pictures, table, pictures)
    texts = {PAGE: _page(findings, table, pictures.name), JSON: _json(findings, table)}
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_bytes(text.encode())


def _json(findings: Findings, table: Table | None) -> str:
    lengths = findings.lengths
    whole = {
        "facts": findings.facts,
        "loss": dict(zip(("first", "last"), _ends(findings.losses), strict=True)),
        "during the training": findings.curves,
        "agreement": {
            f"{nats:g}": [_level(level) for level in levels]
            for nats, levels in findings.levels.items()
        },
        "explained variance of weights": {
            f"{nats:g}": {f"{t:g}": value for t, value in found.items()}
            for nats, found in findings.weights.items()
        },
        "calibration": {
            f"{nats:g}": asdict(one) for nats, one in (lengths.found if lengths else {}).items()
        },
        "not calibrated": {
            f"{nats:g}": why for nats, why in (lengths.missed if lengths else {}).items()
        },
        "pictures": [] if table is None else [dict(row) for row in table.rows],
        "doubts": findings.doubts,
        "left out": list(findings.left_out),
    }
    return json.dumps(_plain(whole), indent=1, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Returns a value that JSON can hold: null in the place of NaN and of what has no end."""

    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _level(level: Level) -> dict[str, Any]:
    figures = {"cosine": level.cosine, "length": level.length, "explained": level.explained}
    found = {name: figure.value for name, figure in figures.items()}
    found |= {f"{name} error": figure.error for name, figure in figures.items()}
    plain = ("t", "raw", "ceiling", "effective", "chance")
    return {**found, **{name: getattr(level, name) for name in plain}}


def _ends(losses: Tensor) -> tuple[float, float]:
    """Returns the mean loss of the first twentieth of the steps, and of the last."""

    part = max(1, len(losses) // 20)
    return float(losses[:part].mean()), float(losses[-part:].mean())


def _doubts(nats: float, level: Level) -> list[str]:
    place = f"at {nats:g} nats, {_name(level)}"
    if level.effective < 5:
        return [
            f"{place}: {level.effective:.1f} effective draws of unseen banks, too few to know the "
            "exact shift"
        ]
    if level.chance <= 0.05:
        return []
    return [
        f"{place}: shuffled rewards agree as well in {level.chance:.0%} of the cases, so nothing "
        "shows that the network knows the reward"
    ]


def _name(level: Level) -> str:
    return "clean outputs" if math.isnan(level.t) else f"t = {level.t:.3g}"


def _page(findings: Findings, table: Table | None, pictures: str) -> str:
    title = f"Training for {findings.facts.get('reward', 'a reward')}"
    facts = [[name, str(value)] for name, value in findings.facts.items()]
    body = [
        f"<header><h1>{escape(title)}</h1></header>",
        box(findings.doubts),
        section("Unseen banks", *_agreement(findings)),
        section("Weights", _weights(findings)),
        section("Length", _calibration(findings)),
        section("Pictures of held-out prompts", *_pictures(table, pictures)),
        section("Loss", paragraph(_loss(findings.losses)), *_during(findings.curves)),
        section("What was trained", grid("", ["", ""], facts)),
        section("Left out", items(findings.left_out)) if findings.left_out else "",
    ]
    page = resources.files("rwguidance.evaluation").joinpath("page.html").read_text("utf-8")
    return Template(page).substitute(title=escape(title), body="\n".join(filter(None, body)))


_AGREEMENT = (
    "The network's shift beside the exact one, on prompts that it has not seen. Cosine, length and "
    "explained share are corrected for the noise of the banks by two halves, their errors are over "
    "prompts. As found is the cosine with that noise, the ceiling that of the two halves with each "
    "other. By chance is the share of shuffled rewards with which the network agrees as well."
)


def _agreement(findings: Findings) -> list[str]:
    if not findings.levels:
        return []
    heads = ["nats", "level", "cosine", "length", "explained", "as found", "ceiling"]
    heads += ["effective draws", "by chance"]
    rows = [
        [
            f"{nats:g}",
            _name(level),
            *map(str, (level.cosine, level.length, level.explained)),
            f"{level.raw:.2f}",
            f"{level.ceiling:.2f}",
            f"{level.effective:.1f}",
            f"{level.chance:.2f}",
        ]
        for nats, levels in findings.levels.items()
        for level in levels
    ]
    return [_curve(findings), grid(_AGREEMENT, heads, rows)]


def _curve(findings: Findings) -> str:
    """Returns the cosine against the noise level or, where there is one level, the strength."""

    levels = findings.levels
    point = lambda x, level: Point(Measured(x, 0.0), level.cosine, level.effective < 5)
    if all(len(some) == 1 for some in levels.values()):
        points = [point(nats, one) for nats, (one,) in levels.items()]
        lines = {0: Line("network", points)}
        x = "strength, nats"
    else:
        lines = {
            i: Line(f"{nats:g} nats", [point(level.t, level) for level in some])
            for i, (nats, some) in enumerate([*levels.items()][:6])
        }
        x = "time, 1 is noise"
    try:
        return inline(Panel(x, "cosine with the exact shift", "", lines, logarithmic=False))
    except ImportError:
        return ""


def _weights(findings: Findings) -> str:
    rows = [
        [f"{nats:g}", f"t = {t:.3g}", f"{value:.3f}"]
        for nats, found in findings.weights.items()
        for t, value in found.items()
    ]
    text = "Explained variance of the weights of held-out draws; 0 is what a constant has."
    return grid(text, ["nats", "level", "explained"], rows) if rows else ""


def _calibration(findings: Findings) -> str:
    if findings.lengths is None or not findings.lengths.found:
        return ""
    rows = [
        [f"{nats:g}", str(Measured(one.scale, one.error)), f"{one.gain:.3g}", f"{one.target:.3g}"]
        for nats, one in findings.lengths.found.items()
    ]
    text = (
        "The factor with which pictures of held-out prompts gain as much of the log-weight as the "
        "tilted law does; it is stored with the network. It sets the mean, not the law."
    )
    return grid(text, ["nats", "factor", "gain, nats", "target, nats"], rows)


def _pictures(table: Table | None, folder: str) -> list[str]:
    if table is None:
        return []
    parts = []
    for one in table.sections:
        heads, *rows = table.cells(one.columns)
        parts.append(grid(one.sentence or one.title, heads, rows))
    link = f'<p><a href="{escape(folder)}/page.html">Curves and pictures</a></p>'
    return [box(table.doubts), *parts, link]


def _during(curves: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Returns the curves of unseen prompts, those that were found."""

    panels = [
        Panel("step", name, "", {0: Line("network", _points(found))}, logarithmic=False)
        for name, found in curves.items()
        if found
    ]
    try:
        return [inline(panel) for panel in panels]
    except ImportError:
        return []


def _points(found: Mapping[int, float]) -> list[Point]:
    return [
        Point(Measured(float(step + 1), 0.0), Measured(value, 0.0)) for step, value in found.items()
    ]


def _loss(losses: Tensor) -> str:
    first, last = _ends(losses)
    return (
        f"{first:.4g} in the first twentieth of {len(losses):,} steps, "
        f"{last:.4g} in the last; log.csv has every step."
    )
