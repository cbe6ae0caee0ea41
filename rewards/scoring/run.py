r"""Scores of many images: streamed, journaled, and resumed exactly.

.. code-block:: python

    job = plan("images", "prompts.csv")
    scores = score(job, {"hpsv2": rewards.load("hpsv2")}, "scores.csv")

Images are decoded once for all their prompts and rewards, one batch ahead, so that at most two
batches are in memory, and of large images no more than `job.max_pixels` pixels of each. Every
finished batch goes to a journal beside the result. A run that was killed at any moment loses the
batch at hand; the same call goes on after the last one in the journal, if all rewards say what they
depend on (:mod:`rwguidance.support.fingerprint`). How images fall into batches is fixed by the job,
and no batch depends on what was scored before, so the result is the same, byte for byte, as without
the interruption. (On one machine, for rewards that give the same numbers for the same call.)

Several processes share the batches, each with a journal of its own; the first one merges them. An
interrupted run may be finished by another number of processes.

An image that cannot be read, one at which a reward fails, or a reward that is not finite, leaves
the value empty, states the reason in the column ``error``, and stops nothing else. A record beside
the result says what it was made from. The same call again finds it finished and scores nothing, or
tries again at what rewards have failed.
"""

import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwguidance.support import checks
from rwguidance.support.files import open_regular
from rwguidance.support.fingerprint import NotKept, fingerprint_or_reason
from rwguidance.support.outside import require
from rwguidance.support.processes import ALONE, Processes

from ..base import Reward
from ..prompt_files import Item, Job
from .batches import decoded, in_batches
from .evaluation import score_batch
from .finished import check_finished, finished_rows, is_left, write_record
from .journal import (
    Journal,
    OwnJournal,
    Row,
    check_header,
    journal_path,
    journals,
    make_header,
)
from .results import write_table
from .summaries import Best, Failure, Summary, Tally

__all__ = ["Scores", "check_output", "score"]

_FIXED = ("image", "prompt", "kind", "error")


@dataclass(frozen=True)
class Scores:
    """The result of a run.

    Arguments:
        out: The file of the table.
        rows: Number of its rows.
        scored: Number of images that this run opened; the others came from the journal, or from the
            result of an earlier run.
        summaries: One summary per reward, or two, of base pictures and of aligned ones.
        best: The best image for every reward and prompt, in the order of the rows.
        failures: The rows without all their values, in order.
    """

    out: Path
    rows: int
    scored: int
    summaries: tuple[Summary, ...]
    best: tuple[Best, ...]
    failures: tuple[Failure, ...]


