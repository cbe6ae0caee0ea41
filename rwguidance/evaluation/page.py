"""The page of an evaluation: one HTML file to send to a colleague, and its pictures as files.

The page loads nothing: styles, curves (SVG) and pictures are within it, there are no scripts, and
what users wrote is escaped. It follows the light or dark scheme of the reader.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import torch

import rwguidance

from ..statistics import mean_and_error
from ..support.files import replacing
from .curves import COLORS, Panel, draw, drawn, inline, panels_of
from .figures import TILTED
from .hacking import Companion, Verdict, verdicts
from .markup import box, grid, image, items, paragraph, section
from .measured import CLEAR, Measured
from .results import BASE, Results
from .sheet import Shown, shown, write_sheet
from .table import Section, Table

__all__ = ["write_page"]

_SIGNS = "●■◆▲▼✚"
"""Signs of the methods, in the order of the markers of the curves."""

_CURVES = {
    "strength": "Gain against strength",
    "cost": "Gain against cost",
    "aligned": "What comes with the gain",
}


def write_page(
    results: Results, table: Table, folder: Path, about: Mapping[str, str] | None = None
) -> Path:
    """Writes the page of results, curves and a contact sheet, and returns the path of the page.

    The files are ``page.html``; ``curves-strength``, ``curves-cost`` and ``curves-aligned``, as
    .svg and .png; and ``sheet.png`` if pictures were kept.

    Arguments:
        results: The results, of one prompt at least.
        table: Their table.
        folder: The folder of the files, which are replaced.
        about: Facts to state by name, such as the command and the date.

    Raises:
        ValueError: If no prompt is finished.
        ImportError: If matplotlib or Pillow is missing.
        OSError: If a file cannot be written.
    """

    if not results.prompts:
        raise ValueError("results must be of one finished prompt at least, got none")
    panels = panels_of(results, table.rows)
    for key, some in panels.items():
        if some:
            files = [folder / f"curves-{key}.{suffix}" for suffix in ("svg", "png")]
            draw(some, files, _CURVES[key])
    pictures = shown(results)
    if pictures:
        write_sheet(pictures, folder / "sheet.png")
    title = f"{results.aligned} on {results.plan.get('backbone name', 'a model')}"
    facts = {**(about or {}), "versions": _versions(results)}
    body = [
        f"<header><h1>{escape(title)}</h1>{paragraph(_size(results))}</header>",
        box(table.doubts),
        *_sections(results, table, panels, pictures),
        _provenance(results, facts),
    ]
    template = Template(resources.files(__package__).joinpath("page.html").read_text("utf-8"))
    text = template.substitute(title=escape(title), body="\n".join(filter(None, body)))
    path = folder / "page.html"
    with replacing(path) as partial:
        partial.write_bytes(text.encode())
    return path


def _sections(
    results: Results,
    figures: Table,
    panels: Mapping[str, Sequence[Panel]],
    pictures: Sequence[tuple[str, Sequence[Shown]]],
) -> list[str]:
    """Returns what was found, section by section."""

    found = verdicts(results, figures.rows)
    legend = _legend(results)
    return [
        section("What the figures say", items(one.sentence for one in found), _rules()),
        *(
            section(
                heading, legend, _panels(panels[key]), _beside(found) if key == "aligned" else ""
            )
            for key, heading in _CURVES.items()
            if panels[key]
        ),
        section("Pictures from the same noise", _sheet(pictures)),
        section("All figures", *(_table(figures, one) for one in figures.sections)),
        section("The exactly tilted law", _targets(results, figures)),
        section("What the numbers are", _definitions()),
    ]


def _size(results: Results) -> str:
    pictures = results.base.rewards[results.aligned].shape[1]
    methods = len({cell.method for cell in results.cells} - {BASE.method})
    return (
        f"{methods} methods on {len(results.prompts)} prompts, {pictures} pictures of each, from "
        "the same noise as those of the model alone. Errors are standard errors over prompts."
    )


def _rules() -> str:
    text = (
        "A method is judged at the largest strength whose target can be believed. A difference of "
        f"more than {CLEAR:g} standard errors over prompts is called clear, and only what is clear "
        "is said. A method exploits the reward if it clearly raises it while a held-out reward "
        "clearly falls, and clearly brings less of that reward with it than the exactly tilted law."
    )
    return f'<p class="soft">{escape(text)}</p>'


def _table(figures: Table, part: Section) -> str:
    """Returns a section of the table, with what it says."""

    heads, *rows = figures.cells(part.columns)
    targets = sum(row[0] == TILTED for row in rows)
    return f"<h3>{escape(part.title)}</h3>" + grid(part.sentence, heads, rows, means=targets)


def _legend(results: Results) -> str:
    """Returns which color and sign is which method."""

    signs = [
        (color, sign, label)
        for color, sign, label in zip(COLORS, _SIGNS, drawn(results), strict=False)
    ]
    signs += [("inherit", "- ◆ -", "exactly tilted law"), ("gray", "···", "the model alone")]
    entries = [
        f'<li><span style="color:{color}" aria-hidden="true">{sign}</span> {escape(label)}</li>'
        for color, sign, label in signs
    ]
    entries.append("<li>open, †: target of few effective draws</li>")
    more = len({cell.method for cell in results.cells} - {BASE.method}) - len(COLORS)
    if more > 0:
        entries.append(f"<li>{more} more methods are in the table</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _panels(panels: Sequence[Panel]) -> str:
    figures = [
        f'<figure role="img" aria-label="{escape(f"{panel.y} against {panel.x}")}">{inline(panel)}'
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
        for panel in panels
    ]
    return f'<div class="panels">{"".join(figures)}</div>'


def _beside(found: Sequence[Verdict]) -> str:
    """Returns the table of what comes with a gain, under methods and under the tilted law."""

    heads = ["method", "of", "gain", "tilted law", "gain per gain", "tilted law", "difference"]

    def line(verdict: Verdict, one: Companion, excess: Measured) -> list[str]:
        numbers = (one.gain, one.target_gain, one.slope, one.target_slope, excess)
        return [str(verdict.cell), one.name, *map(str, numbers)]

    rows = [line(verdict, one, one.excess) for verdict in found for one in verdict.held_out]
    caption = "Held-out rewards: their gain, and their gain per gain of the aligned reward."
    looks = [line(verdict, one, one.excess) for verdict in found for one in verdict.appearance]
    return (grid(caption, heads, rows) if rows else "") + (
        grid("How pictures look; the difference is that of the gains.", heads, looks)
        if looks
        else ""
    )


def _sheet(pictures: Sequence[tuple[str, Sequence[Shown]]]) -> str:
    rows = [
        f"{paragraph(prompt)}\n"
        f'<div class="scroll" tabindex="0"><div class="sheet">'
        f"{''.join(image(one.path, one.lines) for one in row)}</div></div>"
        for prompt, row in pictures
    ]
    return "\n".join(rows)


def _targets(results: Results, figures: Table) -> str:
    """Returns the table of the tilted law at its strengths."""

    names = [name for name in results.rewards if name in results.base.rewards]
    heads = ["nats", "prompts", "effective draws", "beta", *(f"{name} gain" for name in names)]
    rows = []
    for row in figures.rows:
        if row["method"] != TILTED or not row["prompts"]:
            continue
        beta = results.targets[row["nats"]].beta
        mark = "*" if row["few"] else ""
        rows.append(
            [
                f"{row['nats']:g}",
                str(row["prompts"]),
                f"{row['effective draws']:.1f}{mark}",
                str(Measured(*mean_and_error(beta[~beta.isnan()]))),
                *(str(Measured.of(row, f"{name} gain")) for name in names),
            ]
        )
    caption = "From draws of the model that no method has seen, weighted by exp(reward / beta)."
    return grid(caption, heads, rows) if rows else ""


def _definitions() -> str:
    """Returns what the columns and curves show."""

    meanings = {
        "gain": "Mean difference to the model's picture from the same noise.",
        "share": "Gain over the gain of the exactly tilted law at the same strength.",
        "wins": "Share of pictures that the aligned reward prefers to the model's; a tie is half.",
        "energy": "Energy distance of the embeddings to those of the exactly tilted law, of which "
        "0 says that the laws are equal; beside it that of the model alone.",
        "diversity": "Mean distance of the embeddings of two pictures of one prompt.",
        "nats spent": "The least divergence from the model that allows for the gain.",
        "calls, draws": "States that the network saw for a picture, and draws of the model for a "
        "prompt, whose calls come on top.",
        "high frequency": "Share of the spectral energy of luma above 0.25 cycles per pixel.",
        "clipped": "Share of the values of pixels that are 0 or 255.",
        "chroma": "Mean chroma in CIELAB.",
    }
    entries = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in meanings.items())
    return f"<dl>{''.join(entries)}</dl>"


def _versions(results: Results) -> str:
    made = results.plan.get("rwguidance", rwguidance.__version__)
    return f"rwguidance {made}; page: torch {torch.__version__}, Python {platform.python_version()}"


def _provenance(results: Results, facts: Mapping[str, str]) -> str:
    """Returns how the results were made."""

    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    plan = json.dumps(results.plan, indent=1, ensure_ascii=False, default=str)
    failures = [f"{one.prompt}: {one.place}: {one.reason}" for one in results.failures]
    details = f"<details><summary>The plan</summary><pre>{escape(plan)}</pre></details>"
    if failures:
        details += f"<details><summary>What failed</summary>{items(failures)}</details>"
    return section("How it was made", f"<dl>{listed}</dl>", details)
