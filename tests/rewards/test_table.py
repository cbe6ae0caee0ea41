"""The table of rewards: a sequence, a text, a page, and what the command line makes of it."""

import dataclasses
import re

import pytest
from typer.testing import CliRunner

import rewards
import rewards.registry
from rewards.table import RewardTable, column_widths, facts
from rwguidance.app.cli import app, main

SPEC = rewards.RewardSpec(
    name="sharpness",
    title="Sharpness",
    differentiable=True,
    needs_prompt=False,
    code_license="MIT",
    weights_license="none",
    formula="a < b & c",
    typical_range=(0.0, 0.5),
    citation="nobody, 2020",
)
LONG = dataclasses.replace(
    SPEC,
    name="sharpness-of-edges",
    title="Sharpness <of> edges, with a title that is longer than any table can bear in one line",
    code_license="AGPL-3.0-only AND LGPL-2.1-or-later",
    weights_license="unknown",
    commercial_use=False,
    parity="differs by at most 1e-6 from the original code, " * 4,
)
FREE = dataclasses.replace(SPEC, name="free", commercial_use=True, differentiable=False)


@pytest.fixture
def three(monkeypatch):
    registry = rewards.registry._registry
    kinds = {
        spec.name: type("Kind", (rewards.Reward,), {"spec": spec}) for spec in (SPEC, LONG, FREE)
    }
    monkeypatch.setattr(registry, "_values", kinds)
    monkeypatch.setattr(
        registry, "_entry_points", {}
    )  # of installed packages, such as the test bed


def names(table):
    return [spec.name for spec in table]


