r"""Preprocessing of images for a tower: resizing exactly as the reference does, with gradients.

Most references hand 8-bit images to PIL. PIL resizes columns, rounds to 8 bits, resizes rows, and
rounds again; its coefficients are integers over :math:`2^{22}`. All of that fits exactly into
float64 matrix products, so :func:`resize` in mode ``"reference"`` returns the very same pixels, and
passes the gradient straight through the three roundings. Where no gradient is asked, PIL itself is,
which is several times faster on a processor. Mode ``"fast"`` is the same linear map in the images'
own precision, without the roundings.

Since version 13, PIL resizes rows first in images that shrink much more in height than in width.
Published scores are older than that, so the order here is always the older one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rwguidance.schedules import working_dtype

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "Mode",
    "center_crop",
    "check_mode",
    "letterbox",
    "normalize",
    "resize",
    "squash",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images, per channel."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of CLIP's training images, per channel."""

Mode = Literal["reference", "fast"]
"""Whether pixels equal those of the 8-bit reference, or are left unrounded."""

Window = tuple[int, int]
"""First pixel and number of pixels to keep along one axis."""


def check_mode(mode: str) -> None:
    """Checks the name of a mode.

    Raises:
        ValueError: If there is no such mode; names the modes.
    """

    if mode not in ("reference", "fast"):
        raise ValueError(f"preprocessing must be 'reference' or 'fast', got {mode!r}")


def center_crop(images: Tensor, size: int, mode: Mode, half_up: bool) -> Tensor:
    """The central square of images whose shorter side is resized to `size`, bicubic.

    Arguments:
        images: Images in [0, 1], with shape (B, 3, H, W).
        size: Side of the square, in pixels.
        mode: ``"reference"`` or ``"fast"``, see :func:`resize`.
        half_up: Rounding of an odd margin. False rounds down, as transformers' CLIP processor does;
            True rounds the half to even, as torchvision does.
    """

    height, width = images.shape[-2:]
    scale = lambda side: int(size * side / min(height, width))  # both libraries truncate
    margin = lambda length: round((length - size) / 2) if half_up else (length - size) // 2
    windows = [(margin(scale(side)), size) for side in (height, width)]
    return resize(images, (scale(height), scale(width)), mode, windows)


def squash(images: Tensor, size: int, mode: Mode) -> Tensor:
    """Images whose sides are both resized to `size`, bicubic, whatever the proportions.

    Arguments are those of :func:`center_crop`.
    """

    return resize(images, (size, size), mode)


