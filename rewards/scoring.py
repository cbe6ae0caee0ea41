r"""Scores of many images: streamed, journaled, and resumed exactly.

.. code-block:: python

    job = plan("images", "prompts.csv")
    scores = score(job, {"hpsv2": rewards.load("hpsv2")}, "scores.csv")

Images are decoded once for all their prompts and rewards, one batch ahead, so that at most two
batches are in memory. Every finished batch goes to a journal beside the result. A run that was
killed at any moment loses the batch at hand; the same call goes on after the last one in the
journal. How images fall into batches is fixed by the job, and no batch depends on what was scored
before, so the result is the same, byte for byte, as without the interruption. (On one machine, for
rewards that give the same numbers for the same call.)

An image that cannot be read, or a reward that is not finite, leaves the value empty, states the
reason in the column ``error``, and stops nothing else. What the journal holds is final: an image
that failed is not tried again, unless the run is restarted.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

import rwguidance
from rwguidance.support.files import replacing
from rwguidance.support.fingerprint import fingerprint
from rwguidance.support.outside import require

from .base import Reward
from .images import from_pil
from .prompt_files import Item, Job, plan
from .towers import EmbeddingReward

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Best", "Failure", "Scores", "Summary", "check_output", "journal_of", "plan", "score"]

_FIXED = ("image", "prompt", "error")
_DECODERS = 8
_ROW_GROUP = 65536
_RESTART = "with restart=True (on the command line, --restart)"

_Row: TypeAlias = "list[Any]"
"""As in the journal: one value or None per reward, and the reason if there is a None."""


@dataclass(frozen=True)
class Summary:
    r"""One reward over all rows that have a value.

    The standard error allows for rows that share an image: with :math:`N` rows of :math:`n` images,

    .. math:: \mathrm{SE}^2 = \frac{n}{n - 1} \sum_{i=1}^n
        \Big( \frac1N \sum_{j \in \text{rows of } i} (r_j - \bar r) \Big)^2,

    which is :math:`s^2 / n` if every image has one row. Prompts count as given, not as drawn.

    Arguments:
        reward: Its name.
        rows: Number of rows, N.
        images: Number of images, n.
        mean: Mean over rows, in reward units; NaN without rows.
        standard_error: That of the mean, in reward units; NaN for fewer than two images.
        low: Smallest value.
        high: Largest value.
    """

    reward: str
    rows: int
    images: int
    mean: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """The image with the highest reward for a prompt; the first of several.

    Arguments:
        reward: The name of the reward.
        prompt: None if it does not matter: for images alone, and if every image was scored with
            every prompt by a reward that needs none.
        image: Its path in the folder.
        value: In reward units.
        images: Among how many.
    """

    reward: str
    prompt: str | None
    image: str
    value: float
    images: int


@dataclass(frozen=True)
class Failure:
    """A row without all its values: its number in the result, from 1, and why."""

    row: int
    image: str
    prompt: str
    reason: str


@dataclass(frozen=True)
class Scores:
    """What a run wrote.

    Arguments:
        out: The file.
        rows: Number of its rows.
        scored: Number of images that this run opened; the others came from the journal.
        summaries: One per reward.
        best: For every reward and prompt, in the order of the rows.
        failures: In the order of the rows.
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
) -> Scores:
    """Scores a job and writes a table with the columns image, prompt, one per reward, and error.

    Float32 rewards are written with the digits that tell them apart, others in full.

    Arguments:
        job: What :func:`plan` returned.
        rewards: By the names of their columns.
        out: A file ``.csv`` or ``.parquet``. It appears when everything is scored.
        batch_size: Number of images that are decoded together, and the largest number of pairs
            given to a reward at once. A job of pairs has at most that many pairs in a batch, or one
            image.
        restart: Whether to discard the journal of an unfinished run, and to replace a result.
        progress: Is called with the number of images done and the number of rows that failed.

    Raises:
        FileExistsError: If the result exists, and `restart` is False.
        FileNotFoundError: If there is no folder to write it to.
        ImportError: If Pillow, or pyarrow for Parquet, is missing.
        TypeError: If a reward does not return one value per image.
        ValueError: If there are no rewards, one needs prompts and there are none, the journal
            belongs to another job, or another run is writing it.
    """

    out = Path(out)
    needy = [name for name, reward in rewards.items() if reward.spec.needs_prompt]
    check_output(job, list(rewards), out, batch_size, restart, needy)
    require("PIL.Image", "images need", "rewards")
    batches = _batches(job, batch_size)
    header = _header(job, list(rewards), batch_size)
    header["weights and options"] = {
        name: f"{fingerprint(reward)} on {reward.device}" for name, reward in rewards.items()
    }
    with _Journal(journal_of(out), header, list(map(_size, batches)), restart) as journal:
        start = journal.batches
        rest = _decoded(job, batches[start:])
        done, failed = sum(map(len, batches[:start])), journal.failed
        for batch in batches[start:]:
            if progress is not None:
                progress(done, failed)
            rows = _score_batch(job, batch, next(rest), rewards, batch_size)
            journal.append(rows)
            done, failed = done + len(batch), journal.failed
        if progress is not None:
            progress(done, failed)
        scored = sum(map(len, batches[start:]))
        scores = _write(job, rewards, journal, out, scored)
    journal_of(out).unlink()
    return scores


