"""Rewards that can be computed by hand, and images for them."""

import torch
from torch import nn

from rewards import Reward, RewardSpec

PROMPTS = ["a cat", "", "a very red dog", "a cat", "x"]


def spec(name, **changes):
    facts = {
        "title": name.title(),
        "differentiable": True,
        "needs_prompt": False,
        "code_license": "MIT",
        "weights_license": "none",
        "formula": f"the {name}",
        "typical_range": (0.0, 1.0),
        "citation": "none",
        "commercial_use": True,
    }
    return RewardSpec(name=name, **{**facts, **changes})


class Brightness(Reward):
    """Mean of all channels; looks at the squares, so that its gradient depends on the image."""

    depends_on = ()

    spec = spec("brightness")

    def forward(self, images, prompts):
        return images.flatten(1).square().mean(1)


class Redness(Reward):
    """Red minus green, times a weight."""

    depends_on = ()

    spec = spec("redness", typical_range=(-2.0, 3.0), weights_license="Apache-2.0")

    def __init__(self, weight=1.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, images, prompts):
        color = images.flatten(2).mean(2)
        return (self.weight * (color[:, 0] - color[:, 1])).to(
            torch.promote_types(images.dtype, torch.float32)
        )


class Letters(Reward):
    """Number of letters of the prompt times the blue of the first pixel."""

    depends_on = ()

    spec = spec("letters", needs_prompt=True, commercial_use=None)

    def forward(self, images, prompts):
        return images[:, 2, 0, 0] * images.new_tensor([len(prompt) for prompt in prompts])


class Scripted(Reward):
    """Returns the values it was given, and counts its calls."""

    depends_on = ("values",)

    spec = spec("scripted", differentiable=False)
    straight_through = True

    def __init__(self, values):
        super().__init__()
        self.values, self.calls = values, 0

    def forward(self, images, prompts):
        self.calls += 1
        return torch.tensor(self.values)[: len(images)]


def images(seed=0, n=5, h=4, w=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, h, w, generator=generator, dtype=dtype)