def letterbox(images: Tensor, size: int) -> Tensor:
    """Images whose longer side is resized to `size`, in a square with black bars.

    Resizing is bicubic and antialiased, in floating point.

    This is what HPSv2 does, before it normalizes: nothing is clamped, so that values leave [0, 1]
    at sharp edges. Where the reference fails, this does not: a longer side of exactly `size` is
    padded, too, and a side shorter than half a pixel becomes one pixel.

    Arguments:
        images: Images in [0, 1], with shape (B, 3, H, W).
        size: Side of the square, in pixels.
    """

    images = images.to(working_dtype(images.dtype))
    scale = size / max(images.shape[-2:])
    height, width = (max(1, round(scale * side)) for side in images.shape[-2:])
    if 1 in (width, images.shape[-1]):
        # PyTorch 2.15 mixes up rows and channels where there is one column.
        images = resize(images, (height, width), "fast")
    elif scale != 1:
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True)
    x, y = size - width, size - height
    return F.pad(images, (x // 2, x - x // 2, y // 2, y - y // 2))


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtracts `mean` and divides by `std`, channel by channel."""

    like: dict[str, Any] = {"dtype": images.dtype, "device": images.device}
    center, scale = (torch.tensor(values, **like).view(3, 1, 1) for values in (mean, std))
    return (images - center) / scale


def resize(
    images: Tensor, size: tuple[int, int], mode: Mode, windows: Sequence[Window] | None = None
) -> Tensor:
    r"""Resizes images as PIL does, bicubic, antialiased when shrinking.

    Arguments:
        images: Images in [0, 1], or their 8-bit levels in uint8, with shape (B, 3, H, W).
        size: New height and width, in pixels.
        mode: ``"reference"`` first rounds to 8 bits, as saving the image would, and then returns
            PIL's pixels exactly; its gradient is that of the linear map, as if nothing were
            rounded or clamped. ``"fast"`` is the linear map itself.
        windows: Part to keep of the result along height and width; nothing else is computed. None
            keeps everything.

    Returns:
        Images in float32 or wider, with shape (B, 3, \*size) or that of the windows. They are in
        [0, 1] if the mode is ``"reference"``; ``"fast"`` overshoots at edges.

    References:
        | Pillow, the function ImagingResample of its source, https://github.com/python-pillow/Pillow
    """

    windows = windows or [(0, length) for length in size]
    if mode == "reference" and _pil_will_do(images, size, windows):
        return _resize_by_pil(images, size, windows)
    if images.dtype == torch.uint8:
        images = images.contiguous().float() / 255
    images = images.to(working_dtype(images.dtype))
    rows, columns = (
        None
        if old == new and window == (0, new)
        else _resampling(old, new, *window).to(images.device)
        for old, new, window in zip(images.shape[-2:], size, windows, strict=True)
    )
    if mode == "reference":
        resized: Tensor = _EightBit.apply(images, rows, columns)
        return resized
    with torch.autocast(images.device.type, enabled=False):
        x = images if columns is None else images @ columns.to(images).T
        return x if rows is None else rows.to(x) @ x


def _pil_will_do(images: Tensor, size: tuple[int, int], windows: Sequence[Window]) -> bool:
    """Whether nobody asks for a gradient or a graph, and PIL makes little that is cropped."""

    differentiated = torch.is_grad_enabled() and images.requires_grad
    if images.device.type != "cpu" or differentiated or torch.compiler.is_compiling():
        return False
    height, width = images.shape[-2:]
    (_, rows), (_, columns) = windows
    made = height * size[1] + size[0] * columns
    return made <= _PIL_EXCESS * (height * width + height * columns + rows * columns)


def _resize_by_pil(images: Tensor, size: tuple[int, int], windows: Sequence[Window]) -> Tensor:
    """The pixels of the published order, columns before rows, whichever PIL prefers itself."""

    import numpy
    from PIL.Image import Resampling, fromarray

    height, (top, rows), (left, columns) = images.shape[-2], *windows
    wide = torch.float32 if images.dtype == torch.uint8 else working_dtype(images.dtype)
    resized = images.new_empty(len(images), images.shape[1], rows, columns, dtype=wide)
    for image, out in zip(images, resized, strict=True):  # one at a time stays in the cache
        levels = image if image.dtype == torch.uint8 else _to_levels(255 * image.to(wide))
        # With the channel last, as levels that come from PIL have it already.
        last = torch.stack(tuple(levels), -1) if levels.is_contiguous() else levels.movedim(0, -1)
        narrow = fromarray(last.contiguous().numpy()).resize((size[1], height), Resampling.BICUBIC)
        narrow = narrow.crop((left, 0, left + columns, height))
        small = narrow.resize((columns, size[0]), Resampling.BICUBIC)
        out.copy_(torch.from_numpy(numpy.array(small)[top : top + rows]).movedim(-1, 0))
    return resized / 255


class _EightBit(torch.autograd.Function):
    """PIL's resizing of columns, then rows; the gradient ignores the roundings in between."""

    @staticmethod
    def forward(images: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        levels = _to_levels(255 * images)
        if columns is not None:
            levels = _times_band(levels, columns)
        if rows is not None:
            levels = _times_band(levels.mT, rows).mT
        return levels.to(images.dtype) / 255

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, rows, columns = inputs
        ctx.save_for_backward(rows, columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        if rows is not None:
            gradient = rows.to(gradient).T @ gradient
        if columns is not None:
            gradient = gradient @ columns.to(gradient)
        return gradient, None, None


_PIL_EXCESS = 4
"""Pixels that PIL may make, which crops last, over those of the image and of the result."""

_BLOCK = 32
"""Rows of a band matrix that are multiplied at once."""


def _times_band(levels: Tensor, matrix: Tensor) -> Tensor:
    """Levels of `levels @ matrix.T`, for a matrix whose nonzeros form a band."""

    out = levels.new_empty(*levels.shape[:-1], len(matrix))
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        used = rows.count_nonzero(0).nonzero()
        band = slice(int(used[0]), int(used[-1]) + 1)
        out[..., start : start + _BLOCK] = _to_levels(levels[..., band].double() @ rows[:, band].T)
    return out


def _to_levels(x: Tensor) -> Tensor:
    """Rounds half up into 0, ..., 255; overwrites `x`, which must be a temporary tensor."""

    return x.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve later calls that need gradients
def _resampling(length: int, new: int, start: int, count: int) -> Tensor:
    """Rows `start`, ..., `start + count - 1` of PIL's bicubic map from `length` to `new` pixels.

    A float64 matrix with shape (count, length) that holds multiples of 2^-22, as PIL's integers.
    """

    on_cpu: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    scale = length / new
    support = 2 * max(scale, 1.0)
    center = (torch.arange(start, start + count, **on_cpu) + 0.5) * scale
    # PIL's first and last pixel: truncation towards zero, then into the image.
    first = (center - support + 0.5).trunc().clamp(min=0)[:, None]
    last = (center + support + 0.5).trunc().clamp(max=length)[:, None]
    pixel = torch.arange(length, **on_cpu)
    # In this order: the position within the support is rounded as PIL's is.
    weights = _bicubic(((pixel - first) + first - center[:, None] + 0.5) / max(scale, 1.0))
    weights = torch.where((pixel >= first) & (pixel < last), weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * 2**22 + 0.5 * weights.sign()).trunc() / 2**22


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5."""

    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
