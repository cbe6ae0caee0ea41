"""The journals of an unfinished run: the facts about its job, and a line per finished batch.

Every process of a run writes a journal of its own, and reads all: whichever process has finished a
batch, and of how many, none scores it again.
"""

import glob
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import torch

import rwguidance
from rwguidance.support.files import naming, open_regular, own_file
from rwguidance.support.locks import seize

from ..prompt_files import Job

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "RESTART",
    "Journal",
    "OwnJournal",
    "Row",
    "check_header",
    "journal_path",
    "journals",
    "make_header",
]

RESTART = "with restart=True (on the command line, --restart)"
"""How to discard a journal or a result, for messages."""

Row: TypeAlias = "list[Any]"
"""One value or None per reward, and last the reason if there is a None, otherwise ""."""


def journal_path(out: str | os.PathLike[str], rank: int = 0) -> Path:
    """The file that keeps the progress of an unfinished run, beside the result.

    Arguments:
        out: The result.
        rank: Number of the process that writes it.
    """

    return Path(f"{os.fspath(out)}.partial{f'-{rank}' if rank else ''}.jsonl")


def journals(out: str | os.PathLike[str]) -> list[Path]:
    """The journals that are there, of all processes of an unfinished run."""

    out = Path(out)
    others = sorted(out.parent.glob(f"{glob.escape(out.name)}.partial-*.jsonl"))
    return [path for path in (journal_path(out), *others) if path.exists()]


class Journal:
    """A journal to read: lines of JSON, a header and one per finished batch.

    A line that its process is still writing, or has not lived to finish, is none.

    Arguments:
        path: The file.
        header: The facts about the job, as from :func:`make_header`.
        sizes: Number of rows of each batch.

    Attributes:
        failed: Number of rows that lack a value.

    Raises:
        ValueError: If the file is no journal, or that of another job, or damaged.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], sizes: Sequence[int]) -> None:
        self.path = path
        self.sizes = sizes
        self.failed = 0
        self.file: IO[bytes] = self._open()
        self._places: dict[int, int] = {}
        try:
            self._end = self._read(header)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()

    @property
    def batches(self) -> set[int]:
        """Numbers of the finished batches."""

        return set(self._places)

    def rows(self, batch: int) -> list[Row]:
        """The rows of a finished batch."""

        self.file.seek(self._places[batch])
        rows: list[Row] = json.loads(self.file.readline())["rows"]
        return rows

    def _open(self) -> IO[bytes]:
        return open_regular(self.path)

    def _read(self, header: Mapping[str, Any]) -> int:
        """Finds the batches, and returns the offset at which the last complete line ends."""

        self.file.seek(0)
        first = self.file.readline()
        if not first.endswith(b"\n"):  # killed before anything was scored
            return 0
        check_header(self.path, first, header)
        end = len(first)
        while line := self.file.readline():
            record = self._parse(line)
            if record is None:
                if self.file.readline():
                    raise self._damaged()
                break
            self._note(record, end)
            end += len(line)
        return end

    def _note(self, record: Mapping[str, Any], place: int) -> None:
        self._places[record["batch"]] = place
        self.failed += sum(row[-1] != "" for row in record["rows"])

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        if not line.endswith(b"\n"):
            return None
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        facts: dict[str, Any] = record if isinstance(record, dict) else {}
        batch, rows = facts.get("batch"), facts.get("rows")
        if not isinstance(batch, int) or not 0 <= batch < len(self.sizes):
            raise self._damaged()
        if not isinstance(rows, list) or len(rows) != self.sizes[batch] or batch in self._places:
            raise self._damaged()
        if facts.get("crc32") != _checksum(batch, rows):
            raise self._damaged()
        return facts

    def _damaged(self) -> ValueError:
        return ValueError(f"{self.path} is damaged in the middle; begin again, {RESTART}")


class OwnJournal(Journal):
    """The journal that this process writes, locked against other runs.

    Arguments:
        path: The file.
        header: The facts about the job, as from :func:`make_header`.
        sizes: Number of rows of each batch.
        restart: Whether to discard what an unfinished run has written.

    Raises:
        ValueError: If the file is no journal, or that of another job, or damaged, or another run is
            writing it.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], sizes: Sequence[int], restart: bool
    ) -> None:
        self._restart = restart
        super().__init__(path, header, sizes)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.file.close()
        except OSError:  # of what a full disk did not take, which was an error before
            if kind is None:
                raise

    def append(self, batch: int, rows: list[Row]) -> None:
        """Appends the rows of a batch, which are on the disk when this returns."""

        record = {"batch": batch, "rows": rows, "crc32": _checksum(batch, rows)}
        place = self._end
        self._write(record)
        self._note(record, place)

    def _open(self) -> IO[bytes]:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        file = os.fdopen(own_file(self.path, flags), "a+b")
        try:
            _lock(file, self.path)
        except BaseException:
            file.close()
            raise
        return file

    def _read(self, header: Mapping[str, Any]) -> int:
        if self._restart:
            self.file.truncate(0)
        self._end = super()._read(header)
        self.file.truncate(self._end)
        if not self._end:
            self._write(header)
        return self._end

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with naming(self.path):
            self.file.write(line)
            self.file.flush()
            os.fsync(self.file.fileno())
        self._end += len(line)


def make_header(job: Job, names: Sequence[str], batch_size: int) -> dict[str, Any]:
    """The facts that tell a job from others, as far as known before rewards are loaded."""

    return {
        "folder": str(job.folder.resolve()),
        "images and prompts": _job_digest(job),
        "exif": job.exif,
        "max pixels": job.max_pixels,
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
    for i, item in enumerate(job.items):
        path = job.folder / item.image
        stat = path.stat() if os.path.isfile(path) else None
        stamp = (stat.st_size, stat.st_mtime_ns) if stat else None
        prompts = "as before" if job.matrix and i else item.prompts
        kind = [item.kind] if job.kinds else []
        digest.update(json.dumps([item.image, prompts, item.problem, stamp, *kind]).encode())
    return digest.hexdigest()


def _checksum(batch: int, rows: list[Row]) -> int:
    """Checksum of a finished batch: a digit that was changed still reads as a number."""

    return zlib.crc32(json.dumps([batch, rows]).encode())


def _lock(file: IO[bytes], path: Path) -> None:
    """Locks the file against a second run while it is open, where the system can."""

    try:
        seize(file.fileno())
    except BlockingIOError:
        raise ValueError(f"another run is writing {path}") from None
    except OSError:
        return  # a file system without locks
