"""Tables as files, and the sentences that say what they say."""

import csv
import json
import math
import re
import types
from dataclasses import replace

import pytest

from rwguidance.evaluation.conclusions import cheapest, doubts, fallen, nearer, reached
from rwguidance.evaluation.console import print_table, run_evaluate
from rwguidance.evaluation.figures import rows_of
from rwguidance.evaluation.results import Failure
from rwguidance.evaluation.table import _sections, write_table
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
    heads = [made.cells(section.columns)[0] for section in made.sections]
    assert heads == [
        ["method", "nats", "aligned gain", "wins", "share", "nats spent"],
        ["method", "nats", "follows", "falls"],
        ["method", "nats", "energy distance", "that of the base", "diversity"],
        ["method", "nats", "calls", "draws", "calls with draws", "seconds", "seconds with draws",
         "MiB"],
    ]  # fmt: skip
    text = (folder / "table.md").read_text(encoding="utf-8")
    for head in heads:
        rule = "|".join(["", " --- ", *[" ---: "] * (len(head) - 1), ""])
        assert f"| {' | '.join(head)} |\n{rule}\n| " in text
    assert "| exact | 0.25 | 2.121 ± 0.000 | 1.00 ± 0.00 | 1.0" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Reward and target", "## Gains in what no method sees", "## Laws in itself", "## Costs"
    ]  # fmt: skip
    tex = (folder / "table.tex").read_text(encoding="utf-8")
    assert r"exact & 0.25 & 2.121 $\pm$ 0.000 & 1.00 $\pm$ 0.00 & 1.0" in tex
    assert tex.count(r"\\") == len(made.rows) + 1
    assert tex.index(r"\toprule") < tex.index(r"\midrule") < tex.index(r"\bottomrule")
    for sentence in made.sentences:
        assert sentence in text
        assert f"% {sentence}" in tex


def test_columns_and_sections_that_nothing_is_known_of_are_left_out():
    results = types.SimpleNamespace(rewards=["aligned", "held"], embeddings=["itself"])
    row = {"method": "it", "nats": 1.0, "few": False}

    def heads(**known):
        sections = _sections(results, [row, row | {"share": math.nan} | known])
        return {section.title: [column.head for column in section.columns] for section in sections}

    assert heads() == {}
    assert heads(seconds=0.0) == {"Costs": ["seconds"]}
    assert heads(**{"held gain": 1.0, "wins": 1.0}) == {"Gains in what no method sees": ["held"]}
    assert heads(**{"aligned wins": 1.0, "itself energy": 0.5, "calls": 3, "draws": 0}) == {
        "Reward and target": ["wins"],
        "Laws in itself": ["energy distance"],
        "Costs": ["calls", "draws"],
    }


DIGITS = {
    "aligned gain": 3, "wins": 2, "share": 2, "nats spent": 2, "follows": 3, "falls": 3,
    "energy distance": 4, "that of the base": 4, "diversity": 3, "calls": 0, "draws": 0,
    "calls with draws": 0, "seconds": 3, "seconds with draws": 3, "MiB": 0,
}  # fmt: skip


def test_figures_of_a_column_have_the_same_number_of_digits(table):
    made, _ = table
    for section in made.sections:
        (_, _, *heads), *lines = made.cells(section.columns)
        for head, *cells in zip(heads, *(line[2:] for line in lines), strict=True):
            numbers = [n for cell in cells for n in re.findall(r"\d+(?:\.\d+)?", cell)]
            assert numbers
            assert {len(n.partition(".")[2]) for n in numbers} == {DIGITS[head]}, head
    lines = made.cells(made.sections[-1].columns)
    assert lines[2][-1] == "1"  # bytes of a MiB


