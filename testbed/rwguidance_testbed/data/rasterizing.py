"""Rasterizing of drawings, from SVG documents to pixels."""

import importlib
import io
from typing import Any

import torch
from torch import Tensor

from rwguidance.support.outside import require

from .drawings import SIZE

__all__ = ["rasterize"]


def rasterize(document: str, size: int = SIZE) -> Tensor:
    """Returns the pixels of a drawing, cut to the square around what is not transparent.

    Arguments:
        document: SVG document.
        size: Pixels along a side.

    Returns:
        Red, green, blue and alpha, colors premultiplied, of type uint8 and with shape
        (4, size, size).

    Raises:
        ImportError: If resvg_py is missing; says how to install it.
        ValueError: If nothing is drawn.
    """

    import numpy

    image = require("PIL.Image", "rasterizing needs", "rewards")
    encoded = bytes(_resvg().svg_to_bytes(svg_string=document, width=2 * size, height=2 * size))
    picture = image.open(io.BytesIO(encoded)).convert("RGBa")
    box = picture.getchannel("a").point(lambda a: 255 * (a > 12)).getbbox()
    if box is None:
        raise ValueError(f"the drawing is empty: {document[:200]}")
    side = max(box[2] - box[0], box[3] - box[1])
    left, top = ((box[i] + box[i + 2] - side) // 2 for i in (0, 1))
    canvas = image.new("RGBa", (side, side))
    canvas.paste(picture, (-left, -top))
    small = canvas.resize((size, size), image.Resampling.LANCZOS)
    pixels = torch.from_numpy(numpy.array(small)).permute(2, 0, 1).contiguous()
    return torch.cat((pixels[:3].minimum(pixels[3:]), pixels[3:]))


def _resvg() -> Any:
    try:
        return importlib.import_module("resvg_py")
    except ModuleNotFoundError:
        raise ImportError(
            "rasterizing needs resvg_py: pip install 'rwguidance-testbed[train]'"
        ) from None
