"""A backbone that does nothing, a judge and a reward whose answers are known."""

import torch
from test_metrics import Light

import rwguidance as rw
from backbones import Backbone
from rwguidance.support.randomness import normal


class Still(Backbone):
    """Noise that stands still, so that samples are noise; pictures are latents around gray."""

    depends_on = ("schedule",)

    def __init__(self):
        super().__init__(rw.RectifiedSchedule())

    def condition(self, prompts):
        return list(prompts)

    def draw_noise(self, n, generator=None):
        return normal((n, 3, 4, 4), generator)

    def decode(self, latents):
        return torch.nn.functional.interpolate(0.5 + 0.05 * latents, scale_factor=16.0)

    def times(self, steps):
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def forward(self, x_t, t, condition=None):
        scales = self.schedule.at(t, like=x_t)
        return rw.Prediction.from_velocity(torch.zeros_like(x_t), x_t, scales)


class Named(Light):
    """A judge whose captions are prompts with and without backgrounds."""

    depends_on = ()

    def embed_captions(self, captions):
        return torch.stack([torch.tensor([len(c), c.count("e"), 1.0]) for c in captions])


def red(images, prompts):
    """Linear in the latents."""

    return images[:, 0].mean((1, 2)).double()
