"""Pictures: PNG files that say how they were made, and sheets of many beside each other."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..support.files import replacing
from ..support.image_files import opened
from ..support.outside import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Cell", "read_facts", "save_picture", "save_sheet"]

_KEY = "rwguidance"
_OWN = ("PNG",)
_THUMB = 256
_MARGIN = 16
_GAP = 3
_CAPTION = 112
_TEXT = 13


def save_picture(image: Tensor, path: Path, facts: dict[str, Any]) -> None:
    """Writes an image with facts about it in its PNG text chunk `rwguidance`, atomically.

    Arguments:
        image: Image in [0, 1], with shape (3, H, W); rounded to 8 bits.
        path: The file.
        facts: Facts, in values that JSON can hold.

    Raises:
        ValueError: If the image holds values outside [0, 1].
    """

    info = require("PIL.PngImagePlugin", "pictures need", "rewards").PngInfo()
    info.add_itxt(_KEY, json.dumps(facts, ensure_ascii=False))
    with replacing(path) as partial:
        _to_pil(image).save(partial, format="PNG", pnginfo=info)


def read_facts(path: Path, whole: bool = True) -> dict[str, Any] | None:
    """Returns the facts that :func:`save_picture` wrote to a picture; None if it has none.

    Arguments:
        path: The file.
        whole: Whether a picture that cannot be decoded counts as one without facts; if not, pixels
            are not read.
    """

    try:
        with opened(path, _OWN) as image:
            if whole:
                image.load()
            facts = json.loads(image.info[_KEY])
    except (OSError, SyntaxError, KeyError, AttributeError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet.

    Arguments:
        path: The picture's file.
        caption: The text below it, of one line or several.
    """

    path: Path
    caption: str


def save_sheet(
    rows: Sequence[tuple[str, Sequence[Sequence[Cell]]]], path: Path, title: str
) -> None:
    """Writes a sheet with a row of groups of pictures for each heading, atomically.

    Arguments:
        rows: Headings, each with groups of pictures that belong close together.
        path: The PNG file.
        title: The line at the top.
    """

    image_module = require("PIL.Image", "pictures need", "rewards")
    draw_module = require("PIL.ImageDraw", "pictures need", "rewards")
    font = require("PIL.ImageFont", "pictures need", "rewards").load_default(_TEXT)
    thumb = lambda cell: _thumb(image_module, cell.path)
    thumbs = [[[thumb(cell) for cell in group] for group in groups] for _, groups in rows]
    sizes = [thumb.size for row in thumbs for group in row for thumb in group]
    across, down = max(_CAPTION, *(size[0] for size in sizes)), max(size[1] for size in sizes)
    group_width = lambda group: len(group) * (across + _GAP) - _GAP + _MARGIN
    width = max(_MARGIN + sum(map(group_width, row)) for row in thumbs)
    width, line = max(width, 360), _TEXT + 7
    captions = [cell.caption for _, groups in rows for group in groups for cell in group]
    below = max(caption.count("\n") + 1 for caption in captions)
    step = down + (1 + below) * line + _MARGIN
    sheet = image_module.new("RGB", (width, line + 2 * _MARGIN + len(rows) * step), "white")
    pen = draw_module.Draw(sheet)

    def write(left: int, top: int, text: str, room: int, color: str = "black") -> None:
        pen.text((left, top), _fit(pen, text, font, room), color, font)

    write(_MARGIN, _MARGIN, title, width - 2 * _MARGIN)
    for i, ((heading, groups), row) in enumerate(zip(rows, thumbs, strict=True)):
        top, left = line + _MARGIN + i * step, _MARGIN
        write(left, top, heading, width - 2 * _MARGIN)
        for cells, pictures in zip(groups, row, strict=True):
            for cell, picture in zip(cells, pictures, strict=True):
                sheet.paste(picture, (left, top + line))
                place = top + line + picture.height + 2
                for k, text in enumerate(cell.caption.split("\n")):
                    write(left, place + k * line, text, across, "#444444")
                left += across + _GAP
            left += _MARGIN - _GAP
    with replacing(path) as partial:
        sheet.save(partial, format="PNG")


def _to_pil(image: Tensor) -> "Image":
    if bool(((image < 0) | (image > 1)).any()):  # 8 bits would wrap around
        low, high = (float(value) for value in image.aminmax())
        raise ValueError(f"pictures must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    levels = (255 * image.float()).round().to(torch.uint8).permute(1, 2, 0).cpu()
    picture: Image = require("PIL.Image", "pictures need", "rewards").fromarray(levels.numpy())
    return picture


def _thumb(image_module: Any, path: Path) -> "Image":
    with opened(path, _OWN) as image:
        thumb: Image = image.convert("RGB")
    largest = max(thumb.size)
    scale = _THUMB / largest if largest > _THUMB else max(1, 128 // largest)  # whole pixels
    width, height = (max(1, round(scale * length)) for length in thumb.size)
    resampling = image_module.Resampling
    return thumb.resize((width, height), resampling.LANCZOS if scale < 1 else resampling.NEAREST)


def _fit(pen: Any, text: str, font: Any, width: int) -> str:
    """Returns a text in one line of at most `width` pixels, cut where it is longer."""

    whole = " ".join(text.split())
    text = whole[:width]  # no letter is narrower than a pixel
    if text == whole and pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."
