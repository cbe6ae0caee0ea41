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
from .appearance import APPEARANCE
from .conclusions import cheapest, doubts, fallen, nearer, reached
from .figures import rows_of
from .results import Results

__all__ = ["Column", "Section", "Table", "write_table"]


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
class Section:
    """Some columns of a table, under a title, and what they say.

    Arguments:
        title: Title.
        columns: Columns after method and strength.
        sentence: Sentence that says what the figures say; may be empty.
    """

    title: str
    columns: Sequence[Column]
    sentence: str


@dataclass(frozen=True)
class Table:
    """A table: rows with all figures, and sections with those that are shown.

    Arguments:
        rows: Figures of every cell, by name.
        sections: Sections.
        doubts: Sentences that the reader should know before believing it.
    """

    rows: Sequence[Mapping[str, Any]]
    sections: Sequence[Section]
    doubts: Sequence[str]

    @classmethod
    def of(cls, results: Results) -> "Table":
        """Returns the table of results."""

        rows = rows_of(results)
        return cls(rows, _sections(results, rows), doubts(results))

    @property
    def sentences(self) -> list[str]:
        """What the figures say, then the doubts."""

        said = [section.sentence for section in self.sections if section.sentence]
        return [*said, *self.doubts]

    def cells(self, columns: Sequence[Column]) -> list[list[str]]:
        """Returns method, strength and some columns as text, headings first."""

        shown = [
            row for row in self.rows if any(not _lacks(row.get(column.name)) for column in columns)
        ]
        heads = ["method", "nats", *(column.head for column in columns)]
        return [heads, *(self._line(row, columns) for row in shown)]

    def _line(self, row: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
        nats = "" if row["nats"] is None else f"{row['nats']:g}"
        return [row["method"], nats, *(_text(row, column) for column in columns)]

    def markdown(self) -> str:
        """Returns the sections in Markdown, each with its sentence, and the doubts."""

        parts = []
        for section in self.sections:
            heads, *lines = self.cells(section.columns)
            rule = ["---", *["---:"] * (len(heads) - 1)]
            escape = lambda text: text.replace("|", r"\|")
            table = ["| " + " | ".join(map(escape, line)) + " |" for line in (heads, rule, *lines)]
            parts += [f"## {section.title}", section.sentence, "\n".join(table)]
        parts.append("\n".join(f"- {text}" for text in self.doubts))
        return "\n\n".join(filter(None, parts)) + "\n"

    def latex(self) -> str:
        """Returns all that is shown as one table in LaTeX, with the rules of booktabs."""

        heads, *lines = self.cells([one for section in self.sections for one in section.columns])
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


def _sections(results: Results, rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Returns the sections of the figures that a row has."""

    aligned, *others = results.rewards
    held_out = [Column(f"{name} gain", name, 3) for name in (*others, *APPEARANCE)]
    sections = [
        Section(
            "Reward and target",
            [
                Column(f"{aligned} gain", f"{aligned} gain", 3),
                Column(f"{aligned} wins", "wins", 2),
                Column("share", "share", 2, held=True),
                Column("nats spent", "nats spent", 2),
            ],
            reached(rows),
        ),
        Section("Gains in what no method sees", held_out, fallen(rows, aligned, others)),
    ]
    for name in results.embeddings:
        columns = [
            Column(f"{name} energy", "energy distance", 4, held=True),
            Column(f"{name} base energy", "that of the base", 4, held=True),
            Column(f"{name} diversity", "diversity", 3),
        ]
        sections.append(Section(f"Laws in {name}", columns, nearer(rows, name)))
    costs = [
        Column("calls", "calls", 0),
        Column("draws", "draws", 0),
        Column("calls with draws", "calls with draws", 0),
        Column("seconds", "seconds", 3),
        Column("seconds with draws", "seconds with draws", 3),
        Column("memory", "MiB", 0, scale=2.0**-20),
    ]
    sections.append(Section("Costs", costs, cheapest(rows)))
    there = lambda column: any(not _lacks(row.get(column.name)) for row in rows)
    return [
        Section(section.title, list(filter(there, section.columns)), section.sentence)
        for section in sections
        if any(map(there, section.columns))
    ]


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
            partial.write_bytes(text.encode())
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
