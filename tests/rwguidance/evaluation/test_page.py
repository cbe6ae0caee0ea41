"""The page of an evaluation: what is in it, that it loads nothing, and that a browser shows it."""

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image

from rwguidance.evaluation.curves import COLORS, Measured, drawn, inline, panels_of
from rwguidance.evaluation.figures import rows_of
from rwguidance.evaluation.page import _legend, _provenance, write_page
from rwguidance.evaluation.results import BASE, Cell
from rwguidance.evaluation.sheet import shown
from rwguidance.evaluation.table import Table
from synthetic_results import shift_of, synthetic

EVIL = '<script>alert("&")</script> $x_{1}$'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
ABOUT = {"command": f"rwguidance evaluate --prompt '{EVIL}'", "date": "2026-05-06"}


def looks(pictures):
    """Pictures with numbers of their appearance, too."""

    x = next(iter(pictures.embeddings.values()))
    rewards = {**pictures.rewards, "chroma": x[..., 1]}
    return replace(pictures, rewards=rewards)


def results_of(**options):
    axis = torch.eye(4, dtype=torch.float64)[0]
    methods = {
        "exact": lambda x, nats: x + shift_of(nats) * axis,
        EVIL: lambda x, nats: x + 2 * shift_of(nats) * axis,
    }
    # Of 150 draws, 91 are effective at a quarter of a nat, and 3 at 2 nats.
    options = {"prompts": 4, "draws": 150, "strengths": (0.25, 2.0), "shifts": methods} | options
    found = synthetic(**options)
    return replace(
        found,
        cells={cell: looks(pictures) for cell, pictures in found.cells.items()},
        draws=[looks(draws) for draws in found.draws],
    )


def with_pictures(results, folder):
    """Results of whose first two prompts a picture of every cell was kept."""

    def kept(number, pictures):
        files = {}
        for prompt, side in ((0, 32), (1, 400)):
            files[prompt] = folder / f"{number}-{prompt}.png"
            Image.new("RGB", (side, side), COLORS[number % 6]).save(files[prompt])
        return replace(pictures, files=files)

    cells = {cell: kept(i, one) for i, (cell, one) in enumerate(results.cells.items())}
    return replace(results, cells=cells)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = results_of()
    best = {Cell("best of 4"): found.cells[Cell("exact", 0.25)]}
    found = replace(
        found,
        prompts=[EVIL, *found.prompts[1:]],
        plan={"backbone name": EVIL, "developed on": ["prompt 1"]},
        failures=[replace(found.failures[0], reason=EVIL)],
        cells={**found.cells, **best},
    )
    return with_pictures(found, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def table(results):
    return Table.of(results)


@pytest.fixture(scope="module")
def page(results, table, tmp_path_factory):
    return write_page(results, table, tmp_path_factory.mktemp("page"), ABOUT)


class Reader(HTMLParser):
    """Tags, attributes and text; asserts that what is opened is closed."""

    void = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_loads_nothing_and_runs_nothing(page):
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.tags & {"script", "link", "iframe", "object", "base", "form"}
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|javascript:", text)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,"))


def test_what_users_wrote_is_escaped_and_there(page):
    # As method, prompt, backbone, reason and command; of curves, which are SVG, too.
    shown = "".join(Reader(page.read_text(encoding="utf-8")).text)
    assert shown.count(EVIL) > 8
    assert f"emoji on {EVIL}".replace("emoji", "aligned") in shown
    assert ABOUT["command"] in shown
    assert "2026-05-06" in shown


def test_letters_of_any_language_are_shown_as_they_are():
    results = SimpleNamespace(plan={"developed on": ["ein Fuß", "猫"]}, failures=[])
    text = html.unescape(_provenance(results, {}))
    assert '"ein Fuß",\n  "猫"' in text


def test_labels_in_curves_are_escaped(results, table):
    (panel, *_) = panels_of(results, table.rows)["strength"]
    svg = inline(replace(panel, y=EVIL))
    assert "<script" not in svg
    assert EVIL in "".join(Reader(svg).text)


