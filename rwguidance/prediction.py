r"""Predictions of a denoising network, in every convention. The only file that converts them.

A network that sees :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` may be trained to output the
clean sample, the noise, the score or the velocity. All four are affine in the pair

.. math:: \mathrm{mean} = E[x_0 | x_t], \qquad \mathrm{noise} = E[\epsilon | x_t], \qquad
    x_t = \alpha_t \, \mathrm{mean} + \sigma_t \, \mathrm{noise},

which, unlike either member alone, stays exact where :math:`\alpha_t` or :math:`\sigma_t` is zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .schedules import Scales
from .support import checks

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    r"""The pair :math:`(E[x_0 | x_t], E[\epsilon | x_t])` of one state.

    Arguments:
        mean: Posterior mean of the clean state, in data units, with shape (B, \*event).
        noise: Posterior mean of the noise, dimensionless, with shape (B, \*event).
        scales: The schedule at the time of the state.
        diagnostics: Reports of an estimator about its shift, each with shape (B,).
    """

    mean: Tensor
    noise: Tensor
    scales: Scales
    diagnostics: Mapping[str, Tensor] | None = None

    @classmethod
    def from_mean(cls, mean: Tensor, x_t: Tensor, scales: Scales) -> "Prediction":
        r"""Makes the pair from :math:`E[x_0 | x_t]`.

        At :math:`\sigma_t = 0` the state is the clean sample, whatever the network says, and the
        noise is independent of it, so its mean is zero.
        """

        _check("mean", mean, x_t, scales)
        mean = torch.where(scales.sigma == 0, _divide_or_zero(x_t, scales.alpha), mean)
        noise = _divide_or_zero(x_t - scales.alpha * mean, scales.sigma)
        return cls(mean, noise, scales)

    @classmethod
    def from_noise(cls, noise: Tensor, x_t: Tensor, scales: Scales) -> "Prediction":
        r"""Makes the pair from :math:`E[\epsilon | x_t]`.

        Raises:
            ValueError: If :math:`\alpha_t = 0`: there the noise says nothing about the mean.
        """

        _check("noise", noise, x_t, scales)
        _check_signal("noise", scales)
        mean = (x_t - scales.sigma * noise) / scales.alpha
        return cls(mean, noise.to(mean.dtype), scales)

    @classmethod
    def from_score(cls, score: Tensor, x_t: Tensor, scales: Scales) -> "Prediction":
        r"""Makes the pair from the score.

        .. math:: \nabla \log p_t(x_t) = -E[\epsilon | x_t] / \sigma_t

        Raises:
            ValueError: If :math:`\alpha_t = 0`: there the score says nothing about the mean.
        """

        _check("score", score, x_t, scales)
        _check_signal("score", scales)
        return cls.from_noise(-scales.sigma * score, x_t, scales)

    @classmethod
    def from_velocity(cls, velocity: Tensor, x_t: Tensor, scales: Scales) -> "Prediction":
        r"""Makes the pair from the velocity, the time derivative along the path towards noise.

        .. math:: E[\dot x_t | x_t] = \dot\alpha_t \, \mathrm{mean} + \dot\sigma_t \, \mathrm{noise}

        Raises:
            ValueError: If a rate is infinite (:math:`\dot\sigma_0` of the VP path).
        """

        _check("velocity", velocity, x_t, scales)
        _check_rates(scales)
        a, s, a_rate, s_rate = scales.alpha, scales.sigma, scales.alpha_rate, scales.sigma_rate
        determinant = a_rate * s - s_rate * a
        mean = (s * velocity - s_rate * x_t) / determinant
        noise = (a_rate * x_t - a * velocity) / determinant
        return cls(mean, noise, scales)

    @property
    def score(self) -> Tensor:
        r"""Score :math:`\nabla \log p_t(x_t)`, in inverse data units, with shape (B, \*event).

        Raises:
            ValueError: If :math:`\sigma_t = 0`: there the pair does not determine the score.
        """

        if bool((self.scales.sigma == 0).any()):
            raise ValueError("the score is not determined where sigma_t = 0; ask at a time t > 0")
        return -self.noise / self.scales.sigma

    @property
    def velocity(self) -> Tensor:
        r"""Velocity :math:`E[\dot x_t | x_t]` towards noise, with shape (B, \*event).

        Raises:
            ValueError: If a rate is infinite (:math:`\dot\sigma_0` of the VP path).
        """

        _check_rates(self.scales)
        return self.scales.alpha_rate * self.mean + self.scales.sigma_rate * self.noise

    def shifted(self, shift: Tensor) -> "Prediction":
        r"""Returns the prediction whose mean is moved by `shift`, at the same state.

        This is the one place where guidance enters: mean + shift, noise
        :math:`- (\alpha_t / \sigma_t)` shift, hence score :math:`+ (\alpha_t / \sigma_t^2)` shift.
        At :math:`\sigma_t = 0` a shift is zero by definition and the noise is left alone.

        Arguments:
            shift: Change of the predicted clean state, in data units, with shape (B, \*event).
        """

        _check_shape("shift", shift, self.mean)
        noise = self.noise - _divide_or_zero(self.scales.alpha * shift, self.scales.sigma)
        return replace(self, mean=self.mean + shift, noise=noise)

    def detach(self) -> "Prediction":
        """Returns the same prediction, cut from the autograd graph."""

        return replace(self, mean=self.mean.detach(), noise=self.noise.detach())


def _divide_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / safe)


def _check(name: str, value: Tensor, x_t: Tensor, scales: Scales) -> None:
    checks.instance("scales", scales, Scales, "Scales")
    _check_shape(name, value, x_t)


def _check_shape(name: str, value: Tensor, x_t: Tensor) -> None:
    checks.states(name, value, event=False)
    checks.states("x_t", x_t, event=False)
    if value.shape != x_t.shape:
        raise ValueError(
            f"{name} must have the shape of the state, {tuple(x_t.shape)}, got {tuple(value.shape)}"
        )


def _check_signal(name: str, scales: Scales) -> None:
    if bool((scales.alpha == 0).any()):
        raise ValueError(
            f"a {name} prediction holds no information about x_0 where alpha_t = 0 (t = 1 of this "
            "schedule); start at a smaller time, or use a model that predicts the mean or velocity"
        )


def _check_rates(scales: Scales) -> None:
    if not bool(scales.sigma_rate.isfinite().all() and scales.alpha_rate.isfinite().all()):
        raise ValueError(
            "the velocity is not determined where the path's rate is infinite (t = 0 of a "
            "variance preserving path); ask at a time t > 0"
        )
