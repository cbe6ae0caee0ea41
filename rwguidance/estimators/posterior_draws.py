r"""Ways to draw clean states from :math:`p(x_0 | x_t)` with a model of p, and nothing trained.

Each says which law its draws have, when they are exact, and what a draw costs. The last call of a
run gives its mean as the draw, which on a path that ends in clean data is what a step of any
sampler to the end gives. All the randomness of a draw comes from a generator of its own, so that
a draw is a function of the state.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models import Model
from ..noise_space.generators import flow_map
from ..prediction import Prediction
from ..samplers import DDIM, Sampler, check_times, sample
from ..schedules import RectifiedSchedule, working_dtype
from ..support import checks
from ..support.describe import summary
from ..support.randomness import Generators, normal

__all__ = ["FlowMap", "InnerFlow", "PosteriorDraws", "Renoising"]


class PosteriorDraws(ABC):
    r"""A way to draw from :math:`p(x_0 | x_t)`."""

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def __repr__(self) -> str:
        return summary(self, **vars(self))

    @abstractmethod
    def draw(
        self, model: Model, x_t: Tensor, t: Tensor, condition: Any, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        r"""Returns one clean state per state, and their log-importances.

        Both carry gradients in the states where gradients are recorded.

        Arguments:
            model: The model.
            x_t: Noisy states, with shape (N, \*event).
            t: The time of all, float64, with shape (), where :math:`\sigma_t > 0`.
            condition: Conditions of the N states.
            generator: Source of randomness, one per state.

        Returns:
            Clean states, with shape (N, \*event), and log-importances in nats, up to a constant
            per state and time, with shape (N,).
        """


class Renoising(PosteriorDraws):
    r"""Denoises and noises anew, down to the data: the sampler runs on from the state itself.

    Each step of DDIM(eta=1) predicts the clean state and draws the next one from
    :math:`q(x_s | x_t, x_0)` at the prediction. Draws follow :math:`p(x_0 | x_t)` in the limit of
    many times; the error is of first order in a step, and leaves too little spread: with one call
    the draw is the mean. A draw costs a call per time below t, and the first call is that of the
    estimator.

    Arguments:
        times: Times of a run, as :func:`rwguidance.sample` takes them, of which those below t are
            used: those of the model's own sampler, or more of them.
        sampler: The sampler, stochastic; others return one and the same state for all draws.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the times are none of a run.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), arXiv:2006.11239
    """

    depends_on = ("times", "sampler")

    def __init__(self, times: Tensor | Sequence[float], sampler: Sampler | None = None) -> None:
        self.times = tuple(check_times(times).tolist())
        self.sampler = DDIM(eta=1.0) if sampler is None else sampler
        checks.instance("sampler", self.sampler, Sampler, "a Sampler such as DDIM(eta=1)")

    def draw(
        self, model: Model, x_t: Tensor, t: Tensor, condition: Any, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        x_0 = _run(model, self.sampler, x_t, _below(self.times, t), condition, generator)
        return x_0, _alike(x_0)


class InnerFlow(PosteriorDraws):
    r"""Runs a flow of the posterior from fresh noise: GLASS.

    A second, independent observation :math:`x_u = (1 - u) \, x_0 + u \, z` of the same clean state
    would leave a posterior that depends on both through one state of the path alone, at the time
    where signal-to-noise ratios add up:

    .. math:: \kappa^2 = \frac{\alpha_t^2}{\sigma_t^2} + \frac{(1 - u)^2}{u^2}, \qquad
        \frac{\alpha_s}{\sigma_s} = \kappa, \qquad
        E[x_0 | x_t, x_u] = E\Big[x_0 \Big| x_s = \frac{\alpha_s}{\kappa^2}
        \Big(\frac{\alpha_t}{\sigma_t^2} x_t + \frac{1 - u}{u^2} x_u\Big)\Big].

    So the model itself predicts along the rectified path from noise to a draw of
    :math:`p(x_0 | x_t)`, and any sampler runs it. Without noise of its own, the map from z to the
    draw is smooth in the state. Draws are exact in the limit of many steps; with one step the draw
    is the mean. A draw costs a call per step (DDIM), and the first call is that of the estimator.

    Arguments:
        steps: Number of steps, at least 1, equal in u.
        sampler: The sampler of the inner path; None is DDIM().

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `steps` is less than 1.

    References:
        | GLASS Flows (Holderrieth et al., 2025), arXiv:2509.25170
        | Diamond Maps (2026), arXiv:2602.05993
    """

    depends_on = ("steps", "sampler")

    def __init__(self, steps: int, sampler: Sampler | None = None) -> None:
        self.steps = checks.integer("steps", steps, 1)
        self.sampler = DDIM() if sampler is None else sampler
        checks.instance("sampler", self.sampler, Sampler, "a Sampler such as DDIM()")

    def draw(
        self, model: Model, x_t: Tensor, t: Tensor, condition: Any, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        noise = normal(x_t.shape, generator, x_t.device, x_t.dtype)
        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        given = _GivenState(model, x_t, t)
        x_0 = _run(given, self.sampler, noise, times, condition, generator)
        return x_0, _alike(x_0)


class FlowMap(PosteriorDraws):
    r"""Looks ahead with the model's own flow: where a sampler without noise carries the state.

    As it is (`renoise` = 0) the one end point stands for all of :math:`p(x_0 | x_t)`. That is no
    law but a point of it, sharper than the mean, and the more typical the nearer t is to 0; one
    draw is enough. With first order it gives the look-ahead gradient, which climbs the reward of
    the end point and does not sample the tilted law.

    With `renoise` the state is first noised to the time s where the log signal-to-noise ratio is
    lower by that much, :math:`x_s = (\alpha_s / \alpha_t) x_t + v \epsilon`, and its end point
    :math:`x_0` is a draw with

    .. math:: \log \frac{p(x_0 | x_t)}{q(x_0)} = \log p_s(x_s)
        - \frac{\|x_t - \alpha_t x_0\|^2}{2 \sigma_t^2} + \frac{\|\epsilon\|^2}{2} + \text{const},

    since the Jacobian of the flow is in both. :math:`\log p_s` is the line integral of the score,
    by Gauss-Legendre quadrature. Exact in the limit of many times, nodes and draws; log-importances
    spread with the dimension, so that few draws count in high dimension, and their gradients, which
    first order takes as well, are noise at the noise end. A draw costs a call per time below s and
    per node.

    Arguments:
        times: Times of a run, as :func:`rwguidance.sample` takes them, of which those below t are
            used: those of a few-step model are the ones it was trained for.
        renoise: Nats of log signal-to-noise ratio that draws lose first, at least 0.
        nodes: Number of nodes of the quadrature, at least 1; 1 is exact for a Gaussian law.
        sampler: The sampler, without randomness; None is DDIM().

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of its range, or the times are none of a run; when it is
            called, if the sampler draws random numbers.

    References:
        | Flow Map Matching (Boffi et al., 2024), arXiv:2406.07507
        | Diamond Maps (2026), arXiv:2602.05993
    """

    depends_on = ("times", "renoise", "nodes", "sampler")

    def __init__(
        self,
        times: Tensor | Sequence[float],
        renoise: float = 0.0,
        nodes: int = 1,
        sampler: Sampler | None = None,
    ) -> None:
        self.times = tuple(check_times(times).tolist())
        self.renoise = checks.number("renoise", renoise, 0)
        self.nodes = checks.integer("nodes", nodes, 1)
        self.sampler = DDIM() if sampler is None else sampler
        checks.instance("sampler", self.sampler, Sampler, "a Sampler such as DDIM()")

    def draw(
        self, model: Model, x_t: Tensor, t: Tensor, condition: Any, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        if not self.renoise:
            x_0 = self._end(model, x_t, t, condition)
            return x_0, _alike(x_0)

        now, s = model.schedule.at(t, like=x_t), self._noisier(model, t)
        then = model.schedule.at(s, like=x_t)
        keep = torch.where(now.alpha > 0, then.alpha / now.alpha, 1.0)
        spread = (then.sigma**2 - (keep * now.sigma) ** 2).clamp_min(0).sqrt()
        noise = normal(x_t.shape, generator, x_t.device, working_dtype(x_t.dtype))
        center, move = keep * x_t, spread * noise
        x_0 = self._end(model, (center + move).to(x_t.dtype), s, condition)
        misfit = (x_t - now.alpha * x_0) / now.sigma
        log_ratio = 0.5 * (noise.square() - misfit.square()).flatten(1).sum(1)
        log_density = self._log_density(model, center, move, x_t.dtype, s, condition)
        return x_0, log_ratio + log_density

    def _end(self, model: Model, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The end points of the flow through states at time t."""

        times = _but_the_last(_below(self.times, t))
        if len(times) > 1:
            gradient = torch.is_grad_enabled()
            x = flow_map(model, self.sampler, times, gradient=gradient)(x, condition)
        return model(x, times[-1], condition).mean

    def _noisier(self, model: Model, t: Tensor) -> Tensor:
        """The time to which states are noised, not beyond the end of the path."""

        schedule = model.schedule
        end = torch.ones_like(t)
        log_snr = torch.maximum(schedule.log_snr(t) - self.renoise, schedule.log_snr(end))
        return torch.minimum(torch.maximum(schedule.time(log_snr), t), end)

    def _log_density(
        self,
        model: Model,
        center: Tensor,
        move: Tensor,
        dtype: torch.dtype,
        s: Tensor,
        condition: Any,
    ) -> Tensor:
        r"""Returns :math:`\log p_s` at the end of the move less that at its start, shape (N,).

        The model sees states in `dtype`.
        """

        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(self.nodes)
        total = move.new_zeros(len(move))
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            x = (center + 0.5 * (node + 1) * move).to(dtype)
            score = model(x, s, condition).score
            total = total + 0.5 * weight * (score * move).flatten(1).sum(1)
        return total


