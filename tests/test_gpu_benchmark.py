"""The script for a machine with a GPU, rehearsed on the CPU with tiny pipelines."""

import math
import sys

import diffusers
import pytest

import backbones
from benchmarks import gpu
from pipeline_cases import QUIET

pytestmark = QUIET


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(*arguments):
        command = ["gpu.py", "--smoke", "--out", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        gpu.main()
        lines = (tmp_path / "gpu.md").read_text(encoding="utf-8").splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
        return lines[0], {row[0]: row[1:] for row in rows}

    verbosity = diffusers.logging.get_verbosity()
    yield run
    diffusers.logging.set_verbosity(verbosity)


@pytest.mark.slow
def test_every_row_is_there_and_none_has_failed(run, tmp_path):
    folder = tmp_path / "weights"
    backbones.tiny("sdxl-turbo").save_pretrained(folder)
    head, rows = run("--path", f"sdxl-turbo={folder}")
    assert head.startswith("CPU, ")
    assert not [row for row in rows.items() if "failed" in row[1][-1] or "not begun" in row[1][-1]]
    timed = [name for name in rows if "beside" not in name]
    assert all(float(rows[name][0]) > 0 for name in timed)
    for name in ("sdxl-turbo", "sd3.5-large-turbo", "flux2-klein"):
        own = [row for row in rows if row.startswith(f"{name}, ") and "weights" not in row]
        assert len(own) == 4
    same = [rows[name][-1] for name in rows if "beside CPU" in name]
    assert len(same) == 15
    assert set(same) == {"shift 0.0e+00, log h 0.0e+00"}
    assert len(list(tmp_path.glob("sdxl-turbo-*-guided.png"))) == 4


def test_no_row_begins_after_the_time_and_one_that_fails_ends_no_other(tmp_path):
    def broken():
        raise RuntimeError("no\nmemory")

    late = gpu.Report(tmp_path / "late.md", minutes=0.0)
    late.add("a row", broken)
    assert "not begun" in late.path.read_text()
    report = gpu.Report(tmp_path / "table.md", minutes=1.0)
    report.add("broken", broken)
    report.add("whole", lambda: gpu.Row(0.5, math.nan, "as it should"))
    assert report.path.read_text().splitlines() == [
        "| broken |  |  | failed: RuntimeError: no memory |",
        "| whole | 0.5000 |  | as it should |",
    ]
