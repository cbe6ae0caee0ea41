"""A page of models and rewards that take no time: pictures of one pixel, whose law is known."""

import math

import backbones
import plain_rewards
import rewards
from pixel_law import Law
from rwguidance.app.commands.sources import Sources
from rwguidance.app.page import Limits, Studio

REWARDS = {"brightness": plain_rewards.Brightness, "redness": plain_rewards.Redness}


class PixelLaw(Law):
    """The law as a model that is loaded by name; one of its prompts is beyond it."""

    depends_on = Law.depends_on

    def condition(self, prompts):
        if "unknown" in prompts:
            raise ValueError("this model knows no <b>unknown</b>")
        return super().condition(prompts)


def register(monkeypatch):
    """Makes model and rewards known by name until the test ends."""

    models, judges = backbones.registry._registry, rewards.registry._registry
    monkeypatch.setattr(models, "_values", {**models._values, "pixel-law": PixelLaw})
    monkeypatch.setattr(judges, "_values", {**judges._values, **REWARDS})


def studio(**limits):
    """A studio of them, which they are registered for."""

    sources = Sources()
    return Studio(
        {"pixel-law": sources.backbone("pixel-law")},
        {name: sources.reward(name) for name in REWARDS},
        Limits(**{"calls": 10_000, **limits}),
    )


def best_of_divergence(n):
    """Divergence of the best of n draws from a draw, in nats."""

    return math.log(n) - 1 + 1 / n
