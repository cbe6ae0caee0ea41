"""One network for many strengths: an objective for each, of which every step takes one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..support import checks

__all__ = ["StrengthsObjective"]


@dataclass(eq=False, repr=False)
class StrengthsObjective:
    """Trains a network whose strength is an input, at one of several strengths in each step.

    The network has a method `at(strength)`, as :class:`rwguidance.networks.GuidanceNetwork` made
    with ``strength=True``. It is asked in between later, so take strengths that lie close enough.

    Arguments:
        objectives: Objectives by strength, positive, in the unit in which the network will be asked
            (nats of divergence, or 1 / beta): each as the tilt of that strength has it, such as
            ``{nats: EstimatedShiftObjective(model, bank, Tilt.for_kl(reward, bank, nats))}``.

    Raises:
        TypeError: If they are no mapping from numbers to functions.
        ValueError: If there are none, or a strength is not positive.
    """

    depends_on: ClassVar[tuple[str, ...]] = ("objectives",)

    objectives: Mapping[float, Callable[[nn.Module, torch.Generator], dict[str, Tensor]]]

    def __post_init__(self) -> None:
        checks.instance("objectives", self.objectives, Mapping, "a mapping by strength")
        if not self.objectives:
            raise ValueError("objectives must hold one objective at least, got none")
        for strength, objective in self.objectives.items():
            checks.number("objectives", strength, above=0)
            checks.function("objectives", objective)

    def __call__(self, network: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the terms of the loss of one strength, drawn at random."""

        place = int(torch.randint(len(self.objectives), (), generator=generator))
        strength, objective = [*self.objectives.items()][place]
        return objective(network.at(strength), generator)
