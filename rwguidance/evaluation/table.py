"""The table of an evaluation as files: comma-separated values, Markdown, LaTeX and JSON.

The first and the last have all figures, the others those that a page or a paper shows. A figure
that is held against a target of too few effective draws is marked with a star.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.files import replacing
from .conclusions import conclusions, doubts
from .figures import rows_of
from .results import Results

__all__ = ["Column", "Table", "columns_of", "write_table"]


@dataclass(frozen=True)
class Column:
    """A column of the short table.

    Arguments:
        name: Name of the figure.
        head: Heading.
        digits: Digits after the point.
        held: Whether the figure is held against the tilted law.
        scale: Factor in units of the heading.
    """

    name: str
    head: str
    digits: int
    held: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Table:
    """A table: rows with all figures, columns that are shown, and what it says.

    Arguments:
        rows: Figures of every cell, by name.
        columns: Columns of the short table.
        sentences: Sentences that say what the figures say, doubts last.
    """

    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]
    sentences: Sequence[str]

    @classmethod
    def of(cls, results: Results) -> "Table":
        """Returns the table of results."""

        rows = rows_of(results)
        said = conclusions(rows, results.aligned, results.rewards[1:])
        return cls(rows, columns_of(results, rows), [*said, *doubts(results)])

    def cells(self) -> list[list[str]]:
        """Returns the short table as text, its headings first."""

        heads = ["method", "nats", *(column.head for column in self.columns)]
        return [heads, *(self._line(row) for row in self.rows)]

    def _line(self, row: Mapping[str, Any]) -> list[str]:
        nats = "" if row["nats"] is None else f"{row['nats']:g}"
        return [row["method"], nats, *(_text(row, column) for column in self.columns)]

    def markdown(self) -> str:
        """Returns the short table and the sentences in Markdown."""

        heads, *lines = self.cells()
        rule = ["---", *["---:"] * (len(heads) - 1)]
        escape = lambda text: text.replace("|", r"\|")
        table = ["| " + " | ".join(map(escape, line)) + " |" for line in (heads, rule, *lines)]
        return "\n".join(table) + "\n\n" + "\n".join(f"- {text}" for text in self.sentences) + "\n"

    def latex(self) -> str:
        """Returns the short table in LaTeX, with the rules of the package booktabs."""

        heads, *lines = self.cells()
        body = [" & ".join(map(_tex, line)) + r" \\" for line in (heads, *lines)]
        body.insert(1, r"\midrule")
        notes = [f"% {text}" for text in self.sentences]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}"
        return "\n".join([*notes, begin, r"\toprule", *body, r"\bottomrule", r"\end{tabular}", ""])

    def csv(self) -> str:
        """Returns all figures as comma-separated values; those that cannot be had are empty."""

        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for row in self.rows:
            writer.writerow(["" if _lacks(row.get(name)) else row[name] for name in names])
        return text.getvalue()

    def json(self, plan: Mapping[str, Any]) -> str:
        """Returns all figures, the sentences and the plan as JSON; null is what cannot be had."""

        plain = [
            {name: None if _lacks(value) else value for name, value in row.items()}
            for row in self.rows
        ]
        about = {"plan": plan, "sentences": list(self.sentences), "rows": plain}
        return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def columns_of(results: Results, rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Returns the columns of the short table, of those figures that a row has."""

    aligned, *others = results.rewards
    columns = [
        Column(f"{aligned} gain", f"{aligned} gain", 3),
        Column("share", "share", 2, held=True),
        Column(f"{aligned} wins", "wins", 2),
        *(Column(f"{name} gain", f"{name} gain", 3) for name in others),
    ]
    for name in results.embeddings:
        columns += [
            Column(f"{name} energy", f"{name} energy", 4, held=True),
            Column(f"{name} base energy", "of base", 4, held=True),
            Column(f"{name} diversity", f"{name} diversity", 3),
        ]
    columns += [
        Column("nats spent", "nats spent", 2),
        Column("calls", "calls", 0),
        Column("draws", "draws", 0),
        Column("seconds", "seconds", 3),
        Column("memory", "MiB", 0, scale=2.0**-20),
    ]
    return [column for column in columns if any(not _lacks(row.get(column.name)) for row in rows)]


def write_table(results: Results, folder: Path) -> Table:
    """Writes the table of results in all formats to a folder, and returns it.

    Arguments:
        results: The results.
        folder: The folder, in which files named ``table`` are replaced.

    Raises:
        OSError: If a file cannot be written.
    """

    table = Table.of(results)
    texts = {
        "csv": table.csv(),
        "md": table.markdown(),
        "tex": table.latex(),
        "json": table.json(results.plan),
    }
    for suffix, text in texts.items():
        with replacing(folder / f"table.{suffix}") as partial:
            partial.write_text(text, encoding="utf-8")
    return table


def _text(row: Mapping[str, Any], column: Column) -> str:
    """Returns a figure with its error, rounded; a figure of the curve's end is a lower bound."""

    value, error = row.get(column.name), row.get(f"{column.name} error")
    if value is None or _lacks(value):
        return ""
    text = f"{value * column.scale:.{column.digits}f}"
    if error is not None and not math.isnan(error):
        text += f" ± {error * column.scale:.{column.digits}f}"
    elif column.name == "nats spent" and value > 0:
        text = f"> {text}"
    return f"{text}*" if column.held and row.get("few") else text


def _lacks(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _tex(text: str) -> str:
    for letter in "&%$#_{}":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("±", r"$\pm$").replace("> ", "$>$ ")
