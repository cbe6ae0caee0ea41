r"""The simplest twist: the weight of the predicted clean state, without its gradient."""

from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..support import checks
from ..support.describe import summary
from ..tilt import Tilt
from .base import ConditionalExpectation, Estimate

__all__ = ["LookAhead"]


class LookAhead(ConditionalExpectation):
    r"""The weight of the predicted clean state, as a twist: :math:`\log w(E[x_0 | x_t])`.

    It needs no gradient, and no draws. It gives no shift: that is zero, so that particles move as
    the model has it. The value is below :math:`\log h_t` where :math:`\log w` is convex (Jensen),
    which costs a particle filter variance, and no bias.

    Arguments:
        tilt: The tilt.

    Raises:
        TypeError: If it is none.
    """

    depends_on = ()

    def __init__(self, tilt: Tilt) -> None:
        super().__init__()
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        self.tilt = tilt

    def __repr__(self) -> str:
        return summary(self, tilt=self.tilt)

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        prediction = model(x_t, t, condition)
        log_w = self.tilt(prediction.mean, condition)
        return Estimate(prediction, log_w, torch.zeros_like(prediction.mean))
