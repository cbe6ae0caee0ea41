"""Writing files so that a reader never meets half of one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbor of `path` to write to, which takes its place when the block succeeds.

    If the block fails, the neighbor is removed and an old file at `path` stays as it was. Writers
    of the same file do not meet: each has a neighbor of its own, and the last one stays.
    """

    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
