"""The results of a run: rows, table, sheets, and the summary on a terminal."""

import warnings
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from pixel_law import QUIET, Brightness, Law, run, table
from rwguidance.generation import BestOfN, Generated, Network, Row
from rwguidance.generation.console import print_generated, run_generate
from rwguidance.generation.pictures import read_facts
from rwguidance.support.fingerprint import NotKept

pytestmark = QUIET


def test_pictures_table_and_sheet_agree(tmp_path):
    made = run(tmp_path, images=3, names={"backbone name": "law"})
    assert made.made == len(made.rows) == 6
    assert [(row.prompt, row.number) for row in made.rows] == [
        (prompt, i) for prompt in ("ab", "abcdef") for i in range(3)
    ]
    lines = table(made.table)
    for row, line in zip(made.rows, lines, strict=True):
        assert line["prompt"] == row.prompt
        assert float(line["gain"]) == pytest.approx(row.rewards[1] - row.rewards[0], rel=1e-5)
        for kind, path, reward in zip(("base", "aligned"), row.files, row.rewards, strict=True):
            assert line[kind] == path.relative_to(tmp_path).as_posix()
            facts = read_facts(path)
            assert (facts["prompt"], facts["number"], facts["kind"]) == (
                row.prompt,
                row.number,
                kind,
            )
            assert facts["reward"] == reward
            assert facts["settings"]["method"]["beta"] == 5.0
            assert facts["settings"]["backbone name"] == "law"
            # 8 bits against what the reward saw
            assert numpy.asarray(Image.open(path)).mean() / 2.55 == pytest.approx(reward, abs=0.2)
        assert len(line["effective draws"].split()) == 12
    with Image.open(made.sheets[0]) as sheet:
        assert sheet.width >= 6 * 128
    assert not list(tmp_path.rglob("*.partial"))


def test_sheets_are_those_of_the_last_run(tmp_path):
    many = [f"prompt {i}" for i in range(13)]
    options = {"method": BestOfN(2), "steps": 1}
    names = lambda: sorted(path.name for path in tmp_path.glob("*.png"))
    made = run(tmp_path, prompts=many, **options)
    assert names() == ["sheet-1.png", "sheet-2.png"]
    with Image.open(tmp_path / "sheet-1.png") as many_rows, Image.open(made.sheets[1]) as one_row:
        title = 20 + 2 * 16
        assert many_rows.height - title == 12 * (one_row.height - title)
    (tmp_path / "sheet-of-mine.png").touch()
    run(tmp_path, prompts=many[:2], **options)
    assert names() == ["sheet-of-mine.png", "sheet.png"]


def test_a_reward_that_fails_on_one_picture_leaves_the_others(tmp_path):
    # It fails on pictures that are darker than usual, of one prompt only.
    bad = lambda images, prompts: images.mean((1, 2, 3)) < 0.5 if prompts[0] == "ab" else None
    method = Network(torch.nn.Identity(), scale=0.0)
    made = run(tmp_path, method, images=12, reward=Brightness(bad))
    lost = [row for row in made.rows if row.rewards[0] is None]
    assert 0 < len(lost) < 12
    for row in lost:
        assert row.prompt == "ab"
        assert "must not be NaN" in row.error
        assert row.gain is None
        assert all(path.exists() for path in row.files)
    again = run(tmp_path, method, images=12, reward=Brightness(bad))
    assert again.made == len(lost), "what failed is made again"
    assert again.rows == made.rows


def test_numbers_are_whole_on_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    files, facts = (tmp_path, tmp_path), {"tilted mean": 56.789}
    prompts = ["a red panda reading a newspaper in a very narrow\nterminal", "ab"]
    rows = tuple(Row(p, i, files, (12.34, 34.5678), facts) for p in prompts for i in range(2))
    print_generated(Generated(rows, {}, tmp_path, tuple(map(Path, "abc")), 4))
    out = capsys.readouterr().out
    for number in ("12.34", "34.57", "56.79", "22.23"):
        assert out.count(number) == 3
    assert "in a very narrow" not in " ".join(out.split())
    assert out.endswith("look at a to c\n")


def test_errors_are_over_pictures_of_a_prompt_and_over_prompts_of_all(
    tmp_path, monkeypatch, capsys
):
    # Gains of 1 and 3 in one prompt, of 9 and 11 in the other: pictures of a prompt are alike.
    monkeypatch.setenv("COLUMNS", "120")
    files = (tmp_path, tmp_path)
    gains = {"ab": (1.0, 3.0), "cd": (9.0, 11.0, 10.0)}
    rows = tuple(
        Row(prompt, i, files, (1.0, 1.0 + gain))
        for prompt, some in gains.items()
        for i, gain in enumerate(some)
    )
    print_generated(Generated(rows, {}, tmp_path, (), 5))
    out = capsys.readouterr().out
    cells = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert cells["ab"] == ["ab", "2", "1", "3", "2", "1"]
    assert cells["cd"] == ["cd", "3", "1", "11", "10", "0.5774"]
    # means 2 and 10 of two prompts; over pairs it would be 6.8 and 2.04
    assert cells["all"] == ["all", "2", "prompts", "5", "1", "7", "6", "4"]
    assert "SE, the standard error of the gain, is over pictures of the prompt; that of all" in out
    print_generated(Generated(rows[:2], {}, tmp_path, (), 2))
    out = capsys.readouterr().out
    assert "all" not in out.partition("SE, the")[0]
    assert "over pictures of the prompt\n" in out


@pytest.mark.parametrize(
    ("reward", "end"),
    [(None, "goes on where this one stopped"), (lambda images, prompts: images, "begins again")],
)
def test_a_command_that_is_interrupted_says_what_the_next_one_does(tmp_path, capsys, reward, end):
    law = Law()
    law.breaks_at = 3
    assert run_generate(lambda terminal: run(tmp_path, backbone=law, reward=reward)) == 130
    said = capsys.readouterr().err
    assert f"interrupted: the same command {end}" in said
    assert said.count("note: what it makes is not kept for another run: ") == (reward is not None)


def test_a_command_says_once_what_is_not_kept(capsys):
    def work(terminal):
        for text in ("one", "one", "another"):
            warnings.warn(text, NotKept, stacklevel=1)
        raise KeyboardInterrupt

    run_generate(work)
    assert capsys.readouterr().err.splitlines()[:2] == ["note: one", "note: another"]


@pytest.mark.parametrize(
    ("failed", "unwritten", "reason", "said"),
    [
        ({}, {}, "", ""),
        ({"cd": "out of luck"}, {}, "", "failed: cd: out of luck\n"),
        ({}, {Path("a.png"): "no room"}, "", "not written: a.png: no room\n"),
        ({}, {}, "it was NaN", "without reward: ab, image 1: it was NaN\n"),
    ],
)
def test_what_failed_is_said_and_is_in_the_exit_code(failed, unwritten, reason, said, capsys):
    files = (Path("a"), Path("b"))
    rows = (
        Row("ab", 0, files, (1.0, 2.0), {"tilted mean": 3.0}),
        Row("ab", 1, files, (1.0, None if reason else 4.0), {}, reason),
    )
    made = Generated(rows, failed, Path("results.csv"), (), 2, unwritten)
    assert run_generate(lambda terminal: made) == (2 if said else 0)
    out, err = capsys.readouterr()
    assert err == said
    assert "target" in out  # of some of the pairs
