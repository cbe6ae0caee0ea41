r"""The plug-in estimator of flows: the velocity is corrected as if the flow ran straight on.

A flow knows no score, but on a Gaussian path its velocity v gives one, and the clean state
:math:`D = (\sigma_t v - \dot\sigma_t x_t) / (\dot\alpha_t \sigma_t - \dot\sigma_t \alpha_t)`. With
this surrogate the gradient of :math:`\log h_t` is that of :math:`\log w(D)` in the state. Holding
the velocity fixed, no backward pass through the model is needed:

.. math:: \Delta = \frac{\sigma_t^2}{\alpha_t} \, J_t \, \nabla \log w(D), \qquad
    J_t = \frac{1}{\alpha_t - \dot\alpha_t \sigma_t / \dot\sigma_t}.

On the rectified path :math:`J_t = 1`, on variance preserving ones :math:`J_t = \alpha_t`.
"""

from typing import Any

import torch
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

    Of the two forms of the method this is the cheap one; the other, with the Jacobian, is
    :class:`PlugIn(tilt) <rwguidance.PlugIn>`, since on Gaussian paths the surrogate score is the
    score. It samples no tilted law exactly but for linear rewards on Gaussian laws whose posterior
    has the covariance :math:`(\sigma_t^2 / \alpha_t) J_t I`: those of unit variance, on variance
    preserving paths at every t, on the rectified path at t = 1/2. There it is too long by
    :math:`(t^2 + (1 - t)^2) / (1 - t)`, without bound towards the noise end, and right at the data
    end for every law. It fails where :class:`~rwguidance.PlugIn` fails: it takes no account of the
    spread of the clean state, and never chooses between modes. One estimate costs one call of the
    model and one backward pass through reward and decoder. Reported as ``log_h`` is
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
        # sigma / sigma_rate is zero at the data end of VP paths, where the rate is infinite
        jacobian = 1 / (scales.alpha - scales.alpha_rate * (scales.sigma / scales.sigma_rate))
        shift = gradient_to_shift(jacobian * gradient, prediction, "use PlugIn(jacobian=False)")
        shift = torch.where(scales.sigma == 0, torch.zeros_like(shift), shift)
        shift = shift.to(prediction.mean.dtype)
        return Estimate(prediction, log_w.detach(), shift, {"shift_norm": shift_norm(shift)})
