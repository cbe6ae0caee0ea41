"""Evaluations of a model whose pictures have a law in closed form, for tests."""

import math
from dataclasses import dataclass
from typing import ClassVar
from unittest import mock

import torch
from torch import nn

from pixel_law import Brightness, Law, spread
from rwguidance.evaluation import evaluate
from rwguidance.generation import BestOfN, Importance, Method
from rwguidance.generation.base import Aligned

STEPS = 3
PROMPTS = ("ab", "abcdef")


def shift_of(nats):
    """How far the exactly tilted law of `Brightness` has moved every pixel.

    Pixels have the standard deviation s, the reward is 100 times the mean of three, so that beta is
    100 s / sqrt(6 nats), and the shift of a pixel is s^2 * 100 / 3 / beta.
    """

    return spread(STEPS) * math.sqrt(2 * nats / 3)


@dataclass(frozen=True)
class Moved(Method):
    """Moves base pictures by a multiple of the shift of the tilted law: by 1 it is exact."""

    name: ClassVar[str] = "moved"

    factor: float = 1.0
    nats: float | None = None

    def at(self, nats):
        return Moved(self.factor, nats)

    def align(self, run, prompt, numbers, base, rewards):
        return Aligned(base + self.factor * shift_of(self.nats), {"factor": self.factor})


@dataclass(frozen=True)
class Broken(Method):
    """Fails on some prompts."""

    name: ClassVar[str] = "broken"

    on: str = ""

    def align(self, run, prompt, numbers, base, rewards):
        if prompt.startswith(self.on):
            raise RuntimeError("out of luck")
        return Aligned(base)


class Flat(nn.Module):
    depends_on = ()

    def forward(self, images):
        return images.flatten(1)


class Red(nn.Module):
    depends_on = ()

    def forward(self, images, prompts):
        return images[:, 0].mean((1, 2))


METHODS = {"importance": Importance(bank=16, kl=1.0), "best of 3": BestOfN(3)}


def run(out, **changes):
    options = {
        "backbone": Law(), "reward": Brightness(), "prompts": PROMPTS, "methods": METHODS,
        "held_out": {"red": Red()}, "embeddings": {"pixels": Flat()}, "strengths": (0.25, 1.0),
        "images": 3, "seeds": (0, 1), "steps": STEPS, "target_draws": 20, "shown": 1,
        "batch_size": 8,
    } | changes  # fmt: skip
    # That the disk keeps what it is given is for the tests of the store.
    with mock.patch("os.fsync"):
        return evaluate(out=out, **options)


def tensors_of(results):
    """All that is found, by place, without seconds and memory."""

    found = {}
    for cell, pictures in results.cells.items():
        for kind in ("rewards", "embeddings", "costs"):
            for name, values in getattr(pictures, kind).items():
                if name not in ("seconds", "memory"):
                    found[str(cell), kind, name] = values
    for i, draws in enumerate(results.draws):
        for kind in ("rewards", "embeddings"):
            for name, values in getattr(draws, kind).items():
                found[i, kind, name] = values
    return found


def assert_same(one, other):
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    for key, values in left.items():
        assert torch.equal(values.nan_to_num(-7), right[key].nan_to_num(-7)), key
