"""Settings of a training: what is learned, how the loss is minimized, and presets of all that."""

from collections.abc import Mapping
from dataclasses import dataclass

from .. import losses
from ..networks.guidance import PRESETS as SIZES
from ..support import checks
from ..training import Recipe

__all__ = ["OBJECTIVES", "OF_GRADIENTS", "PRESETS", "Settings"]

OBJECTIVES = ("shift", "log-h", "output", "gradients")
"""What can be learned.

The shift, log h, a change of the output of a model of few steps, or changes of its noise and its
output from gradients that are taken once.
"""

OF_GRADIENTS = ("output", "gradients")
"""Objectives that follow the gradient of the reward."""

_OF_SHIFTS = ("centered_residual", "contrastive", "marginal_residual")
"""Losses that are not of log h, or need groups."""

LOSSES = tuple(name for name in losses.__all__ if name not in _OF_SHIFTS)
"""Names of losses for log h."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a training but its data, its model and its reward.

    Arguments:
        objective: One of :data:`OBJECTIVES`.
        nats: Divergences of the tilted laws from the model's, in nats, mean over prompts; several
            make the strength an input of the network.
        beta: Temperature, in reward units, in the place of `nats`; None for none.
        loss: Name of the loss for log h, from :mod:`rwguidance.losses`.
        eta: Weight of the consistency term, for log h.
        penalty: Weight of the gradient penalty, for log h.
        tilted: Share of states of the tilted law, for the shift.
        effective: Effective draws from which on the bank's mean stands in for the model's, for the
            shift.
        variance: Variance of the proximal term, for outputs, in squared data units; None for that
            of the draws of a prompt, or five times as much for gradients.
        pictures: Number of pictures that are made and scored, for gradients.
        network: Size of the network, one of :data:`rwguidance.networks.guidance.PRESETS`.
        steps: Number of steps.
        batch_size: Number of states of a step, of all processes and parts together.
        learning_rate: Learning rate after the warm-up; it decays to zero.
        weight_decay: Decoupled weight decay.
        warm_up: Number of first steps in which the learning rate grows.
        max_norm: Bound on the norm of the gradient.
        average: Decay of the moving average of the weights; 0 for none.
        bfloat16: Whether the network computes in bfloat16.
        calibrate: Whether the length of the trained output is set on held-out prompts.
        seed: Seed of weights, states and validation.

    Raises:
        TypeError: If an argument is of the wrong kind.
        LookupError: If a name is unknown; lists those that exist.
        ValueError: If an argument is out of range.
    """

    objective: str = "shift"
    nats: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    beta: float | None = None
    loss: str = "itakura_saito"
    eta: float = 0.0
    penalty: float = 0.0
    tilted: float = 0.5
    effective: float = 2.0
    variance: float | None = None
    pictures: int = 1200
    network: str = "small"
    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warm_up: int = 100
    max_norm: float = 1.0
    average: float = 0.999
    bfloat16: bool = False
    calibrate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("objective", OBJECTIVES), ("loss", LOSSES), ("network", SIZES)):
            value = getattr(self, name)
            if value not in known:
                raise LookupError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not self.nats:
            raise ValueError("nats must hold one strength at least, got none")
        for value in self.nats:
            checks.number("nats", value, above=0)
        if sorted(set(self.nats)) != list(self.nats):
            raise ValueError(f"nats must be distinct and ascending, got {self.nats}")
        for name in ("beta", "variance"):
            checks.optional(checks.number, name, getattr(self, name), above=0)
        for name in ("eta", "penalty"):
            checks.number(name, getattr(self, name), 0)
        checks.number("tilted", self.tilted, 0, 1)
        checks.number("effective", self.effective, 1)
        for name in ("steps", "batch_size", "pictures"):
            checks.integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "max_norm"):
            checks.number(name, getattr(self, name), above=0)
        checks.flag("calibrate", self.calibrate)
        checks.integer("seed", self.seed, 0)
        self.recipe(1)

    def recipe(self, parts: int) -> Recipe:
        """Returns how the loss is minimized, with so many parts of a batch.

        Arguments:
            parts: Number of parts.

        Raises:
            ValueError: If they do not divide the batch.
        """

        checks.integer("parts", parts, 1)
        if self.batch_size % parts:
            raise ValueError(
                f"parts must divide the batch of {self.batch_size} states, got {parts}"
            )
        return Recipe(
            parts=parts,
            weight_decay=self.weight_decay,
            warm_up=self.warm_up,
            average=self.average,
            bfloat16=self.bfloat16,
        )


PRESETS: Mapping[str, Settings] = {
    "recommended": Settings(),
    "paper": Settings(
        objective="log-h",
        nats=(1.0,),
        loss="exp_mse",
        eta=1.0,
        network="paper",
        learning_rate=1e-4,
        calibrate=False,
    ),
    "gradient": Settings(
        objective="gradients",
        nats=(1.0,),
        network="tiny",
        steps=400,
        learning_rate=1e-3,
        warm_up=20,
        average=0.97,
        calibrate=False,
    ),
}
"""Settings by name.

``recommended`` regresses the shift on the bank's own estimate, for any reward; ``paper`` is the
method's paper: log h, squared error of the weights, the consistency term, scale 1 (the paper gives
no values of its weight, its temperature and its rate); ``gradient`` follows the gradient of the
reward to changes of the noise and of the output of a model of few steps, and is not calibrated: at
the tilted law's gain of the reward that it saw, outputs have left the law of the model.
"""
