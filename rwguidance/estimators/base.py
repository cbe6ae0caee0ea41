r"""Estimates of :math:`\log h_t` and of the shift, and the gradients that some are made from.

An estimator answers one question about a state: by how much does the tilt move the expected clean
sample? The answer, the shift

.. math:: \Delta(x_t) = \frac{E[w \, x_0 | x_t]}{E[w | x_t]} - E[x_0 | x_t]
    = \frac{\sigma_t^2}{\alpha_t} \nabla \log h_t(x_t), \qquad h_t(x_t) = E[w | x_t],

is finite at both ends of the path and the same for every convention and schedule;
:meth:`rwguidance.Prediction.shifted` turns it into a change of score, noise or velocity.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..models import Model, check_is_model
from ..prediction import Prediction
from ..schedules import as_times, shared_time
from ..support import checks

__all__ = ["ConditionalExpectation", "Estimate"]


@dataclass(frozen=True)
class Estimate:
    r"""An estimate of :math:`\log h_t` and of the shift it causes.

    Arguments:
        prediction: The base model's own prediction at the state.
        log_h: :math:`\log E[w | x_t]`, in nats, with shape (B,). NaN where a method has no value.
        shift: Change of the predicted clean state, in data units, with shape (B, \*event).
        diagnostics: Measures of how far to trust the estimate, each with shape (B,).
    """

    prediction: Prediction
    log_h: Tensor
    shift: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class ConditionalExpectation(nn.Module, ABC):
    r"""An estimator of :math:`h_t(x_t) = E[w(x_0) | x_t]`.

    It is asked for states of the path, :math:`\alpha_t x_0 + \sigma_t \epsilon`. At the time
    ``model.start`` they are noise that knows nothing of :math:`x_0`: there :math:`h` is the prior's
    :math:`E[w]`, and the shift that of the prior, whatever the state.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def __call__(
        self, model: Model, x_t: Tensor, t: float | Tensor, condition: Any = None
    ) -> Estimate:
        r"""Checks model, states and times, and runs :meth:`forward`.

        Arguments:
            model: The base model, unguided.
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], a number or a tensor of shape () or (B,).
            condition: What the model and the reward are conditioned on.

        Raises:
            TypeError: If the model is none, the states are no floating-point tensor, the times are
                no numbers, or :meth:`forward` returns no Estimate.
            ValueError: If the states have another shape or are not finite, a time lies outside
                [0, 1], or the number of times is not B.
        """

        check_is_model("model", model)
        checks.states("x_t", x_t, finite=True)
        t = shared_time(as_times(t, batch=len(x_t)))
        estimate = super().__call__(model, x_t, t, condition)
        if not isinstance(estimate, Estimate):
            raise TypeError(
                f"{type(self).__name__}.forward must return an Estimate, "
                f"got {checks.described(estimate)}"
            )
        return estimate

    @abstractmethod
    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        r"""Estimates :math:`\log h_t` and the shift; calls the model once.

        Arguments:
            model: The base model, unguided.
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], float64, with shape () if one time is that of all, or (B,).
            condition: What the model and the reward are conditioned on.
        """


def shift_norm(shift: Tensor) -> Tensor:
    """Euclidean norm of each shift, in data units, with shape (B,)."""

    return shift.flatten(1).norm(dim=1)


@contextmanager
def gradients_of(x_t: Tensor) -> Iterator[Tensor]:
    """Yields a copy of the states that records gradients, under no_grad and inference_mode, too."""

    with torch.inference_mode(False), torch.enable_grad():
        yield x_t.detach().clone().requires_grad_()


def input_gradient(
    value: Tensor,
    x_t: Tensor,
    name: str,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> Tensor:
    """Gradient of each entry of `value` in its own state, since samples do not interact.

    Arguments:
        value: One value per state, with shape (B,).
        x_t: States that record gradients, from which `value` was computed.
        name: Name of the value, for the message.
        retain_graph: Whether other gradients of the same graph follow.
        create_graph: Whether gradients of the gradient follow.

    Raises:
        ValueError: If no gradient reaches the states.
    """

    gradient = None
    if value.requires_grad:  # if only of parameters, the gradient in the states is still None
        (gradient,) = torch.autograd.grad(
            value.sum(),
            x_t,
            retain_graph=retain_graph or create_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    if gradient is None:
        raise ValueError(
            f"{name} must be differentiable with respect to the state, but its value carries no "
            "gradient; use ImportanceSampling or LearnedShift, which need none"
        )
    return gradient


def gradient_to_shift(gradient: Tensor, prediction: Prediction, advice: str) -> Tensor:
    r"""Converts an input gradient to the shift :math:`(\sigma_t^2 / \alpha_t) \nabla \log h_t`.

    Arguments:
        gradient: Gradient of :math:`\log h_t` in the states, with their shape (B, \*event).
        prediction: The base model's prediction at these states.
        advice: What to do where the shift is not determined, for the message.

    Raises:
        ValueError: If :math:`\alpha_t = 0`: there :math:`\log h_t` is constant in the state, and
            its gradient, zero, does not determine the shift.
    """

    scales = prediction.scales
    if bool((scales.alpha == 0).any()):
        raise ValueError(
            "an input gradient does not determine the shift where alpha_t = 0 (t = 1 of this "
            f"schedule); {advice}, or guide with window=(0.0, t) for some t < 1"
        )
    return (scales.sigma**2 / scales.alpha) * gradient
