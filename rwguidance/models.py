r"""Pretrained models, seen as maps from a noisy state to a :class:`~rwguidance.Prediction`.

Implement one of the four conventions; the prediction then gives the other three.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from .prediction import Prediction
from .schedules import Schedule

__all__ = ["DenoiserModel", "Model", "NoiseModel", "ScoreModel", "VelocityModel"]


class Model(nn.Module, ABC):
    r"""A frozen generative model along a noise path.

    Arguments:
        schedule: The path the model was trained on.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule, got {type(schedule).__name__}")
        self.schedule = schedule

    @abstractmethod
    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        r"""Predicts the clean state and the noise with one network call.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], with shape () or (B,).
            condition: What the model is conditioned on; opaque here.
        """


class DenoiserModel(Model):
    """A model that predicts the clean state: implement :meth:`denoise`."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`E[x_0 | x_t]`, with the shape of `x_t`."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_mean(self.denoise(x_t, t, condition), x_t, scales)


class NoiseModel(Model):
    """A model that predicts the noise (eps): implement :meth:`noise`."""

    @abstractmethod
    def noise(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`E[\epsilon | x_t]`, with the shape of `x_t`."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_noise(self.noise(x_t, t, condition), x_t, scales)


class ScoreModel(Model):
    """A model that predicts the score: implement :meth:`score`."""

    @abstractmethod
    def score(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`\nabla \log p_t(x_t)`, with the shape of `x_t`."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_score(self.score(x_t, t, condition), x_t, scales)


class VelocityModel(Model):
    """A model that predicts the velocity of the path: implement :meth:`velocity`."""

    @abstractmethod
    def velocity(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`E[dx_t / dt | x_t]`, towards noise, with the shape of `x_t`."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_velocity(self.velocity(x_t, t, condition), x_t, scales)
