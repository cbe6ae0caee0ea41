"""Writes the figures in docs/ anew, from the shipped weights.

Run `python testbed/benchmarks/figures.py`, or `make figures`. It runs the demo and `models.py`,
puts their tables between the marks `<!-- figures: NAME -->` and `<!-- end -->`, and their pictures
into docs/images. The tables of `methods.py`, which takes long, are taken from where it had them
written, and all its figures go into benchmarks/results/baseline.json.
"""

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rwguidance.support.files import replacing

ROOT = Path(__file__).parents[2]
PAGES = ("docs/demo.md", "docs/testbed.md", "docs/testbed_results.md")
_MARKED = re.compile(r"(<!-- figures: ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def put(page: str, tables: Mapping[str, str]) -> str:
    """Returns a page with new tables between its marks; tables that are not given stay."""

    def new(found: re.Match[str]) -> str:
        table = tables.get(found[2])
        return found[0] if table is None else f"{found[1]}\n{table.strip()}\n\n{found[4]}"

    return _MARKED.sub(new, page)


def names_in(page: str) -> list[str]:
    """Returns the names of the tables that a page has."""

    return [found[2] for found in _MARKED.finditer(page)]


def demo_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the demo's table of markdown, from the rows of its file."""

    heads = ("proxy", "share", "gold", "match, %", "energy, %", "network calls")
    lines = [f"| | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for row in rows:
        sign = "" if row["method"] == "base" else "+"
        cells = [f"{row['model']}, {row['method']}"]
        cells += [
            _with_error(row, "proxy", f"{sign}.2f"),
            _with_error(row, "share", ".2f"),
            _with_error(row, "gold", f"{sign}.2f"),
            _with_error(row, "match", f"{sign}.1f", 100),
            _with_error(row, "judge energy", ".0f", 100),
        ]
        calls, shared = float(row["calls"]), float(row["shared calls"])
        once = f", and {shared:.0f} once per prompt" if shared else ""
        cells.append(f"{calls:.0f}{once}" if calls else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_error(row: Mapping[str, str], name: str, form: str, factor: float = 1.0) -> str:
    if not row[name]:
        return ""
    value, error = (factor * float(row[key]) for key in (name, f"{name} error"))
    return f"{value:{form}} ± {error:{form.lstrip('+')}}"


def read_csv(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a file of comma-separated values."""

    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_baseline(table: Path, folder: Path) -> None:
    """Puts the figures of a model, and what they are of, into the file that goals refer to."""

    path = folder / "baseline.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[table.parent.name] = json.loads(table.read_text(encoding="utf-8"))
    with replacing(path) as partial:
        partial.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out"), help="folder of all that is run")
    add("--kept", action="store_true", help="run nothing, take what is in the folder")
    arguments = parser.parse_args(argv)
    out = arguments.out
    demo, models, results = (out / name for name in ("demo", "testbed-models", "testbed-results"))
    if not arguments.kept:
        run = lambda *command: subprocess.run([sys.executable, *map(str, command)], check=True)
        run("-c", "from rwguidance.app.cli import main; main()", "demo", "--out", demo)
        run(Path(__file__).with_name("models.py"), "--out", models)
    tables = {"demo": demo_table(read_csv(demo / "emoji.csv"))}
    generators, proxies = (models / "models.md").read_text(encoding="utf-8").split("\n\n")
    tables |= {"generators": generators, "proxies": proxies}
    images = ROOT / "docs" / "images"
    for path in sorted(results.glob("*/table.md")):
        name = path.parent.name
        text = path.read_text(encoding="utf-8").replace("## ", "#### ")  # below the model's heading
        tables[f"results of {name.replace('-', ' ')}"] = text
        shutil.copyfile(path.with_name("curves-strength.png"), images / f"results-{name}.png")
        shutil.copyfile(path.with_name("curves-cost.png"), images / f"results-{name}-cost.png")
        write_baseline(path.with_name("table.json"), ROOT / "benchmarks" / "results")
    shutil.copyfile(demo / "emoji.png", images / "demo.png")
    for path in models.glob("*.png"):
        shutil.copyfile(path, images / path.name)
    for page in (ROOT / name for name in PAGES):
        text = put(page.read_text(encoding="utf-8"), tables)
        page.write_text(text, encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {', '.join(names_in(text))}")


if __name__ == "__main__":
    main()
