"""Images as users have them (tensors, lists of different sizes, PIL) and as rewards see them."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from rwguidance.support.image_files import opened

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Images", "SizeGroups", "from_pil", "group_by_size", "reduced", "to_pil"]

Images: TypeAlias = "Tensor | Image | Sequence[Any]"
"""A float tensor (B, 3, H, W) in [0, 1], or a list whose members are each one of these: a float
tensor (3, H, W), a PIL image, an array of 8 bits (H, W), (H, W, 3) or (H, W, 4), or the path of a
file as :class:`pathlib.Path`, of the formats in
:data:`rwguidance.support.image_files.FORMATS`."""

_AT_ONCE = 2**24
"""Pixels of the images of a list that are floating-point numbers at once, but for one image."""

_ROUNDING = 0.25 / 255
"""Distance from [0, 1] that rounding may bring."""

_PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@dataclass(frozen=True)
class SizeGroups:
    r"""Images of several sizes, those of one size stacked.

    Arguments:
        tensors: One per size, with shape (n, \*shape).
        positions: Positions of the images of each tensor in the user's list.
        broken: Positions of images that hold NaN.
    """

    tensors: tuple[Tensor, ...]
    positions: tuple[tuple[int, ...], ...]
    broken: tuple[int, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.positions))

    def map(self, function: Callable[[Tensor], Tensor]) -> "SizeGroups":
        """Transforms every group, and joins those that have the same size afterwards."""

        tensors = [function(tensor) for tensor in self.tensors]
        if len(tensors) > 1 and len({tensor.shape[1:] for tensor in tensors}) == 1:
            return SizeGroups((torch.cat(tensors),), (sum(self.positions, ()),), self.broken)
        return SizeGroups(tuple(tensors), self.positions, self.broken)

    def reduce(self, function: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
        """Rows of `function(tensor, positions)`, in the order of the user's list.

        Rows of images that hold NaN are NaN, whatever rounding and clamping make of them.
        """

        pairs = zip(self.tensors, self.positions, strict=True)
        rows = torch.cat([function(tensor, positions) for tensor, positions in pairs])
        order = sum(self.positions, ())
        if order != tuple(range(len(order))):
            inverse = sorted(range(len(order)), key=order.__getitem__)
            rows = rows[torch.tensor(inverse, device=rows.device)]
        if self.broken:
            index = torch.tensor(self.broken, device=rows.device)
            rows = rows.index_fill(0, index, torch.nan)
        return rows


def reduced(
    images: Images,
    device: torch.device | None,
    function: Callable[[Tensor], Tensor],
    levels: bool = False,
) -> SizeGroups:
    """Checks images, transforms them, and stacks those of one size.

    Of a list, so many are in memory as floating-point numbers at once as have 16 million pixels
    together, or one: what counts is the size of what the function makes of them.

    Arguments:
        images: Images of all kinds that :data:`Images` names.
        device: Device to which PIL images go, and on which tensors must be; None takes them as they
            are.
        function: A function of images of one size, with shape (B, 3, H, W).
        levels: Whether the function takes those that are no tensors as their 8-bit levels, 0, ...,
            255 in uint8.

    Raises:
        TypeError: If there is something else than these kinds of images.
        ValueError: If an image has another shape, range or device, or there is none.
    """

    if isinstance(images, Tensor):
        return group_by_size(images, device).map(function)
    listed = _listed(images)
    groups = [_grouped(listed, part, device, levels).map(function) for part in _parts(listed)]
    first, *others = groups
    return _joined(groups) if others else first


def group_by_size(
    images: Images, device: torch.device | None = None, levels: bool = False
) -> SizeGroups:
    """Checks images and stacks those of one size.

    NaN passes and becomes a reward of NaN, which names the item and its prompt. Values that lie
    outside [0, 1] by rounding, up to a quarter of a level of 8 bits, are moved to its ends.

    Arguments:
        images: Images of all kinds that :data:`Images` names.
        device: Device to which PIL images go, and on which tensors must be; None takes them as they
            are.
        levels: Whether what is no tensor keeps its 8-bit levels, 0, ..., 255 in uint8.

    Raises:
        TypeError: If there is something else than these kinds of images.
        ValueError: If an image has another shape, range or device, or there is none.
    """

    if isinstance(images, Tensor):
        tensor, broken = _checked(images, "images", device)
        return SizeGroups((tensor,), (tuple(range(len(images))),), broken)
    listed = _listed(images)
    return _grouped(listed, range(len(listed)), device, levels)


def _listed(images: Any) -> Sequence[Any]:
    """Images as a list, at least one."""

    if _is_array(images) and images.ndim == 4:
        images = list(images)
    if not isinstance(images, Sequence) or isinstance(images, str):
        if not (_is_pil(images) or _is_array(images) or isinstance(images, os.PathLike)):
            raise TypeError(
                "images must be a float tensor (B, 3, H, W) in [0, 1], a PIL image, or a list of "
                "tensors (3, H, W), PIL images, 8-bit arrays (H, W, 3) and pathlib.Path, got "
                f"{type(images).__name__}"
            )
        images = [images]
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got an empty list")
    return images


def _parts(images: Sequence[Any]) -> Iterator[range]:
    """Positions of images that are in memory at once, in order."""

    start, held = 0, 0
    for i, image in enumerate(images):
        pixels = _pixels(image)
        if i > start and held + pixels > _AT_ONCE:
            yield range(start, i)
            start, held = i, 0
        held += pixels
    yield range(start, len(images))


def _pixels(image: Any) -> int:
    """Number of pixels of an image, as far as it is known: a file is as large as may be."""

    if _is_pil(image):
        return math.prod(image.size)
    if isinstance(image, os.PathLike):
        return _AT_ONCE
    return math.prod(getattr(image, "shape", ())) // 3


def _grouped(
    images: Sequence[Any], positions: range, device: torch.device | None, levels: bool
) -> SizeGroups:
    """Groups of those images that are at some positions."""

    sizes: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}
    with_nan: list[int] = []
    for i in positions:
        tensor, holds_nan = _single(images[i], f"images[{i}]", device, levels)
        with_nan.extend([i] * holds_nan)
        sizes.setdefault((*tensor.shape[1:], tensor.dtype), []).append((i, tensor))
    tensors = tuple(_stack([tensor for _, tensor in same]) for same in sizes.values())
    places = tuple(tuple(i for i, _ in same) for same in sizes.values())
    return SizeGroups(tensors, places, tuple(with_nan))


def _joined(groups: Sequence[SizeGroups]) -> SizeGroups:
    """Groups as one, with those of one shape joined."""

    found: dict[tuple[Any, ...], list[tuple[Tensor, tuple[int, ...]]]] = {}
    for group in groups:
        for tensor, positions in zip(group.tensors, group.positions, strict=True):
            found.setdefault((tensor.shape[1:], tensor.dtype), []).append((tensor, positions))
    tensors = tuple(torch.cat([tensor for tensor, _ in same]) for same in found.values())
    places = tuple(sum((positions for _, positions in same), ()) for same in found.values())
    return SizeGroups(tensors, places, sum((group.broken for group in groups), ()))


def from_pil(image: "Image") -> Tensor:
    """A PIL image as float32 tensor in [0, 1], with shape (3, H, W).

    Gray images repeat their channel. Transparency is dropped, as `convert("RGB")` and so
    PickScore's reference do. (HPSv2's reference fails on transparent images, and torchvision's
    pipelines convert after resizing, which lets transparent pixels bleed.) Pixels that nobody sees
    may have any color: flatten such images onto a background first if that matters. EXIF rotation
    is not applied, as in all references.

    Raises:
        ValueError: If the mode is not an 8-bit one: "I", "F" and "I;16" have no agreed range.
    """

    return _levels(image).contiguous().float().div_(255)


def _levels(image: "Image") -> Tensor:
    """The levels of a PIL image, uint8 with shape (3, H, W), the channel last in memory."""

    import numpy

    if 0 in image.size:
        raise ValueError(f"a PIL image must have pixels, got size {image.size}")
    if image.mode not in _PIL_MODES:
        raise ValueError(
            f"a PIL image must have one of the 8-bit modes {', '.join(_PIL_MODES)}, "
            f"got {image.mode!r}; scale it to 8 bits first"
        )
    levels = torch.from_numpy(numpy.array(image.convert("RGB"), dtype=numpy.uint8))
    return levels.permute(2, 0, 1)


def to_pil(images: Tensor) -> "list[Image]":
    """Images (B, 3, H, W) in [0, 1] as PIL images, rounded to 8 bits; carries no gradient."""

    from PIL import Image

    levels = (255 * images.float()).round().to(torch.uint8)
    return [Image.fromarray(image.numpy()) for image in levels.permute(0, 2, 3, 1).cpu()]


def _stack(images: Sequence[Tensor]) -> Tensor:
    """Images (3, H, W) as one tensor; levels keep the channel last in memory, as PIL has it."""

    if images[0].dtype == torch.uint8:
        return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
    return torch.stack(list(images))


def _single(
    image: Any, name: str, device: torch.device | None, levels: bool
) -> tuple[Tensor, bool]:
    """One image with shape (3, H, W), and whether it holds NaN."""

    if isinstance(image, Tensor):
        tensor, broken = _checked(image, name, device, single=True)
        return tensor, bool(broken)
    known = _levels if levels else from_pil
    if isinstance(image, os.PathLike):
        with opened(image) as file:
            return known(file).to(device), False
    if _is_array(image):
        return known(_of_array(image, name)).to(device), False
    if _is_pil(image):
        return known(image).to(device), False
    raise TypeError(
        f"{name} must be a float tensor, a PIL image, an 8-bit array (H, W, 3) or the pathlib.Path "
        f"of a file, got {type(image).__name__}"
    )


def _is_pil(image: object) -> bool:
    # Without importing PIL: who has such an object has imported it.
    return any(f"{t.__module__}.{t.__name__}" == "PIL.Image.Image" for t in type(image).__mro__)


def _is_array(image: object) -> bool:
    return any(f"{t.__module__}.{t.__name__}" == "numpy.ndarray" for t in type(image).__mro__)


def _of_array(array: Any, name: str) -> "Image":
    """The PIL image that an array plainly is."""

    from PIL.Image import fromarray

    shape = tuple(array.shape)
    plain = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if plain and array.dtype.name == "uint8" and 0 not in shape:
        image: Image = fromarray(array)
        return image
    raise TypeError(
        f"{name} must be an 8-bit array with shape (H, W), (H, W, 3) or (H, W, 4), got "
        f"{array.dtype.name} of shape {shape}; make a tensor (3, H, W) in [0, 1] of it, such as "
        "torch.from_numpy(array).permute(2, 0, 1)"
    )


def _checked(
    images: Tensor, name: str, device: torch.device | None, single: bool = False
) -> tuple[Tensor, tuple[int, ...]]:
    """The images within [0, 1], and positions of those that hold NaN. Raises if it has others."""

    if not images.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor in [0, 1], got {images.dtype}; "
            "divide 8-bit images by 255"
        )
    if images.ndim != (3 if single else 4) or images.shape[-3] != 3 or 0 in images.shape:
        shape = "(3, H, W)" if single else "(B, 3, H, W)"
        raise ValueError(f"{name} must have shape {shape}, got {tuple(images.shape)}")
    if device is not None and images.device != device:
        raise ValueError(
            f"{name} must be on the reward's device, {device}, but is on {images.device}"
        )
    values = images.detach()
    low, high = (float(value) for value in values.aminmax())
    broken: tuple[int, ...] = ()
    if math.isnan(low):
        batch = values[None] if single else values
        broken = tuple(batch.isnan().flatten(1).any(1).nonzero().flatten().tolist())
        low, high = (float(value) for value in batch.nan_to_num(0.0).aminmax())
    if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "a decoder that returns [-1, 1] needs (x / 2 + 0.5).clamp(0, 1)"
        )
    return (images if 0 <= low <= high <= 1 else images.clamp(0, 1)), broken
