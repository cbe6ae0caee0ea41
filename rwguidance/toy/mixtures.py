"""Gaussians, mixtures of them, and mixtures that are cut in two by a step reward."""

from typing import ClassVar

import torch
from torch import Tensor

from ..schedules import Schedule, working_dtype
from ..support import checks
from ..support.describe import summary
from ..tilt import Tilt
from .components import Components, moments, step_of, tilt_components, tilt_quadratic
from .law import Law, TiltableLaw, check_draws
from .rewards import NoClosedForm, Numbers, exponents_of, numbers_of

__all__ = ["Gaussian", "GaussianMixture", "StepTilted"]


class GaussianMixture(TiltableLaw):
    r"""Mixture :math:`\sum_k \pi_k N(\mu_k, C_k)` with full covariances.

    Arguments:
        log_weights: Log of the weights, up to a constant, with shape (K,).
        means: Means of the components, in data units, with shape (K, D).
        covariances: Covariances of the components, positive definite, with shape (K, D, D), or
            (1, D, D) if shared.
    """

    depends_on: ClassVar[tuple[str, ...]] = ("log_weights", "means", "covariances")

    def __init__(self, log_weights: Numbers, means: Numbers, covariances: Numbers) -> None:
        weights = numbers_of("log_weights", log_weights)
        self.means = numbers_of("means", means)
        self.covariances = numbers_of("covariances", covariances)
        if weights.shape != self.means.shape[:1] or self.means.ndim != 2 or len(weights) == 0:
            raise ValueError(
                "log_weights and means must have shapes (K,) and (K, D) with K >= 1, "
                f"got {tuple(weights.shape)} and {tuple(self.means.shape)}"
            )
        self.log_weights = weights.log_softmax(-1)
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

    def __repr__(self) -> str:
        many = f", {len(self.means)} components" if type(self) is GaussianMixture else ""
        return f"{type(self).__name__}(dimension {self.event[0]}{many})"

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        check_draws(n, generator)
        index = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, *self.event, generator=generator, dtype=torch.float64)
        roots = self._roots
        if len(roots) == 1:
            (root,) = roots
            return self.means[index] + z @ root.T
        return self.means[index] + torch.einsum("nij,nj->ni", roots[index], z)

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
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        posterior = self._posterior(x_t, t, schedule)
        log_e, means = tilt_components(tilt, posterior)
        return moments(posterior, log_e, means, working_dtype(x_t.dtype))

    def tilted(self, tilt: Tilt) -> Law:
        """Returns the tilted law: a mixture, or a :class:`StepTilted` one for a step reward."""

        checks.instance("tilt", tilt, Tilt, "a Tilt")
        (d,) = self.event
        step = step_of(tilt, d)
        if step is not None:
            return StepTilted(self, tilt)
        exponents = exponents_of(tilt, d)
        (log_e,), (means,), (covariances,) = tilt_quadratic(exponents, self._prior)
        k, j = log_e.shape
        if len(covariances) == 1 and j == 1:
            (covariances,) = covariances
        else:
            covariances = covariances.expand(k, j, -1, -1).flatten(0, 1)
        log_weights = (self.log_weights[:, None] + log_e).flatten()
        means = means.flatten(0, 1)
        if len(log_weights) == 1:
            (mean,), (covariance,) = means, covariances
            return Gaussian(mean, covariance)
        return GaussianMixture(log_weights, means, covariances)

    def log_normalizer(self, tilt: Tilt) -> Tensor:
        r"""Logarithm of :math:`Z = E[w(x_0)]`, in nats, a scalar."""

        (log_e,), _ = tilt_components(tilt, self._prior)
        return (self.log_weights[:, None] + log_e).flatten().logsumexp(0)

    @property
    def _roots(self) -> Tensor:
        """Square roots of the covariances, with shape (K, D, D), or (1, D, D) if shared."""

        return self._axes * self._variances.sqrt()[:, None, :]

    @property
    def _prior(self) -> Components:
        """The components of the law itself, as those of one state."""

        return Components(self.log_weights[None], self.means[None], self._roots[None])

    def _check(self, x: Tensor) -> Tensor:
        checks.states("states", x)
        if x.ndim != 2 or tuple(x.shape[1:]) != self.event:
            raise ValueError(f"states must have shape (B, {self.event[0]}), got {tuple(x.shape)}")
        return x.double()

    def _expand(self, values: Tensor) -> Tensor:
        return values.expand(len(self.log_weights), *values.shape[1:])

    def _log_density(self, z: Tensor, variances: Tensor) -> Tensor:
        """Weighted component log-densities of residuals in the eigenbasis, (B, K)."""

        constant = torch.log(2 * torch.pi * variances).sum(-1)
        return self.log_weights - 0.5 * ((z**2 / variances).sum(-1) + constant)

    def _posterior(self, x_t: Tensor, t: float | Tensor, schedule: Schedule) -> Components:
        x = self._check(x_t)
        checks.instance("schedule", schedule, Schedule, "a Schedule")
        scales = schedule.at(t, like=x)
        alpha, sigma = scales.alpha[..., None], scales.sigma[..., None]  # (T, 1, 1)
        axes = self._expand(self._axes)
        marginal = alpha**2 * self._variances + sigma**2
        z = torch.einsum("bki,kij->bkj", x[:, None] - alpha * self.means, axes)
        log_weights = self._log_density(z, marginal).log_softmax(1)
        gain = alpha * self._variances / marginal
        means = self.means + torch.einsum("bkj,kij->bki", gain * z, axes)
        root_variances = (sigma**2 * self._variances / marginal).sqrt()
        return Components(log_weights, means, self._axes * root_variances[..., None, :])


class Gaussian(GaussianMixture):
    r"""Gaussian :math:`N(\mu, C)`.

    Arguments:
        mean: The mean, in data units, with shape (D,).
        covariance: The covariance, positive definite, with shape (D, D).
    """

    depends_on = GaussianMixture.depends_on

    def __init__(self, mean: Numbers, covariance: Numbers) -> None:
        mean, covariance = numbers_of("mean", mean), numbers_of("covariance", covariance)
        if mean.ndim != 1:
            raise ValueError(f"mean must have shape (D,), got {tuple(mean.shape)}")
        super().__init__(torch.zeros(1), mean[None], covariance[None])
        self.mean = mean
        self.covariance = covariance


class StepTilted(Law):
    r"""A one-dimensional mixture tilted by a step: a mixture of truncated Gaussians.

    Arguments:
        base: The law that is tilted, of dimension 1.
        tilt: A tilt with one :class:`Step` reward.
    """

    depends_on = ("base", "tilt")

    def __init__(self, base: GaussianMixture, tilt: Tilt) -> None:
        checks.instance("base", base, GaussianMixture, "a GaussianMixture")
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        (d,) = base.event
        if step_of(tilt, d) is None:
            raise NoClosedForm("StepTilted needs a tilt with one Step reward, in one dimension")
        self.base = base
        self.tilt = tilt
        self.event = (1,)

    def __repr__(self) -> str:
        return summary(self, base=self.base, tilt=self.tilt)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        check_draws(n, generator)
        step = step_of(self.tilt, 1)
        assert step is not None
        threshold, log_height = step
        (mean,) = self.base.means.unbind(1)
        (std,) = self.base._expand(self.base._variances).sqrt().unbind(1)
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
