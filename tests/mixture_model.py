"""A model of pictures of two modes, dark and bright, in closed form, and a reward of brightness."""

import math

import torch
from torch import nn

from rwguidance import Backbone, RectifiedSchedule, Tilt, toy

SHAPE = (1, 4, 4)
APART, VARIANCE, BETA = 1.2, 0.15, 1.5
ALONG = torch.full((16,), 0.25)
"""The unit vector along which the modes lie apart, and the reward grows."""

LAW = toy.GaussianMixture(
    [0.0, 0.0], torch.stack([-APART * ALONG, APART * ALONG]), VARIANCE * torch.eye(16)[None]
)
TILTED = LAW.tilted(Tilt(toy.Linear(ALONG), BETA))
BRIGHT = 1 / (1 + math.exp(-2 * APART / BETA))
"""Share of the bright mode under the tilted law; a half under the model's."""

MEAN = (2 * BRIGHT - 1) * APART + VARIANCE / BETA
"""Mean reward under the tilted law; 0 under the model's."""


class TwoModes(Backbone):
    """States of one channel, of the same law for every prompt; 24 steps."""

    depends_on = ("schedule",)

    def __init__(self):
        super().__init__(RectifiedSchedule())

    def condition(self, prompts):
        return list(prompts)

    def forward(self, x_t, t, condition=None):
        found = LAW.model(self.schedule)(x_t.flatten(1), t)
        mean, scales = found.mean.reshape(x_t.shape), self.schedule.at(t, like=x_t)
        return type(found).from_mean(mean, x_t, scales)

    def draw_noise(self, n, generator=None):
        return torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)

    def decode(self, latents):
        return (0.5 + 0.05 * latents).clamp(0, 1).expand(-1, 3, -1, -1)

    def times(self, steps=None):
        return torch.linspace(1, 0, (steps or 24) + 1, dtype=torch.float64)


class Bright(nn.Module):
    """The place of a state between the modes, as pictures show it."""

    depends_on = ()

    def forward(self, images, prompts):
        return along((images.double().mean(1) - 0.5) / 0.05)


def along(x_0):
    return x_0.double().flatten(1) @ ALONG.double()


model, bright = TwoModes(), Bright()
