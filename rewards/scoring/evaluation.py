"""Values of a batch of images: one row per image and prompt, with reasons for missing values."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import Reward
from ..prompt_files import Item, Job
from ..towers import EmbeddingReward
from .journal import Row

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["score_batch"]


def score_batch(
    job: Job,
    batch: Sequence[Item],
    images: "list[Image | str]",
    rewards: Mapping[str, Reward],
    batch_size: int,
) -> list[Row]:
    """Rows of a batch, one per prompt of each image.

    Arguments:
        job: The job.
        batch: The images of the batch and their prompts.
        images: The decoded images, or the reasons why they cannot be read.
        rewards: The rewards, by the names of their columns.
        batch_size: The largest number of pairs given to a reward at once.

    Raises:
        TypeError: If a reward does not return one value per image.
    """

    good = [
        (item, image)
        for item, image in zip(batch, images, strict=True)
        if not isinstance(image, str)
    ]
    columns = [
        iter(_evaluate(name, reward, job, good, batch_size)) for name, reward in rewards.items()
    ]
    rows = []
    for item, image in zip(batch, images, strict=True):
        if isinstance(image, str):
            rows += [[*[None] * len(rewards), image] for _ in item.prompts]
            continue
        results = [next(column) for column in columns]
        for j in range(len(item.prompts)):
            values: Row = []
            reasons = []
            for name, result in zip(rewards, results, strict=True):
                value = result if isinstance(result, str) else result[j]
                finite = isinstance(value, float) and math.isfinite(value)
                values.append(value if finite else None)
                if not finite:
                    reasons.append(f"{name} {'failed: ' if result is value else 'is '}{value}")
            rows.append([*values, "; ".join(reasons)])
    return rows


def _evaluate(
    name: str, reward: Reward, job: Job, good: "list[tuple[Item, Image]]", batch_size: int
) -> list[list[float] | str]:
    """Values of each image for its prompts, or the reason why the reward refuses the image."""

    if not good:
        return []
    _forget(reward, job)
    try:
        with torch.no_grad():
            values = _values(name, reward, job, good, batch_size)
    except ValueError as error:
        if len(good) == 1:
            return [" ".join(str(error).split())]
        return [r for pair in good for r in _evaluate(name, reward, job, [pair], batch_size)]
    sizes = [len(item.prompts) for item, _ in good]
    flat = iter(_shortest(values))
    return [list(itertools.islice(flat, size)) for size in sizes]


def _values(
    name: str, reward: Reward, job: Job, good: "list[tuple[Item, Image]]", batch_size: int
) -> Tensor:
    """Values of all rows, with shape (rows,)."""

    images = [image for _, image in good]
    if not reward.spec.needs_prompt:
        counts = torch.tensor([len(item.prompts) for item, _ in good])
        return _check(name, reward(images), len(images)).cpu().repeat_interleave(counts)
    if job.matrix:
        prompts = good[0][0].prompts
        values = reward.score_matrix(images, prompts)
        return _check(name, values, len(images), len(prompts)).flatten()
    pairs = [(image, prompt) for item, image in good for prompt in item.prompts]
    chunks = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    return torch.cat(
        [_check(name, reward(*map(list, zip(*chunk, strict=True))), len(chunk)) for chunk in chunks]
    )


def _check(name: str, values: Tensor, *shape: int) -> Tensor:
    if values.shape != shape:
        raise TypeError(
            f"{name} must return one value per image, shape {shape}, got {tuple(values.shape)}"
        )
    return values


def _forget(reward: Reward, job: Job) -> None:
    """Empties caches of prompts: which prompts were embedded together shows in the last digit.

    All prompts of a matrix are embedded together in any batch, if the cache holds them.
    """

    caching = [m for m in reward.modules() if isinstance(m, EmbeddingReward)]
    for part in caching:
        if not (job.matrix and len(job.items[0].prompts) <= part.cache_size):
            part.forget_prompts()


def _shortest(values: Tensor) -> list[float]:
    if values.dtype == torch.float64:
        return values.tolist()
    return [float(str(value)) for value in values.float().cpu().numpy()]
