r"""Learned estimators: guidance networks for :math:`\log h_t`, or for the shift itself.

A network is any callable (x_t, t, condition), with t of shape (B,) and float64. The losses are in
:mod:`rwguidance.losses`, a training loop in :mod:`rwguidance.training`. These train on states
:math:`\alpha_t x_0 + \sigma_t \epsilon` of the path, also at the time where runs begin from noise
that knows nothing of :math:`x_0` (:attr:`rwguidance.Model.start`, which networks are not told).
There a network sees states a little less noisy in training than in use: a difference of order
:math:`\alpha_t`, which is .068 at SDXL's first step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..models import Model
from ..prediction import Prediction
from ..schedules import working_dtype
from ..support import checks
from ..support.describe import summary
from .base import (
    ConditionalExpectation,
    Estimate,
    gradient_to_shift,
    gradients_of,
    input_gradient,
    shift_norm,
)

__all__ = ["LearnedExpectation", "LearnedShift"]


def batched_times(t: Tensor, x_t: Tensor) -> Tensor:
    """Returns times as guidance networks receive them: float64, (B,), on the states' device.

    They are a copy: networks may change them in place, and autograd may save them for a backward
    pass, which it refuses for the caller's own tensor under inference_mode.
    """

    return t.to(x_t.device).expand(len(x_t)).clone(memory_format=torch.contiguous_format)


class LearnedExpectation(ConditionalExpectation):
    r"""A scalar network for :math:`\log h_t`; the shift is its rescaled input gradient.

    The paper's estimator for diffusion models. One small forward and backward pass per call. The
    rescaling :math:`\sigma_t^2 / \alpha_t` amplifies every error of the gradient at the noise end
    (by 150 at t = 1 of the default VP path) and is undefined where :math:`\alpha_t = 0`;
    :class:`LearnedShift` has neither problem.

    Arguments:
        network: A network from (x_t, t, condition) to :math:`\log h_t` in nats, with shape (B,).

    Raises:
        TypeError: If the network is not callable.

    References:
        | Reward-weighted guidance, arXiv:2602.00413 (the estimator for diffusion models)
    """

    depends_on = ()

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        checks.function("network", network, "callable (x_t, t, condition)", classes=False)
        self.network = network

    def __repr__(self) -> str:
        return summary(self, network=self.network)

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        prediction = model(x_t, t, condition)
        with gradients_of(x_t) as x:
            log_h = self.network(x, batched_times(t, x), condition)
            _check_output(log_h, "log h must return one value per item, shape", (len(x),))
            gradient = input_gradient(log_h, x, "the network")
        shift = gradient_to_shift(gradient, prediction, "use LearnedShift")
        return _estimate(prediction, log_h.detach().to(working_dtype(log_h.dtype)), shift)


class LearnedShift(ConditionalExpectation):
    r"""A network for the shift itself; needs no gradient and is well conditioned at both ends.

    It has no value for :math:`\log h_t`, which is reported as NaN.

    Arguments:
        network: A network from (x_t, t, condition) to the shift in data units, with the shape of
            x_t.

    Raises:
        TypeError: If the network is not callable.
    """

    depends_on = ()

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        checks.function("network", network, "callable (x_t, t, condition)", classes=False)
        self.network = network

    def __repr__(self) -> str:
        return summary(self, network=self.network)

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        prediction = model(x_t, t, condition)
        shift = self.network(x_t, batched_times(t, x_t), condition)
        _check_output(shift, "the shift must return the shape of the state,", tuple(x_t.shape))
        log_h = torch.full((len(x_t),), torch.nan, dtype=prediction.mean.dtype, device=x_t.device)
        return _estimate(prediction, log_h, shift)


def _check_output(value: Any, rule: str, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"a network for {rule} {shape}, got {checks.described(value)}")
    if value.shape != shape:
        raise ValueError(f"a network for {rule} {shape}, got {tuple(value.shape)}")


def _estimate(prediction: Prediction, log_h: Tensor, shift: Tensor) -> Estimate:
    shift = shift.to(prediction.mean.dtype)
    return Estimate(prediction, log_h, shift, {"shift_norm": shift_norm(shift)})
