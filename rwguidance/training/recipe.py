"""How a loss is minimized, beside the learning rate: what the optimizer does and what is kept."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..support import checks

__all__ = ["PLAIN", "InBfloat16", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    r"""Settings of :func:`rwguidance.training.train` that large trainings want.

    Arguments:
        parts: Number of parts of a batch, each of them a call of the objective with random numbers
            of its own; a step follows the mean of their gradients. One after another they take the
            memory of one (gradient accumulation); several processes share them.
        weight_decay: Decoupled weight decay (AdamW), a rate per unit of the learning rate.
        warm_up: Number of first steps in which the learning rate grows linearly.
        average: Decay per step of an exponential moving average of the weights, in (0, 1), which
            takes the place of the weights at the end; 0 for none. In early steps it is less, at
            most (1 + n) / (10 + n) after n steps.
        bfloat16: Whether the network computes in bfloat16, with its weights, the optimizer and what
            the objective does in the precision that they have.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
    """

    parts: int = 1
    weight_decay: float = 0.0
    warm_up: int = 0
    average: float = 0.0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        checks.integer("parts", self.parts, 1)
        checks.number("weight_decay", self.weight_decay, 0)
        checks.integer("warm_up", self.warm_up, 0)
        checks.number("average", self.average, 0, below=1)
        checks.flag("bfloat16", self.bfloat16)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are not those of a plain training, by name."""

        plain = asdict(Recipe())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    def check_shared(self, processes: int) -> None:
        """Checks that there is a part for every process.

        Raises:
            ValueError: If there are fewer parts than processes.
        """

        if self.parts < processes:
            raise ValueError(
                f"parts must be at least one for each of the {processes} processes, "
                f"got {self.parts}"
            )


PLAIN = Recipe()
"""A single part, no weight decay, no warm-up, no average, full precision."""


class InBfloat16(nn.Module):
    """A network whose forward pass is computed in bfloat16 where that is safe.

    Arguments:
        network: The network, whose weights keep their precision.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def at(self, strength: float) -> "InBfloat16":
        """Returns the network at one strength, if it takes one."""

        network: Any = self.network
        return InBfloat16(network.at(strength))

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            out: Tensor = self.network(x_t, t, condition)
        return out.to(x_t.dtype)