def journal_of(out: str | os.PathLike[str]) -> Path:
    """Where the progress of an unfinished run is kept: beside the result."""

    return Path(f"{os.fspath(out)}.partial.jsonl")


def check_output(
    job: Job,
    names: Sequence[str],
    out: str | os.PathLike[str],
    batch_size: int = 16,
    restart: bool = False,
    needy: Sequence[str] = (),
) -> None:
    """Raises what :func:`score` would raise, as far as it is known without loading a reward.

    Arguments:
        job: What is to be scored.
        names: The names of the rewards.
        out: The file to write.
        batch_size: As for :func:`score`.
        restart: As for :func:`score`.
        needy: The names of the rewards that need prompts.
    """

    out = Path(out)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
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

    journal = journal_of(out)
    if restart:
        return
    if journal.exists():
        with journal.open("rb") as file:
            _check_header(journal, file.readline(), _header(job, names, batch_size))
    elif out.exists():
        raise FileExistsError(f"{out} exists: write elsewhere, or replace it, {_RESTART}")


# --- batches ---


def _batches(job: Job, batch_size: int) -> list[tuple[Item, ...]]:
    """Images that are scored together: `batch_size` of a matrix, or of `batch_size` pairs."""

    batches: list[list[Item]] = []
    size = batch_size
    for item in job.items:
        cost = 1 if job.matrix else len(item.prompts)
        if size + cost > batch_size:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += cost
    return list(map(tuple, batches))


def _size(batch: Sequence[Item]) -> int:
    return sum(len(item.prompts) for item in batch)


def _decoded(job: Job, batches: Sequence[Sequence[Item]]) -> "Iterator[list[Image | str]]":
    """The images of each batch, or why they cannot be read; the next batch is decoded meanwhile."""

    with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:

        def submit(batch: Sequence[Item]) -> "list[Future[Image | str]]":
            return [pool.submit(_decode, job.folder / i.image, i.problem) for i in batch]

        ahead: list[Future[Image | str]] = []
        try:
            ahead = submit(batches[0]) if batches else []
            for following in (*batches[1:], ()):
                images = [future.result() for future in ahead]
                ahead = submit(following)
                yield images
        finally:
            for future in ahead:
                future.cancel()


def _decode(path: Path, problem: str) -> "Image | str":
    """The image in memory, or why not. Decoders raise whatever they like on broken files."""

    from PIL import Image, UnidentifiedImageError

    if problem:
        return problem
    try:
        with Image.open(path) as image:
            image.load()
            from_pil(image.crop((0, 0, 1, 1)))  # refuses modes that have no agreed range
            return image.copy()
    except FileNotFoundError:
        return "no such file"
    except UnidentifiedImageError:
        return "not an image of a known format"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _score_batch(
    job: Job,
    batch: Sequence[Item],
    images: "list[Image | str]",
    rewards: Mapping[str, Reward],
    batch_size: int,
) -> list[_Row]:
    """One row per prompt of each image."""

    good = [
        (item, image)
        for item, image in zip(batch, images, strict=True)
        if not isinstance(image, str)
    ]
    columns = [
        iter(_evaluate(name, reward, job, good, batch_size)) for name, reward in rewards.items()
    ]
    rows = []
    for item, image in zip(batch, images, strict=True):
        if isinstance(image, str):
            rows += [[*[None] * len(rewards), image] for _ in item.prompts]
            continue
        results = [next(column) for column in columns]
        for j in range(len(item.prompts)):
            values: _Row = []
            reasons = []
            for name, result in zip(rewards, results, strict=True):
                value = result if isinstance(result, str) else result[j]
                finite = isinstance(value, float) and math.isfinite(value)
                values.append(value if finite else None)
                if not finite:
                    reasons.append(f"{name} {'failed: ' if result is value else 'is '}{value}")
            rows.append([*values, "; ".join(reasons)])
    return rows


