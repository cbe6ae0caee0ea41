"""Filling columns: what is missing is made in batches, by one process or by several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..support import checks
from ..support.batches import batches
from ..support.processes import ALONE, Processes
from .columns import Column

__all__ = ["Task", "fill"]


@dataclass(frozen=True)
class Task:
    r"""The first entries of a column, to be made as far as they are not there.

    Arguments:
        column: The column.
        n: Number of entries.
        make: Function from numbers of draws, a batch of them, to their entries, with shape
            (B, \*event). It should depend on the numbers alone.
        batch_size: Number of entries that are made at once, at most. Batches begin at multiples of
            it, whatever is there, and so round alike.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `n` is negative, or `batch_size` less than 1.
    """

    column: Column
    n: int
    make: Callable[[range], Tensor]
    batch_size: int

    def __post_init__(self) -> None:
        checks.instance("column", self.column, Column, "a Column of a Drawer")
        checks.integer("n", self.n, 0)
        checks.function("make", self.make)
        checks.integer("batch_size", self.batch_size, 1)

    def run(self, batch: range) -> bool:
        """Makes a batch, if some of it is missing, and adds that; returns whether it did."""

        gaps = self.column.missing(batch)
        if not gaps:
            return False
        values = self.make(batch)
        if not isinstance(values, Tensor) or values.shape[:1] != (len(batch),):
            raise ValueError(
                f"make must return one entry per draw, shape ({len(batch)}, ...), "
                f"got {checks.described(values)}"
            )
        for gap in gaps:
            part = values[gap.start - batch.start : gap.stop - batch.start]
            self.column.append(gap.start, part)
        return True


def fill(
    tasks: Sequence[Task],
    processes: Processes = ALONE,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Makes what is missing of some columns, batch by batch; each one is on the disk when it is.

    Damaged shards are set aside first, and made again. Whoever is interrupted goes on from there
    with the same call, and ends with the same entries. Processes take turns at the batches, and all
    must call this with the same tasks, on the same file system; entries do not depend on their
    number. So several prompts, or columns that do not depend on each other, should be filled at
    once.

    Arguments:
        tasks: The tasks.
        processes: The processes that share them, from :func:`rwguidance.support.processes.joined`.
        report: Is told how many of the entries of this process are done, and out of how many.

    Raises:
        TypeError: If what is made does not have the dtype of its column.
        ValueError: If what is made does not have one entry per draw, or not the shape of those that
            are there.
        RuntimeError: If another process has failed; says why.
        ConnectionError: If another process has ended.
        OSError: If a column is required on the disk and it fails.
        Exception: What a task's `make` raises.

    Warns:
        RuntimeWarning: If a shard is damaged; or if the disk fails, so that entries stay in memory.
    """

    changed: dict[str, Column] = {}

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            processes.gather(f"{type(error).__name__}: {error}")
            raise
        failed = [text for text in processes.gather(None) if text]
        if failed:
            raise RuntimeError(f"another process failed: {'; '.join(failed)}")

    def repair() -> None:
        for i in processes.deal(len(tasks)):
            tasks[i].column.repair(range(tasks[i].n))

    def make() -> None:
        work = [(task, batch) for task in tasks for batch in batches(task.n, task.batch_size)]
        work, done = [work[i] for i in processes.deal(len(work))], 0
        total = sum(len(batch) for _, batch in work)
        report(0, total)
        for task, batch in work:
            if task.run(batch):
                changed[task.column.key] = task.column
            done += len(batch)
            report(done, total)

    def settle() -> None:
        for column in changed.values():
            column.settle()

    for step in (repair, make, settle):
        attempt(step)
