"""The command line as a user meets it: output, files, errors and exit codes."""

import csv
import io
import re
import subprocess
import sys

import pytest

from rwguidance import __version__
from rwguidance.app import cli
from rwguidance.app.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rwguidance", *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"{__version__}\n", "")


def test_the_help_lists_commands_and_no_completion_of_shells(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "train-reward" in out
    assert "completion" not in out


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "rwguidance", "--version"]
    assert subprocess.check_output(command, text=True) == f"{__version__}\n"


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "demo" in out
    assert "toy" in out


def test_the_backbones_are_listed(run):
    code, out, _ = run("backbones")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = {row[0]: row[1:] for row in rows if len(row) == 5}
    for name, steps in (("sd3.5-large-turbo", "4"), ("qwen-image", "50"), ("sana-sprint", "2")):
        assert rows[name][1] == steps
    text = " ".join(out.split())
    for found in ("Stability", "Apache-2.0", "fetched", "come with"):
        assert found in text


def test_everything_about_one_backbone(run):
    code, out, _ = run("backbones", "z-image-turbo")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    for found in (
        "ZImagePipeline", "Apache-2.0", "none: distilled", "AnyPipeline", "to be given or fetched",
        "hf://Tongyi-MAI/Z-Image-Turbo", "hf download Tongyi-MAI/Z-Image-Turbo", "decode_batch",
    ):  # fmt: skip
        assert found in text
    code, _, err = run("backbones", "z-image-turb")
    assert code != 0
    assert "z-image-turbo" in err


def test_toy_compares_every_estimator_with_the_closed_form(run):
    code, out, _ = run("toy", "--batch", "64", "--bank", "2000", "--training-steps", "2")
    assert code == 0
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for line in out.splitlines()
        if len(cells := re.split("[│┃]", line)) > 3
    }
    assert set(rows["exact"]) == {"0.000"}
    assert all(float(cell) < 0.1 for cell in rows["importance"][:3])
    assert rows["network, log h"][0] == "-", "no input gradient at the noise end"
    assert float(rows["ess"][0]) == 2000


def test_toy_without_training_leaves_the_networks_out(run):
    code, out, _ = run("toy", "--training-steps", "0", "--batch", "8", "--bank", "64")
    assert code == 0
    assert "network" not in out


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch, encoding, name):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["rwguidance", "toy"])
    text = "\u732b \u00e9 \udcff"  # a letter, one of Western Europe, and half a surrogate pair
    monkeypatch.setattr(cli, "app", lambda: print(text, file=getattr(sys, name)))
    main()
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown == text.encode(encoding, "backslashreplace").decode(encoding) + "\n"
    assert "\\udcff" in shown


def test_a_mistake_is_one_line_and_exit_code_1(run):
    code, out, err = run("toy", "--beta", "-1")
    assert (code, out) == (1, "")
    assert err == "error: beta must be positive and finite, got -1.0\n"


def test_a_wrong_option_is_explained_with_exit_code_2(run):
    code, _, err = run("toy", "--law", "cauchy")
    assert code == 2
    assert "'gaussian', 'mixture'" in err


def test_a_missing_extra_names_the_install_line(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, _, err = run("demo", "--digits", "--quick", "--out", str(tmp_path))
    assert code == 1
    assert "pip install 'rwguidance[demo]'" in err


@pytest.mark.slow
def test_the_demo_on_digits_writes_two_pictures_and_two_tables(run, tmp_path):
    code, out, _ = run("demo", "--digits", "--quick", "--out", str(tmp_path / "new" / "folder"))
    assert code == 0
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == ["digits.csv", "digits.png", "mixture.csv", "mixture.png"]
    for name in files:
        assert name in out
    with (tmp_path / "new" / "folder" / "digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    base, guided = (float(row["mean"]) for row in rows[:2])
    target = next(float(row["mean"]) for row in rows if row["method"] == "exact target")
    assert base < base + 0.5 * (target - base) < guided, "guidance covers half of the way at least"
    last, first = sorted(map(float, re.findall(r"[\d.]+", rows[1]["ess"])))
    assert rows[1]["ess"] == str((first, last))
    assert last < first  # at noise all of the bank counts
