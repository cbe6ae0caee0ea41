"""A generation on a terminal: progress, a summary, and the paths of the results."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from ..samplers import ADVICE, UnreliableEstimate
from ..statistics import mean_and_error
from ..store import OldStore
from ..support.describe import plain_text
from ..support.fingerprint import NotKept
from ..support.notes import heard
from ..support.processes import ALONE, Processes
from .results import Generated, Row
from .run import Report

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Terminal", "print_generated", "run_generate"]

_PROMPTS = 20
"""Number of prompts that the summary lists."""

_ADVICE = {
    "window": "guide only at higher noise, --window t 1",
    "kernel": "flatten the kernel, --leave-one-out, at the price of bias",
    "beta": "tilt less, with a smaller --kl or a larger --beta",
    "bank": "use a larger --bank",
}
"""What :data:`rwguidance.samplers.ADVICE` is on the command line."""


class Terminal:
    """A terminal that a generation tells how it goes.

    Arguments:
        quiet: Whether it shows nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=quiet)
        self.keeps = True
        """False if what is made is not kept for another run."""

    def say(self, text: str) -> None:
        """Prints a sentence."""

        _say(self.console, text)

    @contextmanager
    def bars(self) -> Iterator[Report]:
        """Shows bars of progress, which take what they are told from the function returned."""

        from rich import progress

        bars = progress.Progress(
            progress.TextColumn("{task.description:<18}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        with bars:
            outer = bars.add_task("prompts", total=None)
            inner = bars.add_task("", total=None)

            def report(stage: str, done: int, total: int) -> None:
                task = outer if stage == "prompts" else inner
                bars.update(task, description=stage, completed=done, total=total)

            yield report

    @contextmanager
    def warnings(self) -> Iterator[list[str]]:
        """Collects doubts about estimates, one per run of the sampler, and prints once what fails.

        It prints once, too, what is not kept for another run. Other warnings pass.
        """

        doubts: list[str] = []
        said: set[str] = set()

        def hear(warning: Warning) -> None:
            text = str(warning)
            if isinstance(warning, UnreliableEstimate):
                for name, advice in _ADVICE.items():
                    text = text.replace(ADVICE[name], advice)
                doubts.append(text)
            elif text not in said:
                said.add(text)
                self.keeps = self.keeps and not isinstance(warning, NotKept)
                self.say(f"{'warning' if isinstance(warning, RuntimeWarning) else 'note'}: {text}")

        with heard(hear, UnreliableEstimate, NotKept, OldStore, RuntimeWarning):
            yield doubts


def run_generate(
    work: Callable[[Terminal], Generated], restart: bool = False, processes: Processes = ALONE
) -> int:
    """Runs a generation on a terminal, and prints a summary.

    Arguments:
        work: Loads what is needed and generates, telling the terminal about it.
        restart: Whether the command had the option ``--restart``, without which it goes on.
        processes: The processes that share the generation; the first one speaks for all.

    Returns:
        The exit code: 0, or 2 if a prompt, a picture or a reward failed, or 130 if the user
        interrupted.
    """

    terminal = Terminal(quiet=not processes.first)
    try:
        with terminal.warnings() as own:
            generated = work(terminal)
        doubts = [doubt for part in processes.gather(own) for doubt in part]
    except KeyboardInterrupt:
        without = " without --restart" if restart else ""
        rest = "goes on where this one stopped" if terminal.keeps else "begins again"
        terminal.say(f"interrupted: the same command{without} {rest}")
        return 130
    if not processes.first:
        return 0
    if doubts:
        terminal.say(f"note, for {len(doubts)} of the runs: {doubts[0]}")
    print_generated(generated)
    failed = generated.failed or generated.unwritten or any(row.error for row in generated.rows)
    return 2 if failed else 0


def print_generated(generated: Generated) -> None:
    """Prints rewards before and after, prompt by prompt, and what failed to the error stream."""

    from rich.console import Console

    console, errors = Console(), Console(stderr=True)
    for prompt, reason in generated.failed.items():
        _say(errors, f"failed: {prompt}: {reason}")
    for row in generated.rows:
        if row.error:
            _say(errors, f"without reward: {row.prompt}, image {row.number}: {row.error}")
    for path, reason in generated.unwritten.items():
        _say(errors, f"not written: {path}: {reason}")
    pairs: dict[str, list[Row]] = {}
    for row in generated.rows:
        pairs.setdefault(row.prompt, []).append(row)
    if pairs:
        _print_table(console, pairs)
    if len(pairs) > _PROMPTS:
        _say(console, f"{len(pairs) - _PROMPTS} more prompts are in {generated.table}")
    kept = len(generated.rows) - generated.made
    _say(console, f"{len(generated.rows)} pairs, {kept} of them from before: {generated.table}")
    sheets = list(map(str, generated.sheets))
    if sheets:
        _say(console, "look at " + " to ".join(dict.fromkeys((sheets[0], sheets[-1]))))


def _print_table(console: "Console", pairs: dict[str, list[Row]]) -> None:
    """Prints the means of each prompt, and of all, with the standard errors of the gains."""

    from rich import box
    from rich.table import Table

    rows = [row for some in pairs.values() for row in some]
    target = any("tilted mean" in row.facts for row in rows)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("prompt")  # gives way where the terminal is narrow: numbers must not be cut
    headings = ("images", "base", "aligned", *(["target"] if target else []), "gain", "SE")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for prompt, some in islice(pairs.items(), _PROMPTS):
        text = plain_text(" ".join(prompt.split()))
        text.truncate(44, overflow="ellipsis")
        table.add_row(text, *_cells(some, target, over_prompts=False))
    several = len(pairs) > 1
    if several:
        table.add_row(f"all {len(pairs)} prompts", *_cells(rows, target, over_prompts=True))
    console.print(table)
    prompts = "; that of all is over prompts, and so are its means" if several else ""
    _say(console, f"SE, the standard error of the gain, is over pictures of the prompt{prompts}")


def _cells(rows: Sequence[Row], target: bool, over_prompts: bool) -> list[str]:
    """Returns means over the pairs that have both rewards, and the standard error of the gain.

    Arguments:
        rows: Pairs.
        target: Whether there is a column for the mean of the tilted bank.
        over_prompts: Whether prompts are the units that were sampled, and not pictures.
    """

    pairs = [row for row in rows if row.gain is not None]
    unit = [row.prompt for row in pairs] if over_prompts else None
    mean = lambda values: mean_and_error(values, unit)[0]
    columns = [mean([row.rewards[0] for row in pairs]), mean([row.rewards[1] for row in pairs])]
    if target:
        columns.append(mean([row.facts.get("tilted mean", math.nan) for row in pairs]))
    columns += mean_and_error([row.gain for row in pairs if row.gain is not None], unit)
    return [str(len(pairs)), *("-" if math.isnan(value) else f"{value:.4g}" for value in columns)]


def _say(console: "Console", text: str) -> None:
    console.print(plain_text(text), soft_wrap=True)
