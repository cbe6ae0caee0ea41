"""A generator whose noise has another shape than its pictures, with its law in closed form."""

import torch

from rwguidance.backbone import Generator
from rwguidance.support.randomness import normal

STD = 2.0


class Squares(Generator):
    """Draws squares of one color, gray 0.5 + 0.05 z / STD per channel, lighter for longer prompts.

    What a conditional variational autoencoder is: three numbers of noise and a prompt in, a picture
    out.
    """

    depends_on = ()
    std = STD
    calls = 0

    def condition(self, prompts):
        return list(prompts)

    def draw_noise(self, n, generator=None):
        return STD * normal((n, 3), generator, dtype=torch.float64)

    def generate(self, noise, condition):
        self.calls += 1
        lightness = noise.new_tensor([0.01 * len(prompt) for prompt in condition])
        color = 0.5 + lightness[:, None] + 0.05 * noise / STD
        return color[:, :, None, None].expand(-1, 3, 4, 4)

    def decode(self, latents):
        return latents.clamp(0, 1)
