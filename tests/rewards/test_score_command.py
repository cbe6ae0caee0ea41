"""The command `rwguidance score`: what it prints, refuses and returns."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from rwguidance.app.cli import app
from scored_folders import IMAGES, SEEN, read, write

pytestmark = pytest.mark.usefixtures("registered")


def test_the_command_writes_a_table_and_a_summary(folder, run):
    write("p.txt", "a cat\n[red] " + "x" * 200)
    command = (folder, "--reward", "redness, brightness", "--prompts", "p.txt")
    code, out, err = run(*command, "--out", "new.parquet")
    assert (code, err.strip()) == (0, "")
    assert pyarrow.parquet.read_table("new.parquet").num_rows == 10
    lines = out.splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 100
    heading, redness, brightness = lines[:3]
    assert heading.split() == ["reward", "rows", "images", "mean", "SE", "min", "max", "usual"]
    assert " ".join(redness.split()) == "redness 10 5 35.91 19.91 0 206 0 to 1"
    assert brightness.split() == [
        "brightness",
        "10",
        "5",
        "0.2905",
        "0.02772",
        "0.2",
        "0.3346",
        "0",
        "to",
        "1",
    ]
    assert [line.rstrip() for line in lines[4:8]] == [
        "Best image of each prompt by redness",
        f"{'prompt':82}  image  value  of",
        f"{'a cat':82}  1.png      5   5",
        f"[red] {'x' * 75}…  1.png    206   5",
    ]
    assert lines[-1] == "new.parquet: 10 rows"


def test_long_names_of_images_leave_room_for_prompts(folder, run):
    (folder / "1.png").rename(folder / f"{'1' * 56}.png")
    write("p.txt", "x" * 200)
    out = run(folder, "--reward", "redness", "--prompts", "p.txt")[1]
    assert f"{'x' * 53}…  {'1' * 32}…    200   5" in out.splitlines()


def test_a_terminal_sees_how_many_images_are_scored_in_a_second(folder, run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("rich.progress.Task.elapsed", 2.0)
    err = run(folder, "--reward", "brightness")[2]
    assert "images, 2.5/s, 0 rows skipped" in err


@pytest.mark.parametrize("prompts", [20, 23])
def test_the_list_of_best_images_is_cut(folder, run, prompts):
    write("p.txt", "\n".join(f"prompt {i}" for i in range(prompts)))
    out = run(folder, "--reward", "redness", "--prompts", "p.txt")[1]
    assert "prompt 19" in out
    assert "prompt 20" not in out
    assert ("and 3 more prompts" in out) == ("more prompts" in out) == (prompts == 23)


def test_prompts_of_one_image_each_have_no_best_one(folder, run):
    write("p.csv", "image,prompt\n1.png,a cat\nz.webp,a boat\n")
    out = run(folder, "--reward", "redness", "--prompts", "p.csv")[1]
    assert "scores.csv: 2 rows" in out
    assert "Best image" not in out


def test_failures_of_an_image_for_one_reason_are_one_line(folder, run):
    write("p.txt", "a\nb")
    for name in ("broken-1.png", "broken-2.png"):
        (folder / name).write_text("no image")
    err = run(folder, "--reward", "redness", "--prompts", "p.txt")[2]
    assert err.count("skipped: ") == 2
    for name in ("1", "2"):
        (rows,) = re.findall(rf"broken-{name}\.png, rows (\d+) to (\d+): ", err)
        assert int(rows[1]) == int(rows[0]) + 1


@pytest.mark.parametrize("broken", [20, 22])
def test_the_list_of_failures_is_cut(folder, run, broken):
    for i in range(broken):
        (folder / f"broken-{i}.png").write_text("no image")
    err = run(folder, "--reward", "brightness")[2]
    assert err.count("skipped: broken-") == 20
    more = "and 2 more, see the column error of scores.csv"
    assert (more in err) == ("more, see" in err) == (broken == 22)


def test_texts_beside_images_are_the_default_if_prompts_are_needed(folder, run):
    for image in IMAGES[:4]:
        (folder / image).with_suffix(".txt").write_text("abc")
    code, _, err = run(folder, "--reward", "redness")
    assert code == 2
    assert "skipped: z.webp, row 5: no prompt: z.txt is absent" in err
    assert run(folder, "--reward", "brightness", "--restart")[0] == 0
    assert {row["prompt"] for row in read()} == {""}
    assert run(folder, "--reward", "brightness", "--prompts", "sidecar", "--restart")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--reward", "brightnes"],
            "no reward 'brightnes', there are .* did you mean 'brightness'",
        ),
        (["--reward", "brightness,"], "no reward ''"),
        (["--reward", "brightness,brightness"], "the column 'brightness' would come twice"),
        (["--reward", "redness", "--prompts", "p.txt", "--pairs"], "got 2 prompts .* 5 images"),
        (["--reward", "redness"], "has a text beside it"),
        (["--reward", "brightness", "--out", "scores.txt"], r"end in \.csv or \.parquet, got sco"),
        (
            ["--reward", "brightness", "--out", "no/scores.csv"],
            r"no folder no to write scores\.csv",
        ),
        (["--reward", "brightness", "--path", "x"], "path must be NAME=PATH, once per name.*'x'"),
        (["--reward", "brightness", "--path", "a=x"], "path names 'a', which is not among bright"),
        (["--reward", "brightness", "--path", "brightness=x"], "no file or directory with the rew"),
        (["--reward", "brightness", "--device", "abacus"], "device 'abacus' cannot be used: "),
        (["--reward", "redness", "--prompts", "p.csv", "--out", "p.csv"], "not be the file of pr"),
        (["--reward", "brightness", "--batch-size", "0"], "--batch-size"),
        ([], "Missing option '--reward'"),
    ],
)
def test_mistakes_exit_with_1_before_anything_is_scored(folder, run, arguments, message):
    write("p.txt", "a\nb")
    write("p.csv", "prompt\na\n")
    code, out, err = run(folder, *arguments)
    assert (code, out, SEEN) == (1, "", [])
    assert re.search(message, " ".join(err.split()))
    assert not list(Path().glob("*.partial*"))


def test_exit_codes_of_the_runner(broken):
    run = lambda *arguments: CliRunner().invoke(app, ["score", str(broken), *arguments]).exit_code
    assert run("--reward", "brightness") == 2
    assert run("--reward", "brightness") == 2, "the result is there, and what it lacks as well"
    for name in ("3.png", "4.jpg", "5.png", "6.png"):
        (broken / name).unlink()
    assert run("--reward", "brightness", "--restart", "--dtype", "float64") == 0
    assert run("--dtype", "float64") == 1
    assert run("--help") == 0


def test_options_reach_the_constructor(folder, run):
    command = (folder, "--reward", "jpeg", "--prompts", "p.txt", "--out")
    write("p.txt", "a cat")
    assert run(*command, "a.csv")[0] == 0
    assert run(*command, "b.csv", "--option", "jpeg:quality=50")[0] == 0
    assert run(*command, "c.csv", "--option", "jpeg:incompressible=true")[0] == 0
    a, b, c = (
        [float(row["jpeg"]) for row in csv.DictReader(Path(f"{name}.csv").read_text().splitlines())]
        for name in "abc"
    )
    assert all(x < y for x, y in zip(a, b, strict=True))
    assert c == [-x for x in a]
    for wrong, message in (
        ("jpeg.quality=50", "option must be NAME:KEY=VALUE, got 'jpeg.quality=50'"),
        ("png:quality=50", "option names 'png', which is not among jpeg"),
        ("jpeg:size=3", "reward 'jpeg' takes"),
    ):
        code, _, err = run(*command, "d.csv", "--option", wrong)
        assert code == 1
        assert message in err


def test_a_console_of_few_letters_ends_no_run(folder):
    write("p.csv", "prompt\n\u4e00\u53ea\u732b\n")
    command = [*("score", folder, "--prompts", "p.csv", "--reward", "jpeg"), "--out", "scores.csv"]
    (folder / "\u732b.png").write_text("no image")
    for attempt in range(2):
        run = subprocess.run(
            [sys.executable, "-c", "from rwguidance.app.cli import main; main()", *command],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        )
        assert run.returncode == 2, run.stderr
        assert b"skipped: \\u732b.png, row 6, prompt '\\u4e00\\u53ea\\u732b': not an" in run.stderr
        assert (b"Nothing was left to score" in run.stdout) == (attempt == 1)
