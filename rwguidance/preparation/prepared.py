"""Prepared data, as trainings read it: pairs of latents, draws by prompt, splits of prompts."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bank import Bank
from ..evaluation.prompt_sets import wording
from ..store import Drawer, Store
from ..support import checks
from ..support.files import read_regular, replacing
from ..support.records import read_records
from .encoding import Shelf

__all__ = [
    "MANIFEST",
    "SKIPPED",
    "SPLITS",
    "Example",
    "Pairs",
    "Prepared",
    "left_out",
    "split_of",
    "write_manifest",
]

MANIFEST = "prepared.json"

_SEAL = "sha256"
SKIPPED = "skipped.csv"

SPLITS = ("train", "validation")


def split_of(prompt: str, seed: int, validation: float) -> str:
    """Returns the split that a prompt belongs to, "train" or "validation".

    It follows from the seed and the wording of the prompt alone, so it does not change when data is
    added, and prompts that differ by case or punctuation are on one side.

    Arguments:
        prompt: The prompt.
        seed: Seed of the split.
        validation: Share of the prompts that are for validation, in [0, 1).
    """

    digest = hashlib.sha256(f"{seed} {wording(prompt)}".encode("utf-8", "surrogatepass")).digest()
    return SPLITS[int.from_bytes(digest[:8], "big") < validation * 2**64]


def left_out(folder: Path) -> Counter[str]:
    """Returns reasons why rows, files or prompts were left out, with how often each occurred.

    Raises:
        OSError: If their file is not there, or is a pipe, a device or a folder.
        ValueError: If it is damaged.
    """

    rows = read_records(folder / SKIPPED, "reason", spaces=True)
    return Counter(row.text("reason") for row in rows)


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes what prepared data was made of, with its SHA-256, which tells damage.

    Arguments:
        folder: The folder of the data.
        about: What :attr:`Prepared.about` returns, in values that JSON can hold.

    Raises:
        OSError: If the file cannot be written.
    """

    sealed = {**about, _SEAL: _digest(about)}
    with replacing(folder / MANIFEST, durable=True) as partial:
        partial.write_bytes(json.dumps(sealed, indent=1).encode())


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


class Example(NamedTuple):
    """Two pictures of a prompt, and which of them people prefer.

    Arguments:
        x_0: Latents of both, with shape (2, \\*event).
        prompt: The prompt.
        preference: Share of people that prefer the first: 1, 0, or 0.5 for a tie.
        rewards: Rewards of both by name, each with shape (2,), float64; NaN where one failed.
    """

    x_0: Tensor
    prompt: str
    preference: float
    rewards: dict[str, Tensor]


class _Pair(NamedTuple):
    source: int
    first: int
    second: int
    prompt: str
    preference: float


