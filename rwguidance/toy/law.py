"""Laws of clean states: draws, a density and an exact denoiser, and for some exact tilts."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models import Model
from ..prediction import Prediction
from ..schedules import Schedule
from ..support import checks
from ..tilt import Tilt

__all__ = ["Law", "TiltableLaw"]


class Law(ABC):
    """A law of clean states with an exact denoiser.

    Attributes:
        event: Shape of one state.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    event: tuple[int, ...]

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws `n` states, in float64, with shape (n, \*event)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density at states of shape (B, \*event), in nats, with shape (B,)."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        r"""Posterior mean :math:`E[x_0 | x_t]`, with the shape of `x_t`."""

    def model(self, schedule: Schedule) -> Model:
        """Returns the exact model of this law along a path.

        Raises:
            TypeError: If the schedule is none.
        """

        return _LawModel(self, schedule)


class TiltableLaw(Law):
    """A law whose tilts by closed rewards are closed, too."""

    @abstractmethod
    def tilted_moments(
        self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        r"""Exact :math:`\log h_t` in nats, shape (B,), and shift, with the shape of `x_t`.

        Raises:
            NoClosedForm: If the reward has no closed form with this law.
            ValueError: If the tilted law does not exist (an indefinite quadratic reward).
        """

    @abstractmethod
    def tilted(self, tilt: Tilt) -> Law:
        """The law proportional to p(x) w(x)."""

    def log_h(self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        r"""Exact :math:`\log h_t(x_t) = \log E[w(x_0) | x_t]`, in nats, with shape (B,)."""

        return self.tilted_moments(tilt, x_t, t, schedule)[0]

    def shift(self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        r"""Exact shift :math:`\Delta(x_t)`, in data units, with the shape of `x_t`."""

        return self.tilted_moments(tilt, x_t, t, schedule)[1]


def check_draws(n: int, generator: torch.Generator | None) -> None:
    """Checks the arguments of :meth:`Law.sample`.

    Raises:
        TypeError: If one of them is of the wrong kind.
        ValueError: If `n` is less than 1.
    """

    checks.integer("n", n, 1)
    checks.instance(
        "generator", generator, (torch.Generator, type(None)), "a torch.Generator or None"
    )


class _LawModel(Model):
    depends_on = ("schedule", "law")

    def __init__(self, law: Law, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.law = law

    def __repr__(self) -> str:
        return f"{self.law!r}.model({self.schedule!r})"

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        # Not a DenoiserModel, which would round the times to the precision of a network.
        mean = self.law.denoise(x_t, t, self.schedule)
        return Prediction.from_mean(mean, x_t, self.schedule.at(t, like=x_t))
