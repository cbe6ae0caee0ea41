"""The cheap part of validation, during a training: the loss and the agreement on unseen prompts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..support.randomness import generator_for
from .figures import agreements
from .held_out import HeldOut

__all__ = ["FIGURES", "PROMPTS", "Validation", "said"]

FIGURES = ("validation loss", "validation cosine", "validation length")
"""Names of what a validation finds."""

PROMPTS = 16
"""Number of held-out prompts, at most, that are looked at during a training."""


@dataclass(frozen=True)
class Validation:
    """A function from the network, as it is, to figures of prompts that the training has not seen.

    The states are the same ones every time, so that a curve shows the network and no noise, and
    the random numbers of the training are left alone.

    Arguments:
        objective: The objective of the training, on the held-out draws at one strength.
        held_out: The held-out draws, of a few prompts and with the tilt of that strength.
    """

    objective: Callable[[nn.Module, torch.Generator], dict[str, Tensor]]
    held_out: HeldOut

    def __call__(self, network: Any) -> dict[str, float]:
        """Returns loss, cosine and length, the latter two as means over levels.

        Both are corrected for the noise of the banks by two halves, and NaN where no prompt has
        draws enough.
        """

        (nats,) = self.held_out.tilts
        seen = network.at(nats) if network.strength else network
        terms = self.objective(seen, generator_for(self.held_out.seed, "validation"))
        loss = sum(term.item() for term in terms.values())
        levels = agreements(network, self.held_out, shuffles=0).get(nats, [])
        cosine = _mean([level.cosine.value for level in levels])
        length = _mean([level.length.value for level in levels])
        return dict(zip(FIGURES, (loss, cosine, length), strict=True))


def said(step: int, figures: Mapping[str, float]) -> str:
    """Returns a sentence of what a validation found, for the console.

    Arguments:
        step: Number of steps that were taken.
        figures: Its figures, by the names of :data:`FIGURES`.
    """

    loss, cosine, length = (figures[name] for name in FIGURES)
    text = f"step {step:,}: loss {loss:.4g} on unseen prompts"
    if math.isnan(cosine):
        return text
    return f"{text}, cosine {cosine:.2f} with their exact shift, length {length:.2f}"


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
