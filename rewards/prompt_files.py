"""Pairs of images and prompts, from folders, files of prompts, and texts beside images.

Prompts come from one of five places, and the place decides what is scored.

====================================  ==============================================================
a file with images                    Pairs: one row per line, an image may come several times
a file of prompts only                Every image with every prompt; with `pairs`, the i-th image in
                                      order with the i-th prompt
``"sidecar"``                         Pairs: the image ``a/b.png`` with the text ``a/b.txt``
``"generated"``                       Pairs: what ``rwguidance generate`` wrote, base pictures and
                                      aligned ones; its sheets are no images
None                                  Images alone, for rewards that need no prompt
====================================  ==============================================================

Files are those of :mod:`rwguidance.support.records`. Images are named by one of the columns
``image``, ``file``, ``file_name``, ``filename`` or ``path``, prompts by ``prompt`` or the column
that is asked for, and other columns are ignored. Prompts lose white space at both ends. An empty
prompt is scored if a CSV (``""``) or JSON states it. A line that repeats another is left out.

Images are named relative to the folder, with slashes. What could be meant in two ways is refused,
with the file and the line. Files whose names end as those of pictures do that are not read here
(.psd, .heic) are left out, and said to be.
"""

import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from rwguidance.generation.made import is_generated, is_picture, read_made
from rwguidance.support import checks
from rwguidance.support.image_files import ENDINGS, MAX_PIXELS, OTHER_ENDINGS
from rwguidance.support.records import Record, read_records

__all__ = [
    "IMAGE_SUFFIXES",
    "Item",
    "Job",
    "Prompt",
    "default_prompts",
    "find_images",
    "plan",
    "read_prompts",
]

IMAGE_SUFFIXES = ENDINGS

_IMAGE_KEYS = ("image", "file", "file_name", "filename", "path")
_SIDECAR = "sidecar"
_GENERATED = "generated"


class Item(NamedTuple):
    """An image and the prompts that it is scored with.

    Arguments:
        image: Path of the image relative to the folder, with slashes.
        prompts: The prompts, at least one; a single empty one for images alone.
        problem: Reason why it cannot be scored, if one is known before opening it.
        kind: Whether it is a "base" picture or an "aligned" one, of a folder that was generated.
    """

    image: str
    prompts: tuple[str, ...]
    problem: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Job:
    """Images to score and their prompts, in the order of the result's rows.

    Arguments:
        folder: The folder of the images.
        items: The images in natural order of their paths (``2.png`` before ``10.png``).
        matrix: Whether every image has the same prompts.
        prompted: Whether there are prompts at all.
        notes: Sentences that the user should read, such as that images were left out.
        kinds: Whether images are of a kind, base or aligned.
        exif: Whether images are rotated as their EXIF says; the references do not.
        max_pixels: Pixels of an image, and of those that are in memory at once, at most.
    """

    folder: Path
    items: tuple[Item, ...]
    matrix: bool
    prompted: bool
    notes: tuple[str, ...] = ()
    kinds: bool = False
    exif: bool = False
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return sum(len(item.prompts) for item in self.items)

    @property
    def labels(self) -> list[str]:
        """Names of the columns of the result that say what a row is of."""

        return ["image", "prompt", *(["kind"] if self.kinds else [])]


class Prompt(NamedTuple):
    """One prompt of a file: the line it begins in, the image it names if any, and the text."""

    line: int
    image: str | None
    text: str


