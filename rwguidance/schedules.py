r"""Noise schedules: the affine Gaussian paths :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`.

Time runs from data to noise, :math:`t = 0` is data and :math:`t = 1` is noise, for every family.
A schedule is three formulas, :math:`\alpha_t`, :math:`\sigma_t` and the inverse of the log
signal-to-noise ratio :math:`\lambda_t = \log(\alpha_t^2 / \sigma_t^2)`; the time derivatives come
from automatic differentiation, so they cannot disagree with the formulas.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .support import checks
from .support.describe import summary

__all__ = [
    "CosineSchedule",
    "DiscreteSchedule",
    "RectifiedSchedule",
    "Scales",
    "Schedule",
    "VESchedule",
    "VPSchedule",
    "as_times",
]


def as_times(t: float | Tensor, batch: int | None = None) -> Tensor:
    r"""Returns times as a float64 tensor of shape () or (B,), after checking them.

    Arguments:
        t: Times in [0, 1], a number or a tensor of shape () or (B,).
        batch: The number of states, if a tensor of shape (B,) must match it.

    Raises:
        TypeError: If it is not made of real numbers.
        ValueError: If a time lies outside [0, 1] or is NaN, or the shape does not fit.
    """

    return checks.times("t", t, batch)


def shared_time(t: Tensor) -> Tensor:
    """Returns the one time, with shape (), of times that are one expanded; others as they are.

    Looking it up once is cheaper, and scales that broadcast stay small.
    """

    return t[0] if t.ndim == 1 and len(t) > 0 and t.stride(0) == 0 else t


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Returns the dtype that arithmetic runs in: the widest of `dtypes`, at the least float32."""

    result = torch.float32
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result