def _evaluate(
    name: str, reward: Reward, job: Job, good: "list[tuple[Item, Image]]", batch_size: int
) -> list[list[float] | str]:
    """Values of each image for its prompts, or why the reward refuses the image."""

    if not good:
        return []
    _forget(reward, job)
    try:
        with torch.no_grad():
            values = _values(name, reward, job, good, batch_size)
    except ValueError as error:
        if len(good) == 1:
            return [" ".join(str(error).split())]
        return [r for pair in good for r in _evaluate(name, reward, job, [pair], batch_size)]
    sizes = [len(item.prompts) for item, _ in good]
    flat = iter(_shortest(values))
    return [list(itertools.islice(flat, size)) for size in sizes]


def _values(
    name: str, reward: Reward, job: Job, good: "list[tuple[Item, Image]]", batch_size: int
) -> Tensor:
    """Values of all rows, with shape (rows,)."""

    images = [image for _, image in good]
    if not reward.spec.needs_prompt:
        counts = torch.tensor([len(item.prompts) for item, _ in good])
        return _check(name, reward(images), len(images)).cpu().repeat_interleave(counts)
    if job.matrix:
        prompts = good[0][0].prompts
        values = reward.score_matrix(images, prompts)
        return _check(name, values, len(images), len(prompts)).flatten()
    pairs = [(image, prompt) for item, image in good for prompt in item.prompts]
    chunks = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    return torch.cat(
        [_check(name, reward(*map(list, zip(*chunk, strict=True))), len(chunk)) for chunk in chunks]
    )


def _check(name: str, values: Tensor, *shape: int) -> Tensor:
    if values.shape != shape:
        raise TypeError(
            f"{name} must return one value per image, shape {shape}, got {tuple(values.shape)}"
        )
    return values


def _forget(reward: Reward, job: Job) -> None:
    """Empties caches of prompts: which prompts were embedded together shows in the last digit.

    All prompts of a matrix are embedded together in any batch, if the cache holds them.
    """

    caching = [m for m in reward.modules() if isinstance(m, EmbeddingReward)]
    for part in caching:
        if not (job.matrix and len(job.items[0].prompts) <= part.cache_size):
            part.forget_prompts()


def _shortest(values: Tensor) -> list[float]:
    if values.dtype == torch.float64:
        return values.tolist()
    return [float(str(value)) for value in values.float().cpu().numpy()]


# --- the journal ---