def score(
    job: Job,
    rewards: Mapping[str, Reward],
    out: str | os.PathLike[str],
    batch_size: int = 16,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
    escape_formulas: bool = False,
) -> Scores:
    """Scores a job and writes a table with the columns image, prompt, one per reward, and error.

    Where images are of a kind, base or aligned, a column kind follows that of the prompt.

    Float32 rewards are written with the digits that tell them apart, others in full.

    Arguments:
        job: The job, as from :func:`plan`.
        rewards: The rewards, by the names of their columns.
        out: A file ``.csv`` or ``.parquet``. It appears when everything is scored.
        batch_size: Number of images that are decoded together, and the largest number of pairs
            given to a reward at once. A job of pairs has at most that many pairs in a batch, or one
            image.
        restart: Whether to discard the journal of an unfinished run, and to replace a result. If
            not, a result of the same call stays, but for the images at which a reward failed.
        progress: A function that is called with the number of images done and the number of rows
            that failed, of those of this process.
        processes: The processes that share the batches; all of them make this call, and get the
            same result. The first one writes it.
        escape_formulas: Whether names and prompts in a CSV file that a spreadsheet would compute,
            such as those that begin with ``=``, get an apostrophe. By default they are as they are.

    Raises:
        FileExistsError: If there is a result of another call, and `restart` is False.
        FileNotFoundError: If there is no folder to write it to.
        ImportError: If Pillow, or pyarrow for Parquet, is missing.
        ConnectionError: If the server of a reward was not heard of for any image of a batch, or
            another process has ended.
        TypeError: If a reward does not return one value per image.
        ValueError: If there are no rewards, one needs prompts and there are none, the journal
            belongs to another job, or another run is writing it.
    """

    out = checks.path("out", out)
    needy = [name for name, reward in rewards.items() if reward.spec.needs_prompt]
    check_output(job, list(rewards), out, batch_size, restart, needy)
    require("PIL.Image", "images need", "rewards")
    batches = in_batches(job, batch_size)
    sizes = list(map(_rows_of, batches))
    header = make_header(job, list(rewards), batch_size)
    header["escaped formulas"] = checks.flag("escape_formulas", escape_formulas)
    header["weights and options"], reasons = _weights_and_options(rewards)
    if reasons:
        text = f"a run that is interrupted or repeated begins again: {'; '.join(reasons)}"
        warnings.warn(text, NotKept, stacklevel=2)
    known = _known(job, out, header, batches, list(rewards), restart)
    if reasons:  # it cannot be known which rewards they are of
        known, restart = {}, True
    if len(known) == len(batches) and not journals(out):
        return _read_back(job, rewards, out, 0)

    with OwnJournal(journal_path(out, processes.rank), header, sizes, restart) as journal:
        if restart and processes.first:  # journals that no process of this run replaces
            for path in set(journals(out)) - {journal_path(out, i) for i in range(processes.size)}:
                path.unlink()
        processes.wait()  # before any reads what another one is about to discard
        finished = _finished(out, header, sizes)
        own = processes.deal(len(batches))
        done = sum(len(batches[i]) for i in own if i in finished)
        left = [i for i in own if i not in finished]
        todo = [i for i in left if i not in known]
        images = decoded(job, [batches[i] for i in todo])
        for i in left:
            if progress is not None:
                progress(done, journal.failed)
            done += len(batches[i])
            rows = list(known.get(i, ()))
            while len(rows) < sizes[i]:
                # No name holds the part: the one before must be gone while the next is decoded.
                rows += score_batch(job, *next(images), rewards, batch_size)
            journal.append(i, rows)
        if progress is not None:
            progress(done, journal.failed)
        scored = sum(processes.gather(sum(len(batches[i]) for i in todo)))
        if processes.first:
            scores, kept = _merge(job, rewards, out, header, sizes, scored)
    processes.wait()
    if processes.first:
        _remove(kept)
    return scores if processes.first else _read_back(job, rewards, out, scored)


def check_output(
    job: Job,
    names: Sequence[str],
    out: str | os.PathLike[str],
    batch_size: int = 16,
    restart: bool = False,
    needy: Sequence[str] = (),
) -> None:
    """Checks what :func:`score` checks, as far as it can be known without loading a reward.

    Arguments:
        job: The job.
        names: The names of the rewards.
        out: The file to write.
        batch_size: Number of images that are decoded together, see :func:`score`.
        restart: Whether to discard a journal and replace a result, see :func:`score`.
        needy: The names of the rewards that need prompts.

    Raises:
        FileExistsError: If there is a result of another call, and `restart` is False.
        FileNotFoundError: If there is no folder to write it to.
        ImportError: If pyarrow is missing for a result in Parquet.
        ValueError: If the arguments do not fit together, or the journal belongs to another job.
    """

    out = checks.path("out", out)
    checks.integer("batch_size", batch_size, 1)
    if not names:
        raise ValueError("rewards must hold at least one reward, got none")
    for name in names:
        if name in _FIXED or list(names).count(name) > 1:
            raise ValueError(f"the column {name!r} would come twice: score that reward once, alone")
    if needy and not job.prompted:
        raise ValueError(f"{', '.join(needy)} needs prompts, and the job has none")
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"out must end in .csv or .parquet, got {out}")
    if out.is_dir():
        raise ValueError(f"out must be a file, got the directory {out}")
    if out.suffix == ".parquet":
        require("pyarrow.parquet", "a .parquet file needs", "rewards")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} to write {out.name} to")

    if restart:
        return
    for journal in journals(out):
        with open_regular(journal) as file:
            check_header(journal, file.readline(), make_header(job, names, batch_size))
    if not journals(out) and out.exists():
        check_finished(out, make_header(job, names, batch_size))


