r"""The plug-in estimator: the weight at the posterior mean, the baseline everybody uses.

.. math:: \log h_t(x_t) \approx \log w(D), \qquad D = E[x_0 | x_t]

First order only. It ignores the spread of :math:`x_0` given :math:`x_t`, hence overshoots by the
factor :math:`I + P H` where the log-weight is concave with curvature H and the posterior has
covariance P, most at high noise; and it never chooses between modes. It takes the model's word for
D, also at the time :attr:`rwguidance.Model.start`.
"""

from typing import Any

from torch import Tensor

from ..models import Model
from ..schedules import Scales
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

__all__ = ["PlugIn"]


class PlugIn(ConditionalExpectation):
    r"""Evaluates the tilt at the posterior mean; needs a differentiable reward.

    With the Jacobian, the gradient passes through the model (DPS, universal guidance) and the
    shift is :math:`P \nabla \log w(D)` with the model's own posterior covariance P. Without it, P
    is replaced by that of an isotropic Gaussian prior of variance v,

    .. math:: p_t = \frac{v \, \sigma_t^2}{\sigma_t^2 + \alpha_t^2 v},

    which costs no backward pass through the model and is defined at both ends of the path.
    Damping divides the shift by :math:`1 + k \, p_t`, by default that without the Jacobian. It is
    exact for a Gaussian prior of
    covariance v I and a quadratic reward :math:`r = -\beta k \|x - m\|^2 / 2`.

    Arguments:
        tilt: The tilt; its rewards must be differentiable in the state.
        jacobian: Whether to differentiate through the model. None does if there is no damping:
            where damping knows the isotropic p alone, it fits the shift without the Jacobian, and
            between two modes the model's own P is far from that.
        damping: Curvature k of the log-weight, in nats per squared data unit; None for
            no damping.
        prior_variance: Variance v of the data, per dimension, in squared data units. Used by the
            damping and by `jacobian=False`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `damping` is negative or `prior_variance` is not positive.

    References:
        | Diffusion Posterior Sampling (Chung et al., 2023), arXiv:2209.14687
        | On the Guidance of Flow Matching (Feng et al., 2025), arXiv:2502.02150
        | Damping: arXiv:2606.02884
    """

    depends_on = ("jacobian", "damping", "prior_variance")

    def __init__(
        self,
        tilt: Tilt,
        jacobian: bool | None = None,
        damping: float | None = None,
        prior_variance: float = 1.0,
    ) -> None:
        super().__init__()
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        self.tilt = tilt
        self.damping: float | None = checks.optional(checks.number, "damping", damping, 0)
        whole = self.damping is None if jacobian is None else jacobian
        self.jacobian = checks.flag("jacobian", whole)
        self.prior_variance = checks.number("prior_variance", prior_variance, above=0)

    def __repr__(self) -> str:
        names = ("tilt", "jacobian", "damping", "prior_variance")
        return summary(self, **{name: getattr(self, name) for name in names})

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        if self.jacobian:
            with gradients_of(x_t) as x:
                prediction = model(x, t, condition)
                log_w = self.tilt(prediction.mean, condition)
                gradient = input_gradient(log_w, x, "the log-weight")
            prediction = prediction.detach()
            shift = gradient_to_shift(gradient, prediction, "use PlugIn(..., jacobian=False)")
        else:
            prediction = model(x_t, t, condition)
            with gradients_of(prediction.mean) as mean:
                log_w = self.tilt(mean, condition)
                gradient = input_gradient(log_w, mean, "the log-weight")
            shift = isotropic_variance(prediction.scales, self.prior_variance) * gradient
        if self.damping is not None:
            variance = isotropic_variance(prediction.scales, self.prior_variance)
            shift = shift / (1 + self.damping * variance)
        return Estimate(prediction, log_w.detach(), shift, {"shift_norm": shift_norm(shift)})


def isotropic_variance(scales: Scales, v: float) -> Tensor:
    r"""Returns the posterior variance of an isotropic Gaussian prior, in squared data units.

    Arguments:
        scales: The schedule at the time of the state.
        v: Variance of the prior, per dimension, in squared data units.
    """

    alpha, sigma = scales.alpha, scales.sigma
    return v * sigma**2 / (sigma**2 + alpha**2 * v)
