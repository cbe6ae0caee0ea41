"""Values of a batch of images: one row per image and prompt, with reasons for missing values."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rwguidance.support import memory

from ..base import Reward
from ..prompt_files import Item, Job
from ..towers import EmbeddingReward
from .journal import Row

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FAILED", "score_batch"]

FAILED = "failed: "
"""What the reason of a problem begins with, after the name of the reward."""


Pair = tuple[Item, "Image"]


class _Problem(NamedTuple):
    """The reason why a reward has no value for an image.

    Arguments:
        reason: The reason, in one line.
        memory: Whether memory has run out.
        lost: Whether nothing was heard of a server.
    """

    reason: str
    memory: bool
    lost: bool


class _WrongShape(TypeError):
    """A mistake in the reward, not of an image."""


def score_batch(
    job: Job,
    batch: Sequence[Item],
    images: "list[Image | str]",
    rewards: Mapping[str, Reward],
    batch_size: int,
) -> list[Row]:
    """Rows of a batch, one per prompt of each image.

    Whatever a reward raises on an image is the reason in the rows of that image, and of no other.

    Arguments:
        job: The job.
        batch: The images of the batch and their prompts.
        images: The decoded images, or the reasons why they cannot be read.
        rewards: The rewards, by the names of their columns.
        batch_size: The largest number of pairs given to a reward at once.

    Raises:
        TypeError: If a reward does not return one value per image.
        ConnectionError: If the server of a reward was not heard of for any of several images.
    """

    good = [
        (item, image)
        for item, image in zip(batch, images, strict=True)
        if not isinstance(image, str)
    ]
    columns = [
        iter(_column(name, reward, job, good, batch_size)) for name, reward in rewards.items()
    ]
    rows = []
    for item, image in zip(batch, images, strict=True):
        if isinstance(image, str):
            rows += [[*[None] * len(rewards), image] for _ in item.prompts]
            continue
        results = [next(column) for column in columns]
        rows += [_row(rewards, results, j) for j in range(len(item.prompts))]
    return rows


def _row(rewards: Mapping[str, Reward], results: "list[list[float] | _Problem]", j: int) -> Row:
    """The row of the j-th prompt of an image."""

    values: Row = []
    reasons = []
    for name, result in zip(rewards, results, strict=True):
        if isinstance(result, _Problem):
            values.append(None)
            reasons.append(f"{name} {FAILED}{result.reason}")
        elif math.isfinite(result[j]):
            values.append(result[j])
        else:
            values.append(None)
            reasons.append(f"{name} is {result[j]}")
    return [*values, "; ".join(reasons)]


def _column(
    name: str, reward: Reward, job: Job, good: "list[Pair]", batch_size: int
) -> list[list[float] | _Problem]:
    """Values of each image for its prompts, or the problems."""

    results = _evaluate(name, reward, job, good, batch_size) if good else []
    lost = [result for result in results if isinstance(result, _Problem) and result.lost]
    if len(lost) == len(results) > 1:
        raise ConnectionError(f"{name}: {lost[0].reason}")
    return results


def _evaluate(
    name: str, reward: Reward, job: Job, good: "list[Pair]", batch_size: int
) -> list[list[float] | _Problem]:
    """Returns what :func:`_column` does; looks in smaller batches for what one fails at."""

    outcome = _attempt(name, reward, job, good, batch_size)
    sizes = [len(item.prompts) for item, _ in good]
    if isinstance(outcome, Tensor):
        flat = iter(_shortest(outcome))
        return [list(itertools.islice(flat, size)) for size in sizes]
    if len(good) > 1:
        step = (len(good) + 1) // 2 if outcome.memory else 1
        parts = [good[i : i + step] for i in range(0, len(good), step)]
        return [r for part in parts for r in _evaluate(name, reward, job, part, batch_size)]
    at_once = min(batch_size, *sizes) if reward.spec.needs_prompt and not job.matrix else 1
    if outcome.memory and at_once > 1:
        return _evaluate(name, reward, job, good, at_once // 2)
    return [outcome]


def _attempt(
    name: str, reward: Reward, job: Job, good: "list[Pair]", batch_size: int
) -> Tensor | _Problem:
    """Values of all rows, with shape (rows,), or the problem.

    The error itself does not leave this function: it would hold on to the memory of what failed.
    """

    _forget(reward, job)
    width, height = (max(sides) for sides in zip(*(image.size for _, image in good), strict=True))
    hint = (
        f"{name} had {len(good)} images of up to {width} x {height} pixels at once: lower "
        "batch_size (--batch-size), make the images smaller, or load it in half precision"
    )
    try:
        with torch.no_grad(), memory.advice(hint):
            return _values(name, reward, job, good, batch_size)
    except _WrongShape:
        raise
    except Exception as error:
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        lost = isinstance(error, ConnectionError | TimeoutError)
        return _Problem(" ".join(text.split()), memory.is_shortage(error), lost)


def _values(name: str, reward: Reward, job: Job, good: "list[Pair]", batch_size: int) -> Tensor:
    """Values of all rows, with shape (rows,)."""

    images = [image for _, image in good]
    if not reward.spec.needs_prompt:
        counts = torch.tensor([len(item.prompts) for item, _ in good])
        return _check(name, reward(images), len(images)).cpu().repeat_interleave(counts)
    if job.matrix:
        prompts = next(item.prompts for item, _ in good)
        values = reward.score_matrix(images, prompts)
        return _check(name, values, len(images), len(prompts)).flatten()
    pairs = [(image, prompt) for item, image in good for prompt in item.prompts]
    chunks = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    return torch.cat(
        [_check(name, reward(*map(list, zip(*chunk, strict=True))), len(chunk)) for chunk in chunks]
    )


def _check(name: str, values: Any, *shape: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != shape:
        raise _WrongShape(
            f"{name} must return one value per image, shape {shape}, got "
            + (f"{tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__)
        )
    return values


def _forget(reward: Reward, job: Job) -> None:
    """Empties caches of prompts: which prompts were embedded together shows in the last digit.

    All prompts of a matrix are embedded together in any batch, if the cache holds them.
    """

    prompts = next(item.prompts for item in job.items)
    caching = [m for m in reward.modules() if isinstance(m, EmbeddingReward)]
    for part in caching:
        if not (job.matrix and len(prompts) <= part.cache_size):
            part.forget_prompts()


def _shortest(values: Tensor) -> list[float]:
    if values.dtype == torch.float64:
        return values.tolist()
    return [float(str(value)) for value in values.float().cpu().numpy()]
