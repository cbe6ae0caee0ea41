"""A backbone whose pictures have a law in closed form, a reward that is linear in them, and a run.

What the tests of generation share.
"""

import csv
import itertools
import math

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from rwguidance import Backbone, RectifiedSchedule, toy
from rwguidance.generation import Importance, generate

QUIET = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
"""For files with runs in which few draws count, and which read pictures."""

SHAPE = (3, 1, 1)
GRAY = 0.5


class Law(Backbone):
    """Images with independent pixels from N(0.5 + c, 0.1^2), where c grows with the prompt."""

    depends_on = ("schedule", "std")

    def __init__(self, std=0.1):
        super().__init__(RectifiedSchedule())
        self.std = std
        self.calls = 0
        self.breaks_at = math.inf

    def condition(self, prompts):
        return list(prompts)

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        if self.calls >= self.breaks_at:
            raise KeyboardInterrupt
        size = math.prod(SHAPE)
        means = torch.tensor([mean_of(prompt) for prompt in condition], dtype=torch.float64)
        law = toy.Gaussian(torch.zeros(size), self.std**2 * torch.eye(size))
        scales = self.schedule.at(t, like=x_t)
        center = (scales.alpha * means.reshape(-1, 1, 1, 1)).expand_as(x_t)
        model = law.model(self.schedule)
        prediction = model((x_t - center).flatten(1), t)
        mean = prediction.mean.reshape(x_t.shape) + means.reshape(-1, 1, 1, 1)
        return type(prediction).from_mean(mean, x_t, scales)

    def draw_noise(self, n, generator=None):
        return torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)

    def decode(self, latents):
        return latents.clamp(0, 1)

    def times(self, steps=None):
        return torch.linspace(1, 0, (12 if steps is None else steps) + 1, dtype=torch.float64)


def mean_of(prompt):
    return GRAY + 0.01 * len(prompt)


class Brightness(nn.Module):
    """100 times the mean pixel; NaN, or worse, for pictures that it is told to dislike."""

    depends_on = ("factor",)

    def __init__(self, bad=lambda images, prompts: None, factor=100.0):
        super().__init__()
        self.bad = bad
        self.factor = factor
        self._seen = 0

    def forward(self, images, prompts):
        self._seen += len(images)
        values = self.factor * images.double().mean((1, 2, 3))
        value = self.bad(images, prompts)
        return values if value is None else torch.where(value, math.nan, values)


def spread(steps=12, std=0.1):
    """Standard deviation of a pixel after Euler steps, which is less than that of the law."""

    x, times = 1.0, [1 - i / steps for i in range(steps + 1)]
    for t, s in itertools.pairwise(times):
        mean = std**2 * (1 - t) / (std**2 * (1 - t) ** 2 + t**2) * x
        x = (1 - s) * mean + s * (x - (1 - t) * mean) / t
    return x


def run(out, method=None, prompts=("ab", "abcdef"), backbone=None, reward=None, **options):
    method = method or Importance(bank=32, beta=5.0)
    return generate(backbone or Law(), reward or Brightness(), prompts, out, method, **options)


def pixels(row):
    return [numpy.asarray(Image.open(path)).astype(int) for path in row.files]


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_pictures(one, other):
    for left, right in zip(pixels(one), pixels(other), strict=True):
        assert abs(left - right).max() <= 1  # what rounds to the next level in another batch
    assert one.rewards == pytest.approx(other.rewards, rel=1e-9)
