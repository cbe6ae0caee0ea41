"""The journal of an unfinished run: the facts about its job, and a line per finished batch."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch

import rwguidance
from rwguidance.support.files import naming

from ..prompt_files import Job

__all__ = ["RESTART", "Journal", "Row", "check_header", "journal_path", "make_header"]

RESTART = "with restart=True (on the command line, --restart)"
"""How to discard a journal or a result, for messages."""

Row: TypeAlias = "list[Any]"
"""One value or None per reward, and last the reason if there is a None, otherwise ""."""


def journal_path(out: str | os.PathLike[str]) -> Path:
    """The file that keeps the progress of an unfinished run, beside the result."""

    return Path(f"{os.fspath(out)}.partial.jsonl")


class Journal:
    """The journal, open and locked: lines of JSON, a header and one per finished batch.

    Arguments:
        path: The file.
        header: The facts about the job, as from :func:`make_header`.
        sizes: Number of rows of each batch.
        restart: Whether to discard what an unfinished run has written.

    Attributes:
        batches: Number of finished batches.
        failed: Number of rows that lack a value.

    Raises:
        ValueError: If the file is no journal, or that of another job, or damaged, or another run is
            writing it.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], sizes: Sequence[int], restart: bool
    ) -> None:
        self.path = path
        self.sizes = sizes
        self.batches = 0
        self.failed = 0
        self.file: IO[bytes] = path.open("a+b")
        try:
            _lock(self.file, path)
            if restart:
                self.file.truncate(0)
            self.file.seek(0)
            first = self.file.readline()
            if first.endswith(b"\n"):
                check_header(path, first, header)
                self.file.truncate(self._end_of_batches())
            else:  # new, or killed before anything was scored
                self.file.truncate(0)
                self._write(header)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.file.close()
        except OSError:  # of what a full disk did not take, which was an error before
            if kind is None:
                raise

    def append(self, rows: list[Row]) -> None:
        """Appends the rows of a batch, which are on the disk when this returns."""

        self._write({"batch": self.batches, "rows": rows})
        self._count(rows)

    def rows(self) -> Iterator[Row]:
        """The rows of all batches."""

        self.file.seek(0)
        self.file.readline()
        for line in self.file:
            yield from json.loads(line)["rows"]

    def _write(self, record: Mapping[str, Any]) -> None:
        with naming(self.path):
            self.file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self.file.flush()
            os.fsync(self.file.fileno())

    def _count(self, rows: list[Row]) -> None:
        self.batches += 1
        self.failed += sum(row[-1] != "" for row in rows)

    def _end_of_batches(self) -> int:
        """Offset at which the last complete line ends. Only the last one can be torn."""

        end = self.file.tell()
        while line := self.file.readline():
            rows = self._parse(line)
            if rows is None:
                if self.file.readline():
                    raise self._damaged()
                break
            self._count(rows)
            end += len(line)
        return end

    def _parse(self, line: bytes) -> list[Row] | None:
        if not line.endswith(b"\n"):
            return None
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        rows: Any = record.get("rows") if isinstance(record, dict) else None
        sized = self.batches < len(self.sizes) and isinstance(rows, list)
        if not sized or record["batch"] != self.batches or len(rows) != self.sizes[self.batches]:
            raise self._damaged()
        return rows

    def _damaged(self) -> ValueError:
        return ValueError(f"{self.path} is damaged in the middle; begin again, {RESTART}")


def make_header(job: Job, names: Sequence[str], batch_size: int) -> dict[str, Any]:
    """The facts that tell a job from others, as far as known before rewards are loaded."""

    return {
        "folder": str(job.folder.resolve()),
        "images and prompts": _job_digest(job),
        "rewards": list(names),
        "batch size": batch_size,
        "rwguidance": rwguidance.__version__,
        "torch": torch.__version__,
    }


def check_header(path: Path, line: bytes, header: Mapping[str, Any]) -> None:
    """Checks the first line of a journal, unless it is torn, against a header.

    Raises:
        ValueError: If it is no journal, or any entry of `header` differs; names the entries.
    """

    if not line.endswith(b"\n"):
        return
    try:
        found = dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is not the journal of a run: move it away") from None
    differ = [key for key, value in header.items() if found.get(key) != value]
    if differ:
        raise ValueError(
            f"{path} is the journal of another, unfinished job: its {', '.join(differ)} differ. "
            f"Finish that one, write elsewhere, or discard it, {RESTART}"
        )


def _job_digest(job: Job) -> str:
    """Digest of names, prompts, and the sizes and times of the files; contents are not read."""

    digest = hashlib.sha256(f"{job.matrix} {job.prompted}\n".encode())
    for item in job.items:
        path = job.folder / item.image
        stat = path.stat() if path.is_file() else None
        stamp = (stat.st_size, stat.st_mtime_ns) if stat else None
        prompts = "as before" if job.matrix and item is not job.items[0] else item.prompts
        kind = [item.kind] if job.kinds else []
        digest.update(json.dumps([item.image, prompts, item.problem, stamp, *kind]).encode())
    return digest.hexdigest()


def _lock(file: IO[bytes], path: Path) -> None:
    """Locks the file against a second run while it is open, where the system can."""

    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run is writing {path}") from None
    except OSError:
        return  # a file system without locks