@dataclass(frozen=True)
class Scales:
    r"""The values of a schedule at one time: :math:`\alpha_t, \sigma_t` and their time derivatives.

    Every tensor has shape (1, ..., 1) or (B, 1, ..., 1), so that it broadcasts against states of
    shape (B, \*event), and is float32 or wider, whatever the dtype of the states.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor


class Schedule(ABC):
    r"""A path :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` with decreasing log-SNR.

    Subclasses give :meth:`alpha`, :meth:`sigma` and :meth:`time`, written with differentiable
    torch operations that accept float64 tensors of any shape.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        r"""Signal scale :math:`\alpha_t \geq 0`, dimensionless, same shape as `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Noise scale :math:`\sigma_t \geq 0`, dimensionless, same shape as `t`."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        r"""Time at which the log-SNR (nats) takes the given values; inverse of :meth:`log_snr`."""

    def __repr__(self) -> str:
        return summary(self, **{k: v for k, v in vars(self).items() if not k.startswith("_")})

    def log_snr(self, t: Tensor) -> Tensor:
        r"""Log signal-to-noise ratio :math:`\log(\alpha_t^2 / \sigma_t^2)`, in nats."""

        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def at(self, t: float | Tensor, like: Tensor) -> Scales:
        r"""Scales at time `t`, shaped to broadcast against the states `like`.

        Arguments:
            t: Times in [0, 1], with shape () or (B,).
            like: States, with shape (B, \*event).

        Returns:
            Scales of shape (1, ..., 1) or (B, 1, ..., 1), on the device of `like`.

        Raises:
            TypeError: If the states are no floating-point tensor, or the times are no numbers.
            ValueError: If a time lies outside [0, 1] or the number of times is not B.
        """

        checks.states("like", like, event=False)
        t = shared_time(as_times(t, batch=len(like)))
        with torch.inference_mode(False), torch.enable_grad():
            t = t.clone().requires_grad_()
            alpha, alpha_rate = _with_derivative(self.alpha, t)
            sigma, sigma_rate = _with_derivative(self.sigma, t)
        shape = (-1, *(1,) * (like.ndim - 1))
        dtype = working_dtype(like.dtype)
        cast = lambda value: value.reshape(shape).to(device=like.device, dtype=dtype)
        return Scales(cast(alpha), cast(sigma), cast(alpha_rate), cast(sigma_rate))

    def perturb(self, x_0: Tensor, t: float | Tensor, noise: Tensor) -> Tensor:
        r"""Noised states :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, in the dtype of `x_0`.

        Arguments:
            x_0: Clean states, with shape (B, \*event).
            t: Times in [0, 1], with shape () or (B,).
            noise: Standard normal noise, with shape (B, \*event).

        Raises:
            TypeError: If states or noise are no floating-point tensor, or the times are no numbers.
            ValueError: If a time lies outside [0, 1], or a shape does not fit.
        """

        checks.states("x_0", x_0, event=False)
        checks.states("noise", noise, event=False)
        if noise.shape != x_0.shape:
            raise ValueError(
                f"noise must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(noise.shape)}"
            )
        scales = self.at(t, like=x_0)
        return (scales.alpha * x_0 + scales.sigma * noise).to(x_0.dtype)


def _with_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    value = function(t)
    if not value.requires_grad:  # constant in t
        return value, torch.zeros_like(value)
    (derivative,) = torch.autograd.grad(value.sum(), t)
    return value.detach(), derivative


class VPSchedule(Schedule):
    r"""Variance preserving path with a linear rate, the continuous limit of DDPM.

    .. math:: \log \alpha_t = -\tfrac12 \int_0^t \beta_u \, du, \qquad
        \sigma_t^2 = 1 - \alpha_t^2, \qquad
        \beta_t = \beta_{\min} + t \, (\beta_{\max} - \beta_{\min})

    The noise end is not pure noise: with the defaults :math:`\alpha_1 = 0.0066`.

    Arguments:
        beta_min: Rate at t = 0, positive.
        beta_max: Rate at t = 1, at least `beta_min`.

    Raises:
        TypeError: If a rate is no number.
        ValueError: If a rate is out of range.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2021), arXiv:2011.13456
    """

    depends_on = ("beta_min", "beta_max")

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min = checks.number("beta_min", beta_min, above=0)
        self.beta_max = checks.number("beta_max", beta_max, self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def time(self, log_snr: Tensor) -> Tensor:
        # integral = -log alpha^2 = softplus(-log_snr), then the positive root of the quadratic
        integral = torch.nn.functional.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * integral)
        return 2 * integral / (self.beta_min + root)


class CosineSchedule(Schedule):
    r"""Variance preserving path :math:`\alpha_t = \cos(\pi t / 2), \sigma_t = \sin(\pi t / 2)`.

    References:
        | Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), without the
          offset, arXiv:2102.09672
    """

    depends_on = ()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * torch.pi * (1 - t))  # exactly zero at t = 1, which cos is not

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * torch.pi * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return 2 / torch.pi * torch.atan(torch.exp(-0.5 * log_snr))


class VESchedule(Schedule):
    r"""Variance exploding path :math:`\alpha_t = 1, \sigma_t = \sigma_{\min}^{1-t}\sigma_{\max}^t`.

    At t = 0 a state still carries noise of size `sigma_min`: choose it below what matters.

    Arguments:
        sigma_min: Noise scale at t = 0, positive, in data units.
        sigma_max: Noise scale at t = 1, larger than `sigma_min`, in data units.

    Raises:
        TypeError: If a scale is no number.
        ValueError: If a scale is out of range.
    """

    depends_on = ("sigma_min", "sigma_max")

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        self.sigma_min = checks.number("sigma_min", sigma_min, above=0)
        self.sigma_max = checks.number("sigma_max", sigma_max, above=self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def time(self, log_snr: Tensor) -> Tensor:
        log_sigma = -0.5 * log_snr
        return (log_sigma - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


class RectifiedSchedule(Schedule):
    r"""Straight path :math:`\alpha_t = 1 - t, \sigma_t = t` of rectified flow, SD3 and FLUX.

    References:
        | Flow Straight and Fast (Liu et al., 2023), arXiv:2209.03003
    """

    depends_on = ()

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)


class DiscreteSchedule(Schedule):
    r"""Variance preserving path through a table of :math:`\bar\alpha_k`, as in SDXL-class models.

    Entry k = 0, ..., K - 1 of the table is visited exactly at :math:`t = (k + 1) / K`, clean data
    at t = 0, and :math:`\bar\alpha = \alpha^2` is linear in between.

    Arguments:
        alphas_cumprod: The table, strictly decreasing in (0, 1), with shape (K,). The last entry
            may be 0 (zero terminal signal-to-noise ratio).

    Raises:
        TypeError: If it is no table of numbers.
        ValueError: If it has another shape, or does not decrease, as a table of betas does not.
    """

    depends_on = ("alphas_cumprod",)

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        table = checks.real_tensor("alphas_cumprod", alphas_cumprod, "a table of numbers").cpu()
        if table.ndim != 1 or len(table) == 0:
            raise ValueError(
                f"alphas_cumprod must have shape (K,) with K >= 1, got {tuple(table.shape)}"
            )
        table = torch.cat((table.new_ones(1), table))
        wrong = ~((table.diff() < 0) & (table[1:] >= 0))
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            before = f" after {table[k]:.6g}" if k else ""
            raise ValueError(
                "alphas_cumprod must decrease strictly and lie in [0, 1), "
                f"got {table[k + 1]:.6g}{before} in entry {k}; of betas it is "
                "(1 - betas).cumprod(0)"
            )
        self._alpha_squared = table
        self._sigma_squared = 1 - table

    def __repr__(self) -> str:
        return (
            f"DiscreteSchedule({self._steps} alphas_cumprod "
            f"from {self.alphas_cumprod[0]:.6g} to {self.alphas_cumprod[-1]:.6g})"
        )

    @property
    def alphas_cumprod(self) -> Tensor:
        """The table, float64, with shape (K,)."""

        return self._alpha_squared[1:]

    def timestep(self, t: float | Tensor) -> Tensor:
        """Index k of the entry nearest to time `t`, int64, with the shape of `t`.

        A network that was trained on the table takes it for the time. Clean data at t = 0, which is
        no entry, has the index 0 of the first.

        Arguments:
            t: Times in [0, 1], with shape () or (B,).

        Raises:
            ValueError: If a time lies outside [0, 1].
        """

        return (as_times(t) * self._steps).round().long().clamp(min=1) - 1

    @property
    def _steps(self) -> int:
        return len(self._alpha_squared) - 1

    def _interpolate(self, table: Tensor, t: Tensor) -> Tensor:
        table = table.to(t.device)
        position = t * self._steps
        left = position.detach().floor().long().clamp(max=self._steps - 1)
        return torch.lerp(table[left], table[left + 1], position - left)

    def alpha(self, t: Tensor) -> Tensor:
        return self._interpolate(self._alpha_squared, t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return self._interpolate(self._sigma_squared, t).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        # Near t = 0, where alpha^2 rounds to 1e-16, t is known to 1e-16 over the slope of alpha^2,
        # which is of order one at the first entries of every table that networks are trained on.
        alpha_squared = torch.sigmoid(log_snr)
        table = self._alpha_squared.flip(0).to(log_snr.device)  # ascending, as searchsorted wants
        right = torch.searchsorted(table, alpha_squared).clamp(1, self._steps)
        left = right - 1
        weight = (alpha_squared - table[left]) / (table[right] - table[left])
        return 1 - (left + weight) / self._steps
