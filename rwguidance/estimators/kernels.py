r"""Kernels that trade bias for effective draws, by flattening the noising kernel.

In many dimensions the exact kernel :math:`\ell` puts all weight on the nearest of few draws. The
flattened kernel :math:`\kappa \ell`, with a factor :math:`\kappa \leq 1`, is that of a noisier
state, whose noise has variance :math:`\sigma_t^2 / \kappa`. It points the right way where the exact
one returns noise, but the shift is too long: for a Gaussian law of variance c and a linear reward
by :math:`(\sigma_t^2 + \alpha_t^2 c) / (\sigma_t^2 + \kappa \alpha_t^2 c) \leq 1 / \kappa`. Near
the data end this grows large: combine it with a window there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..support import checks
from ..support.describe import summary
from .draws import Draws

__all__ = ["Kernel", "LeaveOneOut", "TargetESS", "Tempered"]

_STATES = 256
"""Noised draws on which :class:`LeaveOneOut` compares factors."""

_TOLERANCE = 1e-3
"""Bound on what :class:`TargetESS` exceeds its target by, relatively."""

_STEPS = 40
"""Bound on its steps, of which it takes about six: those of bisection, should Newton's fail."""

_BLOCK_BYTES = 2**26
"""Bound on the states that are compared at once."""


class Kernel(ABC):
    r"""Chooses the factor :math:`\kappa` by which the noising kernel is flattened."""

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def __repr__(self) -> str:
        return summary(self, **vars(self))

    @abstractmethod
    def temper(self, log_kernel: Tensor, draws: Draws, alpha: Tensor, sigma: Tensor) -> Tensor:
        r"""Returns the factor :math:`\kappa \in (0, 1]` of each row, with shape (B, 1).

        Arguments:
            log_kernel: :math:`\ell` up to a constant, at most 0, in nats, with shape (B, N).
            draws: The draws that it weighs, N of them.
            alpha: :math:`\alpha_t` of the states, with shape (B, 1) or (1, 1).
            sigma: :math:`\sigma_t` of the states, with the same shape.
        """


class Tempered(Kernel):
    r"""Flattens the kernel by a fixed factor, the same at every time.

    Arguments:
        factor: :math:`\kappa` in (0, 1]; 1 is exact.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """

    depends_on = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = checks.number("factor", factor, above=0, high=1)

    def temper(self, log_kernel: Tensor, draws: Draws, alpha: Tensor, sigma: Tensor) -> Tensor:
        return log_kernel.new_full((len(log_kernel), 1), self.factor)


class TargetESS(Kernel):
    r"""Flattens the kernel of each sample just enough to keep a share of the bank effective.

    The factor is the largest :math:`\kappa \leq 1` with ESS of :math:`\kappa \ell` at least
    `fraction` N. Where the bank is good enough the kernel stays exact.

    Arguments:
        fraction: Share of the bank to keep, in (0, 1).

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """

    depends_on = ("fraction",)

    def __init__(self, fraction: float) -> None:
        self.fraction = checks.number("fraction", fraction, above=0, below=1)

    def temper(self, log_kernel: Tensor, draws: Draws, alpha: Tensor, sigma: Tensor) -> Tensor:
        # Weights within a ratio e^c of each other have ESS / N >= 1 / cosh(c / 2)^2, so that:
        spread = 2 * math.acosh(self.fraction**-0.5)
        finite = log_kernel.masked_fill(log_kernel == -math.inf, 0)
        low = torch.log(spread / (-finite.amin(1, keepdim=True)).clamp_min(spread))
        high = torch.zeros_like(low)
        log_target = math.log(self.fraction * log_kernel.shape[1])
        factor = high
        for _ in range(_STEPS):
            excess, slope = _log_ess(log_kernel, finite, factor.exp())
            excess = excess - log_target
            low, high = torch.where(excess >= 0, factor, low), torch.where(excess < 0, factor, high)
            # Aimed at half of the tolerance, so that the target itself is kept.
            newton = factor - (excess - _TOLERANCE / 2) / slope
            inside = (newton > low) & (newton < high)
            factor = torch.where(inside, newton, (low + high) / 2)
            found = (high == 0) & (low == 0) | ((excess >= 0) & (excess <= _TOLERANCE))
            factor = torch.where(found, low, factor)
            if bool(found.all()):
                break
        return low.exp()


