"""Draws and what is seen of them, kept in the store: drawn, decoded and judged once."""

from collections.abc import Iterator, Mapping

import rwguidance

from ..generation.run import Run
from ..store import Column
from ..support.batches import batches
from .appearance import APPEARANCE
from .judges import Judges, Looks, join

__all__ = ["judged_draws"]

_TOGETHER = 256
"""Draws whose looks are written at once, about: small files cost more than what they hold."""

Columns = Mapping[tuple[str, str], Column]
"""Columns by kind of looks and name."""


def judged_draws(run: Run, judges: Judges, prompt: str, n: int, *stream: str | int) -> Looks:
    """Returns what is seen of draws, from the store as far as it has it.

    States are in memory a batch at a time. What failed is not kept, and tried again.

    Arguments:
        run: The run of the draws.
        judges: What looks at them.
        prompt: The prompt.
        n: Number of draws.
        stream: Name of their random stream.

    Raises:
        FloatingPointError: If a draw is not finite.

    Warns:
        RuntimeWarning: If what is kept is damaged, and made again; names the file.
    """

    columns = _columns(run, judges, prompt, stream)
    for column in columns.values():
        column.repair(range(n))
    parts: list[Looks] = []
    states = None
    for rows in batches(n, run.batch_size * max(1, _TOGETHER // run.batch_size)):
        if columns and not any(column.missing(rows) for column in columns.values()):
            parts.append(_read(columns, rows))
            continue
        run.report("looks at draws", rows.start, n)
        states = states or run.reader(prompt, n, *stream)
        looks = []
        for batch in batches(rows.stop, run.batch_size, rows.start):
            looks.append(judges.look(run.decode(states(batch)), prompt))
        found = join(looks)
        for (kind, name), column in columns.items():
            if name not in found.errors:
                column.append(rows.start, getattr(found, kind)[name])
        parts.append(found)
    return join(parts)


def _columns(run: Run, judges: Judges, prompt: str, stream: tuple[str | int, ...]) -> Columns:
    """Returns where looks are kept: nowhere, unless all that looks can be told apart."""

    drawer = run.drawer(prompt, stream)
    if drawer is None:
        return {}
    version = {"rwguidance": rwguidance.__version__}
    columns = {
        ("rewards", name): drawer.column(f"appearance/{name}", version) for name in APPEARANCE
    }
    for kind, keys in judges.keys.items():
        for name, (key, _) in keys.items():
            if key is None:
                return {}
            columns[kind, name] = drawer.column(f"{kind}/{name}", {kind: key})
    return columns


def _read(columns: Columns, rows: range) -> Looks:
    def of(kind: str) -> Iterator[tuple[str, Column]]:
        return ((name, column) for (k, name), column in columns.items() if k == kind)

    rewards, embeddings = (
        {name: column.read(rows) for name, column in of(kind)} for kind in ("rewards", "embeddings")
    )
    return Looks(rewards, embeddings)