class _GivenState(Model):
    """A model of the clean state given a state: the rectified path of its posterior."""

    depends_on = ("model", "x_t", "t")

    def __init__(self, model: Model, x_t: Tensor, t: Tensor) -> None:
        super().__init__(RectifiedSchedule())
        self.model, self.x_t, self.t = model, x_t, t

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        schedule, inner = self.model.schedule, self.schedule.at(t, like=x_t)
        if bool((inner.alpha == 0).all()):  # noise alone: the state is all there is
            mean = self.model(self.x_t, self.t, condition).mean
            return Prediction.from_mean(mean, x_t, inner)
        outer = schedule.at(self.t, like=x_t)
        total = (outer.alpha / outer.sigma) ** 2 + (inner.alpha / inner.sigma) ** 2
        both = outer.alpha / outer.sigma**2 * self.x_t + inner.alpha / inner.sigma**2 * x_t
        # A path that keeps noise at t = 0 ends there, though the sum has less noise.
        time = schedule.time(total.double().log().flatten()[0].cpu()).clamp(0, 1)
        state = schedule.at(time, like=x_t).alpha * both / total
        mean = self.model(state.to(x_t.dtype), time, condition).mean
        return Prediction.from_mean(mean, x_t, inner)


def _below(times: Sequence[float], t: Tensor) -> Tensor:
    """The time t and those of a run that are smaller."""

    return torch.tensor([float(t), *(s for s in times if s < float(t))], dtype=torch.float64)


def _but_the_last(times: Tensor) -> Tensor:
    return times[:-1] if len(times) > 1 else times


def _run(
    model: Model,
    sampler: Sampler,
    x: Tensor,
    times: Tensor,
    condition: Any,
    generator: Generators,
) -> Tensor:
    """Runs a sampler to the last time but one, where the mean is the clean state."""

    times = _but_the_last(times)
    if len(times) > 1:
        gradient = torch.is_grad_enabled()
        x = sample(model, sampler, x, times, condition, generator, gradient=gradient)
    return model(x, times[-1], condition).mean


def _alike(x_0: Tensor) -> Tensor:
    return x_0.new_zeros(len(x_0), dtype=working_dtype(x_0.dtype))
