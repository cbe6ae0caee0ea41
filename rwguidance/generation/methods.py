"""Methods of alignment, each an object that holds its settings.

A new method is one dataclass and a place in :data:`METHODS`: its options on the command line, their
help and the tables of the docs follow (:mod:`rwguidance.generation.settings`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..support import checks
from ..support.randomness import generator_for
from ..weights import gumbel
from .base import Aligned, Method, set_checked
from .importance import Importance
from .networks import ChangeNetwork, Network, NoiseNetwork, OutputNetwork
from .noise import NoiseChain, NoiseGradient
from .plug_in import PlugInMean, SecondOrder, StraightFlow
from .pooled import Pool, Resample
from .posterior import Posterior
from .run import Run
from .smc import SMC
from .strength import checked_strength, tilt_of
from .work import Streams

__all__ = [
    "METHODS",
    "SMC",
    "BestOfN",
    "Importance",
    "Network",
    "PlugInMean",
    "Pool",
    "Posterior",
    "Resample",
    "SecondOrder",
    "StraightFlow",
]


@dataclass(frozen=True)
class BestOfN(Method):
    r"""The best of n samples, the base sample among them; or one drawn by its weight.

    Drawn with probabilities proportional to :math:`\exp(r / \beta)`, a picture has the tilted law
    up to a bias of order 1 / n, also where the model takes one step. The best is the limit of small
    beta.

    Arguments:
        n: Number of samples to choose from, per image.
        beta: Temperature of a draw by weight, in reward units; without it and `kl` the best is
            taken.
        kl: Divergence by which a draw by weight is to move the law of each prompt, in nats, instead
            of `beta`, which follows from it.
        draws: Number of further samples per prompt from which `beta` follows, if `kl` is given.

    Raises:
        TypeError: If `n` or `draws` is no integer, or `beta` or `kl` no number.
        ValueError: If `n` or `draws` is less than 2, `beta` and `kl` are both given, or one of them
            is out of its range, which for `kl` ends at log(draws).
    """

    name: ClassVar[str] = "best-of-n"
    chooses: ClassVar[bool] = True

    n: int = field(default=16, metadata={"option": "bank"})
    beta: float | None = None
    kl: float | None = None
    draws: int = 64

    def __post_init__(self) -> None:
        set_checked(
            self,
            n=checks.integer("n", self.n, 2),
            draws=checks.integer("draws", self.draws, 2),
            **checked_strength(self.beta, self.kl, "draws", self.draws),
        )
        if self.beta is not None and self.kl is not None:
            raise ValueError(f"give beta or kl, not both, got {self.beta} and {self.kl}")

    def at(self, nats: float) -> "BestOfN | None":
        soft = self.beta is not None or self.kl is not None
        return replace(self, beta=None, kl=nats) if soft else None

    def streams(self, images: int) -> list[Streams]:
        bank = [] if self.kl is None else [Streams("bank", 1, self.draws)]
        return [*bank, Streams("candidates", images, self.n - 1)]

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        beta = None
        if self.beta is not None or self.kl is not None:
            make = lambda: tilt_of(run, prompt, self.beta, self.kl, self.draws)
            beta = run.keep("tilt", (self, prompt), make).betas[0]
        chosen, each = [], []
        candidates = run.banks(prompt, self.n - 1, [("candidates", i) for i in numbers])
        for x_0, reward, number, others in zip(base, rewards, numbers, candidates, strict=True):
            assert others.rewards is not None
            values = torch.cat((reward.reshape(1), others.rewards))
            values = values.nan_to_num(nan=-math.inf, neginf=-math.inf)
            if beta is not None:
                # The largest of r / beta and Gumbel noise is a draw from the softmax.
                generator = generator_for(run.seed, "pick", prompt, number)
                values = values / beta + gumbel(values.shape, generator)
            pick = int(values.argmax())
            chosen.append(x_0 if pick == 0 else others.x_0[pick - 1])
            each.append({"chosen": pick})
        return Aligned(torch.stack(chosen), {} if beta is None else {"beta": beta}, each)


METHODS: Mapping[str, type[Method]] = {
    method.name: method
    for method in (
        Importance,
        Pool,
        Resample,
        SMC,
        Network,
        OutputNetwork,
        NoiseNetwork,
        ChangeNetwork,
        PlugInMean,
        SecondOrder,
        StraightFlow,
        Posterior,
        NoiseGradient,
        NoiseChain,
        BestOfN,
    )
}
"""The methods of ``rwguidance generate`` by name."""