def _log_ess(log_kernel: Tensor, finite: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    r"""The logarithm of the ESS of :math:`\kappa \ell`, and its slope in :math:`\log \kappa`.

    .. math:: \log \mathrm{ESS} = 2 \log \sum_i e_i - \log \sum_i e_i^2, \qquad
        \frac{d \log \mathrm{ESS}}{d \log \kappa} = 2 \kappa \Big(
        \frac{\sum_i e_i \ell_i}{\sum_i e_i} - \frac{\sum_i e_i^2 \ell_i}{\sum_i e_i^2} \Big)

    with :math:`e_i = \exp(\kappa \ell_i)`, the largest of which is 1.
    """

    e = (factor * log_kernel).exp_()
    moment = lambda e: (e.sum(1, keepdim=True), torch.linalg.vecdot(e, finite)[:, None])
    total, first = moment(e)
    square, second = moment(e.square_())
    slope = 2 * factor * (first / total - second / square)
    return 2 * total.log() - square.log(), slope


class LeaveOneOut(Kernel):
    r"""Flattens the kernel as much as predicts best, inside the bank: a default without a number.

    Draws of the bank are noised to the time, :math:`x_j = \alpha_t x^j + \sigma_t \epsilon`, and
    the reward of each is predicted from all others. The factor is the one of least squared error,

    .. math:: \kappa_t = \arg\min_\kappa \sum_j \Big( r_j -
        \sum_{i \neq j} \mathrm{softmax}_i(\kappa \ell_{ji}) \, r_i \Big)^2,

    the larger one where two are equal. It is chosen once per condition and time, without any call
    of the network, and the same for the same draws: the noise comes from a seed. 256 noised draws
    are compared: all of a bank up to that size, several times where it is small, and a random 256
    of a larger one, so that a choice costs about as much as an estimate of 256 states. Draws of
    zero weight take no part, and draws of another law count by their importance. Fewer than three
    draws leave nothing to choose, and the kernel exact.

    Rewards are what is predicted, so the tilt's log-weight comes out right on average while the
    law may not: part of the shift of a wide kernel is that of the whole prompt.

    Arguments:
        factors: The factors to choose from, in (0, 1].
        seed: Seed of the noise.

    Raises:
        TypeError: If the factors are no sequence of numbers, or the seed no integer.
        ValueError: If there is no factor, or one is out of range.
    """

    depends_on = ("factors", "seed")

    def __init__(
        self,
        factors: Sequence[float] = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015),
        seed: int = 0,
    ) -> None:
        checks.instance("factors", factors, Sequence, "a sequence of numbers")
        numbers = [checks.number("factors", value, above=0, high=1) for value in factors]
        if not numbers:
            raise ValueError("factors must hold at least one number, got none")
        self.factors = tuple(sorted(numbers, reverse=True))
        self.seed = checks.integer("seed", seed)

    def temper(self, log_kernel: Tensor, draws: Draws, alpha: Tensor, sigma: Tensor) -> Tensor:
        levels, level_of = torch.cat((alpha, sigma), 1).unique(dim=0, return_inverse=True)
        factors = []
        for level in levels:
            key = tuple(level.tolist())
            if key not in draws.kept:
                draws.kept[key] = self._chosen(draws, *level)
            factors.append(draws.kept[key])
        chosen = log_kernel.new_tensor(factors)[level_of]
        return chosen[:, None].expand(len(log_kernel), 1)

    def _chosen(self, draws: Draws, alpha: Tensor, sigma: Tensor) -> float:
        """The factor of least risk at one time."""

        draws = draws.of_positive_weight()
        n = len(draws.x_0)
        if n < 3 or float(sigma) == 0:
            return self.factors[0]
        generator = torch.Generator().manual_seed(self.seed)
        held = torch.randperm(n, generator=generator)[:_STATES]
        held = held.repeat(max(1, _STATES // n))
        size = max(1, _BLOCK_BYTES // (alpha.dtype.itemsize * draws.x_0.shape[1]))
        risks = sum(
            self._risks(draws, part.to(draws.x_0.device), alpha, sigma, generator)
            for part in held.split(size)
        )
        assert isinstance(risks, Tensor)
        return self.factors[int(risks.argmin())]

    def _risks(
        self, draws: Draws, held: Tensor, alpha: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The squared errors of every factor, summed over noised draws, with shape (F,)."""

        x_0 = draws.x_0[held].to(alpha.dtype)
        noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype).to(x_0.device)
        alpha, sigma = alpha.reshape(1, 1), sigma.reshape(1, 1)
        x_t = (alpha * x_0).add_(noise.mul_(sigma))
        log_kernel = draws.log_kernel(x_t, alpha, sigma, without=held)
        rewards = (draws.log_w - draws.log_w.mean()).to(alpha.dtype)
        log_omega = draws.log_importance
        log_omega = torch.zeros_like(rewards) if log_omega is None else log_omega.to(alpha.dtype)
        predict = lambda factor: (factor * log_kernel + log_omega).softmax(1) @ rewards
        errors = [(rewards[held] - predict(factor)).square() for factor in self.factors]
        return torch.stack(errors) @ log_omega.softmax(0)[held]


def ess(weight: Tensor) -> Tensor:
    """Returns the effective draws of normalized weights (B, N), with shape (B,)."""

    return torch.linalg.vector_norm(weight, dim=1) ** -2
