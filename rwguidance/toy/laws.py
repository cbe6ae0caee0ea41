r"""Laws with every quantity in closed form: oracles for estimators, samplers and plug-ins.

With a prior component :math:`N(\mu, C)` and :math:`x_t = \alpha x_0 + \sigma \epsilon`, the
posterior of :math:`x_0` is Gaussian with

.. math:: S = \alpha^2 C + \sigma^2 I, \qquad D = \mu + \alpha C S^{-1} (x_t - \alpha \mu), \qquad
    P = \sigma^2 C S^{-1},

and a weight :math:`\exp(c + b^\top x - \tfrac12 x^\top H x)` gives, with :math:`g = b - H D`,

.. math:: M = (P^{-1} + H)^{-1}, \qquad
    \log E[w] = c + b^\top D - \tfrac12 D^\top H D + \tfrac12 g^\top M g - \tfrac12 \log|I + P H|,
    \\ \tilde D = D + M g.

Everything is computed in float64 in the eigenbasis of C and with square roots of P, so that both
ends of every path are exact. Results come back in the dtype of the states, float32 or wider.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..estimators.base import ConditionalExpectation, Estimate, shift_norm
from ..models import DenoiserModel, Model
from ..schedules import Schedule, working_dtype
from ..tilt import Tilt
from .rewards import Exponents, NoClosedForm, Numbers, Step, exponents_of

__all__ = [
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "Law",
    "Oracle",
    "StepTilted",
    "TiltableLaw",
    "quadrature",
]

_BLOCK = 2**24
"""Bound on the elements of one (rows, components, D) block."""


class Law(ABC):
    """A law of clean states with an exact denoiser.

    Attributes:
        event: Shape of one state.
    """

    event: tuple[int, ...]

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        r"""Draws `n` states, in float64, with shape (n, \*event)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density at states of shape (B, \*event), in nats, with shape (B,)."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        r"""Posterior mean :math:`E[x_0 | x_t]`, with the shape of `x_t`."""

    def model(self, schedule: Schedule) -> Model:
        """The exact model of this law along a path."""

        return _LawModel(self, schedule)


class TiltableLaw(Law):
    """A law whose tilts by closed rewards are closed, too."""

    @abstractmethod
    def tilted_moments(
        self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        r"""Exact :math:`\log h_t` in nats, shape (B,), and shift, with the shape of `x_t`.

        Raises:
            NoClosedForm: If the reward has no closed form with this law.
            ValueError: If the tilted law does not exist (an indefinite quadratic reward).
        """

    @abstractmethod
    def tilted(self, tilt: Tilt) -> Law:
        """The law proportional to p(x) w(x)."""

    def log_h(self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        r"""Exact :math:`\log h_t(x_t) = \log E[w(x_0) | x_t]`, in nats, with shape (B,)."""

        return self.tilted_moments(tilt, x_t, t, schedule)[0]

    def shift(self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        r"""Exact shift :math:`\Delta(x_t)`, in data units, with the shape of `x_t`."""

        return self.tilted_moments(tilt, x_t, t, schedule)[1]


class _LawModel(DenoiserModel):
    def __init__(self, law: Law, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.law = law

    def denoise(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        return self.law.denoise(x_t, t, self.schedule)


class Oracle(ConditionalExpectation):
    """The exact estimator: closed forms instead of an estimate.

    Arguments:
        law: The law that the base model samples.
        tilt: A tilt that is closed with it.
    """

    def __init__(self, law: TiltableLaw, tilt: Tilt) -> None:
        super().__init__()
        self.law = law
        self.tilt = tilt

    def forward(
        self, model: Model, x_t: Tensor, t: float | Tensor, condition: Any = None
    ) -> Estimate:
        prediction = model(x_t, t, condition)
        log_h, shift = self.law.tilted_moments(self.tilt, x_t, t, model.schedule)
        return Estimate(prediction, log_h, shift, {"shift_norm": shift_norm(shift)})


class _Components(NamedTuple):
    """Gaussian components: log-weights (B, K), means (B, K, D), square roots (T, C, D, D).

    T is 1 or B, C is 1 or K, and the covariance of a component is root @ root.T.
    """

    log_weights: Tensor
    means: Tensor
    roots: Tensor


class GaussianMixture(TiltableLaw):
    r"""Mixture :math:`\sum_k \pi_k N(\mu_k, C_k)` with full covariances.

    Arguments:
        log_weights: Log of the weights, up to a constant, with shape (K,).
        means: In data units, with shape (K, D).
        covariances: Positive definite, with shape (K, D, D), or (1, D, D) if shared.
    """

    def __init__(self, log_weights: Numbers, means: Numbers, covariances: Numbers) -> None:
        self.log_weights = torch.as_tensor(log_weights, dtype=torch.float64).log_softmax(-1)
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if self.means.ndim != 2 or self.log_weights.shape != self.means.shape[:1]:
            raise ValueError(
                "log_weights and means must have shapes (K,) and (K, D), "
                f"got {tuple(self.log_weights.shape)} and {tuple(self.means.shape)}"
            )
        k, d = self.means.shape
        if self.covariances.shape not in ((k, d, d), (1, d, d)):
            raise ValueError(
                f"covariances must have shape ({k}, {d}, {d}) or (1, {d}, {d}), "
                f"got {tuple(self.covariances.shape)}"
            )
        symmetric = torch.allclose(self.covariances, self.covariances.mT, rtol=1e-9, atol=1e-12)
        self._variances, self._axes = torch.linalg.eigh(self.covariances)
        if not symmetric or not bool((self._variances > 0).all()):
            raise ValueError("covariances must be symmetric and positive definite")
        self.event = (d,)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        index = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, *self.event, generator=generator, dtype=torch.float64)
        roots = self._axes * self._variances.sqrt()[:, None, :]
        shared = len(roots) == 1
        noise = z @ roots[0].T if shared else torch.einsum("nij,nj->ni", roots[index], z)
        return self.means[index] + noise

    def log_prob(self, x: Tensor) -> Tensor:
        x = self._check(x)
        z = torch.einsum("bki,kij->bkj", x[:, None] - self.means, self._expand(self._axes))
        return self._log_density(z, self._variances).logsumexp(1)

    def denoise(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        posterior = self._posterior(x_t, t, schedule)
        mean = torch.einsum("bk,bkd->bd", posterior.log_weights.exp(), posterior.means)
        return mean.to(working_dtype(x_t.dtype))

    def tilted_moments(
        self, tilt: Tilt, x_t: Tensor, t: float | Tensor, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        posterior = self._posterior(x_t, t, schedule)
        log_e, means = _tilt(tilt, posterior)
        return _moments(posterior, log_e, means, working_dtype(x_t.dtype))

    def tilted(self, tilt: Tilt) -> Law:
        """The tilted law: a mixture, or a :class:`StepTilted` one for a step reward."""

        step = _step_of(tilt, self.event[0])
        if step is not None:
            return StepTilted(self, tilt)
        roots = (self._axes * self._variances.sqrt()[:, None, :])[None]
        prior = _Components(self.log_weights[None], self.means[None], roots)
        exponents = exponents_of(tilt, self.event[0])
        log_e, means, covariances = _tilt_quadratic(exponents, prior)
        k, j = log_e.shape[1:]
        if len(covariances[0]) == 1 and j == 1:
            covariances = covariances[0, 0]
        else:
            covariances = covariances[0].expand(k, j, -1, -1).flatten(0, 1)
        log_weights = (self.log_weights[:, None] + log_e[0]).flatten()
        means = means[0].flatten(0, 1)
        if len(log_weights) == 1:
            return Gaussian(means[0], covariances[0])
        return GaussianMixture(log_weights, means, covariances)

    def log_normalizer(self, tilt: Tilt) -> Tensor:
        r"""Logarithm of :math:`Z = E[w(x_0)]`, in nats, a scalar."""

        roots = (self._axes * self._variances.sqrt()[:, None, :])[None]
        prior = _Components(self.log_weights[None], self.means[None], roots)
        return (prior.log_weights[..., None] + _tilt(tilt, prior)[0]).flatten(1).logsumexp(1)[0]

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or tuple(x.shape[1:]) != self.event:
            raise ValueError(f"states must have shape (B, {self.event[0]}), got {tuple(x.shape)}")
        return x.double()

    def _expand(self, values: Tensor) -> Tensor:
        return values.expand(len(self.log_weights), *values.shape[1:])

    def _log_density(self, z: Tensor, variances: Tensor) -> Tensor:
        """Weighted component log-densities of residuals in the eigenbasis, (B, K)."""

        constant = torch.log(2 * torch.pi * variances).sum(-1)
        return self.log_weights - 0.5 * ((z**2 / variances).sum(-1) + constant)

    def _posterior(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> _Components:
        x = self._check(x_t)
        scales = schedule.at(t, like=x)
        alpha, sigma = scales.alpha[..., None], scales.sigma[..., None]  # (T, 1, 1)
        axes = self._expand(self._axes)
        marginal = alpha**2 * self._variances + sigma**2
        z = torch.einsum("bki,kij->bkj", x[:, None] - alpha * self.means, axes)
        log_weights = self._log_density(z, marginal).log_softmax(1)
        gain = alpha * self._variances / marginal
        means = self.means + torch.einsum("bkj,kij->bki", gain * z, axes)
        root_variances = (sigma**2 * self._variances / marginal).sqrt()
        return _Components(log_weights, means, self._axes * root_variances[..., None, :])


class Gaussian(GaussianMixture):
    r"""Gaussian :math:`N(\mu, C)`.

    Arguments:
        mean: In data units, with shape (D,).
        covariance: Positive definite, with shape (D, D).
    """

    def __init__(self, mean: Numbers, covariance: Numbers) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64)
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
        super().__init__(torch.zeros(1), mean[None], covariance[None])
        self.mean = mean
        self.covariance = covariance


class Empirical(TiltableLaw):
    r"""The law of a finite set of points, each blurred by :math:`N(0, \mathrm{bandwidth}^2 I)`.

    With bandwidth 0 every reward has a closed form, black boxes included.

    Arguments:
        points: In data units, with shape (N, \*event).
        bandwidth: Standard deviation of the blur, in data units, at least 0.
        log_weights: Log of the points' weights, up to a constant, with shape (N,); None for equal.
    """

    def __init__(
        self, points: Tensor, bandwidth: float = 0.0, log_weights: Numbers | None = None
    ) -> None:
        if points.ndim < 2 or len(points) == 0:
            raise ValueError(
                f"points must have shape (N, *event) with N >= 1, got {tuple(points.shape)}"
            )
        if not 0 <= bandwidth < float("inf"):
            raise ValueError(f"bandwidth must be at least 0, got {bandwidth}")
        self.event = tuple(points.shape[1:])
        self.points = points.double()
        self.bandwidth = float(bandwidth)
        if log_weights is None:
            log_weights = torch.zeros(len(points))
        self.log_weights = torch.as_tensor(log_weights, dtype=torch.float64).log_softmax(-1)
        if self.log_weights.shape != (len(points),):
            raise ValueError(
                f"log_weights must have shape ({len(points)},), got {tuple(self.log_weights.shape)}"
            )

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        index = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.event, generator=generator, dtype=torch.float64)
        return self.points[index] + self.bandwidth * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density. Raises NoClosedForm for bandwidth 0, where there is none."""

        return self._mixture.log_prob(self._check(x))

    def denoise(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        x = self._check(x_t)
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
        """The tilted law: empirical for bandwidth 0, else a mixture."""

        if self.bandwidth > 0:
            return self._mixture.tilted(tilt)
        return Empirical(self.points, 0.0, self.log_weights + tilt(self.points))

    @property
    def _mixture(self) -> GaussianMixture:
        if self.bandwidth == 0:
            raise NoClosedForm("an empirical law with bandwidth 0 has no density")
        d = self.points[0].numel()
        covariance = self.bandwidth**2 * torch.eye(d, dtype=torch.float64)
        return GaussianMixture(self.log_weights, self.points.flatten(1), covariance[None])

    def _check(self, x: Tensor) -> Tensor:
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


class StepTilted(Law):
    r"""A one-dimensional mixture tilted by a step: a mixture of truncated Gaussians.

    Arguments:
        base: The law that is tilted, of dimension 1.
        tilt: A tilt with one :class:`Step` reward.
    """

    def __init__(self, base: GaussianMixture, tilt: Tilt) -> None:
        if _step_of(tilt, base.event[0]) is None:
            raise NoClosedForm("StepTilted needs a tilt with one Step reward, in one dimension")
        self.base = base
        self.tilt = tilt
        self.event = (1,)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        step = _step_of(self.tilt, 1)
        assert step is not None
        threshold, log_height = step
        mean, std = self.base.means[:, 0], self.base._expand(self.base._variances)[:, 0].sqrt()
        z = (mean - threshold) / std
        # side 0 lies below the threshold, side 1 above; each a truncated Gaussian
        log_mass = torch.stack((torch.special.log_ndtr(-z), torch.special.log_ndtr(z)), dim=1)
        log_weights = self.base.log_weights[:, None] + log_mass
        log_weights = (log_weights + log_mass.new_tensor([0.0, log_height])).flatten()
        index = torch.multinomial(log_weights.softmax(0), n, replacement=True, generator=generator)
        component, side = index // 2, index % 2
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        tail = torch.special.ndtri(u * log_mass.exp().flatten()[index])
        return (mean[component] + std[component] * tail * (1 - 2 * side))[:, None]

    def log_prob(self, x: Tensor) -> Tensor:
        return self.base.log_prob(x) + self.tilt(x) - self.base.log_normalizer(self.tilt)

    def denoise(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Tensor:
        shift = self.base.shift(self.tilt, x_t, t, schedule)
        return self.base.denoise(x_t, t, schedule) + shift


def quadrature(
    law: GaussianMixture,
    tilt: Tilt,
    x_t: Tensor,
    t: float | Tensor,
    schedule: Schedule,
    nodes: int = 61,
) -> tuple[Tensor, Tensor]:
    r"""Numerical :math:`\log h_t` and shift of any reward, in one dimension.

    Gauss-Hermite quadrature over every posterior component; exact for polynomials up to degree
    2 nodes - 1 times the Gaussian.

    Arguments:
        law: A mixture of dimension 1.
        tilt: Any tilt.
        x_t: States, with shape (B, 1).
        t: Times in [0, 1], with shape () or (B,).
        schedule: The path.
        nodes: Number of nodes per component.

    Returns:
        log h in nats, with shape (B,), and the shift, with shape (B, 1).
    """

    if law.event != (1,):
        raise ValueError(f"quadrature is for laws of dimension 1, got {law.event[0]}")
    from numpy.polynomial.hermite_e import hermegauss

    points, weights = (torch.as_tensor(values, dtype=torch.float64) for values in hermegauss(nodes))
    posterior = law._posterior(x_t, t, schedule)
    x = posterior.means + posterior.roots[:, :, 0] * points  # (B, K, nodes)
    log_rho = posterior.log_weights[..., None] + weights.log().log_softmax(0)
    log_w = tilt(x.reshape(-1, 1)).reshape(x.shape)
    log_tilted = (log_rho + log_w).flatten(1)
    difference = log_tilted.softmax(1) - log_rho.flatten(1).exp()
    shift = (difference * x.flatten(1)).sum(1, keepdim=True)
    dtype = working_dtype(x_t.dtype)
    return log_tilted.logsumexp(1).to(dtype), shift.to(dtype)


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


def _moments(
    posterior: _Components, log_e: Tensor, means: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """log h and shift from tilted components: log E[w], (B, K, J), and means, (B, K, J, D)."""

    log_tilted = posterior.log_weights[..., None] + log_e
    tilted = log_tilted.flatten(1).softmax(1).reshape(log_tilted.shape)
    # Sum of moves within components and of re-weighted components, each small where the shift is.
    within = torch.einsum("bkj,bkjd->bd", tilted, means - posterior.means[:, :, None])
    between = tilted.sum(-1) - posterior.log_weights.exp()
    shift = within + torch.einsum("bk,bkd->bd", between, posterior.means)
    return log_tilted.flatten(1).logsumexp(1).to(dtype), shift.to(dtype)


def _step_of(tilt: Tilt, d: int) -> tuple[float, float] | None:
    """Threshold and log-height if the tilt is one step in one dimension."""

    reward = tilt.rewards[0]
    if not isinstance(reward, Step) or len(tilt.rewards) != 1 or tilt.decode is not None or d != 1:
        return None
    return reward.threshold, reward.height / tilt.betas[0]


def _tilt(tilt: Tilt, components: _Components) -> tuple[Tensor, Tensor]:
    """log E[w] and tilted means of every component, (B, K, J) and (B, K, J, D)."""

    d = components.means.shape[-1]
    step = _step_of(tilt, d)
    if step is not None:
        return _tilt_step(*step, components)
    log_e, means, _ = _tilt_quadratic(exponents_of(tilt, d), components)
    return log_e, means


def _tilt_quadratic(exponents: Exponents, components: _Components) -> tuple[Tensor, Tensor, Tensor]:
    """log E[w], (B, K, J), tilted means, (B, K, J, D), and covariances M, (T, C, J, D, D)."""

    c, b, precision = exponents
    means, roots = components.means[:, :, None], components.roots[:, :, None]
    inner = roots.mT @ precision @ roots
    inner = inner + torch.eye(inner.shape[-1], dtype=inner.dtype)
    factor, failed = torch.linalg.cholesky_ex(inner)
    if bool((failed > 0).any()):
        raise ValueError(
            "the tilted law does not exist: its weight grows faster than the law decays"
        )
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # of I + P H, (T, C, J)
    half = torch.linalg.solve_triangular(factor, roots.mT, upper=False)
    covariances = half.mT @ half  # M = roots (I + roots' H roots)^-1 roots'

    pull = torch.einsum("jde,bke->bkjd", precision, components.means)
    gradient = b - pull
    move = _apply(covariances, gradient)
    log_e = c + (means * (b - 0.5 * pull)).sum(-1) + 0.5 * (gradient * move).sum(-1) - 0.5 * log_det
    return log_e, means + move, covariances


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Products of (T, C, J, D, D) with (B, K, J, D), without expanding shared matrices."""

    letters = ("b" if matrices.shape[0] > 1 else "") + ("k" if matrices.shape[1] > 1 else "")
    shape = [size for size in matrices.shape[:2] if size > 1]
    matrices = matrices.reshape(*shape, *matrices.shape[2:])
    return torch.einsum(f"{letters}jde,bkje->bkjd", matrices, vectors)


def _tilt_step(
    threshold: float, log_height: float, components: _Components
) -> tuple[Tensor, Tensor]:
    mean = components.means[..., 0]
    std = components.roots[..., 0, 0].abs().expand_as(mean)
    side = torch.where(mean >= threshold, torch.inf, -torch.inf).to(mean)
    z = torch.where(std > 0, (mean - threshold) / std, side)
    above = torch.special.log_ndtr(z) + log_height
    log_e = torch.logaddexp(torch.special.log_ndtr(-z), above)
    log_density = -0.5 * (z**2 + torch.log(torch.tensor(2 * torch.pi, dtype=z.dtype)))
    move = std * (torch.exp(log_density + log_height - log_e) - torch.exp(log_density - log_e))
    return log_e[..., None], (mean + move)[..., None, None]
