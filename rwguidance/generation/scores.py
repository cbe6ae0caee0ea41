"""Rewards of pictures, some of which may fail."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tilt import RewardFunction, Tilt
from .failures import reason

__all__ = ["Scores", "score", "score_pairs"]


@dataclass(frozen=True)
class Scores:
    """Rewards of images, where they have one.

    Arguments:
        values: Rewards, in reward units, float64, with shape (B,); NaN where the reward failed.
        errors: Reasons why it failed, by the image's place in the batch.
    """

    values: Tensor
    errors: dict[int, str]


def score(reward: RewardFunction, images: Tensor, prompt: str) -> Scores:
    """Returns the rewards of images of one prompt, as :func:`score_pairs` does.

    Arguments:
        reward: Maps (images, prompts) to rewards, with shape (B,).
        images: Images in [0, 1], with shape (B, 3, H, W).
        prompt: The prompt.
    """

    return score_pairs(reward, images, [prompt] * len(images))


def score_pairs(reward: RewardFunction, images: Tensor, prompts: Sequence[str]) -> Scores:
    """Returns the rewards of images, each for a prompt of its own.

    Where the reward raises for all at once, it is asked one by one, so that others have theirs.

    Arguments:
        reward: Maps (images, prompts) to rewards, with shape (B,).
        images: Images in [0, 1], with shape (B, 3, H, W).
        prompts: Their prompts, B of them.
    """

    values, errors = torch.full((len(images),), math.nan, dtype=torch.float64), {}
    tilt = Tilt(reward, 1.0)

    def attempt(rows: range) -> None:
        try:
            with torch.no_grad():
                found = tilt.score(
                    images[rows.start : rows.stop], list(prompts[rows.start : rows.stop])
                )
            values[rows.start : rows.stop] = found.double().cpu()
        except Exception as error:  # whatever a reward raises, the other pictures go on
            if len(rows) == 1:
                errors[rows.start] = reason(error)
                return
            for row in rows:
                attempt(range(row, row + 1))

    attempt(range(len(images)))
    return Scores(values, errors)