def test_methods_are_on_the_left_of_a_printed_table_and_numbers_on_the_right(table, capsys):
    made, _ = table
    print_table(made)
    heading, _, *lines = capsys.readouterr().out.splitlines()[2:]
    exact = next(line for line in lines if "exact" in line)
    assert exact.index("exact") == heading.index("method")
    place = heading.index("nats") + len("nats")
    assert exact[:place].split() == ["exact", "0.25"]
    assert exact[:place].endswith("0.25")


@pytest.mark.parametrize("restart", [True, False])
def test_an_interruption_says_how_to_go_on(capsys, restart):
    def work(terminal, processes):
        raise KeyboardInterrupt

    plan = types.SimpleNamespace(omitted={}, reused=[], restart=restart)
    assert run_evaluate(work, plan) == 130
    without = " without --restart" if restart else ""
    said = f"interrupted: the same command{without} goes on where this one stopped\n"
    assert capsys.readouterr().err == said


def test_latex_takes_any_name(results, tmp_path):
    odd = {"a_b & 50%": results.cells}
    cells = dict(zip(results.cells, odd["a_b & 50%"].values(), strict=True))
    named = {replace(cell, method=f"{cell.method} a_b & 50%") if cell.nats else cell: pictures
             for cell, pictures in cells.items()}  # fmt: skip
    write_table(replace(results, cells=named), tmp_path)
    assert r"exact a\_b \& 50\%" in (tmp_path / "table.tex").read_text(encoding="utf-8")


def test_figures_held_against_few_draws_are_marked(table):
    made, _ = table
    marked = set()
    for section in made.sections:
        heads, *lines = made.cells(section.columns)
        for line in lines:
            pairs = zip(heads, line, strict=True)
            marked |= {(line[0], line[1], head) for head, cell in pairs if "*" in cell}
    held = ("share", "energy distance", "that of the base")
    expected = {(name, "2", head) for name in ("exact", "overshoots") for head in held}
    assert marked == expected
    assert any("target at 2 nats rests on" in text for text in made.doubts)
    assert not any("target at 0.25 nats" in text for text in made.doubts)


def test_sentences_say_who_reaches_the_target_and_what_falls(results):
    rows = rows_of(results)
    said = reached(rows)
    assert said.startswith("The exactly tilted law is reached by exact at 0.25 nats (1")
    assert "overshot by overshoots at 0.25 nats (2" in said
    assert "2 nats" not in said.replace("0.25", "")  # its target is not believed
    assert fallen(rows, "aligned", ["follows", "falls"]).startswith(
        "While aligned rises, falls falls with exact at 0.25 nats (-0.71 ± "
    )
    assert fallen(rows, "aligned", ["follows"]) == ("No held-out reward falls where aligned rises.")
    cheap = "Cheapest to reach the target: exact at 0.25 nats (4 calls a picture with its draws)."
    assert cheapest(rows) == cheap


def test_sentences_say_who_is_nearer():
    rows = rows_of(synthetic(prompts=30, images=4, draws=250, strengths=(0.75,)))
    assert nearer(rows, "itself").startswith(
        "Than the base, in itself, nearer to the tilted law: exact at 0.75 nats (0."
    )
    away = synthetic(
        prompts=30, images=4, draws=250, strengths=(0.75,), shifts={"away": lambda x, n: x - 1}
    )
    rows = rows_of(away)
    assert nearer(rows, "itself").startswith("Than the base, in itself, farther from it: away")
    assert reached(rows).startswith("The exactly tilted law is not reached by away at 0.75 nats (-")


def test_it_is_said_that_no_distance_differs_if_any_is_known():
    unknown = {"method": "vague", "nats": 1.0, "few": False}
    same = unknown | {"method": "same", "itself nearer": 0.1, "itself nearer error": 0.2}
    said = "No cell's distance in itself differs from the base's."
    assert nearer([unknown, same], "itself") == nearer([same], "itself") == said
    assert nearer([unknown], "itself") == ""


