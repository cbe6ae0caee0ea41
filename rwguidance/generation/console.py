"""A generation on a terminal: progress, a summary, and the paths of the results."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from ..samplers import UnreliableEstimate
from ..support.fingerprint import NotKept
from ..support.notes import collected
from .results import Generated, Row
from .run import Report
from .store import OldStore

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_generated", "run_generate"]

_PROMPTS = 20
"""Number of prompts that the summary lists."""


def run_generate(work: Callable[[Report], Generated], restart: bool = False) -> int:
    """Runs a generation with progress bars, and prints a summary.

    Arguments:
        work: Calls :func:`rwguidance.generation.generate` with the `report` that it is given.
        restart: Whether the command had the option ``--restart``, without which it goes on.

    Returns:
        The exit code: 0, or 2 if a prompt or a reward failed, or 130 if the user interrupted.
    """

    from rich.console import Console

    console = Console(stderr=True)
    try:
        with collected(UnreliableEstimate, NotKept, OldStore) as texts, _bars(console) as report:
            generated = work(report)
    except KeyboardInterrupt:
        if texts[NotKept]:
            _say(console, f"interrupted: the same command begins again, as {texts[NotKept][0]}")
            return 130
        without = " without --restart" if restart else ""
        _say(console, f"interrupted: the same command{without} goes on where this one stopped")
        return 130
    for note in dict.fromkeys((*texts[OldStore], *texts[NotKept])):
        _say(console, f"note: {note}")
    if doubts := texts[UnreliableEstimate]:
        _say(console, f"note, for {len(doubts)} of the runs: {doubts[0]}")
    print_generated(generated)
    return 2 if generated.failed or any(row.error for row in generated.rows) else 0


def print_generated(generated: Generated) -> None:
    """Prints rewards before and after, prompt by prompt, and what failed to the error stream."""

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, errors = Console(), Console(stderr=True)
    for prompt, reason in generated.failed.items():
        _say(errors, f"failed: {prompt}: {reason}")
    for row in generated.rows:
        if row.error:
            _say(errors, f"without reward: {row.prompt}, image {row.number}: {row.error}")
    pairs: dict[str, list[Row]] = {}
    for row in generated.rows:
        pairs.setdefault(row.prompt, []).append(row)
    target = any("tilted mean" in row.facts for row in generated.rows)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("prompt")  # gives way where the terminal is narrow: numbers must not be cut
    headings = ("images", "base", "aligned", *(["target"] if target else []), "gain", "SE")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for prompt, rows in islice(pairs.items(), _PROMPTS):
        text = Text(" ".join(prompt.split()))
        text.truncate(44, overflow="ellipsis")
        table.add_row(text, *_cells(rows, target))
    if len(pairs) > 1:
        table.add_row(f"all {len(pairs)} prompts", *_cells(generated.rows, target))
    if pairs:
        console.print(table)
    if len(pairs) > _PROMPTS:
        _say(console, f"{len(pairs) - _PROMPTS} more prompts are in {generated.table}")
    kept = len(generated.rows) - generated.made
    _say(console, f"{len(generated.rows)} pairs, {kept} of them from before: {generated.table}")
    sheets = list(map(str, generated.sheets))
    if sheets:
        _say(console, "look at " + " to ".join(dict.fromkeys((sheets[0], sheets[-1]))))


def _cells(rows: Sequence[Row], target: bool) -> list[str]:
    """Returns means over the pairs that have both rewards, and the standard error of the gain."""

    pairs = [row for row in rows if row.gain is not None]
    gains = [row.gain for row in pairs if row.gain is not None]
    mean = lambda values: statistics.fmean(values) if values else math.nan
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    columns = [mean([row.rewards[0] for row in pairs]), mean([row.rewards[1] for row in pairs])]
    if target:
        columns.append(mean([row.facts.get("tilted mean", math.nan) for row in pairs]))
    columns += [mean(gains), error]
    return [str(len(pairs)), *("-" if math.isnan(value) else f"{value:.4g}" for value in columns)]


@contextmanager
def _bars(console: "Console") -> Iterator[Report]:
    from rich import progress

    bars = progress.Progress(
        progress.TextColumn("{task.description:<18}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bars:
        outer = bars.add_task("prompts", total=None)
        inner = bars.add_task("", total=None)

        def report(stage: str, done: int, total: int) -> None:
            task = outer if stage == "prompts" else inner
            bars.update(task, description=stage, completed=done, total=total)

        yield report


def _say(console: "Console", text: str) -> None:
    from rich.text import Text

    console.print(Text(text), soft_wrap=True)