def _weights_and_options(rewards: Mapping[str, Reward]) -> tuple[dict[str, str], list[str]]:
    """What rewards depend on, by their names, and the reasons why that is not known of some."""

    keys = {name: fingerprint_or_reason(reward) for name, reward in rewards.items()}
    kinds = {name: reward.device and reward.device.type for name, reward in rewards.items()}
    known = {name: f"{key} on {kinds[name]}" for name, (key, _) in keys.items()}
    return known, [reason for _, reason in keys.values() if reason]


def _rows_of(batch: Sequence[Item]) -> int:
    return sum(len(item.prompts) for item in batch)


def _known(
    job: Job,
    out: Path,
    header: Mapping[str, Any],
    batches: Sequence[Sequence[Item]],
    names: list[str],
    restart: bool,
) -> dict[int, list[Row]]:
    """Rows of the batches that a result of the same job holds, but for those with some left.

    Raises:
        FileExistsError: If there is a result of another job that nothing has begun to replace.
    """

    if restart or not out.exists():
        return {}
    try:
        check_finished(out, header)
    except FileExistsError:
        if journals(out):
            return {}
        raise
    rows = iter(finished_rows(out, len(job.labels)))
    parts = [list(itertools.islice(rows, _rows_of(batch))) for batch in batches]
    return {i: part for i, part in enumerate(parts) if not any(is_left(row, names) for row in part)}


def _finished(out: Path, header: Mapping[str, Any], sizes: Sequence[int]) -> set[int]:
    """Numbers of the batches that any process has finished, of this run or of one before."""

    finished: set[int] = set()
    for path in journals(out):
        with Journal(path, header, sizes) as journal:
            finished |= journal.batches
    return finished


def _merge(
    job: Job,
    rewards: Mapping[str, Reward],
    out: Path,
    header: Mapping[str, Any],
    sizes: Sequence[int],
    scored: int,
) -> tuple[Scores, list[Path]]:
    """Writes the result, and the record beside it, from the journals, which are removed.

    Returns:
        The scores, and the journals that are to be removed when they are closed, as on Windows.
    """

    findings = _Findings(job, rewards)
    with ExitStack() as stack:
        parts = [stack.enter_context(Journal(path, header, sizes)) for path in journals(out)]
        holder = {batch: part for part in parts for batch in part.batches}
        rows = (row for i in range(len(sizes)) for row in holder[i].rows(i))
        watched = findings.watch(rows)
        write_table(out, job.labels, list(rewards), watched, header["escaped formulas"])
    write_record(out, header)
    left = _remove(journals(out))
    return findings.scores(out, scored), left


def _remove(paths: Sequence[Path]) -> list[Path]:
    """Removes files, and returns those of them that are open in a system that then keeps them."""

    left = []
    for path in paths:
        try:
            path.unlink()
        except PermissionError:
            left.append(path)
    return left


def _read_back(job: Job, rewards: Mapping[str, Reward], out: Path, scored: int) -> Scores:
    """The scores of a result that is there."""

    findings = _Findings(job, rewards)
    deque(findings.watch(iter(finished_rows(out, len(job.labels)))), 0)
    return findings.scores(out, scored)


class _Findings:
    """What is found in the rows of a result, in one pass."""

    def __init__(self, job: Job, rewards: Mapping[str, Reward]) -> None:
        self.job = job
        self.tallies = [Tally(name, job, reward) for name, reward in rewards.items()]
        self.failures: list[Failure] = []
        self.count = 0

    def watch(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Passes the rows on, with their images and prompts."""

        places = ((i, prompt) for i, item in enumerate(self.job.items) for prompt in item.prompts)
        for self.count, ((i, prompt), row) in enumerate(zip(places, rows, strict=True), 1):
            item = self.job.items[i]
            for tally, value in zip(self.tallies, row, strict=False):
                tally.add(i, prompt, value)
            if row[-1]:
                self.failures.append(Failure(self.count, item.image, prompt, row[-1]))
            kind = [item.kind] if self.job.kinds else []
            yield [item.image, prompt, *kind, *row]

    def scores(self, out: Path, scored: int) -> Scores:
        summaries = tuple(summary for tally in self.tallies for summary in tally.summaries())
        best = tuple(best for tally in self.tallies for best in tally.best())
        return Scores(out, self.count, scored, summaries, best, tuple(self.failures))
