"""The exact estimator."""

from typing import Any

from torch import Tensor

from ..estimators.base import ConditionalExpectation, Estimate, shift_norm
from ..models import Model
from ..support import checks
from ..support.describe import summary
from ..tilt import Tilt
from .law import TiltableLaw

__all__ = ["Oracle"]


class Oracle(ConditionalExpectation):
    """The exact estimator: closed forms instead of an estimate.

    It takes states to be those of the path, with a trace of the clean state, also at the time
    :attr:`rwguidance.Model.start`.

    Arguments:
        law: The law that the base model samples.
        tilt: A tilt that is closed with it.

    Raises:
        TypeError: If an argument is of the wrong kind.
    """

    depends_on = ("law",)

    def __init__(self, law: TiltableLaw, tilt: Tilt) -> None:
        super().__init__()
        checks.instance("law", law, TiltableLaw, "a TiltableLaw such as a GaussianMixture")
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        self.law = law
        self.tilt = tilt

    def __repr__(self) -> str:
        return summary(self, law=self.law, tilt=self.tilt)

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        prediction = model(x_t, t, condition)
        log_h, shift = self.law.tilted_moments(self.tilt, x_t, t, model.schedule)
        return Estimate(prediction, log_h, shift, {"shift_norm": shift_norm(shift)})
