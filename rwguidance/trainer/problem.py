"""The network of a training and its objective, made of settings, data and model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import losses
from ..backbone import Backbone, Generator, TextToImage
from ..bank import Bank
from ..estimators import LearnedExpectation, LearnedShift
from ..estimators.base import ConditionalExpectation
from ..models import Model
from ..networks.guidance import GuidanceNetwork
from ..noise_space import flow_map
from ..schedules import RectifiedSchedule
from ..tilt import Tilt
from ..training import (
    Encoder,
    EstimatedShiftObjective,
    ExpectationObjective,
    GradientObjective,
    Objective,
    OneStepObjective,
    OutputObjective,
    StrengthsObjective,
    uniform_times,
)
from .material import Encoded
from .settings import OF_GRADIENTS, Settings

__all__ = ["Outputs", "Times", "estimator_of", "make_network", "make_objective"]

FEW_STEPS = 8
"""Number of steps up to which a network is trained at the times that they visit alone."""

_SPREAD = 64
"""Number of draws of the noise that its standard deviation is taken of."""

LONGER = 5.0
"""Variance for gradients over that of the draws of a prompt.

Regression makes what is learned of a gradient a third as long as it is. This was chosen on the
development prompts of the test bed, where outputs then gain what the tilted law does and the law of
pictures is no farther from it than that of the model.
"""

_OUTPUTS = {"shift": "shift", "log-h": "log_h", "output": "change", "gradients": "changes"}


@dataclass(frozen=True)
class Times:
    """Training times: those that a run visits, and uniform ones.

    Arguments:
        visited: The times that a run visits.
        share: Share of the states that are at one of these.
    """

    visited: tuple[float, ...]
    share: float

    @classmethod
    def of(cls, times: Tensor) -> "Times":
        """Returns the training times for a run.

        Of few steps these are all. Of many, the first counts as one step more, since it is there
        that noise knows nothing of the clean state, and others are uniform.

        Arguments:
            times: Times of a run, decreasing, with shape (steps + 1,).
        """

        visited = tuple(float(t) for t in times[:-1])
        few = len(visited) <= FEW_STEPS
        return cls(visited, 1.0) if few else cls(visited[:1], 1 / len(visited))

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        uniform = uniform_times(n, generator)
        choice = torch.randint(len(self.visited), (n,), generator=generator)
        chosen = torch.tensor(self.visited, dtype=torch.float64)[choice]
        here = torch.rand(n, generator=generator, dtype=torch.float64) < self.share
        return torch.where(here, chosen, uniform)


class Outputs:
    """The map from noise to clean states of a model, which says what it depends on.

    Arguments:
        backbone: The model.
        times: Times of a run.
        gradient: Whether gradients pass from clean states to the noise.

    Raises:
        ValueError: If the sampler of the model draws random numbers.
    """

    depends_on = ("backbone", "times")  # and not on gradient, which moves no state

    def __init__(self, backbone: TextToImage, times: Tensor, gradient: bool = False) -> None:
        self.backbone = backbone
        self.times = times
        self.generate: Any = backbone
        if isinstance(backbone, Backbone):
            self.generate = flow_map(backbone, backbone.sampler, times, gradient)

    def __call__(self, noise: Tensor, condition: Any) -> Tensor:
        x_0: Tensor = self.generate(noise, condition)
        return x_0


class HasSizes(Protocol):
    """What knows the sizes of embeddings, such as a function from prompts to their condition."""

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of embeddings, as networks name them."""


def make_network(
    settings: Settings, backbone: TextToImage, channels: int, encode: HasSizes, strengths: int
) -> GuidanceNetwork:
    """Makes the network, untrained.

    Arguments:
        settings: The settings.
        backbone: The model, whose path and embeddings it sees.
        channels: Number of channels of the states.
        encode: What the sizes of embeddings are taken from.
        strengths: Number of strengths.

    Raises:
        ValueError: If the model has no path, and the objective needs one.
        TypeError: If the network could not be saved, since its path has no name.
    """

    if isinstance(backbone, Generator) and settings.objective not in OF_GRADIENTS:
        raise ValueError(
            f"objective must be {' or '.join(OF_GRADIENTS)} for {type(backbone).__name__}, which "
            f"has no path to guide along, got {settings.objective}: use the preset gradient"
        )
    schedule = getattr(backbone, "schedule", None) or RectifiedSchedule()
    network = GuidanceNetwork.preset(
        settings.network,
        channels=channels,
        schedule=schedule,
        output=_OUTPUTS[settings.objective],
        strength=strengths > 1,
        seed=settings.seed,
        **encode.sizes,
    )
    _ = network.config  # what could not be saved is said before it is trained
    return network


