"""Findings of a run of scoring: each reward over all rows, the best images, and failures."""

import math
from dataclasses import dataclass, field

from rwguidance.generation.results import KINDS
from rwguidance.statistics import ratio_and_error

from ..base import Reward
from ..prompt_files import Job

__all__ = ["Best", "Failure", "Summary", "Tally"]


@dataclass(frozen=True)
class Summary:
    r"""Statistics of one reward over all rows that have a value.

    The standard error is that over images, as rows may share one: the mean is the ratio of two
    means over images, of the sum of their rows and of their number
    (:func:`rwguidance.statistics.ratio_and_error`). Prompts count as given, not as drawn.

    Arguments:
        reward: Name of the reward.
        rows: Number of rows, N.
        images: Number of images, n.
        mean: Mean over rows, in reward units; NaN without rows.
        standard_error: Standard error of the mean, in reward units; NaN for fewer than two images.
        low: Smallest value, in reward units; NaN without rows.
        high: Largest value, in reward units; NaN without rows.
        kind: Kind of the images, "base" or "aligned"; empty if they are of no kind.
    """

    reward: str
    rows: int
    images: int
    mean: float
    standard_error: float
    low: float
    high: float
    kind: str = ""


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
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)  # per kind of image

    def add(self, i: int, prompt: str, value: float | None) -> None:
        if value is None:
            return
        kind = self.job.items[i].kind
        low, high = self.extremes.get(kind, (value, value))
        self.extremes[kind] = min(low, value), max(high, value)
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

    def summaries(self) -> list[Summary]:
        return [self._summary(kind) for kind in (KINDS if self.job.kinds else ("",))]

    def _summary(self, kind: str) -> Summary:
        images = [self.images[i] for i in self.images if self.job.items[i].kind == kind]
        if not images:
            return Summary(self.name, 0, 0, math.nan, math.nan, math.nan, math.nan, kind)
        counts, sums = zip(*images, strict=True)
        mean, error = ratio_and_error(sums, counts)
        rows = int(sum(counts))
        return Summary(self.name, rows, len(counts), mean, error, *self.extremes[kind], kind)

    def best(self) -> list[Best]:
        return list(self.prompts.values())
