"""The folder of a generation: pairs of pictures, each file with the settings that made it.

Pictures are recognized by the settings in their metadata, so an interrupted run goes on where it
stopped, and a folder never mixes pictures of different settings.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..support.files import read_regular, replacing
from ..support.locks import locked
from ..support.processes import Processes
from .pictures import read_facts, save_picture
from .results import KINDS, Row
from .run import Scores

__all__ = ["Folder", "Pictures", "check_settings", "claimed", "differences"]

_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Pictures:
    """Pictures of one kind, of one prompt, in one batch.

    Arguments:
        images: Images in [0, 1], with shape (B, 3, H, W).
        scores: Their rewards.
        facts: Facts about each of them, in values that JSON can hold.
    """

    images: Tensor
    scores: Scores
    facts: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Folder:
    """A folder for pairs of pictures that share their settings.

    Arguments:
        path: The folder.
        settings: Everything that decides the pictures besides prompt and number, as JSON reads it
            back. The value of `undescribed` are reasons why pictures cannot be told apart, if any.
    """

    path: Path
    settings: Mapping[str, Any]

    def claim(self, restart: bool) -> None:
        """Writes the settings to the folder, which exists, for all runs that come later.

        Arguments:
            restart: Whether to take over pictures of other settings, which are then replaced.

        Raises:
            ValueError: If the folder holds pictures of other settings; says which ones differ.
        """

        if not restart:
            check_settings(self.path, self.settings, complete=True)
        text = json.dumps(self.settings, indent=1, ensure_ascii=False)
        with replacing(self.path / _SETTINGS) as partial:
            partial.write_bytes(text.encode())

    def absent(self, prompt: str, numbers: Iterable[int]) -> bool:
        """Returns whether a file of a batch is not there; reads none, so it may be another's.

        Arguments:
            prompt: The prompt.
            numbers: Numbers of the images.
        """

        files = (path for number in numbers for path in self.files(prompt, number))
        return bool(self.settings["undescribed"]) or not all(map(Path.exists, files))

    def finished(self, prompt: str, images: int) -> tuple[list[Row], list[int]]:
        """Returns the pairs of a prompt that are there, and the numbers of those to be made.

        A pair without a reward is made again: what failed may succeed this time.

        Arguments:
            prompt: The prompt.
            images: Number of pairs that are wanted.
        """

        if self.settings["undescribed"]:  # it cannot be known what made those that are there
            return [], list(range(images))
        done, missing = [], []
        for number in range(images):
            facts = [read_facts(path) or {} for path in self.files(prompt, number)]
            expected = zip(self._identity(prompt, number), facts, strict=True)
            if all(known == {key: fact.get(key) for key in known} for known, fact in expected):
                done.append(self._row(facts))
            else:
                missing.append(number)
        failed = [row.number for row in done if row.error]
        return [row for row in done if not row.error], sorted([*missing, *failed])

    def save(
        self, prompt: str, numbers: Sequence[int], i: int, base: Pictures, aligned: Pictures
    ) -> Row:
        """Writes one pair of a batch, and returns it.

        Arguments:
            prompt: The prompt.
            numbers: Numbers of the images, B of them.
            i: Place of the pair in the batch.
            base: Pictures by the model alone.
            aligned: Aligned pictures.

        Raises:
            ValueError: If a picture holds values outside [0, 1].
            OSError: If a file cannot be written.
        """

        paths = self.files(prompt, numbers[i])
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        facts = self._identity(prompt, numbers[i])
        for pictures, path, about in zip((base, aligned), paths, facts, strict=True):
            about.update(**_reward(pictures.scores, i), facts=dict(pictures.facts[i]))
            save_picture(pictures.images[i], path, about)
        return self._row(facts)

    def files(self, prompt: str, number: int) -> tuple[Path, Path]:
        """Returns where a pair of pictures goes, whatever else is asked for."""

        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        folder = self.path / (f"{slug}-{digest}" if slug else digest)
        base, aligned = (folder / f"{number:04d}-{kind}.png" for kind in KINDS)
        return base, aligned

    def _identity(self, prompt: str, number: int) -> list[dict[str, Any]]:
        """Returns the facts that identify the pictures of a pair."""

        return [
            {"prompt": prompt, "number": number, "kind": kind, "settings": self.settings}
            for kind in KINDS
        ]

    def _row(self, facts: Sequence[Mapping[str, Any]]) -> Row:
        """Returns a pair from the facts in its pictures."""

        base, aligned = facts
        prompt, number = base["prompt"], base["number"]
        rewards = (base["reward"], aligned["reward"])
        error = "; ".join(filter(None, (base["error"], aligned["error"])))
        return Row(prompt, number, self.files(prompt, number), rewards, aligned["facts"], error)


def check_settings(path: Path, settings: Mapping[str, Any], complete: bool = False) -> None:
    """Raises ValueError if a folder holds pictures of other settings; says which ones differ.

    Arguments:
        path: The folder.
        settings: Settings, as JSON reads them back.
        complete: Whether these are all settings; the folder's may be more otherwise.
    """

    label = path / _SETTINGS
    if not label.exists() or not any(path.glob("*/*.png")):
        return
    differ = differences(label, settings, complete)
    if differ:
        raise ValueError(
            f"{path} holds pictures of other settings: {', '.join(differ)} differ; write "
            "elsewhere, or replace them with restart=True (on the command line, --restart)"
        )


def differences(label: Path, settings: Mapping[str, Any], complete: bool = False) -> list[str]:
    """Returns the names of settings that are others in a file; all where it is damaged.

    Arguments:
        label: The file, which is there.
        settings: Settings, as JSON reads them back.
        complete: Whether these are all settings; the file's may be more otherwise.
    """

    try:
        found = dict(json.loads(read_regular(label)))
    except (ValueError, TypeError, RecursionError):
        found = {}
    keys = {**settings, **found} if complete else settings
    return [key for key in keys if found.get(key) != settings.get(key)]


@contextmanager
def claimed(
    plan: Path,
    settings: Mapping[str, Any],
    holds: str,
    processes: Processes,
    begun_by: Sequence[str] = (),
) -> Iterator[None]:
    """Holds a folder against other runs, once it is known that it is of these settings.

    Arguments:
        plan: The file of the folder with the settings, which is written anew.
        settings: Settings, in values that JSON can hold. The file's may be more.
        holds: Words for what the folder holds, with which the error begins.
        processes: The processes that share the run, of which the first one holds the folder.
        begun_by: Names of files beside the plan, one of which is there if a run has begun; empty if
            the plan alone says so.

    Raises:
        ValueError: If another run holds the folder, or it is of other settings; says which differ.
        OSError: If the folder cannot be written to.
    """

    with locked(plan.parent) if processes.first else nullcontext():
        if processes.first:
            own = json.loads(json.dumps(settings))
            begun = not begun_by or any((plan.parent / name).exists() for name in begun_by)
            differ = differences(plan, own) if plan.exists() and begun else []
            if differ:
                raise ValueError(
                    f"{holds} another {', '.join(differ)}: use another folder, or the same settings"
                )
            with replacing(plan) as partial:
                partial.write_bytes(json.dumps(own, indent=1).encode())
        processes.wait()
        yield


def _reward(scores: Scores, i: int) -> dict[str, Any]:
    value = float(scores.values[i])
    if math.isfinite(value):
        return {"reward": value, "error": ""}
    return {"reward": None, "error": scores.errors.get(i, f"the reward is {value}")}