def make_objective(
    settings: Settings,
    backbone: TextToImage,
    bank: Bank,
    tilts: Mapping[float, Tilt],
    encode: Encoder,
    times: Tensor,
    batch_size: int,
    decode_batch: int | None = None,
) -> Any:
    """Makes the objective.

    Arguments:
        settings: The settings.
        backbone: The model.
        bank: Draws of the prompts to train on, with rewards.
        tilts: Tilts by strength; those of outputs look at pictures.
        encode: A function from prompts to what the model is conditioned on.
        times: Times of a run.
        batch_size: Number of states of one call.
        decode_batch: Number of states that are decoded and scored at once, for outputs; None is all
            of them.

    Raises:
        ValueError: If the objective does not suit the model or the reward.
    """

    shared: dict[str, Any] = {"batch_size": batch_size}
    make: Callable[[Tilt], Any]
    if settings.objective in OF_GRADIENTS:
        shared["decode_batch"] = decode_batch
        make = _of_outputs(settings, backbone, bank, encode, times, shared)
    else:
        assert isinstance(backbone, Backbone)
        model = backbone.starting(float(times[0]))
        make = _of_states(settings, model, bank, times, {**shared, "encode": encode})
    objectives = {nats: make(tilt) for nats, tilt in tilts.items()}
    return StrengthsObjective(objectives) if len(tilts) > 1 else next(iter(objectives.values()))


def _of_outputs(
    settings: Settings,
    backbone: TextToImage,
    bank: Bank,
    encode: Encoder,
    times: Tensor,
    shared: Mapping[str, Any],
) -> Callable[[Tilt], OneStepObjective]:
    draw, condition = backbone.draw_noise, Encoded([str(prompt) for prompt in bank.rows], encode)
    if settings.objective == "gradients":
        outputs = Outputs(backbone, times, gradient=True)
        own: dict[str, Any] = {"pictures": settings.pictures, "seed": settings.seed}
        own["std"] = float(draw(_SPREAD, torch.Generator().manual_seed(0)).double().std())
        own["variance"] = settings.variance or LONGER * variance_of(bank)
        return lambda tilt: GradientObjective(outputs, tilt, draw, condition, **own, **shared)
    outputs = Outputs(backbone, times)
    variance = settings.variance or variance_of(bank)
    return lambda tilt: OutputObjective(outputs, tilt, draw, condition, variance=variance, **shared)


def _of_states(
    settings: Settings, model: Model, bank: Bank, times: Tensor, shared: Mapping[str, Any]
) -> Callable[[Tilt], Objective]:
    if settings.objective == "shift":
        own: dict[str, Any] = {"tilted": settings.tilted, "effective": settings.effective}
        at = Times.of(times)
        return lambda tilt: EstimatedShiftObjective(model, bank, tilt, times=at, **own, **shared)
    terms: dict[str, Any] = {"eta": settings.eta, "penalty": settings.penalty}
    terms["loss"] = getattr(losses, settings.loss)
    return lambda tilt: ExpectationObjective(model, bank, tilt, **terms, **shared)


def estimator_of(network: GuidanceNetwork, nats: float) -> ConditionalExpectation:
    """Returns the estimator that a network for the shift or log h is, at a strength."""

    module: Any = network.at(nats) if network.strength else network
    return LearnedExpectation(module) if network.output == "log_h" else LearnedShift(module)


def variance_of(bank: Bank) -> float:
    """Returns the variance of the draws of a prompt, mean over directions and prompts."""

    parts = [bank.x_0[rows].double() for rows in bank.rows.values()]
    some = [part.var(0).mean() for part in parts if len(part) > 1]
    variance = float(torch.stack(some).mean()) if some else 0.0
    if not variance > 0:
        raise ValueError("variance must be given, since no prompt has draws that vary")
    return variance
