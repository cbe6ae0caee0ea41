"""Pieces of a page: every text is escaped here, and every picture comes along in the page."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ..support.image_files import opened

__all__ = ["box", "grid", "image", "items", "paragraph", "section"]

_SIDE = 256
"""Largest side of pictures that come along as they are; larger ones are made smaller, as JPEG."""


def paragraph(text: str) -> str:
    """Returns a paragraph of a text."""

    return f"<p>{escape(text)}</p>"


def items(texts: Iterable[str]) -> str:
    """Returns a list of texts."""

    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def box(texts: Sequence[str]) -> str:
    """Returns a box of warnings, or nothing without any."""

    return f'<div class="alarm" role="note">{items(texts)}</div>' if texts else ""


def section(heading: str, *parts: str) -> str:
    """Returns a section of parts that are markup already, or nothing if they are all empty."""

    body = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>" if body else ""


def grid(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], means: int = 0
) -> str:
    """Returns a table that scrolls within its box; the first cell of a row is its heading.

    Arguments:
        caption: The paragraph above it.
        headings: Headings of the columns.
        rows: Texts of the cells.
        means: Number of the last rows that are references rather than entries.
    """

    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headings)
    lines = []
    for i, (first, *others) in enumerate(rows):
        kind = ' class="mean"' if i >= len(rows) - means else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        lines.append(f'<tr{kind}><th scope="row">{escape(first)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<p class="soft">{escape(caption)}</p>\n<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def image(path: Path, lines: Sequence[str]) -> str:
    """Returns a picture that comes along in the page, with lines of text below.

    Arguments:
        path: The picture's file.
        lines: The lines; the first one also stands for the picture where it cannot be seen.

    Raises:
        OSError: If the picture cannot be read.
        ImportError: If Pillow is missing.
    """

    with opened(path) as found:
        picture = found.convert("RGB")
    small = max(picture.size) <= _SIDE
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 90}))
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = f"image/{'png' if small else 'jpeg'}"
    style = ' class="small"' if small else ""
    text = "<br>".join(escape(line) for line in lines)
    return (
        f'<figure><img{style} alt="{escape(lines[0])}" src="data:{kind};base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