def plan(
    folder: str | os.PathLike[str],
    prompts: str | os.PathLike[str] | None = None,
    pairs: bool = False,
    prompt_column: str = "prompt",
    exif: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Job:
    """Reads names and prompts, and no pixels.

    Arguments:
        folder: The folder of the images, see :func:`find_images`.
        prompts: A file of prompts, ``"sidecar"``, ``"generated"``, or None for images alone; see
            the module.
        pairs: Whether a file that names no images gives the i-th prompt to the i-th image.
        prompt_column: Name of the column of the prompts in a file.
        exif: Whether images are rotated as their EXIF says; the references do not.
        max_pixels: Pixels of an image, and of those that are in memory at once, at most. A larger
            image is not scored, and the table says why.

    Raises:
        TypeError: If a path is neither a string nor a path, or another argument of another kind.
        FileNotFoundError: If there is no such folder or file.
        ValueError: If there are no images, or the prompts are malformed or ambiguous; names the
            line.
    """

    root = checks.path("folder", folder)
    checks.flag("exif", exif)
    max_pixels = checks.integer("max_pixels", max_pixels, 1)
    images, others = _walk(root)
    job = _job(root, images, prompts, pairs, prompt_column)
    notes = job.notes
    if others:
        kinds = ", ".join(sorted({PurePath(name).suffix.lower() for name in others}))
        notes += (f"{len(others)} files of formats that are not read ({kinds}) are left out",)
    return replace(job, notes=notes, exif=exif, max_pixels=max_pixels)


def _job(
    root: Path,
    images: list[str],
    prompts: str | os.PathLike[str] | None,
    pairs: bool,
    column: str,
) -> Job:
    """The job of images and their prompts, wherever these are."""

    if prompts is None:
        if pairs:
            raise ValueError("pairs needs a file of prompts, got none")
        return Job(root, tuple(Item(image, ("",)) for image in images), False, False)
    if str(prompts) == _SIDECAR:
        return _with_notes(root, _beside(root, images), False)
    if str(prompts) == _GENERATED:
        return _generated(root, images)

    file = checks.path("prompts", prompts)
    found = read_prompts(file, column)
    if None not in {prompt.image for prompt in found}:
        return _named(root, images, file, found)
    texts = tuple(prompt.text for prompt in found)
    if not pairs:
        _refuse_repeated(file, found)
        return _with_notes(root, [Item(image, texts) for image in images], True)
    if len(images) != len(texts):
        raise ValueError(
            f"pairs needs as many prompts as images, got {len(texts)} prompts in {file} and "
            f"{len(images)} images in {root}"
        )
    return _with_notes(root, [Item(*p) for p in zip(images, zip(texts), strict=True)], False)


def default_prompts(folder: str | os.PathLike[str], needed: bool) -> str | None:
    """Returns where the prompts of a folder are, if nobody says it, as :func:`plan` takes it.

    Arguments:
        folder: The folder of the images.
        needed: Whether a reward needs prompts.
    """

    if is_generated(Path(folder)):
        return _GENERATED
    return _SIDECAR if needed else None


def find_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the images in a folder and below it, in natural order.

    They are recognized by :data:`IMAGE_SUFFIXES`, in upper or lower case. Names that begin with a
    dot are left out, and linked folders not entered. So are the sheets of pictures in a folder that
    ``rwguidance generate`` wrote.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image, or the name of one is not UTF-8.
    """

    return _walk(checks.path("folder", folder))[0]


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Paths of the images, and of pictures that are not read."""

    if not root.is_dir():
        raise FileNotFoundError(f"no folder of images at {root}")
    found = []
    for where, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [
            (Path(where) / name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES + OTHER_ENDINGS)
        ]
    images = [name for name in found if name.lower().endswith(IMAGE_SUFFIXES)]
    if is_generated(root):
        images = list(filter(is_picture, images))
    if not images:
        raise ValueError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {root} or below")
    for image in images:
        if any("\udc80" <= letter <= "\udcff" for letter in image):
            raise ValueError(f"the name of the image {image!a} in {root} is not UTF-8: rename it")
    return sorted(images, key=_natural), [n for n in found if n.lower().endswith(OTHER_ENDINGS)]


def read_prompts(path: str | os.PathLike[str], column: str = "prompt") -> list[Prompt]:
    """The prompts of a file, at least one; all of them name an image, or none does.

    Arguments:
        path: The file.
        column: Name of the column of the prompts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is malformed or has another format; names the line.
    """

    path = checks.path("path", path)
    prompts: list[Prompt] = []
    first = None
    for record in read_records(path, column):
        key = _image_key(record)
        first = first or (record.line, key)
        if key != first[1]:
            name = lambda key: f"the image by {key!r}" if key else "no image"
            raise ValueError(
                f"{record.place}: names {name(key)}, but line {first[0]} {name(first[1])}"
            )
        image = None if key is None else record.text(key)
        if image == "":
            raise ValueError(f"{record.place}: {key!r} is empty")
        prompts.append(Prompt(record.line, image, record.text(column)))
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _image_key(record: Record) -> str | None:
    """The column that names the image; None if none does."""

    found = [key for key in _IMAGE_KEYS if key in record.values]
    if len(found) > 1:
        raise ValueError(
            f"{record.place}: {' and '.join(map(repr, found))} could both name the image; leave one"
        )
    return next(iter(found), None)


def _named(root: Path, images: list[str], file: Path, found: list[Prompt]) -> Job:
    """The job of a file that names images."""

    known = {unicodedata.normalize("NFC", image): image for image in images}
    known.update({image: image for image in images})
    pairs: dict[str, list[Prompt]] = {}
    repeated = 0
    for prompt in found:
        same = pairs.setdefault(_resolve(root, known, file, prompt), [])
        if prompt.text in [other.text for other in same]:
            repeated += 1
        else:
            same.append(prompt)

    missing = {name for name in pairs if name not in known and not os.path.isfile(root / name)}
    if len(missing) == len(pairs):
        raise ValueError(
            f"none of the {len(pairs)} images of {file} is in {root}, such as "
            f"{found[0].image!r} of line {found[0].line}; names are relative to that folder"
        )
    items = [
        Item(
            name,
            tuple(prompt.text for prompt in pairs[name]),
            f"no such file, named in line {pairs[name][0].line}" if name in missing else "",
        )
        for name in sorted(pairs, key=_natural)
    ]
    unnamed = len(set(images) - set(pairs))
    notes = [f"{unnamed} of {len(images)} images are not in {file}: left out"] if unnamed else []
    if repeated:
        notes.append(f"{repeated} of {len(found)} lines of {file} repeat others: left out")
    return _with_notes(root, items, False, notes)


def _resolve(root: Path, known: dict[str, str], file: Path, prompt: Prompt) -> str:
    """The path that a line means, relative to the folder."""

    name = prompt.image or ""
    if PurePath(name).anchor:  # which a path on Windows may have without being absolute
        with suppress(ValueError):  # it is on another drive
            name = os.path.relpath(name, root.resolve())
    if "\\" in name and name not in known:
        name = name.replace("\\", "/")
    name = PurePath(os.path.normpath(name)).as_posix()
    if PurePath(name).anchor or ".." in name.split("/"):
        raise ValueError(
            f"{file}, line {prompt.line}: the image {prompt.image!r} is not in the folder {root}"
        )
    return known.get(name, known.get(unicodedata.normalize("NFC", name), name))


def _beside(root: Path, images: list[str]) -> list[Item]:
    """Items of every image with the text of the same stem; images without one have a problem."""

    items = []
    for image in images:
        text = (root / image).with_suffix(".txt")
        found = list(read_records(text, "prompt")) if text.is_file() else []
        if len(found) > 1:
            raise ValueError(
                f"{text}, line {found[1].line}: a text beside an image holds one prompt in one line"
            )
        name = text.relative_to(root).as_posix()
        problem = "" if found else f"no prompt: {name} is {'empty' if text.is_file() else 'absent'}"
        items.append(Item(image, tuple(r.text("prompt") for r in found) or ("",), problem))
    if all(item.problem for item in items):
        raise ValueError(
            f"no prompts: none of the {len(images)} images in {root} has a text beside it, such as "
            f"{PurePath(images[0]).with_suffix('.txt')}; name a file of prompts instead"
        )
    return items


def _generated(root: Path, images: list[str]) -> Job:
    """The job of a folder that ``rwguidance generate`` wrote."""

    made = read_made(root, filter(is_picture, images))
    items = [
        Item(image, ("",), "no prompt: neither its metadata nor results.csv has one")
        if found is None
        else Item(image, (found.prompt,), kind=found.kind)
        for image, found in made.items()
    ]
    if all(item.problem for item in items):
        raise ValueError(
            f"no prompts: none of the {len(images)} images in {root} says in its metadata how "
            "`rwguidance generate` made it; name a file of prompts instead"
        )
    other = len(images) - len(made)
    notes = [f"{other} of {len(images)} images are of an earlier run: left out"] if other else []
    return replace(_with_notes(root, items, False, notes), kinds=True)


def _refuse_repeated(file: Path, prompts: list[Prompt]) -> None:
    lines: dict[str, int] = {}
    for prompt in prompts:
        first = lines.setdefault(prompt.text, prompt.line)
        if first != prompt.line:
            raise ValueError(
                f"{file}, line {prompt.line}: the same prompt as in line {first}; "
                "with pairs, prompts may repeat"
            )


def _with_notes(root: Path, items: list[Item], matrix: bool, notes: list[str] | None = None) -> Job:
    notes = list(notes or [])
    empty = sum(not prompt for item in items if not item.problem for prompt in item.prompts)
    if empty:
        notes.append(f"{empty} of {sum(len(i.prompts) for i in items)} rows have an empty prompt")
    return Job(root, tuple(items), matrix, True, tuple(notes))


def _natural(path: str) -> tuple[Any, ...]:
    """A key that sorts numbers by value and letters regardless of case, folder by folder."""

    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.split("/")]
    # Digits are compared by their number first: int refuses what has thousands of them.
    plain = lambda digits: (len(digits), digits)
    key = [[plain(s.lstrip("0")) if i % 2 else s for i, s in enumerate(p)] for p in parts]
    return (key, path)
