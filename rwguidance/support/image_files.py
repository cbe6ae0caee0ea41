"""Pictures from anywhere, opened by listed decoders only, with a bound on their pixels.

Pillow chooses a decoder by what a file holds, whatever its name: one of them starts an interpreter
of PostScript. So the decoders are listed here, for everything that opens a picture. A file of some
kilobytes may claim any number of pixels, which is known from its header before any is decoded.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from .files import open_regular
from .outside import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ENDINGS", "FORMATS", "MAX_PIXELS", "OTHER_ENDINGS", "TooLarge", "opened"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "TGA")
"""The decoders of Pillow that are used; AVIF where this Pillow has it. None starts a program."""

ENDINGS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif", ".jp2", ".ppm", ".pgm", ".tga"),
)
"""Endings of the names of pictures, in lower case."""

OTHER_ENDINGS = (
    *(".psd", ".heic", ".heif", ".jxl", ".svg", ".eps", ".ps", ".pdf", ".ico", ".icns", ".dds"),
    *(".exr", ".hdr", ".xcf", ".dng", ".cr2", ".nef", ".arw", ".pcx", ".jpx", ".j2k", ".jpf"),
)
"""Endings of the names of pictures that are not read, in lower case."""

MAX_PIXELS = 2**30 // 12
"""Pixels of a picture that take a GiB as 32-bit numbers in three channels, Pillow's own bound."""


class TooLarge(ValueError):
    """A picture has more pixels than are allowed."""


@contextmanager
def opened(
    source: str | os.PathLike[str] | BinaryIO,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> Iterator["Image"]:
    """A picture whose header was read, and whose pixels are not decoded yet.

    Arguments:
        source: The file, by its path or open.
        formats: Decoders of Pillow that may read it.
        max_pixels: Largest number of pixels. Beyond 178,956,970 Pillow refuses by itself.

    Raises:
        OSError: If it is a pipe, a device or a folder, is not there, or is in no such format.
        TooLarge: If it has more pixels.
        ImportError: If Pillow is missing.
    """

    module: Any = require("PIL.Image", "pictures need", "rewards")
    module.init()
    known = [name for name in formats if name in module.OPEN]
    file = open_regular(source) if isinstance(source, str | os.PathLike) else source
    try:
        with _opened(module, file, known) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise TooLarge(
                    f"a picture may have {max_pixels:,} pixels, got {width} x {height}; allow more "
                    "with max_pixels (--max-pixels), or make it smaller"
                )
            yield image
    finally:
        if file is not source:
            file.close()


def _opened(module: Any, file: BinaryIO, formats: Sequence[str]) -> "Image":
    try:
        image: Image = module.open(file, formats=formats)
    except module.DecompressionBombError as error:
        raise TooLarge(str(error)) from None
    return image
