r"""The plug-in estimator of flows: the velocity is corrected as if the flow ran straight on.

A flow knows no score, but on a Gaussian path its velocity gives one, and the clean state

.. math:: D = \frac{x_t - \sigma_t \epsilon}{\alpha_t},

where :math:`\epsilon` is the noise that the flow came from. With this surrogate the gradient of
:math:`\log h_t` is that of :math:`\log w(D)` in the state. Where the noise is held fixed, as on a
straight flow, no backward pass through the model is needed:

.. math:: \Delta = \frac{\sigma_t^2}{\alpha_t} \nabla_{x_t} \log w(D)
    = \frac{\sigma_t^2}{\alpha_t^2} \nabla \log w(D).
"""

from typing import Any

from torch import Tensor

from ..models import Model
from ..support import checks
from ..support.describe import summary
from ..tilt import Tilt
from .base import (
    ConditionalExpectation,
    Estimate,
    gradient_to_shift,
    gradients_of,
    input_gradient,
    shift_norm,
)

__all__ = ["FMPS"]


class FMPS(ConditionalExpectation):
    r"""Flow matching posterior sampling without the Jacobian of the model.

    Of the two forms of the method this is the cheap one, FMPS-free; the other, FMPS-gradient, is
    :class:`PlugIn(tilt) <rwguidance.PlugIn>`, since on Gaussian paths the surrogate score is the
    score. The paper takes the first state of the run for the noise. An estimator knows the state
    alone, and takes the model's prediction of the noise, which on a straight flow is the same.
    The paper also scales the gradient to the length of the velocity; a strength of that kind is no
    temperature, and is left to the `scale` of :class:`~rwguidance.GuidedModel`.

    The shift is that of a law much wider than :math:`\sigma_t / \alpha_t`, which tells nothing of
    the clean state; there it is exact for linear rewards. On a Gaussian law of variance v it is too
    long by :math:`1 + \sigma_t^2 / \alpha_t^2 v`, without bound towards the noise end, and right at
    the data end for every law. It fails where :class:`~rwguidance.PlugIn` fails: it takes no
    account of the spread of the clean state, and never chooses between modes. One estimate costs
    one call of the model and one backward pass through reward and decoder. Reported as ``log_h`` is
    :math:`\log w(D)`; the diagnostic is ``shift_norm``.

    Arguments:
        tilt: The tilt; its rewards must be differentiable in the state.

    Raises:
        TypeError: If the tilt is none.
        ValueError: When it is called, if :math:`\alpha_t = 0`, or the reward has no gradient.

    References:
        | Flow Matching Posterior Sampling (Song et al., 2024), arXiv:2411.07625
    """

    depends_on = ("tilt",)

    def __init__(self, tilt: Tilt) -> None:
        super().__init__()
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        self.tilt = tilt

    def __repr__(self) -> str:
        return summary(self, tilt=self.tilt)

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        prediction = model(x_t, t, condition).detach()
        with gradients_of(prediction.mean) as mean:
            log_w = self.tilt(mean, condition)
            gradient = input_gradient(log_w, mean, "the log-weight")
        scales = prediction.scales
        shift = gradient_to_shift(gradient / scales.alpha, prediction, "use PlugIn(jacobian=False)")
        return Estimate(prediction, log_w.detach(), shift, {"shift_norm": shift_norm(shift)})
