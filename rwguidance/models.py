r"""Pretrained models, seen as maps from a noisy state to a :class:`~rwguidance.Prediction`.

Implement one of the four conventions; the prediction then gives the other three. Times reach a
model in one way, whoever calls it: calling a model makes one float64 time per state, which
:meth:`Model.forward` and the schedule take, and the hooks :meth:`~DenoiserModel.denoise`,
:meth:`~NoiseModel.noise`, :meth:`~ScoreModel.score` and :meth:`~VelocityModel.velocity` receive
them as a network wants them: on the device of the states, float32, or float64 where the states are.
They are never in half precision, where a step is 4 of 1,000 timesteps.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .prediction import Prediction
from .schedules import Schedule, as_times
from .support import checks

__all__ = ["DenoiserModel", "Model", "NoiseModel", "ScoreModel", "VelocityModel"]

M = TypeVar("M", bound="Model")


class Model(nn.Module, ABC):
    r"""A frozen generative model along a noise path.

    Arguments:
        schedule: The path the model was trained on.

    Raises:
        TypeError: If the schedule is none.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    __slots__ = ("_start",)  # the one thing that a view has to itself
    _start: float | None

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        checks.instance("schedule", schedule, Schedule, "a Schedule")
        self.schedule = schedule

    def starting(self: M, t: float | None) -> M:
        r"""Returns a view of the model, which shares all but this time, for a run from pure noise.

        A state of the path holds :math:`\alpha_t x_0`, and where generators begin :math:`\alpha_t`
        is seldom zero. But they begin from noise drawn without :math:`x_0`, of which it tells
        nothing: there the posterior is the prior, whatever :math:`\alpha_t`, and estimators that
        weigh draws by the noising kernel weigh them all alike. Deep copies and pickles of a view
        have no start.

        Arguments:
            t: First time of the run, in [0, 1], exactly as the model will be called at it. None for
                a run that begins from a picture, or from states of the path itself.

        Raises:
            TypeError: If the time is no number.
            ValueError: If the time lies outside [0, 1].
        """

        start = checks.optional(checks.number, "t", t, 0, 1)
        view = type(self).__new__(type(self))
        view.__dict__ = self.__dict__
        view._start = start
        return view

    def __setstate__(self, state: Any) -> None:
        # A start is of one run, and not copied, which older versions of nn.Module leave to Python.
        super().__setstate__(state[0] if isinstance(state, tuple) else state)

    @property
    def start(self) -> float | None:
        """Time at which the present run began from noise that knows nothing of the clean state.

        None if there is no such run. Only views of a model have one, see :meth:`starting`.
        """

        return getattr(self, "_start", None)

    def __call__(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        r"""Checks states and times, and runs :meth:`forward`.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], a number or a tensor of shape () or (B,).
            condition: What the model is conditioned on; opaque here.

        Raises:
            TypeError: If the states are no floating-point tensor, the times are no numbers, or
                :meth:`forward` returns no Prediction.
            ValueError: If the states have another shape or hold no values, a time lies outside
                [0, 1], or the number of times is not B.
        """

        checks.states("x_t", x_t)
        # Expanded, so that one time for all is recognized, and looked up once, by the schedule.
        t = as_times(t, batch=len(x_t)).expand(len(x_t))
        prediction = super().__call__(x_t, t, condition)
        if not isinstance(prediction, Prediction):
            raise TypeError(
                f"{type(self).__name__}.forward must return a Prediction, "
                f"got {checks.described(prediction)}"
            )
        return prediction

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        r"""Predicts the clean state and the noise with one network call.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], float64, with shape (B,), on the device where the caller had them
                (the CPU in :func:`rwguidance.sample`). To be read only: one time may stand for all.
            condition: What the model is conditioned on; opaque here.
        """


class DenoiserModel(Model):
    """A model that predicts the clean state: implement :meth:`denoise`."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`E[x_0 | x_t]`, with the shape of `x_t`.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], float32, or float64 where `x_t` is, with shape (B,).
            condition: What the model is conditioned on.
        """

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_mean(
            self.denoise(x_t, _network_times(t, x_t), condition), x_t, scales
        )


class NoiseModel(Model):
    """A model that predicts the noise (eps): implement :meth:`noise`."""

    @abstractmethod
    def noise(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`E[\epsilon | x_t]`, with the shape of `x_t`.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], float32, or float64 where `x_t` is, with shape (B,).
            condition: What the model is conditioned on.
        """

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_noise(
            self.noise(x_t, _network_times(t, x_t), condition), x_t, scales
        )


class ScoreModel(Model):
    """A model that predicts the score: implement :meth:`score`."""

    @abstractmethod
    def score(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`\nabla \log p_t(x_t)`, with the shape of `x_t`.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], float32, or float64 where `x_t` is, with shape (B,).
            condition: What the model is conditioned on.
        """

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        return Prediction.from_score(
            self.score(x_t, _network_times(t, x_t), condition), x_t, scales
        )


class VelocityModel(Model):
    """A model that predicts the velocity of the path: implement :meth:`velocity`."""

    @abstractmethod
    def velocity(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        r"""Returns :math:`E[dx_t / dt | x_t]`, towards noise, with the shape of `x_t`.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], float32, or float64 where `x_t` is, with shape (B,).
            condition: What the model is conditioned on.
        """

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        scales = self.schedule.at(t, like=x_t)
        velocity = self.velocity(x_t, _network_times(t, x_t), condition)
        return Prediction.from_velocity(velocity, x_t, scales)


def check_is_model(name: str, model: Any) -> None:
    """Checks that a value is a model, or what `torch.compile` made of one.

    Raises:
        TypeError: If it is none.
    """

    if not isinstance(getattr(model, "schedule", None), Schedule):
        raise TypeError(
            f"{name} must be a Model, got {checks.described(model)}; wrap a network in one of "
            "DenoiserModel, NoiseModel, ScoreModel or VelocityModel"
        )


def _network_times(t: Tensor, x_t: Tensor) -> Tensor:
    """The times that a hook receives. A copy, which it may change."""

    dtype = torch.float64 if x_t.dtype == torch.float64 else torch.float32
    return t.to(device=x_t.device, dtype=dtype).clone(memory_format=torch.contiguous_format)
