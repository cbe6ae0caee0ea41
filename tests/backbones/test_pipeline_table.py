"""Every row of the table of pipelines says what is found on a tiny pipeline of the class."""

import diffusers
import pytest

from pipeline_table import ROWS, SINCE, as_line, documented, row_of, version

FAST = ("z-image", "qwen-image", "sana-sprint")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ROWS]
)
def test_a_row_says_what_is_found(name, tmp_path):
    line = documented()[name]
    class_name = line.split("|")[1].strip()
    if version(diffusers.__version__) < version(SINCE.get(name, "0.36")):
        pytest.skip(f"diffusers {diffusers.__version__} is too old for {class_name}")
    row = row_of(name, tmp_path)
    assert as_line(row) == line, "write the table anew: python tests/pipeline_table.py"
    found = [row[column] for column in ("by prompt", "`guide(pipe, None)`", "`draw`")]
    assert found == ["yes", "bitwise", "yes"]
    assert row["decoder"] == "yes, differentiable"


def test_there_are_rows_for_many_pipelines():
    classes = {line.split("|")[1].strip() for line in documented().values()}
    assert len(classes) >= 22
