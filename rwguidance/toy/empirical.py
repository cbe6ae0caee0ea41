"""Laws of a finite set of points, sharp or blurred."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..schedules import Schedule, working_dtype
from ..support import checks
from ..tilt import Tilt
from .law import Law, TiltableLaw, check_draws
from .mixtures import GaussianMixture
from .rewards import NoClosedForm, Numbers, numbers_of

__all__ = ["Empirical"]

_BLOCK = 2**24
"""Bound on the elements of one (rows, components, D) block."""


class Empirical(TiltableLaw):
    r"""The law of a finite set of points, each blurred by :math:`N(0, \mathrm{bandwidth}^2 I)`.

    With bandwidth 0 every reward has a closed form, black boxes included.

    Arguments:
        points: The points, in data units, with shape (N, \*event).
        bandwidth: Standard deviation of the blur, in data units, at least 0.
        log_weights: Log of the points' weights, up to a constant, with shape (N,); None for equal
            ones.
    """

    depends_on = ("points", "bandwidth", "log_weights")

    def __init__(
        self, points: Tensor, bandwidth: float = 0.0, log_weights: Numbers | None = None
    ) -> None:
        checks.states("points", points, finite=True)
        if len(points) == 0:
            raise ValueError(f"points must hold N >= 1 of them, got shape {tuple(points.shape)}")
        self.event = tuple(points.shape[1:])
        self.points = points.double()
        self.bandwidth = checks.number("bandwidth", bandwidth, 0)
        if log_weights is None:
            log_weights = torch.zeros(len(points))
        weights = numbers_of("log_weights", log_weights)
        if weights.shape != (len(points),):
            raise ValueError(
                f"log_weights must have shape ({len(points)},), got {tuple(weights.shape)}"
            )
        self.log_weights = weights.log_softmax(-1)

    def __repr__(self) -> str:
        return f"Empirical({len(self.points)} points of {self.event}, bandwidth={self.bandwidth})"

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        check_draws(n, generator)
        index = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.event, generator=generator, dtype=torch.float64)
        return self.points[index] + self.bandwidth * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the log-density.

        Raises:
            NoClosedForm: If the bandwidth is 0: then there is none.
        """

        return self._mixture.log_prob(self._check(x))

    def denoise(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        x = self._check(x_t)
        checks.instance("schedule", schedule, Schedule, "a Schedule")
        scales = schedule.at(t, like=x)
        weights = self._log_kernel(x, scales.alpha, scales.sigma).softmax(1)
        mean = weights @ self.points.flatten(1)
        if self.bandwidth > 0:
            variance = scales.alpha**2 * self.bandwidth**2 + scales.sigma**2
            mean = (scales.sigma**2 * mean + scales.alpha * self.bandwidth**2 * x) / variance
        return mean.reshape(x_t.shape).to(working_dtype(x_t.dtype))

    def tilted_moments(
        self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        checks.instance("schedule", schedule, Schedule, "a Schedule")
        x, dtype = self._check(x_t), working_dtype(x_t.dtype)
        if self.bandwidth > 0:
            moments = lambda x, t: self._mixture.tilted_moments(tilt, x, t, schedule)
            log_h, shift = _in_blocks(moments, x, t, self.points.numel())
        else:
            scales = schedule.at(t, like=x)
            log_kernel = self._log_kernel(x, scales.alpha, scales.sigma)
            log_tilted = log_kernel + tilt(self.points)
            log_h = log_tilted.logsumexp(1) - log_kernel.logsumexp(1)
            shift = (log_tilted.softmax(1) - log_kernel.softmax(1)) @ self.points.flatten(1)
        return log_h.to(dtype), shift.reshape(x_t.shape).to(dtype)

    def tilted(self, tilt: Tilt) -> Law:
        """Returns the tilted law: empirical for bandwidth 0, else a mixture."""

        checks.instance("tilt", tilt, Tilt, "a Tilt")
        if self.bandwidth > 0:
            return self._mixture.tilted(tilt)
        return Empirical(self.points, 0.0, self.log_weights + tilt(self.points))

    @property
    def _mixture(self) -> GaussianMixture:
        if self.bandwidth == 0:
            raise NoClosedForm("an empirical law with bandwidth 0 has no density")
        d = self.points.flatten(1).shape[1]
        covariance = self.bandwidth**2 * torch.eye(d, dtype=torch.float64)
        return GaussianMixture(self.log_weights, self.points.flatten(1), covariance[None])

    def _check(self, x: Tensor) -> Tensor:
        checks.states("states", x)
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"states must have shape (B, *{self.event}), got {tuple(x.shape)}")
        return x.flatten(1).double()

    def _log_kernel(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log posterior weights of the points, up to a constant, in nats, with shape (B, N)."""

        # |x - a p|^2 = a^2 |x / a - p|^2 by explicit differences: exact, unlike an expanded square
        safe = torch.where(alpha == 0, torch.ones_like(alpha), alpha)
        mode = "donot_use_mm_for_euclid_dist"
        square = alpha**2 * torch.cdist(x / safe, self.points.flatten(1), compute_mode=mode) ** 2
        square = square - square.amin(1, keepdim=True)
        variance = alpha**2 * self.bandwidth**2 + sigma**2
        # at variance 0 only the nearest points remain
        log_kernel = torch.where(square == 0, -square, -square / (2 * variance))
        return self.log_weights + log_kernel


def _in_blocks(
    moments: Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    t: float | Tensor,
    row_size: int,
) -> tuple[Tensor, Tensor]:
    """Applies `moments` to blocks of rows, so that memory stays bounded for many components."""

    size = max(1, _BLOCK // row_size)
    batched = isinstance(t, Tensor) and t.ndim == 1 and len(t) > 1
    times = t.split(size) if batched and isinstance(t, Tensor) else [t] * (len(x) // size + 1)
    parts = [moments(block, time) for block, time in zip(x.split(size), times, strict=False)]
    log_h, shift = (torch.cat(values) for values in zip(*parts, strict=True))
    return log_h, shift
