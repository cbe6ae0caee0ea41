"""Tables as markdown, on the screen, and as files of comma-separated values."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rwguidance.support.files import replacing

console = Console(width=130)


def cell_of(row: Mapping[str, Any], name: str, digits: int) -> str:
    """Returns a figure with its standard error, as a table shows it."""

    value = row.get(name)
    if value is None:
        return ""
    error = row.get(f"{name} error")
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, int]]) -> str:
    """Returns a table of markdown."""

    heads = ["method", *(name for name, _ in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = [str(row["method"]), *(cell_of(row, name, digits) for name, digits in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def print_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, int]]
) -> None:
    """Prints a table on the screen."""

    screen = Table(title=title, title_justify="left")
    for head in ("method", *(head for head, _ in columns)):
        screen.add_column(head, justify="left" if head == "method" else "right")
    for row in rows:
        cells = [cell_of(row, head, digits) for head, digits in columns]
        screen.add_row(str(row["method"]), *cells)
    console.print(screen)


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows to a file of comma-separated values, with a column for every name."""

    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({k: v for k, v in shown.items() if v is not None and v != "nan"})
