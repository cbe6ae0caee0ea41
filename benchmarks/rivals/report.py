"""The tables and the figure of docs/rivals.md, from the rows of both parts."""

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .laws import FAMILIES
from .methods import METHODS, OURS
from .testbed import TRIALS

Rows = Sequence[dict[str, Any]]
DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
_MARKED = re.compile(r"(<!-- rivals: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written(out: Path) -> None:
    """Writes tables and figure into the docs."""

    toys, pictures = (_read(out / name) for name in ("toys.json", "testbed.json"))
    page = DOCS / "rivals.md"
    tables = {"toys": toy_table(toys), "testbed": picture_table(pictures)}
    text = _MARKED.sub(
        lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[4]}", page.read_text("utf-8")
    )
    page.write_text(text, encoding="utf-8")
    figure(toys, pictures, DOCS / "images" / "rivals.png")


def toy_table(rows: Rows) -> str:
    """A row for each method and number of calls; distances in multiples of those of exact draws."""

    head = ["method", "calls", *(f"{name}: distance" for name in FAMILIES)]
    head += ["share", "diversity", "network", "reward"]
    lines = []
    for calls in sorted({row["calls"] for row in rows}):
        for method in METHODS:
            own = [row for row in rows if (row["calls"], row["method"]) == (calls, method)]
            done = [row for row in own if "failed" not in row]
            name = f"**{method}**" if method in OURS else method
            cells = [name, str(calls)]
            cells += [_mean_of(own, family, "distance") for family in FAMILIES]
            cells += [_of_laws(done, column) for column in ("share", "diversity")]
            counts = [[row[column] for row in done] for column in ("network", "reward")]
            means = [f"{statistics.mean(values):.0f}" if values else "none" for values in counts]
            lines.append([*cells, *means])
    return _markdown(head, lines)


def picture_table(rows: Rows) -> str:
    """A row for each method on the test bed, and one of the tilted law."""

    columns = {
        "share": "share",
        "energy distance": "emoji-judge energy",
        "gold": "emoji-gold gain",
        "gold match": "emoji-match gain",
        "diversity": "emoji-judge diversity",
    }
    head = ["method", "settings", *columns, "calls with draws", "decoded", "scored"]
    lines = []
    names = [*TRIALS, "base"]
    for row in sorted(
        (r for r in rows if r["method"] in names), key=lambda r: names.index(r["method"])
    ):
        name, settings = row["method"], str(row["settings"]).removeprefix("pictures.py:")
        cells = [f"**{name}**" if name in OURS else name, f"`{settings}`"]
        cells += [_with_error(row.get(c), row.get(f"{c} error")) for c in columns.values()]
        counts = ("calls with draws", "decoded", "scored")
        lines.append([*cells, *(f"{row[c]:.3g}" for c in counts)])
    return _markdown(head, lines)


def figure(toys: Rows, pictures: Rows, path: Path) -> None:
    """Distances of all methods: a panel for each family at the fewest calls, one for pictures."""

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    least = min(row["calls"] for row in toys)
    chart, axes = plt.subplots(1, len(FAMILIES) + 1, figsize=(15, 5.2), sharey=True)
    places = {name: -i for i, name in enumerate(METHODS)}
    for axis, family in zip(axes, FAMILIES, strict=False):
        for name, place in places.items():
            some = [r for r in toys if (r["calls"], r["method"]) == (least, name)]
            value, error = _statistics([r for r in some if r["family"] == family], "distance")
            axis.errorbar(value, place, xerr=error, fmt="o", color=_color(name))
        axis.axvline(1, color="0.7", zorder=0)
        axis.set(xscale="log", title=f"{family}, {least} calls")
        axis.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        axis.minorticks_off()
    for row in pictures:
        if row["method"] in places and row.get("emoji-judge energy") is not None:
            value, error = row["emoji-judge energy"], row["emoji-judge energy error"]
            place, color = places[row["method"]], _color(row["method"])
            axes[-1].errorbar(value, place, xerr=error, fmt="o", color=color)
    axes[-1].axvline(0, color="0.7", zorder=0)
    axes[-1].set(title="test bed, energy distance")
    axes[0].set_yticks([*places.values()], [*places])
    chart.supxlabel("distance to the tilted law; of toys over that of exact draws")
    chart.tight_layout()
    chart.savefig(path, dpi=110)
    plt.close(chart)


def _color(method: str) -> str:
    return "tab:orange" if method in OURS else "black" if method == "base" else "tab:blue"


def _statistics(rows: Rows, column: str) -> tuple[float, float]:
    """Mean over laws of the mean over seeds, and its standard error over seeds."""

    laws: dict[str, list[float]] = {}
    for row in rows:
        if "failed" not in row:
            laws.setdefault(row["law"], []).append(row[column])
    if not laws:
        return math.nan, math.nan
    variances = [statistics.variance(v) / len(v) if len(v) > 1 else math.nan for v in laws.values()]
    mean = statistics.mean(statistics.mean(v) for v in laws.values())
    return mean, math.sqrt(sum(variances)) / len(laws)


def _mean_of(rows: Rows, family: str, column: str) -> str:
    own = [row for row in rows if row["family"] == family]
    made = {row["law"] for row in own if "failed" not in row}
    some = f" ({len(made)} of {len(FAMILIES[family])})" if len(made) < len(FAMILIES[family]) else ""
    return _with_error(*_statistics(own, column)) + some if made else "none"


def _of_laws(rows: Rows, column: str) -> str:
    values = [_statistics([r for r in rows if r["law"] == law], column)[0] for law in _laws(rows)]
    return f"{statistics.median(values):.2f}" if values else "none"


def _laws(rows: Rows) -> Iterable[str]:
    return dict.fromkeys(row["law"] for row in rows)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 100 else 0
    tail = "" if error is None or math.isnan(error) else f" ± {error:.{digits}f}"
    return f"{value:.{digits}f}{tail}"


def _read(path: Path) -> Rows:
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
