"""The length of what a network gives, set on held-out prompts at every strength."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backbone import Backbone, TextToImage
from ..networks.guidance import GuidanceNetwork
from ..noise_space import GainOutOfReach, Generate, change_map, flow_map, output_map
from ..samplers import DDIM, Sampler
from ..support.randomness import generator_for
from ..tilt import Tilt
from ..training import Calibration, calibrate, guided_gain, tilted_gain
from .held_out import HeldOut
from .problem import Outputs, estimator_of

__all__ = ["Lengths", "find_lengths"]

_MAPS = {"change": output_map, "changes": change_map}
"""Generators beside which networks for changes stand, by their output."""


@dataclass(frozen=True)
class Lengths:
    """What a calibration found.

    Arguments:
        found: Scales with their gains by strength, of those that reach the gain of the tilted law.
        missed: Reasons why others do not, by strength.
    """

    found: Mapping[float, Calibration]
    missed: Mapping[float, str]

    @property
    def scales(self) -> dict[float, float] | None:
        """Factors of the output by strength; None if there are none."""

        return {nats: one.scale for nats, one in self.found.items()} or None


def find_lengths(
    network: GuidanceNetwork,
    backbone: TextToImage,
    held_out: HeldOut,
    images: int = 4,
    batch_size: int = 8,
) -> Lengths:
    """Finds the scale at every strength with which pictures gain what the tilted law does.

    Arguments:
        network: The trained network.
        backbone: The model.
        held_out: Draws of held-out prompts, with tilts that look at pictures.
        images: Number of pictures of each prompt.
        batch_size: Number of pictures that are made at once.
    """

    prompts = [prompt for prompt in held_out.bank.rows for _ in range(images)]
    numbers = range(len(prompts))
    draw = lambda i: backbone.draw_noise(1, generator_for(held_out.seed, "length", i))
    found: dict[float, Calibration] = {}
    missed: dict[float, str] = {}
    for nats, tilt in held_out.tilts.items():
        gains = []
        for start in range(0, len(prompts), batch_size):
            some = slice(start, start + batch_size)
            noise = torch.cat([draw(i) for i in numbers[some]])
            condition = held_out.encode(prompts[some])
            about = (nats, tilt, held_out.times, noise, condition)
            gains.append(_gain(network, backbone, *about))
        try:
            found[nats] = calibrate(_joined(gains), tilted_gain(held_out.bank, tilt))
        except (GainOutOfReach, ValueError) as error:
            missed[nats] = str(error)
    return Lengths(found, missed)


def _joined(gains: Sequence[Callable[[float], Tensor]]) -> Callable[[float], Tensor]:
    return lambda scale: torch.cat([gain(scale).cpu() for gain in gains])


@torch.no_grad()
def _gain(
    network: GuidanceNetwork,
    backbone: TextToImage,
    nats: float,
    tilt: Tilt,
    times: Tensor,
    noise: Tensor,
    condition: Any,
) -> Callable[[float], Tensor]:
    """Returns the function from the scale to the gains of some pictures, in nats."""

    changed = _MAPS.get(network.output)
    if changed is None:
        assert isinstance(backbone, Backbone)
        sampler = _steady(backbone, times)
        estimator = estimator_of(network, nats)
        return guided_gain(backbone, estimator, tilt, sampler, times, noise, condition)
    outputs = Outputs(backbone, times)
    x_0 = outputs(noise, condition)
    base = tilt(x_0, condition).double()
    # What the model makes of noise that does not change is the same at every scale.
    generate: Generate = outputs if changed is change_map else lambda *_: x_0

    @torch.no_grad()
    def gain(scale: float) -> Tensor:
        scaled: Any = network.calibrated({nats: scale})
        made = changed(generate, scaled.at(nats) if network.strength else scaled)
        return tilt(made(noise, condition), condition).double() - base

    return gain


def _steady(backbone: Backbone, times: Tensor) -> Sampler:
    """Returns the model's sampler, or DDIM if that draws random numbers."""

    try:
        flow_map(backbone, backbone.sampler, times)
    except ValueError:
        return DDIM()
    return backbone.sampler
