"""Pictures of preference data as tensors of one size."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.image_files import TooLarge, opened
from .layouts import Dirty

__all__ = ["read_picture"]

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats of pictures that are decoded; no other decoder is started."""

MOST_PIXELS = 2**26
"""Number of pixels of a picture, at most, told before it is decoded."""


def read_picture(picture: Any, beside: Path, size: tuple[int, int]) -> Tensor:
    """Returns a picture of data, float32 in [0, 1], with shape (3, H, W).

    It is resized until it covers the size, with an antialiased bicubic filter, and cut around its
    middle.

    Arguments:
        picture: Encoded bytes, a mapping with ``bytes`` or ``path``, or a path.
        beside: The file of the row; paths are relative to its folder, and lead to nothing outside.
        size: Height and width, in pixels.

    Raises:
        Dirty: If there is no such picture, or it cannot be decoded; says why.
    """

    import numpy
    from PIL import Image, ImageOps, UnidentifiedImageError

    file = _file(picture, beside.parent)
    try:
        with opened(file, FORMATS, MOST_PIXELS) as image:
            fitted = ImageOps.fit(
                image.convert("RGB"), (size[1], size[0]), Image.Resampling.BICUBIC
            )
    except TooLarge:
        raise Dirty(f"a picture has more than {MOST_PIXELS:,} pixels") from None
    except FileNotFoundError:
        raise Dirty(f"no such picture, {picture}") from None
    except UnidentifiedImageError:
        raise Dirty(f"a picture is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise anything on broken files
        raise Dirty(f"a picture cannot be decoded: {error}") from None
    levels = torch.from_numpy(numpy.array(fitted, dtype=numpy.uint8))
    return levels.permute(2, 0, 1).float().div_(255)


def _file(picture: Any, folder: Path) -> Any:
    if isinstance(picture, Mapping):
        content = picture.get("bytes")
        picture = picture.get("path") if content is None else content
    if isinstance(picture, bytes | bytearray | memoryview):
        return io.BytesIO(picture)
    if not isinstance(picture, str):
        raise Dirty(f"a picture must be bytes or a path, got {type(picture).__name__}")
    path = (folder / picture).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise Dirty(f"a picture must lie in the folder of its table, got {picture}")
    if path.exists() and not path.is_file():
        raise Dirty(f"a picture must be a file, got {picture}")
    return path
