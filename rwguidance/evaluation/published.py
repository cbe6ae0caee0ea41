"""Sets of prompts that others publish, read from local files in the formats of their publishers.

Nothing is fetched: a set that is not there says where it is and under which license. Licenses are
those that the publishers state with the prompts: a summary, not legal advice.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..support import checks
from ..support.records import read_records
from .prompt_sets import PromptSet

__all__ = ["PUBLISHED", "PublishedPrompts", "collect", "repeated_note"]


@dataclass(frozen=True, kw_only=True)
class PublishedPrompts:
    """A set of prompts whose files the user has, or gets.

    Arguments:
        name: The name under which it is registered.
        title: The name it goes by in the literature.
        license: SPDX identifier of its license, or "unknown".
        source: Where it is published.
        files: Names of its files, in order; a name may hold ``*``.
        column: Column of the prompts.
        group: Column of the groups. None is the name of the file, if there are several, or nothing.
        number: Number of prompts as published, those that repeat others included; None if it is not
            known.
    """

    name: str
    title: str
    license: str
    source: str
    files: Sequence[str]
    column: str
    group: str | None = None
    number: int | None = None

    def read(self, path: str | os.PathLike[str] | None) -> PromptSet:
        """Returns the prompts.

        Arguments:
            path: A folder in or below which the files are, or one file, in any format that
                :mod:`rwguidance.support.records` reads. ``~`` is the user's own folder.

        Raises:
            FileNotFoundError: If there is nothing; says where the files are published, and under
                which license.
            ValueError: If a file has another format, or a folder holds several of one name.
        """

        where = f"get {' and '.join(self.files)} from {self.source} (license: {self.license})"
        if path is None:
            raise FileNotFoundError(
                f"the prompts of {self.name!r} do not come with the library: {where} and name the "
                f"path, {self.name}=PATH on the command line"
            )
        root = checks.path("path", path)
        if not root.exists():
            raise FileNotFoundError(f"no prompts of {self.name!r} at {root}: {where}")
        files = [root] if root.is_file() else [self._find(root, name, where) for name in self.files]
        several = len(self.files) > 1
        prompts, groups, repeated = collect(files, self.column, self.group, several)
        found = len(prompts) + repeated
        notes = repeated_note(repeated, found, root)
        if self.number not in (None, found):
            notes.append(f"{self.name} has {self.number} prompts as published, {root} has {found}")
        return PromptSet(
            name=self.name,
            title=self.title,
            license=self.license,
            source=self.source,
            prompts=prompts,
            groups=groups,
            notes=notes,
        )

    def _find(self, root: Path, name: str, where: str) -> Path:
        found = sorted(root.rglob(name))
        if not found:
            raise FileNotFoundError(f"no {name} of {self.name!r} in {root} or below: {where}")
        if len(found) > 1:
            raise ValueError(
                f"{root} holds several {name}: name one of {', '.join(map(str, found))}"
            )
        (file,) = found
        return file


def collect(
    files: Sequence[Path], column: str, group: str | None = None, by_file: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Returns the distinct prompts of files, their groups, and the number of those that repeat.

    Arguments:
        files: The files, see :mod:`rwguidance.support.records`.
        column: Column of the prompts.
        group: Column of the groups, if there is one.
        by_file: Whether the group of a prompt is the name of its file.

    Raises:
        ValueError: If a file holds no prompt or an empty one, or has another format.
    """

    groups: dict[str, str] = {}
    count = 0
    columns = (column,) if group is None else (column, group)
    for file in files:
        before = count
        for record in read_records(file, *columns):
            count += 1
            prompt = record.text(column)
            if not prompt:
                raise ValueError(f"{record.place}: the prompt is empty")
            groups.setdefault(prompt, file.stem if by_file else record.text(columns[-1]))
        if count == before:
            raise ValueError(f"{file} holds no prompt")
    labels = tuple(groups.values()) if group or by_file else ()
    return tuple(groups), labels, count - len(groups)


def repeated_note(repeated: int, found: int, where: Path) -> list[str]:
    """Returns a sentence on prompts that repeat others, if any do."""

    return [f"{repeated} of {found} prompts in {where} repeat others: left out"] if repeated else []


PUBLISHED = (
    PublishedPrompts(
        name="partiprompts",
        title="PartiPrompts (P2)",
        license="Apache-2.0",
        source="https://github.com/google-research/parti",
        files=("PartiPrompts.tsv",),
        column="Prompt",
        group="Category",
        number=1632,
    ),
    PublishedPrompts(
        name="drawbench",
        title="DrawBench",
        license="unknown",
        source="https://imagen.research.google, a sheet to export as CSV",
        files=("DrawBench*.csv",),
        column="Prompts",
        group="Category",
        number=200,
    ),
    PublishedPrompts(
        name="geneval",
        title="GenEval",
        license="MIT",
        source="https://github.com/djghosh13/geneval",
        files=("evaluation_metadata.jsonl",),
        column="prompt",
        group="tag",
        number=553,
    ),
    PublishedPrompts(
        name="hpdv2",
        title="HPDv2, benchmark prompts",
        license="Apache-2.0",
        source="https://huggingface.co/datasets/ymhao/HPDv2",
        files=("anime.json", "concept-art.json", "paintings.json", "photo.json"),
        column="prompt",
        number=3200,
    ),
    PublishedPrompts(
        name="pickapic",
        title="Pick-a-Pic v1, validation_unique",
        license="unknown",
        source="https://huggingface.co/datasets/yuvalkirstain/pickapic_v1",
        files=("validation_unique-*.parquet",),
        column="caption",
        number=500,
    ),
    PublishedPrompts(
        name="imagereward",
        title="ImageReward, test",
        license="Apache-2.0",
        source="https://github.com/THUDM/ImageReward",
        files=("test.json",),
        column="prompt",
        number=466,
    ),
    PublishedPrompts(
        name="imagereward-benchmark",
        title="ImageReward, benchmark",
        license="Apache-2.0",
        source="https://github.com/THUDM/ImageReward",
        files=("benchmark-prompts.json",),
        column="prompt",
        number=100,
    ),
)
"""What is known of published sets, as of early 2026."""
