"""Images as users have them (tensors, lists of different sizes, PIL) and as rewards see them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Images", "SizeGroups", "from_pil", "group_by_size", "to_pil"]

Images: TypeAlias = "Tensor | Image | Sequence[Tensor | Image]"
"""A float tensor (B, 3, H, W) in [0, 1], or a list of float tensors (3, H, W) and PIL images."""

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


def group_by_size(
    images: Images, device: torch.device | None = None, levels: bool = False
) -> SizeGroups:
    """Checks images and stacks those of one size.

    NaN passes and becomes a reward of NaN, which names the item and its prompt.

    Arguments:
        images: Tensors or PIL images, as :data:`Images` says.
        device: Device to which PIL images go, and on which tensors must be; None takes them as they
            are.
        levels: Whether PIL images keep their 8-bit levels, 0, ..., 255 in uint8.

    Raises:
        TypeError: If there is something else than floating-point tensors and PIL images.
        ValueError: If an image has another shape, range or device, or there is none.
    """

    if isinstance(images, Tensor):
        broken = _check_tensor(images, "images", device)
        return SizeGroups((images,), (tuple(range(len(images))),), broken)
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        if not _is_pil(images):
            raise TypeError(
                "images must be a float tensor (B, 3, H, W) in [0, 1], a PIL image, or a list of "
                f"tensors (3, H, W) and PIL images, got {type(images).__name__}"
            )
        images = [images]
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got an empty list")
    sizes: dict[tuple[Any, ...], list[int]] = {}
    tensors = []
    with_nan: list[int] = []
    for i, image in enumerate(images):
        tensor, holds_nan = _single(image, f"images[{i}]", device, levels)
        tensors.append(tensor)
        with_nan.extend([i] * holds_nan)
        sizes.setdefault((*tensor.shape[1:], tensor.dtype), []).append(i)
    stacked = tuple(_stack([tensors[i] for i in group]) for group in sizes.values())
    return SizeGroups(stacked, tuple(map(tuple, sizes.values())), tuple(with_nan))


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

    levels = (255 * images.detach().float()).round().to(torch.uint8)
    return [Image.fromarray(image.numpy()) for image in levels.permute(0, 2, 3, 1).cpu()]


def _stack(images: Sequence[Tensor]) -> Tensor:
    """Images (3, H, W) as one tensor; levels keep the channel last in memory, as PIL has it."""

    if images[0].dtype == torch.uint8:
        return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
    return torch.stack(list(images))


def _single(
    image: "Tensor | Image", name: str, device: torch.device | None, levels: bool
) -> tuple[Tensor, bool]:
    """One image with shape (3, H, W), and whether it holds NaN."""

    if isinstance(image, Tensor):
        return image, bool(_check_tensor(image, name, device, single=True))
    if _is_pil(image):
        return (_levels(image) if levels else from_pil(image)).to(device), False
    raise TypeError(f"{name} must be a float tensor or a PIL image, got {type(image).__name__}")


def _is_pil(image: object) -> bool:
    # Without importing PIL: who has such an object has imported it.
    return any(f"{t.__module__}.{t.__name__}" == "PIL.Image.Image" for t in type(image).__mro__)


def _check_tensor(
    images: Tensor, name: str, device: torch.device | None, single: bool = False
) -> tuple[int, ...]:
    """Positions of images that hold NaN. Raises if the tensor is not one of images."""

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
    low, high = (float(value) for value in images.detach().aminmax())
    broken: tuple[int, ...] = ()
    if math.isnan(low):
        batch = images.detach().reshape(-1, *images.shape[-3:])
        broken = tuple(batch.isnan().flatten(1).any(1).nonzero().flatten().tolist())
        low, high = (float(value) for value in batch.nan_to_num(0.0).aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "a decoder that returns [-1, 1] needs (x / 2 + 0.5).clamp(0, 1)"
        )
    return broken
