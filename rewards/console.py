"""Rewards and scores on a terminal: the output of `rwguidance rewards` and `rwguidance score`."""

import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rwguidance.support import checks
from rwguidance.support.describe import plain_text, print_facts
from rwguidance.support.fingerprint import NotKept
from rwguidance.support.image_files import MAX_PIXELS
from rwguidance.support.notes import heard
from rwguidance.support.processes import Processes, joined

from .base import Reward, RewardSpec
from .prompt_files import Job, default_prompts, plan
from .registry import available, load, spec
from .scoring import Failure, Scores, Summary, check_output, score
from .scoring.batches import NotRotated, in_batches
from .table import HEADINGS, cells, column_widths, facts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["ScoreRequest", "print_reward", "print_rewards", "print_scores", "run_score"]

_WIDE = 100
_NARROW = {"gradient": "grad", "commercial": "comm. use"}
_ROWS = 20
"""How many of the best images and of the failures are shown."""


def print_rewards(
    commercial: bool | None = None, differentiable: bool | None = None, license: str | None = None
) -> None:
    """Prints the rewards that :func:`rewards.available` keeps, as a table."""

    from rich.console import Console

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        specs = available(commercial, differentiable, license)
    for warning in caught:
        _say(Console(stderr=True), f"warning: {warning.message}")
    console = Console()
    if not specs:
        known = dict.fromkeys(text for s in available() for text in cells(s)[4].split(" / "))
        _say(console, f"No reward fits. Their licenses are {', '.join(sorted(known))}.")
        return
    table = _table()
    rows = [cells(s)[:-1] for s in specs]
    narrow = _NARROW if console.width < _WIDE else {}
    headings = [narrow.get(heading, heading) for heading in HEADINGS]
    widths = column_widths([headings, *rows], console.width)
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(plain_text, row))
    console.print(table)
    console.print()
    stated = [s for s in specs if s.parity]
    if stated:
        _say(console, "Parity with the original code:")
        width = max(len(s.name) for s in stated)
        for s in stated:
            _say(console, s.parity, first=f"  {s.name:<{width}}  ", rest=" " * (width + 4))
    _say(console, "Licenses are those of code / weights: a summary, not legal advice.")