class _Journal:
    """Lines of JSON: what the job is, then one line per finished batch."""

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
                _check_header(path, first, header)
                self.file.truncate(self._end_of_batches())
            else:  # new, or killed before anything was scored
                self.file.truncate(0)
                self._write(header)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, rows: list[_Row]) -> None:
        """Records a batch, on the disk when this returns."""

        self._write({"batch": self.batches, "rows": rows})
        self._count(rows)

    def rows(self) -> Iterator[_Row]:
        """The rows of all batches."""

        self.file.seek(0)
        self.file.readline()
        for line in self.file:
            yield from json.loads(line)["rows"]

    def _write(self, record: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def _count(self, rows: list[_Row]) -> None:
        self.batches += 1
        self.failed += sum(row[-1] != "" for row in rows)

    def _end_of_batches(self) -> int:
        """Where the last complete line ends. Only the last one can be torn."""

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

    def _parse(self, line: bytes) -> list[_Row] | None:
        if not line.endswith(b"\n"):
            return None
        try:
            record = json.loads(line)
        except ValueError:
            return None
        rows: Any = record.get("rows") if isinstance(record, dict) else None
        sized = self.batches < len(self.sizes) and isinstance(rows, list)
        if not sized or record["batch"] != self.batches or len(rows) != self.sizes[self.batches]:
            raise self._damaged()
        return rows

    def _damaged(self) -> ValueError:
        return ValueError(f"{self.path} is damaged in the middle; begin again, {_RESTART}")


def _header(job: Job, names: Sequence[str], batch_size: int) -> dict[str, Any]:
    """What makes a job another job, as far as it is known before rewards are loaded."""

    return {
        "folder": str(job.folder.resolve()),
        "images and prompts": _digest_of_job(job),
        "rewards": list(names),
        "batch size": batch_size,
        "rwguidance": rwguidance.__version__,
        "torch": torch.__version__,
    }


def _check_header(path: Path, line: bytes, header: Mapping[str, Any]) -> None:
    """Raises if a journal's first line, unless torn, differs in any entry of `header`."""

    if not line.endswith(b"\n"):
        return
    try:
        found = dict(json.loads(line))
    except ValueError:
        raise ValueError(f"{path} is not the journal of a run: move it away") from None
    differ = [key for key, value in header.items() if found.get(key) != value]
    if differ:
        raise ValueError(
            f"{path} is the journal of another, unfinished job: its {', '.join(differ)} differ. "
            f"Finish that one, write elsewhere, or discard it, {_RESTART}"
        )


def _digest_of_job(job: Job) -> str:
    """Of names, prompts, and the sizes and times of the files; contents are not read."""

    digest = hashlib.sha256(f"{job.matrix} {job.prompted}\n".encode())
    for item in job.items:
        path = job.folder / item.image
        stat = path.stat() if path.is_file() else None
        stamp = (stat.st_size, stat.st_mtime_ns) if stat else None
        prompts = "as before" if job.matrix and item is not job.items[0] else item.prompts
        digest.update(json.dumps([item.image, prompts, item.problem, stamp]).encode())
    return digest.hexdigest()


def _lock(file: IO[bytes], path: Path) -> None:
    """Keeps a second run away while the file is open, where the system can."""

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


# --- the result ---


def _write(
    job: Job, rewards: Mapping[str, Reward], journal: _Journal, out: Path, scored: int
) -> Scores:
    """Writes the result and summarizes it, in one pass over the journal."""

    names = ["image", "prompt", *rewards, "error"]
    tallies = [_Tally(name, job, reward) for name, reward in rewards.items()]
    failures = []
    count = 0

    def rows() -> Iterator[_Row]:
        nonlocal count
        places = ((i, prompt) for i, item in enumerate(job.items) for prompt in item.prompts)
        for count, ((i, prompt), row) in enumerate(zip(places, journal.rows(), strict=True), 1):
            image = job.items[i].image
            for tally, value in zip(tallies, row, strict=False):
                tally.add(i, prompt, value)
            if row[-1]:
                failures.append(Failure(count, image, prompt, row[-1]))
            yield [image, prompt, *row]

    with replacing(out) as partial, partial.open("wb") as file:
        write = _write_parquet if out.suffix == ".parquet" else _write_csv
        write(file, names, rows())
        file.flush()
        os.fsync(file.fileno())
    summaries = tuple(tally.summary() for tally in tallies)
    best = tuple(best for tally in tallies for best in tally.best())
    return Scores(out, count, scored, summaries, best, tuple(failures))


def _write_csv(file: IO[bytes], names: list[str], rows: Iterator[_Row]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)  # floats by repr, None as nothing
    text.detach()


def _write_parquet(file: IO[bytes], names: list[str], rows: Iterator[_Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    text = (0, 1, len(names) - 1)
    types = [pyarrow.string() if i in text else pyarrow.float64() for i in range(len(names))]
    schema = pyarrow.schema(list(zip(names, types, strict=True)))
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            columns = [
                pyarrow.array(column, kind)
                for column, kind in zip(zip(*group, strict=True), types, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


@dataclass
class _Tally:
    """Sums and extremes of one reward, row by row."""

    name: str
    job: Job
    reward: Reward
    images: dict[int, list[float]] = field(default_factory=dict)  # rows and their sum, per image
    prompts: dict[str | None, Best] = field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf

    def add(self, i: int, prompt: str, value: float | None) -> None:
        if value is None:
            return
        self.low, self.high = min(self.low, value), max(self.high, value)
        entry = self.images.setdefault(i, [0, 0.0])
        entry[0] += 1
        entry[1] += value

        told_apart = self.job.prompted and (self.reward.spec.needs_prompt or not self.job.matrix)
        key = prompt if told_apart else None
        if not told_apart and entry[0] > 1:
            return  # the same value again
        best = self.prompts.get(key)
        image = self.job.items[i].image
        if best is None:
            self.prompts[key] = Best(self.name, key, image, value, 1)
            return
        image, value = (image, value) if value > best.value else (best.image, best.value)
        self.prompts[key] = Best(self.name, key, image, value, best.images + 1)

    def summary(self) -> Summary:
        n = len(self.images)
        rows = int(sum(count for count, _ in self.images.values()))
        if not rows:
            return Summary(self.name, 0, 0, math.nan, math.nan, math.nan, math.nan)
        mean = math.fsum(total for _, total in self.images.values()) / rows
        squares = math.fsum((s - count * mean) ** 2 for count, s in self.images.values())
        error = math.sqrt(squares * n / (n - 1)) / rows if n > 1 else math.nan
        return Summary(self.name, rows, n, mean, error, self.low, self.high)

    def best(self) -> list[Best]:
        return list(self.prompts.values())