@pytest.fixture
def run(monkeypatch):
    def run(*arguments, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        return CliRunner().invoke(app, list(arguments))

    return run


def test_a_table_is_a_sequence_of_facts():
    table = RewardTable([SPEC, LONG])
    assert table == [SPEC, LONG] == list(table)
    assert table == (SPEC, LONG)
    assert table != [LONG, SPEC]
    assert table != "sharpness"
    assert hash(table) == hash(RewardTable([SPEC, LONG]))
    assert (len(table), table[1], LONG in table, table.index(LONG)) == (2, LONG, True, 1)
    assert table[1:] == RewardTable([LONG])
    assert isinstance(table[1:], RewardTable)
    with pytest.raises(TypeError):
        table[0] = LONG


def test_the_text_is_aligned_within_100_columns_and_tears_no_word():
    text = str(RewardTable([SPEC, LONG]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert repr(RewardTable([SPEC, LONG])) == text
    start = lines[0].index("gradient")
    table = [line.ljust(100) for line in text.split("parity:")[0].splitlines()]
    assert all(line[start - 2 : start] == "  " for line in table)
    indents = [len(line) - len(line.lstrip()) for line in lines[-3:]]  # of what is said of parity
    assert indents == [lines[0].index("title") + more for more in (0, 2, 2)]
    words = set(re.split(r"\s+", text))
    assert set(LONG.title.split()) | set(LONG.parity.split()) <= words
    row = lines[2].split("  ")
    assert [cell.strip() for cell in row if cell.strip()] == [
        *("sharpness", "Sharpness", "yes", "no", "MIT / none", "unknown", "0 to 0.5")
    ]
    assert str(RewardTable()) == "no rewards"


def test_columns_are_as_wide_as_their_cells_where_there_is_room_and_no_narrower_than_words():
    cells = [["name", "t" * 30, "gradient", "prompt", "MIT / none", "yes", "0 to 1"]]
    full = [*map(len, cells[0])]
    total = sum(full) + 2 * 6
    assert column_widths(cells, total) == full
    assert column_widths(cells, total - 1) == [4, 29, *full[2:]]
    assert column_widths(cells, 1) == [4, 15, *full[2:]]


def test_the_published_rewards_fit_and_have_a_word_for_everything():
    table = rewards.available()
    text = str(table)
    assert max(map(len, text.splitlines())) <= 100
    for spec in table:
        assert re.search(rf"^{re.escape(spec.name)}  ", text, re.MULTILINE)
        assert all(facts(spec).values())


def test_the_page_is_escaped():
    page = RewardTable([LONG])._repr_html_()
    assert "Sharpness &lt;of&gt; edges" in page
    assert "<of>" not in page
    assert page.count("<td>") == page.count("<th>") == 8
    assert "no</td>" in page


def test_commercial_splits_the_rewards_and_the_unknown_do_not_permit_it(three):
    assert names(rewards.available()) == ["free", "sharpness", "sharpness-of-edges"]
    assert names(rewards.available(commercial=True)) == ["free"]
    assert names(rewards.available(commercial=False)) == ["sharpness", "sharpness-of-edges"]


def test_filters_join(three):
    assert names(rewards.available(differentiable=False)) == ["free"]
    assert names(rewards.available(differentiable=True)) == ["sharpness", "sharpness-of-edges"]
    assert names(rewards.available(differentiable=True, license="mit")) == ["sharpness"]
    assert rewards.available(commercial=True, differentiable=True) == []


@pytest.mark.parametrize(
    ("license", "found"),
    [
        ("MIT", ["free", "sharpness"]),
        ("lgpl-2.1-OR-LATER", ["sharpness-of-edges"]),
        ("AGPL-3.0-only", ["sharpness-of-edges"]),
        ("unknown", ["sharpness-of-edges"]),
        ("AGPL", []),
    ],
)
def test_a_license_is_a_whole_identifier_of_code_or_weights(three, license, found):
    assert names(rewards.available(license=license)) == found


def test_a_license_is_a_string():
    with pytest.raises(TypeError, match="license must be an SPDX identifier, got bool"):
        rewards.available(license=True)


def test_facts_by_name_build_nothing(three):
    assert rewards.registry.spec("free") is FREE
    with pytest.raises(LookupError, match=r"no reward 'fre', .* did you mean 'free'"):
        rewards.registry.spec("fre")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_command_prints_a_table_as_wide_as_the_terminal(run, columns):
    result = run("rewards", columns=columns)
    assert result.exit_code == 0
    table = result.output.split("Parity")[0]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= columns
    for spec in rewards.available():
        assert spec.name in table
        assert set(re.split(r"\s+", spec.title)) <= set(re.split(r"\s+", table))


@pytest.mark.parametrize(("columns", "heading"), [(99, "grad "), (100, "gradient ")])
def test_headings_are_short_below_100_columns(run, columns, heading):
    assert heading in run("rewards", columns=columns).output.splitlines()[0]


def test_what_is_said_of_parity_is_aligned(run, monkeypatch):
    specs = [dataclasses.replace(s, parity=f"equal to {s.name}") for s in (SPEC, LONG, FREE)]
    monkeypatch.setattr("rewards.console.available", lambda *_: RewardTable([*specs, SPEC]))
    said = run("rewards").output.split("original code:\n")[1].splitlines()
    assert said[:3] == [
        "  sharpness           equal to sharpness",
        "  sharpness-of-edges  equal to sharpness-of-edges",
        "  free                equal to free",
    ]
    assert "code / weights" in said[3]  # nothing of a reward without an original


def test_the_command_filters_and_says_what_there_is_if_nothing_fits(run, three):
    assert "free" in run("rewards", "--commercial").output
    assert "sharpness" not in run("rewards", "--commercial").output
    assert "free" not in run("rewards", "--not-commercial").output
    assert "free" not in run("rewards", "--differentiable").output
    result = run("rewards", "--license", "BSD-3-Clause")
    assert result.exit_code == 0
    assert "No reward fits" in result.output
    assert "MIT" in result.output


def test_the_card_of_one_reward_has_everything(run):
    output = run("rewards", "aesthetic", columns=200).output
    spec = rewards.registry.spec("aesthetic")
    for text in (spec.formula, spec.preprocessing, spec.citation, spec.files[0].digest):
        assert text in output
    for file in spec.files:
        assert file.source in output


def test_mistakes_of_the_command_exit_with_1(monkeypatch, capsys, three):
    for arguments, message in [
        (["nonsense"], "no reward 'nonsense', there are 'free', 'sharpness', 'sharpness-of-edges'"),
        (["free", "--commercial"], "name one reward or filter the list, not both"),
    ]:
        monkeypatch.setattr("sys.argv", ["rwguidance", "rewards", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 1
        assert message in capsys.readouterr().err


def test_a_package_that_fails_is_a_line_of_the_list(run, monkeypatch, three):
    class Broken:
        name, value, module, dist = "broken", "package:Broken", "package", None

        def load(self):
            raise RuntimeError("no such kernel")

    registry = rewards.registry._registry
    monkeypatch.setitem(registry.__dict__, "_entry_points", {"broken": [Broken()]})
    result = run("rewards")
    assert result.exit_code == 0
    assert "warning: reward 'broken'" in result.output
    assert "no such kernel" in result.output
    assert "free" in result.output
