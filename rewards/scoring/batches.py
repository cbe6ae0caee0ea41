"""Batches of images, which the job fixes and which are decoded one ahead."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from rwguidance.support.image_files import TooLarge, opened

from ..images import from_pil
from ..prompt_files import Item, Job

if TYPE_CHECKING:
    from typing import TypeGuard

    from PIL.Image import Image

__all__ = ["NotRotated", "decoded", "in_batches"]

_DECODERS = 8
_ORIENTATION = 0x0112
_TURNED = "rwguidance: rotation not applied"
_NOT_ROTATED = (
    "images state by EXIF that they are to be rotated, and are scored as they are stored, as the "
    "references do; exif=True (--exif) rotates them"
)


class NotRotated(UserWarning):
    """Images state a rotation that is not applied."""


def in_batches(job: Job, batch_size: int) -> list[tuple[Item, ...]]:
    """Images that are scored together: `batch_size` of a matrix, or those of `batch_size` pairs."""

    batches: list[list[Item]] = []
    size = batch_size
    for item in job.items:
        cost = 1 if job.matrix else len(item.prompts)
        if size + cost > batch_size:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += cost
    return list(map(tuple, batches))


def decoded(
    job: Job, batches: Sequence[Sequence[Item]]
) -> "Iterator[tuple[list[Item], list[Image | str]]]":
    """Images of the parts of batches, or the reasons why they cannot be read, one part ahead.

    A part is what lies in memory at once: a whole batch, or as many of its images as have at most
    `job.max_pixels` pixels together by their headers. Parts of batches come in their order.

    Warns:
        NotRotated: Once, if an image states a rotation that is not applied.
    """

    told = False
    with ThreadPoolExecutor(_DECODERS) as pool:

        def submit(part: list[Item]) -> "list[Future[Image | str]]":
            return [pool.submit(_decode, job, item) for item in part]

        parts = _parts(job, batches, pool)
        now = next(parts, [])
        ahead: list[Future[Image | str]] = []
        try:
            ahead = submit(now)
            while now:
                images = [future.result() for future in ahead]
                if not told and any(_TURNED in image.info for image in images if _is_image(image)):
                    told = True
                    warnings.warn(_NOT_ROTATED, NotRotated, stacklevel=2)
                following = next(parts, [])
                ahead = submit(following)
                yield now, images
                now = following
        finally:
            for future in ahead:
                future.cancel()


def _parts(
    job: Job, batches: Sequence[Sequence[Item]], pool: ThreadPoolExecutor
) -> Iterator[list[Item]]:
    """Parts of the batches, of which only the headers are read."""

    for batch in batches:
        part: list[Item] = []
        held = 0
        for item, pixels in zip(batch, pool.map(partial(_pixels, job), batch), strict=True):
            if part and held + pixels > job.max_pixels:
                yield part
                part, held = [], 0
            part.append(item)
            held += pixels
        yield part


def _pixels(job: Job, item: Item) -> int:
    """Pixels of an image by its header; none if it will not be decoded."""

    if item.problem:
        return 0
    try:
        with opened(job.folder / item.image, max_pixels=job.max_pixels) as image:
            return image.width * image.height
    except Exception:  # which decoding will tell
        return 0


def _decode(job: Job, item: Item) -> "Image | str":
    """An image in memory, or the reason why not. Decoders raise anything on broken files."""

    from PIL import ImageOps, UnidentifiedImageError

    if item.problem:
        return item.problem
    try:
        with opened(job.folder / item.image, max_pixels=job.max_pixels) as image:
            image.load()
            from_pil(image.crop((0, 0, 1, 1)))  # refuses modes that have no agreed range
            turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            if turned and job.exif:
                return ImageOps.exif_transpose(image)
            picture = image.copy()
            if turned:
                picture.info[_TURNED] = True
            return picture
    except FileNotFoundError:
        return "no such file"
    except UnidentifiedImageError:
        return "not an image of a known format"
    except TooLarge as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _is_image(image: "Image | str") -> "TypeGuard[Image]":
    return not isinstance(image, str)
