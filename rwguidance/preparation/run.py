"""Preparing data for a training: preference data, or draws of the model itself."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..backbone import TextToImage
from ..generation.extensions import encode, sampling_times
from ..generation.failures import reason
from ..generation.folder import claimed
from ..generation.run import Report, Run
from ..store import Drawer, Store
from ..support import checks
from ..support.files import expanded, replacing
from ..support.fingerprint import fingerprint
from ..support.processes import ALONE, Processes
from ..tilt import RewardFunction
from .encoding import Encoder, Featured, Shelf
from .layouts import Layout, layout_of, own_layout
from .prepared import SKIPPED, Prepared, left_out, write_manifest
from .sources import Source, find_sources

__all__ = ["Preparation", "prepare_draws", "prepare_pairs"]

_PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What pairs and draws have in common.

    Arguments:
        backbone: The model whose latents and embeddings are wanted.
        out: Folder of the data, made if needed.
        rewards: Rewards by name; what a file of a user's own holds must say what it depends on, see
            :mod:`rwguidance.support.fingerprint`.
        features: Towers by name whose features of every picture of a pair are kept, of which
            :func:`rwguidance.trainer.fit_reward` makes a reward; they say what they depend on, too.
        batch_size: Number of rows, or of draws, that the networks see at once.
        validation: Share of the prompts that are for validation, in [0, 1).
        seed: Seed of the split, and of draws.
        report: Is told about progress: the stage, how much of it is done, and out of how much.
        processes: The processes that share the work, which all see `out`.

    Raises:
        TypeError: If an argument is of the wrong kind, or the model or a reward does not say what
            it depends on.
        ValueError: If an argument makes no sense.
    """

    backbone: TextToImage
    out: Path
    rewards: Mapping[str, RewardFunction] = field(default_factory=dict)
    features: Mapping[str, Featured] = field(default_factory=dict)
    batch_size: int = 8
    validation: float = 0.02
    seed: int = 0
    report: Report = lambda stage, done, total: None
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        checks.instance("backbone", self.backbone, TextToImage, "a Backbone")
        checks.instance("out", self.out, (str, Path), "a path")
        object.__setattr__(self, "out", expanded(self.out))
        for name, reward in self.rewards.items():
            checks.function(name, reward, classes=False)
        for name, tower in self.features.items():
            if not callable(getattr(tower, "features", None)):
                raise TypeError(
                    f"features of {name} must come from a reward of two towers, such as clipscore, "
                    f"with a method features(images, prompts), got {checks.described(tower)}"
                )
        checks.integer("batch_size", self.batch_size, 1)
        checks.number("validation", self.validation, 0, below=1)
        checks.integer("seed", self.seed, 0)
        object.__setattr__(self, "key", fingerprint(self.backbone, self.backbone.incidental))
        keys = {name: fingerprint(reward) for name, reward in self.rewards.items()}
        object.__setattr__(self, "reward_keys", keys)
        keys = {name: fingerprint(tower) for name, tower in self.features.items()}
        object.__setattr__(self, "feature_keys", keys)

    key: str = field(init=False, repr=False)
    reward_keys: dict[str, str] = field(init=False, repr=False)
    feature_keys: dict[str, str] = field(init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """The device of the model's states, on which rewards see pictures."""

        return self.backbone.draw_noise(1, torch.Generator()).device

    @property
    def store(self) -> Store:
        """Where latents, rewards and embeddings are kept."""

        return Store(self.out / "draws", required=True)

    @contextmanager
    def claimed(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Holds the folder against other runs, once it is known that it is of these settings.

        Arguments:
            settings: What decides the data besides what the folder may gain, more files and
                rewards.

        Raises:
            ValueError: If another run writes to the folder, or it holds data of other settings;
                says which differ.
            OSError: If the folder cannot be written to.
        """

        own = {"model": self.key, "seed": self.seed, "validation": self.validation, **settings}
        with claimed(self.out / _PLAN, own, f"out = {self.out} holds data of", self.processes):
            yield

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], drawer: Drawer) -> list[str]:
        """Keeps the embeddings of prompts, once for each of them.

        Arguments:
            prompts: Distinct prompts.
            drawer: Where they are kept, a row for each of them.

        Returns:
            Names of the embeddings; none if the model's conditions show none, or cannot be made of
            them again.
        """

        condition = self.backbone.condition(prompts[:1])
        shown = getattr(condition, "embeddings", None)
        if not isinstance(shown, Mapping) or not getattr(condition, "storable", True):
            return []
        columns = {name: drawer.column(f"embeddings/{name}") for name in shown}
        for column in columns.values():
            column.repair(range(len(column)))
        for start in range(0, len(prompts), self.batch_size):
            some = prompts[start : start + self.batch_size]
            rows = range(start, start + len(some))
            if any(column.missing(rows) for column in columns.values()):
                found = encode(self.backbone, some, None).embeddings
                for name, column in columns.items():
                    column.append(start, found[name], durable=False)
            self.report("prompts", rows.stop, len(prompts))
        for column in columns.values():
            column.settle()
        return list(columns)

    def finish(self, prompts: Sequence[str], about: Mapping[str, Any]) -> Prepared:
        """Writes what training reads first, after the embeddings of the prompts; by one process."""

        prompts = sorted(set(prompts))
        if self.processes.first and prompts:
            origin = {"backbone": self.key, "prompts": fingerprint(tuple(prompts))}
            names = self.embed(prompts, self.store.of(origin))
            whole = {
                "format": 1,
                **about,
                "model": self.key,
                "seed": self.seed,
                "validation": self.validation,
                "rewards": self.reward_keys,
                "features": self.feature_keys,
                "prompts": prompts,
                "embeddings": names,
                "prompt drawer": origin,
            }
            write_manifest(self.out, whole)
        self.processes.wait()
        if not prompts:
            reasons = left_out(self.out).most_common(1)
            why = f": {reasons[0][0]}" if reasons else ""
            raise ValueError(f"data must hold a row or prompt that can be used, got none{why}")
        return Prepared(self.out)


def prepare_pairs(
    job: Preparation,
    data: Sequence[Path | str],
    size: tuple[int, int],
    columns: Mapping[str, str] | None = None,
) -> Prepared:
    """Encodes preference data: latents and rewards of its pictures, captions, who is preferred.

    Rows that cannot be used are left out, and listed in skipped.csv with file, row and reason. A
    file that cannot be read does not end the work on the others. What is finished outlives the
    process, and the same call goes on.

    Arguments:
        job: Model, rewards and folder.
        data: Files, or folders that are searched for them, see
            :func:`rwguidance.preparation.find_sources`.
        size: Height and width to which pictures are resized and cut, in pixels.
        columns: Names of columns of one's own, see :func:`rwguidance.preparation.own_layout`. None:
            the data is in a published layout.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        TypeError: If the model encodes no pictures.
        ValueError: If an argument makes no sense, `out` holds other data, or no row can be used.
        OSError: If the disk fails.
    """

    sources = find_sources(data)
    own = None if columns is None else own_layout(columns)
    encode_pictures = getattr(job.backbone, "encode", None)
    if encode_pictures is None:
        raise TypeError(
            f"backbone must have encode(images), but {type(job.backbone).__name__} has none"
        )
    with job.claimed({"kind": "pairs", "size": list(size), "columns": dict(columns or {})}):
        mine = [
            (i, _prepared(job, encode_pictures, sources[i], size, own))
            for i in job.processes.deal(len(sources))
        ]
        found = dict(pair for part in job.processes.gather(mine) for pair in part)
        entries = [found[i] for i in range(len(sources))]
        usable = [entry for entry in entries if not entry["problem"]]
        if job.processes.first:
            _write_skipped(job, entries)
        prompts = {row.caption for entry in usable for row in _rows(job, entry) if row.caption}
        about = {"kind": "pairs", "batch": job.batch_size, "sources": usable, "size": list(size)}
        return job.finish(sorted(prompts), about)


def _prepared(
    job: Preparation,
    encode_pictures: Callable[[torch.Tensor], torch.Tensor],
    source: Source,
    size: tuple[int, int],
    own: Layout | None,
) -> dict[str, Any]:
    """Encodes one file, and returns what is known of it; `problem` says why it could not be."""

    entry: dict[str, Any] = {"file": str(source.path), "problem": ""}
    try:
        layout = layout_of(source.columns()) if own is None else own
        origin = {
            "data": source.key,
            "layout": [layout.name, *layout.columns],
            "size": list(size),
            "backbone": job.key,
            "batch": job.batch_size,
        }
        shelf = _shelf(job, origin)
        encoder = Encoder(
            encode_pictures,
            job.rewards,
            size,
            layout,
            job.batch_size,
            job.features,
            job.device,
        )
        total = source.count()
        encoder.fill(source, shelf, lambda done: job.report(source.path.name, done, total))
    except ValueError as error:  # of this file; the others go on, which a full disk ends
        return {**entry, "problem": reason(error)}
    rows = shelf.log.whole()
    skipped = sum(bool(row.problem) for row in rows)
    pictures = sum(len(row.ranks) for row in rows)
    counts = {"rows": len(rows), "skipped": skipped, "pictures": pictures}
    return {**entry, "origin": origin, **counts}


def _shelf(job: Preparation, origin: Mapping[str, Any]) -> Shelf:
    folder = job.out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    keys = job.reward_keys, job.feature_keys
    return Shelf.of(job.store.of(origin), folder, job.batch_size, *keys)


def _rows(job: Preparation, entry: Mapping[str, Any]) -> Any:
    return _shelf(job, entry["origin"]).log.whole()


def _write_skipped(job: Preparation, entries: Sequence[Mapping[str, Any]]) -> None:
    with (
        replacing(job.out / SKIPPED) as partial,
        # A name that is not UTF-8 is escaped, as the console shows it.
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(("file", "row", "reason"))
        for entry in entries:
            if entry["problem"]:
                table.writerow((entry["file"], "", entry["problem"]))
                continue
            for i, row in enumerate(_rows(job, entry)):
                if row.problem:
                    table.writerow((entry["file"], i, row.problem))


def prepare_draws(
    job: Preparation, prompts: Sequence[str], draws: int, steps: int | None = None
) -> Prepared:
    """Draws pictures of prompts from the model itself, scores them, and keeps latents and rewards.

    A prompt that fails does not end the work on the others.

    Arguments:
        job: Model, rewards and folder.
        prompts: Distinct prompts.
        draws: Number of draws of each prompt.
        steps: Number of steps of the sampler. None is what the model's authors recommend.

    Raises:
        ValueError: If an argument makes no sense, `out` holds other data, or every prompt fails.
        OSError: If the disk fails.
    """

    checks.integer("draws", draws, 1)
    if not job.rewards:
        raise ValueError("rewards must name at least one reward, since draws are prepared for it")
    if job.features:
        raise ValueError("features are kept of pairs that people compared, not of draws")
    times = sampling_times(job.backbone, steps)
    runs = {
        name: Run(job.backbone, reward, times, job.seed, job.batch_size, None, job.store)
        for name, reward in job.rewards.items()
    }
    with job.claimed({"kind": "draws", "times": [float(t) for t in times], "draws": draws}):
        mine: list[tuple[str, str]] = []
        for done, i in enumerate(job.processes.deal(len(prompts))):
            mine.append((prompts[i], _drawn(runs, prompts[i], draws)))
            job.report("prompts", done + 1, len(job.processes.deal(len(prompts))))
        problems = dict(pair for part in job.processes.gather(mine) for pair in part)
        entries = [{"file": p, "problem": text} for p, text in problems.items() if text]
        if job.processes.first:
            _write_skipped(job, entries)
        whole = [prompt for prompt in prompts if not problems[prompt]]
        run = next(iter(runs.values()))
        origins = {p: {**run.origin, "prompt": p, "stream": ["bank"]} for p in whole}
        columns = {
            name: [f"rewards/{type(run.reward).__name__}", {"reward": run.reward_key}]
            for name, run in runs.items()
        }
        about = {"kind": "draws", "draws": draws, "drawers": origins, "columns": columns}
        return job.finish(whole, about)


def _drawn(runs: Mapping[str, Run], prompt: str, draws: int) -> str:
    """Makes the draws of a prompt and their rewards; returns why it failed, or nothing."""

    try:
        for run in runs.values():
            run.bank(prompt, draws, "bank")
    except OSError:
        raise
    except Exception as error:
        return reason(error)
    return ""
