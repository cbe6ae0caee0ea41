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

    Where columns are short, several of them fill a batch together: their entries are numbered one
    column after the other, n of each.

    Arguments:
        column: The column, or several.
        n: Number of entries of each.
        make: Function from numbers of draws, a batch of them, to their entries, with shape
            (B, \*event). It should depend on the numbers alone.
        batch_size: Number of entries that are made at once, at most. Batches begin at multiples of
            it, whatever is there, and so round alike.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `n` is negative, or `batch_size` less than 1.
    """

    column: Column | Sequence[Column]
    n: int
    make: Callable[[range], Tensor]
    batch_size: int

    def __post_init__(self) -> None:
        for column in self.columns:
            checks.instance("column", column, Column, "a Column of a Drawer")
        checks.integer("n", self.n, 0)
        checks.function("make", self.make)
        checks.integer("batch_size", self.batch_size, 1)

    @property
    def columns(self) -> Sequence[Column]:
        """The columns."""

        return self.column if isinstance(self.column, Sequence) else [self.column]

    @property
    def batches(self) -> list[range]:
        """The numbers of all entries, in batches."""

        return batches(self.n * len(self.columns), self.batch_size)

    def run(self, batch: range) -> list[Column]:
        """Makes a batch, if some of it is missing, adds that, and returns the columns it is in."""

        gaps = []
        for place in range(batch.start // self.n, -(-batch.stop // self.n)):
            first, column = place * self.n, self.columns[place]
            own = range(max(batch.start - first, 0), min(batch.stop - first, self.n))
            gaps += [(column, gap, first - batch.start) for gap in column.missing(own)]
        if not gaps:
            return []
        values = self.make(batch)
        if not isinstance(values, Tensor) or values.shape[:1] != (len(batch),):
            raise ValueError(
                f"make must return one entry per draw, shape ({len(batch)}, ...), "
                f"got {checks.described(values)}"
            )
        for column, gap, offset in gaps:
            column.append(gap.start, values[gap.start + offset : gap.stop + offset], durable=False)
        return [column for column, _, _ in gaps]


def fill(
    tasks: Sequence[Task],
    processes: Processes = ALONE,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Makes what is missing of some columns, batch by batch.

    A batch that is made outlives the process. The disk is waited for once, when all are made: after
    a loss of power before that, batches may be damaged, and are made again.

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
        every = [(column, task.n) for task in tasks for column in task.columns]
        for i in processes.deal(len(every)):
            column, n = every[i]
            column.repair(range(n))

    def make() -> None:
        work = [(task, batch) for task in tasks for batch in task.batches]
        work, done = [work[i] for i in processes.deal(len(work))], 0
        total = sum(len(batch) for _, batch in work)
        report(0, total)
        for task, batch in work:
            changed.update((column.key, column) for column in task.run(batch))
            done += len(batch)
            report(done, total)

    def settle() -> None:
        for column in changed.values():
            column.settle()

    for step in (repair, make, settle):
        attempt(step)