def test_every_figure_of_the_table_is_on_the_page(page, table):
    shown = "".join(Reader(page.read_text(encoding="utf-8")).text)
    for section in table.sections:
        for line in table.cells(section.columns):
            assert all(text in shown for text in line)
        assert section.sentence in shown
    for doubt in table.doubts:
        assert doubt in shown
    assert "rests on" in shown  # too few draws at 2 nats
    assert "held-out reward clearly falls" in shown


def test_rows_of_the_tilted_law_are_set_apart(page, table):
    text = page.read_text(encoding="utf-8")
    for section in table.sections:
        _, _, part = text.partition(f"<h3>{html.escape(section.title)}</h3>")
        apart = part.partition("</table>")[0].count('<tr class="mean">')
        assert apart == sum(row[0] == "tilted law" for row in table.cells(section.columns))
    assert text.count('<tr class="mean">') > 0


def test_the_page_says_at_which_beta_and_from_how_many_draws_targets_are(page, table):
    shown = "|".join(Reader(page.read_text(encoding="utf-8")).text)
    targets = [row for row in table.rows if row["method"] == "tilted law" and row["prompts"]]
    assert targets
    for row in targets:
        mark = "*" if row["few"] else ""
        line = f"{row['nats']:g}|{row['prompts']}|{row['effective draws']:.1f}{mark}|"
        assert line in shown


def test_files_beside_the_page(page):
    there = {path.name for path in page.parent.iterdir()}
    curves = {f"curves-{k}.{s}" for k in ("strength", "cost", "aligned") for s in ("svg", "png")}
    assert there == {"page.html", "sheet.png", *curves}
    for name in curves:
        if name.endswith("png"):
            pixels = numpy.asarray(Image.open(page.parent / name).convert("L"))
            assert pixels.min() < 50
            assert pixels.max() == 255


def test_curves_are_the_figures_of_the_table(results, table):
    panels = panels_of(results, table.rows)
    of = lambda method, nats: next(
        row for row in table.rows if (row["method"], row["nats"]) == (method, nats)
    )
    gains = [f"gain in {name}" for name in ("aligned", "follows", "falls")]
    assert [panel.y for panel in panels["strength"]] == [
        *gains, "share of the target's gain", "energy distance in itself"
    ]  # fmt: skip
    share = next(panel for panel in panels["strength"] if panel.y.startswith("share"))
    assert share.level == 1
    # The best of 4 has no strength.
    assert [line.label for line in share.lines.values()] == ["exact", EVIL]
    for line in share.lines.values():
        for point, nats in zip(line.points, results.strengths, strict=True):
            assert point.x.value == nats
            assert point.y == Measured.of(of(line.label, nats), "share")
            assert point.few == (nats == 2.0)
    gain = panels["strength"][0]
    assert gain.reference.points[0].y == Measured.of(of("tilted law", 0.25), "aligned gain")
    energy = panels["strength"][-1]
    assert energy.base.points[1].y == Measured.of(of("exact", 2.0), "itself base energy")
    cost = panels["cost"][0]
    assert cost.lines[2].label == "best of 4"
    heads = ["gain in aligned", "share of the target's gain", "energy distance in itself"]
    assert [panel.y for panel in panels["cost"]] == heads
    assert cost.lines[0].points[0].x.value == of("exact", 0.25)["calls with draws"]
    beside = {panel.y: panel for panel in panels["aligned"]}
    assert list(beside) == ["gain in " + name for name in ("follows", "falls", "chroma")]
    model, first, _ = beside["gain in falls"].reference.points
    assert model == (Measured(0, 0), Measured(0, 0), False)
    assert first.y == Measured.of(of("tilted law", 0.25), "falls gain")


def test_a_panel_has_six_methods_and_the_page_says_how_many_more():
    methods = {f"m{i}": lambda x, nats: x for i in range(8)}
    results = results_of(shifts=methods, prompts=2, strengths=(0.25,))
    assert drawn(results) == [f"m{i}" for i in range(len(COLORS))]
    panels = panels_of(results, rows_of(results))
    assert all(len(panel.lines) == 6 for some in panels.values() for panel in some)


@pytest.mark.parametrize(("methods", "more"), [(6, ""), (7, "1 more"), (9, "3 more")])
def test_the_legend_counts_methods_beyond_its_colors(methods, more):
    cells = {BASE: None, **{Cell(f"m{i}", nats): None for i in range(methods) for nats in (1, 2)}}
    legend = _legend(SimpleNamespace(cells=cells))
    assert ("more methods are in the table" in legend) == bool(more)
    assert f"<li>{more} methods" in legend or not more
    assert [f"m{i}" in legend for i in range(methods)] == [i < 6 for i in range(methods)]