def test_what_cannot_be_told_is_not_said_to_be_reached(results):
    row = {"method": "vague", "nats": 1.0, "few": False, "share": 0.4, "share error": 0.5}
    assert reached([row]) == "Errors are too large to tell of vague at 1 nats (0.4 ± 0.5)."
    assert "reached by exact" in reached([*rows_of(results), row])
    assert reached([*rows_of(results), row]).endswith("to tell of vague at 1 nats (0.4 ± 0.5).")
    sure = row | {"share error": 0.1}
    assert (
        reached([sure]) == "The exactly tilted law is not reached by vague at 1 nats (0.4 ± 0.1)."
    )
    # A fifth is the largest error of a share that is said to be 1.
    fair = row | {"share": 1.1, "share error": 0.2}
    assert reached([fair]) == "The exactly tilted law is reached by vague at 1 nats (1.1 ± 0.2)."
    assert "too large to tell" in reached([row | {"share": 1.1, "share error": 0.21}])
    assert reached([row | {"share error": math.nan}]) == ""


def test_two_standard_errors_are_no_difference_yet():
    row = {"method": "vague", "nats": 1.0, "few": False, "share": 1.25, "share error": 0.125}
    assert "law is reached by vague" in reached([row])
    assert "overshot by vague" in reached([row | {"share": 1.26}])
    assert "law is reached by vague" in reached([row | {"share": 0.75}])
    assert "not reached by vague" in reached([row | {"share": 0.74}])
    same = row | {"share": 1.0, "share error": 0.0}
    assert "law is reached by vague" in reached([same])


def test_a_sentence_names_four_cells_and_says_how_many_more():
    row = {"nats": 1.0, "few": False, "share": 0.5, "share error": 0.1}
    rows = [row | {"method": f"m{i}"} for i in range(6)]
    named = lambda n: ", ".join(f"m{i} at 1 nats (0.5 ± 0.1)" for i in range(n))
    assert reached(rows[:4]) == f"The exactly tilted law is not reached by {named(4)}."
    assert reached(rows) == f"The exactly tilted law is not reached by {named(4)} and 2 more."


def test_the_cheapest_is_named_where_there_is_a_choice():
    row = {"nats": 1.0, "few": False, "share": 1.0, "share error": 0.1}
    dear = row | {"method": "dear", "calls with draws": 20.0}
    cheap = row | {"method": "cheap", "calls with draws": 4.0}
    assert cheapest([dear]) == ""
    said = "Cheapest to reach the target: cheap at 1 nats (4 calls a picture with its draws)."
    assert cheapest([dear, cheap]) == said
    assert cheapest([dear, cheap, cheap | {"method": "weak", "share": 0.5}]) == said


def test_nothing_is_said_of_nothing(results):
    rows = rows_of(results)[:1]
    assert reached(rows) == fallen(rows, "aligned", ["falls"]) == nearer(rows, "itself") == ""
    assert cheapest(rows) == ""


def test_doubts_are_named(results):
    plan = {
        "developed on": ["Prompt 5", "Prompt 3!", "another"],
        "omitted": [["small bank", 4.0, "kl must be less"]],
        "prompts": [f"prompt {i}" for i in range(10)],
    }
    failures = (*results.failures, Failure("prompt 1", "small bank", "another reason"))
    _, reused, omitted, failed, unfinished = doubts(replace(results, plan=plan, failures=failures))
    assert reused.startswith("Settings were chosen on 2 of the 8 prompts, such as 'prompt 3'")
    assert omitted == "small bank at 4 nats was left out: kl must be less."
    assert failed.startswith("2 things failed, of which the first is overshoots at 1 nats, for")
    assert unfinished == "2 prompts are not finished."
    assert len(doubts(results)) == 2
    (failed,) = doubts(replace(results, draws=[None] * 8))  # no target was asked for
    assert failed.startswith("1 things failed")
    # Draws of some prompts are a target that was asked for.
    some = replace(results, draws=[*results.draws[:2], *[None] * 6])
    assert any(text.startswith("The target at 2 nats rests on") for text in doubts(some))