def print_reward(name: str) -> None:
    """Prints everything about one reward.

    Raises:
        LookupError: If there is no such reward; lists those that exist.
    """

    print_facts(name, facts(spec(name)))


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A folder of images to score, by which rewards, and where to write the result.

    Arguments:
        folder: The folder of the images.
        names: Names of rewards.
        out: The result, see :func:`rewards.scoring.score`.
        prompts: A file of prompts, see :func:`rewards.scoring.plan`; None takes what ``rwguidance
            generate`` wrote with the images, or else the texts beside them if a reward needs
            prompts, and images alone otherwise.
        pairs: Whether the i-th prompt belongs to the i-th image, see :func:`rewards.scoring.plan`.
        paths: Paths of the weights of some rewards, by name.
        options: Keywords of the constructors of some rewards, by name.
        device: Device of the rewards, see :func:`rewards.load`.
        dtype: Precision that weights are cast to, see :func:`rewards.load`.
        batch_size: Images decoded, and pairs scored, at once, see :func:`rewards.scoring.score`.
        restart: Whether to replace a result and discard what an unfinished run has scored.
        prompt_column: Name of the column of prompts in a file.
        exif: Whether images are rotated as their EXIF says.
        max_pixels: Pixels of an image, and of those in memory at once, at most.
        escape_formulas: Whether texts that a spreadsheet would compute get an apostrophe.
    """

    folder: Path
    names: Sequence[str]
    out: Path
    prompts: Path | None = None
    pairs: bool = False
    paths: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str | None = None
    dtype: torch.dtype | None = None
    batch_size: int = 16
    restart: bool = False
    prompt_column: str = "prompt"
    exif: bool = False
    max_pixels: int = MAX_PIXELS
    escape_formulas: bool = False


def run_score(request: ScoreRequest) -> int:
    """Plans, loads and scores with a progress bar, and prints a summary.

    Arguments:
        request: The images, the rewards, and the result.

    Processes that a launcher has started share the work; the first one speaks for all.

    Returns:
        The exit code: 0, or 2 if something was skipped, or 130 if the user interrupted.

    Raises:
        LookupError: If there is no such reward; lists those that exist.
        ValueError: If the job, the paths or the device make no sense; before anything is loaded.
    """

    with joined() as processes:
        return _run_score(request, processes)


def _run_score(request: ScoreRequest, processes: Processes) -> int:
    from rich.console import Console

    console = Console(stderr=True, quiet=not processes.first)
    specs = {name: spec(name) for name in request.names}
    job = _plan(request, specs)
    for note in job.notes:
        _say(console, f"note: {note}")
    unkept: list[Warning] = []

    def hear(warning: Warning) -> None:
        if isinstance(warning, NotKept):
            unkept.append(warning)
        _say(console, f"note: {warning}")

    try:
        rewards = _load(console, request)
        with heard(hear, NotKept, NotRotated):
            scores = _score_with_bar(console, job, rewards, request, processes)
    except KeyboardInterrupt:
        without = " without --restart" if request.restart else ""
        rest = "begins again" if unkept else "goes on where this one stopped"
        _say(console, f"interrupted: the same command{without} {rest}")
        return 130
    if not processes.first:
        return 0
    print_scores(scores, specs)
    return 2 if scores.failures else 0


def print_scores(scores: Scores, specs: Mapping[str, RewardSpec] | None = None) -> None:
    """Prints failures to the error stream, and summaries and the best images to the output.

    Arguments:
        scores: The scores of a run.
        specs: The facts about its rewards, by name, for their usual ranges; None omits these, as
            does a table of base pictures and aligned ones.
    """

    from rich.console import Console

    console, errors = Console(), Console(stderr=True)
    groups = _groups(scores.failures)
    for group in groups[:_ROWS]:
        _say(errors, _describe(group), first="skipped: ", rest="  ")
    if len(groups) > _ROWS:
        _say(errors, f"and {len(groups) - _ROWS} more, see the column error of {scores.out}")

    table = _table()
    table.add_column("reward")
    if any(summary.kind for summary in scores.summaries):
        table.add_column("kind")
        specs = None  # in place of the usual ranges, for which there is no room in 80 columns
    for heading in ("rows", "images", "mean", "SE", "min", "max", *(["usual"] if specs else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in scores.summaries:
        usual = [cells(specs[summary.reward])[-2]] if specs else []
        table.add_row(*map(plain_text, (*_numbers(summary), *usual)))
    console.print(table)
    for name in dict.fromkeys(summary.reward for summary in scores.summaries):
        _print_best(console, scores, name)
    console.print()
    if not scores.scored:
        _say(console, "Nothing was left to score: this is the result of an earlier run.")
    failed = len(scores.failures)
    skipped = f", {failed} skipped (see the column error)" if failed else ""
    _say(console, f"{scores.out}: {scores.rows} rows{skipped}")


def _plan(request: ScoreRequest, specs: Mapping[str, RewardSpec]) -> Job:
    """The job of a request, which is checked as far as it can be without loading a reward."""

    for what, given in (("path", request.paths), ("option", request.options)):
        stray = [name for name in given if name not in specs]
        if stray:
            names = ", ".join(request.names)
            raise ValueError(f"{what} names {stray[0]!r}, which is not among {names}")
    needy = [name for name in request.names if specs[name].needs_prompt]
    prompts, out = request.prompts, request.out
    found = prompts or default_prompts(request.folder, bool(needy))
    job = plan(
        request.folder,
        found,
        request.pairs,
        request.prompt_column,
        request.exif,
        request.max_pixels,
    )
    if prompts is not None and prompts.exists() and out.exists() and prompts.samefile(out):
        raise ValueError(f"out must not be the file of prompts, got {out} for both")
    check_output(job, request.names, out, request.batch_size, request.restart, needy)
    checks.device("device", request.device)
    return job


def _load(console: "Console", request: ScoreRequest) -> dict[str, Reward]:
    rewards = {}
    for name in request.names:
        with console.status(f"loading {name}"):
            path, options = request.paths.get(name), request.options.get(name, {})
            rewards[name] = load(name, path, request.device, request.dtype, **options)
    return rewards


def _score_with_bar(
    console: "Console",
    job: Job,
    rewards: Mapping[str, Reward],
    request: ScoreRequest,
    processes: Processes,
) -> Scores:
    from rich import progress

    batches = in_batches(job, request.batch_size)
    total = sum(len(batches[i]) for i in processes.deal(len(batches)))

    bar = progress.Progress(
        progress.TextColumn("scoring"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("images, {task.fields[rate]:.3g}/s,"),
        progress.TextColumn("{task.fields[failed]} rows skipped,"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total, rate=0.0, failed=0)
        first: int | None = None

        def show(done: int, failed: int) -> None:
            nonlocal first
            if first is None:  # what the journal holds took no time
                first = done
                if done:
                    _say(console, f"resuming after {done} of {total} images")
                bar.reset(task, completed=done)
            (row,) = bar.tasks
            elapsed = row.elapsed or 0.0
            rate = (done - first) / elapsed if elapsed else 0.0
            bar.update(task, completed=done, failed=failed, rate=rate)

        size, restart = request.batch_size, request.restart
        escape = request.escape_formulas
        return score(job, rewards, request.out, size, restart, show, processes, escape)


def _print_best(console: "Console", scores: Scores, name: str) -> None:
    """The best image of each prompt that has several."""

    from rich.cells import cell_len

    best = [b for b in scores.best if b.reward == name and b.images > 1]
    if not best:
        return
    every = None in {b.prompt for b in best}
    rows = [
        ("(any)" if b.prompt is None else b.prompt, b.image, f"{b.value:.5g}", f"{b.images}")
        for b in best[:_ROWS]
    ]
    table = _table(f"Best image by {name}" if every else f"Best image of each prompt by {name}")
    headings = ("prompt", "image", "value", "of")
    wide = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    wide[1] = min(wide[1], console.width // 3)
    wide[0] = min(wide[0], console.width - sum(wide[1:]) - 6)
    for i, (heading, width) in enumerate(zip(headings, wide, strict=True)):
        justify: Any = "left" if i < 2 else "right"
        table.add_column(heading, width=width, justify=justify, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*map(plain_text, row))
    console.print()
    console.print(table)
    if len(best) > _ROWS:
        _say(console, f"and {len(best) - _ROWS} more prompts")


def _groups(failures: Sequence[Failure]) -> list[list[Failure]]:
    """Failures of one image for one reason, joined."""

    groups: list[list[Failure]] = []
    for failure in failures:
        last = groups[-1][0] if groups else None
        if last is None or (last.image, last.reason) != (failure.image, failure.reason):
            groups.append([])
        groups[-1].append(failure)
    return groups


def _describe(group: Sequence[Failure]) -> str:
    first = group[0]
    if len(group) > 1:
        where = f"{first.image}, rows {first.row} to {group[-1].row}"
    else:
        where = f"{first.image}, row {first.row}"
    prompt = f", prompt {first.prompt!r}" if first.prompt and len(group) == 1 else ""
    return f"{where}{prompt}: {first.reason}"


def _numbers(summary: Summary) -> tuple[str, ...]:
    values = (summary.mean, summary.standard_error, summary.low, summary.high)
    shown = ("-" if value != value else f"{value:.4g}" for value in values)
    kind = (summary.kind,) if summary.kind else ()
    return (summary.reward, *kind, str(summary.rows), str(summary.images), *shown)


def _table(title: str | None = None) -> "Table":
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold cyan",
    )


def _say(console: "Console", text: str, first: str = "", rest: str = "") -> None:
    """Prints plain text, wrapped on a terminal and in one line elsewhere."""

    width = console.width if console.is_terminal else sys.maxsize
    for line in textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    ) or [first]:
        console.print(plain_text(line), soft_wrap=True)