def test_the_sheet_has_one_strength_and_the_rewards_of_the_picture_shown(results):
    (prompt, row), _ = shown(results)
    assert prompt == EVIL
    cells = [BASE, Cell("exact", 0.25), Cell(EVIL, 0.25), Cell("best of 4")]
    assert [one.cell for one in row] == cells
    for one in row:
        rewards = results.cells[one.cell].rewards
        assert one.rewards == {name: float(rewards[name][0, 0]) for name in results.rewards}
        assert one.lines[1] == f"aligned {one.rewards['aligned']:.3g}"


def nothing(results):
    nan = lambda one: {name: torch.full_like(x, math.nan) for name, x in one.items()}
    failed = replace(
        results.cells[Cell("exact", 0.25)],
        **{key: nan(getattr(results.base, key)) for key in ("rewards", "embeddings", "costs")},
    )
    return replace(results, cells={**results.cells, Cell("exact", 0.25): failed})


BARE = {"draws": [None] * 3, "embeddings": (), "rewards": ("aligned",)}


def free(results):
    """Results of which a method cost no calls, such as pictures from elsewhere."""

    cell = Cell("exact", 0.25)
    costs = {name: torch.zeros_like(x) for name, x in results.base.costs.items()}
    cells = {cell: replace(results.cells[cell], costs=costs)}
    return replace(results, cells={BASE: results.base, **cells}, **BARE)


POOR = {
    "a method that cost nothing": free,
    "a cell that failed": lambda found: nothing(replace(found, **BARE | {"draws": found.draws})),
    "no targets, held-out rewards and embeddings": lambda found: replace(found, **BARE),
    "no strengths": lambda found: replace(
        found, strengths=(), cells={BASE: found.base, Cell("best"): found.base}, **BARE
    ),
    "the base alone": lambda found: replace(found, cells={BASE: found.base}),
}


@pytest.mark.parametrize("what", POOR)
def test_a_page_of_poor_results(what, tmp_path):
    results = POOR[what](results_of(prompts=3, images=2, draws=60))
    text = write_page(results, Table.of(results), tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b", "".join(Reader(text).text), re.IGNORECASE)


def test_a_page_of_one_prompt_is_the_same_every_time(tmp_path):
    results = replace(results_of(prompts=1), **BARE | {"draws": [None]})
    table = Table.of(results)
    files = []
    for _ in range(2):
        Reader(write_page(results, table, tmp_path).read_text(encoding="utf-8"))
        files.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert files[0] == files[1]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_the_page_without_scrolling_sideways(page, tmp_path):
    # A page around it, with frames of two widths, asks the browser what it has laid out.
    text = page.read_text(encoding="utf-8")
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>'
        for width in (400, 1200)
    )
    probe = """<script>onload = () => {
      const right = one => one.getBoundingClientRect().right;
      const look = page => {
        const count = (all, good) => [...page.querySelectorAll(all)].filter(good).length;
        return {wide: page.documentElement.scrollWidth, room: page.documentElement.clientWidth,
          curves: count("svg", one => one.getBoundingClientRect().height > 100),
          pictures: count("img", one => one.naturalWidth > 0),
          cut: count("svg text", one => right(one) > right(one.closest("svg")) + 1)};
      };
      const seen = [...document.querySelectorAll("iframe")].map(one => look(one.contentDocument));
      document.documentElement.innerHTML = JSON.stringify(seen);
    };</script>"""
    around = tmp_path / "around.html"
    around.write_text(f"<!doctype html><body>{frames}{probe}</body>", encoding="utf-8")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}",
        "--dump-dom", around.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    narrow, wide = json.loads(re.search(r"\[\{.*\}\]", run.stdout)[0])
    assert 380 <= narrow["room"] <= 400 < wide["room"]
    for seen in (narrow, wide):
        assert seen["wide"] == seen["room"]
        assert seen["curves"] == text.count("<svg ")
        assert seen["pictures"] == text.count("<img ") == 8
        assert seen["cut"] == 0
