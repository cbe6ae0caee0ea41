"""An evaluation on a terminal: progress, the table and what it says, the paths of its files."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..generation.console import Terminal
from .plan import Plan
from .results import Results
from .table import Table, write_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_table", "run_evaluate"]


def run_evaluate(work: Callable[[Terminal], Results], plan: Plan) -> int:
    """Runs an evaluation on a terminal, writes its table, and prints it.

    Arguments:
        work: Loads what is needed and evaluates, telling the terminal about it.
        plan: The plan.

    Returns:
        The exit code: 0, or 2 if something failed, or 130 if the user interrupted.
    """

    terminal = Terminal()
    for cell, why in plan.omitted.items():
        terminal.say(f"note: {cell} is left out: {why}")
    if plan.reused:
        terminal.say(
            f"warning: settings were chosen on {len(plan.reused)} of the {len(plan.prompts)} "
            f"prompts, such as {plan.reused[0]!r}: gains will be too large"
        )
    try:
        with terminal.warnings() as doubted:
            results = work(terminal)
    except KeyboardInterrupt:
        without = " without --restart" if plan.restart else ""
        terminal.say(f"interrupted: the same command{without} goes on where this one stopped")
        return 130
    if doubted:
        terminal.say(f"note, for {len(doubted)} of the runs: {doubted[0]}")
    for failure in results.failures:
        terminal.say(f"failed: {failure.place}: {failure.prompt}: {failure.reason}")
    if results.prompts:
        table = write_table(results, plan.folder)
        print_table(table)
        terminal.say(f"{plan.folder / 'table.csv'} has all figures, and table.json, .md and .tex")
    return 2 if results.failures else 0


def print_table(table: Table) -> None:
    """Prints the sections of a table, each with what it says, and the doubts."""

    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    for section in table.sections:
        heads, *lines = table.cells(section.columns)
        grid = Grid(title=section.title, title_justify="left", box=box.SIMPLE_HEAD)
        for head in heads:
            side: Any = "left" if head == "method" else "right"
            grid.add_column(head, justify=side, no_wrap=True)
        for line in lines:
            grid.add_row(*line)
        # Numbers must not be cut, however narrow the terminal is.
        width = console.measure(grid, options=console.options.update(width=1000)).maximum
        console.print(grid, width=max(width, console.width), crop=False, soft_wrap=True)
        _say(console, section.sentence)
    for doubt in table.doubts:
        _say(console, f"note: {doubt}")


def _say(console: "Console", text: str) -> None:
    from rich.text import Text

    if text:
        console.print(Text(text), soft_wrap=True)
