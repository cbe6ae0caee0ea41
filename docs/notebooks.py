"""Runs the tutorials, and turns them into pages: ``python docs/notebooks.py [FILE.ipynb ...]``.

A tutorial is a notebook that is kept with its outputs, so that the site, GitHub and Jupyter show
the same. No kernel is needed to run it anew: cells are run from top to bottom, and what they print
and the figures that they leave become their outputs, as in Jupyter.
"""

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

FOLDER = Path(__file__).with_name("tutorials")
_PNG = "image/png"


def read(path):
    """The notebook of a file, with the text of each cell as one string."""

    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def write(notebook, path):
    """Writes a notebook as Jupyter does: a list of lines for each text."""

    cells = [
        {**cell, "source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]
    ]
    text = json.dumps({**notebook, "cells": cells}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def run(notebook, name="notebook"):
    """The notebook with the outputs of a run in an empty folder; warnings are errors."""

    namespace, cells = {"__name__": "__main__"}, []
    with _elsewhere(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in (DeprecationWarning, FutureWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number = sum("outputs" in done for done in cells) + 1
                code = compile(cell["source"], f"{name}, cell {number}", "exec")
                cell = {**cell, "execution_count": number, "outputs": _outputs(code, namespace)}
            cells.append(cell)
    return {**notebook, "cells": cells}


@contextlib.contextmanager
def _elsewhere():
    """An empty folder and an empty cache, for as long as a notebook runs."""

    import matplotlib

    matplotlib.use("Agg")
    before, cache = Path.cwd(), os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.chdir(before)
            os.environ.pop("XDG_CACHE_HOME")
            if cache is not None:
                os.environ["XDG_CACHE_HOME"] = cache


def _outputs(code, namespace):
    """Runs one cell, and returns what it printed and the figures that it left."""

    import matplotlib.pyplot as plt

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    outputs = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": [text]})
    for number in plt.get_fignums():
        data = {_PNG: base64.b64encode(_png(plt.figure(number))).decode()}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return outputs


def _png(figure):
    """A figure as a PNG of 256 colors, which is a third of the size."""

    from PIL import Image

    drawn, picture = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=96, bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(256).save(picture, "PNG", optimize=True)
    return picture.getvalue()


def markdown(notebook, name):
    """The page of a notebook: text as it is, code, what it printed, and its pictures."""

    note = f"*This page is a notebook: {{download}}`{name} <{name}>`.*"
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(cell["source"])
            continue
        parts.append(f"```python\n{cell['source']}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                text = "".join(output["text"]).rstrip("\n")
                parts.append(f"```{{code-block}} text\n:class: output\n\n{text}\n```")
            else:
                picture = "".join(output["data"][_PNG].split())
                parts.append(f"![What the cell draws](data:{_PNG};base64,{picture})")
    return "\n\n".join([*parts[:1], note, *parts[1:]]) + "\n"


def main(arguments):
    for path in [Path(name) for name in arguments] or sorted(FOLDER.glob("*.ipynb")):
        write(run(read(path), path.name), path)
        print(path.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
