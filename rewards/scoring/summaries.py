"""Findings of a run of scoring: each reward over all rows, the best images, and failures."""

import math
from dataclasses import dataclass, field

from ..base import Reward
from ..prompt_files import Job

__all__ = ["Best", "Failure", "Summary", "Tally"]


@dataclass(frozen=True)
class Summary:
    r"""Statistics of one reward over all rows that have a value.

    The standard error allows for rows that share an image: with :math:`N` rows of :math:`n` images,

    .. math:: \mathrm{SE}^2 = \frac{n}{n - 1} \sum_{i=1}^n
        \Big( \frac1N \sum_{j \in \text{rows of } i} (r_j - \bar r) \Big)^2,

    which is :math:`s^2 / n` if every image has one row. Prompts count as given, not as drawn.

    Arguments:
        reward: Name of the reward.
        rows: Number of rows, N.
        images: Number of images, n.
        mean: Mean over rows, in reward units; NaN without rows.
        standard_error: Standard error of the mean, in reward units; NaN for fewer than two images.
        low: Smallest value, in reward units; NaN without rows.
        high: Largest value, in reward units; NaN without rows.
    """

    reward: str
    rows: int
    images: int
    mean: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """The image with the highest reward for a prompt; the first of several.

    Arguments:
        reward: The name of the reward.
        prompt: The prompt; None if it does not matter: for images alone, and if every image was
            scored with every prompt by a reward that needs none.
        image: Path of the image in the folder.
        value: The highest reward, in reward units.
        images: Number of images that it was the best of.
    """

    reward: str
    prompt: str | None
    image: str
    value: float
    images: int


@dataclass(frozen=True)
class Failure:
    """A row without all its values.

    Arguments:
        row: Number of the row in the result, from 1.
        image: Path of the image in the folder.
        prompt: The prompt.
        reason: Reason why a value is missing.
    """

    row: int
    image: str
    prompt: str
    reason: str


@dataclass
class Tally:
    """Sums and extremes of one reward, collected row by row."""

    name: str
    job: Job
    reward: Reward
    images: dict[int, list[float]] = field(default_factory=dict)  # rows and their sum, per image
    prompts: dict[str | None, Best] = field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf

    def add(self, i: int, prompt: str, value: float | None) -> None:
        if value is None:
            return
        self.low, self.high = min(self.low, value), max(self.high, value)
        entry = self.images.setdefault(i, [0, 0.0])
        entry[0] += 1
        entry[1] += value

        told_apart = self.job.prompted and (self.reward.spec.needs_prompt or not self.job.matrix)
        key = prompt if told_apart else None
        if not told_apart and entry[0] > 1:
            return  # the same value again
        best = self.prompts.get(key)
        image = self.job.items[i].image
        if best is None:
            self.prompts[key] = Best(self.name, key, image, value, 1)
            return
        image, value = (image, value) if value > best.value else (best.image, best.value)
        self.prompts[key] = Best(self.name, key, image, value, best.images + 1)

    def summary(self) -> Summary:
        n = len(self.images)
        rows = int(sum(count for count, _ in self.images.values()))
        if not rows:
            return Summary(self.name, 0, 0, math.nan, math.nan, math.nan, math.nan)
        mean = math.fsum(total for _, total in self.images.values()) / rows
        squares = math.fsum((s - count * mean) ** 2 for count, s in self.images.values())
        error = math.sqrt(squares * n / (n - 1)) / rows if n > 1 else math.nan
        return Summary(self.name, rows, n, mean, error, self.low, self.high)

    def best(self) -> list[Best]:
        return list(self.prompts.values())
