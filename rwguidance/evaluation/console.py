"""An evaluation on a terminal: progress, the table and what it says, its page and other files."""

import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from ..generation.console import Terminal
from ..support.describe import plain_text
from ..support.processes import Processes, joined
from .page import write_page
from .plan import Plan
from .results import Results
from .table import Table, write_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_table", "run_evaluate"]

_WIDE = 400
"""Width of a table at most, in letters."""


def run_evaluate(work: Callable[[Terminal, Processes], Results], plan: Plan) -> int:
    """Runs an evaluation on a terminal, writes its table and page, and prints the table.

    Of the processes that a launcher started, the first one writes and prints.

    Arguments:
        work: Loads what is needed and evaluates, telling the terminal about it.
        plan: The plan.

    Returns:
        The exit code: 0, or 2 if something failed, or 130 if the user interrupted.
    """

    terminal = Terminal()
    try:
        with joined() as processes, terminal.warnings() as doubted:
            if processes.first:
                _say_before(terminal, plan)
            results = work(terminal, processes)
            first = processes.first
    except KeyboardInterrupt:
        without = " without --restart" if plan.restart else ""
        rest = "goes on where this one stopped" if terminal.keeps else "begins again"
        terminal.say(f"interrupted: the same command{without} {rest}")
        return 130
    if first:
        _say_after(terminal, plan, results, doubted)
    return 2 if results.failures else 0


def _say_before(terminal: Terminal, plan: Plan) -> None:
    for cell, why in plan.omitted.items():
        terminal.say(f"note: {cell} is left out: {why}")
    if plan.reused:
        terminal.say(
            f"warning: settings were chosen on {len(plan.reused)} of the {len(plan.prompts)} "
            f"prompts, such as {plan.reused[0]!r}: gains will be too large"
        )


def _say_after(terminal: Terminal, plan: Plan, results: Results, doubted: Sequence[str]) -> None:
    if doubted:
        terminal.say(f"note, for {len(doubted)} of the runs: {doubted[0]}")
    for failure in results.failures:
        terminal.say(f"failed: {failure.place}: {failure.prompt}: {failure.reason}")
    if results.prompts:
        table = write_table(results, plan.folder)
        print_table(table)
        terminal.say(f"{plan.folder / 'table.csv'} has all figures, and table.json, .md and .tex")
        command = shlex.join(["rwguidance", *sys.argv[1:]])
        about = {"command": command, "date": date.today().isoformat()}
        try:
            page = write_page(results, table, plan.folder, about)
        except ImportError as error:  # curves need what is optional
            terminal.say(f"no page was written: {error}")
        else:
            terminal.say(f"{page} shows them with curves and pictures, one file to send")


def print_table(table: Table) -> None:
    """Prints the sections of a table, each with what it says, and the doubts."""

    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    # Numbers must not be cut, however narrow the terminal is.
    console, wide = Console(), Console(width=_WIDE)
    for section in table.sections:
        heads, *lines = table.cells(section.columns)
        grid = Grid(title=section.title, title_justify="left", box=box.SIMPLE_HEAD)
        for head in heads:
            side: Any = "left" if head == "method" else "right"
            grid.add_column(head, justify=side, no_wrap=True)
        for line in lines:
            grid.add_row(*map(plain_text, line))
        wide.print(grid)
        _say(console, section.sentence)
    for doubt in table.doubts:
        _say(console, f"note: {doubt}")


def _say(console: "Console", text: str) -> None:
    if text:
        console.print(plain_text(text), soft_wrap=True)
