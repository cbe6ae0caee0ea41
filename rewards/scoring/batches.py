"""Batches of images, which the job fixes and which are decoded one ahead."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..images import from_pil
from ..prompt_files import Item, Job

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["decoded", "in_batches"]

_DECODERS = 8


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


def decoded(job: Job, batches: Sequence[Sequence[Item]]) -> "Iterator[list[Image | str]]":
    """Images of each batch, or the reasons why they cannot be read, decoded one batch ahead."""

    with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:

        def submit(batch: Sequence[Item]) -> "list[Future[Image | str]]":
            return [pool.submit(_decode, job.folder / i.image, i.problem) for i in batch]

        ahead: list[Future[Image | str]] = []
        try:
            ahead = submit(batches[0]) if batches else []
            for following in (*batches[1:], ()):
                images = [future.result() for future in ahead]
                ahead = submit(following)
                yield images
        finally:
            for future in ahead:
                future.cancel()


def _decode(path: Path, problem: str) -> "Image | str":
    """An image in memory, or the reason why not. Decoders raise anything on broken files."""

    from PIL import Image, UnidentifiedImageError

    if problem:
        return problem
    try:
        with Image.open(path) as image:
            image.load()
            from_pil(image.crop((0, 0, 1, 1)))  # refuses modes that have no agreed range
            return image.copy()
    except FileNotFoundError:
        return "no such file"
    except UnidentifiedImageError:
        return "not an image of a known format"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
