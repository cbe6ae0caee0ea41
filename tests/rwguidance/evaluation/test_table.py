"""Tables as files, and the sentences that say what they say."""

import csv
import json
from dataclasses import replace

import pytest

from rwguidance.evaluation.conclusions import conclusions, doubts
from rwguidance.evaluation.figures import rows_of
from rwguidance.evaluation.table import write_table
from synthetic_results import synthetic


@pytest.fixture(scope="module")
def results():
    return synthetic(prompts=8, images=2, draws=250, strengths=(0.25, 2.0))


@pytest.fixture(scope="module")
def table(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    return write_table(results, folder), folder


def test_all_figures_are_in_csv_and_in_json(table, results):
    made, folder = table
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found = json.loads((folder / "table.json").read_text())
    assert found["plan"] == results.plan
    assert len(lines) == len(found["rows"]) == len(made.rows) == 1 + 4 + 2
    for line, plain, row in zip(lines, found["rows"], made.rows, strict=True):
        for name, value in row.items():
            if isinstance(value, float) and value == value:
                assert float(line[name]) == plain[name] == value
    assert found["sentences"] == list(made.sentences)


def test_markdown_and_latex_show_figures_with_errors(table):
    made, folder = table
    heads, *lines = made.cells()
    assert heads == [
        "method", "nats", "aligned gain", "share", "wins", "follows gain", "falls gain",
        "itself energy", "of base", "itself diversity", "nats spent", "calls", "draws", "seconds",
        "MiB",
    ]  # fmt: skip
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "| exact | 0.25 | 2.121 ± 0.000 | 1.0" in text
    assert text.count("|\n") == len(lines) + 2
    tex = (folder / "table.tex").read_text(encoding="utf-8")
    assert r"exact & 0.25 & 2.121 $\pm$ 0.000 & 1.0" in tex
    assert tex.count(r"\\") == len(lines) + 1
    assert tex.index(r"\toprule") < tex.index(r"\midrule") < tex.index(r"\bottomrule")


def test_latex_takes_any_name(results, tmp_path):
    odd = {"a_b & 50%": results.cells}
    cells = dict(zip(results.cells, odd["a_b & 50%"].values(), strict=True))
    named = {replace(cell, method=f"{cell.method} a_b & 50%") if cell.nats else cell: pictures
             for cell, pictures in cells.items()}  # fmt: skip
    write_table(replace(results, cells=named), tmp_path)
    assert r"exact a\_b \& 50\%" in (tmp_path / "table.tex").read_text(encoding="utf-8")


def test_figures_held_against_few_draws_are_marked(table):
    made, _ = table
    heads, *lines = made.cells()
    marked = {
        (line[0], line[1]): {head for head, cell in zip(heads, line, strict=True) if "*" in cell}
        for line in lines
    }
    held = {"share", "itself energy", "of base"}
    assert marked["exact", "2"] == marked["overshoots", "2"] == held
    assert not marked["exact", "0.25"]
    assert any("target at 2 nats rests on" in text for text in made.sentences)
    assert not any("target at 0.25 nats" in text for text in made.sentences)


def test_sentences_say_who_reaches_the_target_and_what_falls(results):
    said = conclusions(rows_of(results), "aligned", ["follows", "falls"])
    assert len(said) == 2
    assert said[0].startswith("The exactly tilted law is reached by exact at 0.25 nats (1")
    assert "overshot by overshoots at 0.25 nats (2" in said[0]
    assert "2 nats" not in said[0]  # its target is not believed
    assert said[1].startswith("falls falls while aligned rises: exact at 0.25 nats (-0.71 ± ")


def test_sentences_without_anything_to_say(results):
    rows = rows_of(results)
    assert conclusions(rows, "aligned", ["follows"])[1] == (
        "No held-out reward falls where aligned rises."
    )
    assert conclusions(rows[:1], "aligned", ["falls"]) == []
    weak = synthetic(prompts=8, draws=250, strengths=(0.25,), shifts={"weak": lambda x, n: x + 0.1})
    (said,) = conclusions(rows_of(weak), "aligned", [])
    assert said.startswith("The exactly tilted law is not reached by weak at 0.25 nats (0.14")


def test_doubts_are_named(results):
    plan = {
        "developed on": ["Prompt 3!", "another"],
        "omitted": [["small bank", 4.0, "kl must be less"]],
        "prompts": [f"prompt {i}" for i in range(10)],
    }
    _, reused, omitted, failed, unfinished = doubts(replace(results, plan=plan))
    assert reused.startswith("Settings were chosen on 1 of the 8 prompts, such as 'prompt 3'")
    assert omitted == "small bank at 4 nats was left out: kl must be less."
    assert failed.startswith("1 things failed, of which the first is overshoots at 1 nats, for")
    assert unfinished == "2 prompts are not finished."
