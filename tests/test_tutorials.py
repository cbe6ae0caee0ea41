"""The tutorials: notebooks kept as they were run, and the pages that the site makes of them."""

import base64
import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("rwguidance_testbed", reason="tutorials show the test bed")

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.ipynb"))
NOTEBOOKS = runpy.run_path(str(DOCS / "notebooks.py"))
read, run, markdown = (NOTEBOOKS[name] for name in ("read", "run", "markdown"))
KINDS = {"markdown", "code"}


def code_of(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def cell_of(source, kind="code"):
    cell = {"cell_type": kind, "id": "one", "metadata": {}, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook_of(*sources):
    head = cell_of("# A title\n\nText.", "markdown")
    return {"cells": [head, *map(cell_of, sources)], "metadata": {}, "nbformat": 4}


def pictures_of(outputs):
    return [base64.b64decode(one["data"]["image/png"]) for one in outputs if "data" in one]


def kinds_of(notebook):
    return [[one["output_type"] for one in cell["outputs"]] for cell in code_of(notebook)]


def test_there_are_six_and_the_index_names_them():
    assert len(TUTORIALS) == 6
    index = (DOCS / "tutorials" / "index.md").read_text(encoding="utf-8")
    for path in TUTORIALS:
        assert f"]({path.name})" in index
        assert f"\n{path.stem}\n" in index


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_was_run_from_top_to_bottom_and_ends_in_a_picture(path):
    notebook = read(path)
    assert notebook["nbformat"] == 4
    assert {cell["cell_type"] for cell in notebook["cells"]} == KINDS
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = code_of(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [picture for cell in cells for picture in pictures_of(cell["outputs"])]
    assert pictures
    assert max(map(len, pictures)) < 100_000
    assert any(pictures_of(cell["outputs"]) for cell in cells[-2:])
    said = json.dumps([cell["outputs"] for cell in cells])
    assert "/home" not in said
    assert "/tmp" not in said


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path):
    kept = read(path)
    assert kinds_of(run(kept, path.name)) == kinds_of(kept)


def test_running_keeps_what_cells_print_and_draw_in_one_namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plot = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1))"
    done = run(notebook_of("x = 2", "print(x + 1)\nopen('left', 'w').close()", plot))
    first, second, third = (cell["outputs"] for cell in code_of(done))
    assert first == []
    assert second == [{"name": "stdout", "output_type": "stream", "text": ["3\n"]}]
    assert pictures_of(third)[0].startswith(b"\x89PNG")
    assert [cell["execution_count"] for cell in code_of(done)] == [1, 2, 3]
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []  # a notebook leaves nothing where one stands
    assert run(notebook_of("pass"))["cells"][0] == notebook_of()["cells"][0]


def test_a_cell_that_fails_or_warns_ends_the_run():
    with pytest.raises(ZeroDivisionError) as error:
        run(notebook_of("x = 0", "1 / x"), "some.ipynb")
    assert error.traceback[-1].path == "some.ipynb, cell 2" or "cell 2" in str(error.traceback[-1])
    with pytest.raises(UserWarning, match="look out"):
        run(notebook_of("import warnings\nwarnings.warn('look out')"))


def test_a_notebook_is_written_as_it_was_read(tmp_path):
    for path in TUTORIALS:
        NOTEBOOKS["write"](read(path), tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_page_of_a_notebook_has_text_code_prints_and_pictures():
    plot = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1))"
    page = markdown(run(notebook_of("print('hello')", plot)), "some.ipynb")
    assert page.startswith("# A title\n\nText.\n\n*This page is a notebook: {download}`some.ipynb")
    code, printed, picture = (
        page.index(text)
        for text in (
            "```python\nprint('hello')\n```",
            ":class: output\n\nhello\n```",
            "](data:image/png",
        )
    )
    assert code < printed < picture