@dataclass(frozen=True)
class Pairs(torch.utils.data.Dataset[Example]):
    """Pairs of one split, read from the disk one by one; its order is that of the data.

    Arguments:
        shelves: Where the pictures of each file of data are.
        pairs: Numbers of the pictures, with prompts and preferences.
    """

    shelves: Sequence[Shelf]
    pairs: Sequence[_Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Example:
        pair = self.pairs[i]
        shelf = self.shelves[pair.source]
        rows = [range(number, number + 1) for number in (pair.first, pair.second)]
        x_0 = torch.cat([shelf.latents.read(row) for row in rows])
        rewards = {
            name: torch.cat([column.read(row) for row in rows])
            for name, column in shelf.rewards.items()
        }
        return Example(x_0, pair.prompt, pair.preference, rewards)


@dataclass(frozen=True)
class Prepared:
    """A folder that :func:`rwguidance.preparation.prepare` wrote.

    Arguments:
        folder: The folder.

    Raises:
        ValueError: If it holds no prepared data, or that of another version.
    """

    folder: Path

    def __post_init__(self) -> None:
        checks.instance("folder", self.folder, (str, Path), "a path")
        object.__setattr__(self, "folder", Path(self.folder))
        _ = self.about

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the data was made of, and what was left out."""

        path = Path(self.folder) / MANIFEST
        try:
            about = dict(json.loads(read_regular(path)))
            if about["format"] != 1:
                raise ValueError(f"it is of format {about['format']}, expected 1")
            if about.pop(_SEAL, None) not in (None, _digest(about)):
                raise ValueError("it was changed after it was written")
        except FileNotFoundError:
            raise ValueError(
                f"folder must hold {MANIFEST}, which `rwguidance prepare` writes when it is done, "
                f"got {self.folder}"
            ) from None
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"folder has a damaged {path}: {error}") from None
        return about

    @property
    def counts(self) -> dict[str, int]:
        """How much there is: rows and pictures, or draws, and prompts of each split."""

        if self.about["kind"] == "pairs":
            names = ("rows", "pictures")
            whole = {name: sum(part[name] for part in self.about["sources"]) for name in names}
        else:
            whole = {"draws": self.about["draws"] * len(self.prompts)}
        return whole | {f"prompts for {name}": len(self.split(name)) for name in SPLITS}

    @property
    def left_out(self) -> Counter[str]:
        """Reasons why rows, files or prompts were left out, with how often each occurred."""

        return left_out(Path(self.folder))

    @property
    def prompts(self) -> list[str]:
        """All prompts, sorted."""

        return list(self.about["prompts"])

    def split(self, name: str) -> list[str]:
        """Returns the prompts of a split, "train" or "validation", sorted."""

        if name not in SPLITS:
            raise ValueError(f"name must be {' or '.join(SPLITS)}, got {name!r}")
        seed, share = self.about["seed"], self.about["validation"]
        return [prompt for prompt in self.prompts if split_of(prompt, seed, share) == name]

    def pairs(self, split: str = "train") -> Pairs:
        """Returns the pairs of a split.

        Arguments:
            split: "train" or "validation".

        Raises:
            ValueError: If there is no such split, or the data is of draws.
        """

        if self.about["kind"] != "pairs":
            raise ValueError("pairs must come from preference data, but this data is of draws")
        prompts = set(self.split(split))
        shelves = [self._shelf(i) for i in range(len(self.about["sources"]))]
        found = [_pairs(i, shelf, prompts) for i, shelf in enumerate(shelves)]
        return Pairs(shelves, list(chain.from_iterable(found)))

    def bank(self, prompt: str, reward: str | None = None) -> Bank:
        """Returns the draws of a prompt.

        Arguments:
            prompt: The prompt.
            reward: Name of the reward that the bank carries; None is the first one.

        Raises:
            ValueError: If the data is of pairs, or has no such prompt or reward.
        """

        if self.about["kind"] != "draws":
            raise ValueError("bank must come from draws, but this data is of pairs")
        if prompt not in self.about["drawers"]:
            raise ValueError(f"prompt must be one of the data, got {prompt!r}")
        names = list(self.about["rewards"])
        if reward is not None and reward not in names:
            raise ValueError(f"reward must be one of {', '.join(names) or 'none'}, got {reward!r}")
        drawer = self._drawer(self.about["drawers"][prompt])
        chosen = [reward] if reward is not None else names[:1]
        columns = [drawer.column(*self.about["columns"][name]) for name in chosen]
        return drawer.bank(self.about["draws"], *columns)

    def embeddings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Returns the embeddings of prompts by name, each with shape (B, ...), as the model's.

        Raises:
            ValueError: If there are none, or none of one of the prompts.
        """

        names = self.about["embeddings"]
        if not names:
            raise ValueError("embeddings must have been prepared, but the model showed none")
        places = {prompt: i for i, prompt in enumerate(self.prompts)}
        unknown = [prompt for prompt in prompts if prompt not in places]
        if unknown:
            raise ValueError(f"prompts must be those of the data, got {unknown[0]!r}")
        drawer = self._drawer(self.about["prompt drawer"])
        rows = [range(places[prompt], places[prompt] + 1) for prompt in prompts]
        return {
            name: torch.cat([drawer.column(f"embeddings/{name}").read(row) for row in rows])
            for name in names
        }

    def _drawer(self, origin: dict[str, Any]) -> Drawer:
        return Store(Path(self.folder) / "draws", required=True).of(origin)

    def _shelf(self, i: int) -> Shelf:
        origin = self.about["sources"][i]["origin"]
        folder = Path(self.folder) / "rows"
        rewards, features = self.about["rewards"], self.about.get("features", {})
        return Shelf.of(self._drawer(origin), folder, self.about["batch"], rewards, features)


def _pairs(source: int, shelf: Shelf, prompts: Collection[str]) -> Iterator[_Pair]:
    """Yields the pairs of a file that are of some prompts, group by group in order."""

    groups: dict[Any, list[tuple[int, float, str]]] = defaultdict(list)
    number = 0
    for i, row in enumerate(shelf.log.whole()):
        for rank in row.ranks:
            key = ("row", i) if row.group is None else ("group", row.group, row.caption)
            groups[key].append((number, rank, row.caption))
            number += 1
    for group in groups.values():
        if group[0][2] in prompts:
            for (first, a, prompt), (second, b, _) in combinations(group, 2):
                yield _Pair(source, first, second, prompt, 0.5 if a == b else float(a < b))
