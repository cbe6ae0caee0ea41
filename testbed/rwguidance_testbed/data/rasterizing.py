"""Drawings from SVG documents to pixels."""

import io

import torch
from torch import Tensor

from rwguidance.support.outside import require

from .drawings import SIZE

__all__ = ["rasterize"]


def rasterize(document: str, size: int = SIZE) -> Tensor:
    """Renders a drawing, cut to the square around what is not transparent.

    Arguments:
        document: An svg document.
        size: Pixels along a side.

    Returns:
        Red, green, blue and alpha, colours premultiplied, with shape (4, size, size) and type
        uint8.

    Raises:
        ValueError: If nothing is drawn.
    """

    import numpy

    resvg = require("resvg_py", "rendering needs", "testbed")
    image = require("PIL.Image", "rendering needs", "testbed")
    encoded = bytes(resvg.svg_to_bytes(svg_string=document, width=2 * size, height=2 * size))
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
