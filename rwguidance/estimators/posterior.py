r"""The estimator by draws of the posterior, :math:`X_k \sim p(x_0 | x_t)`, with log-weights.

With log-importances :math:`\log q_k` of the draws (zero where they are exact),

.. math:: \log \hat h_t = \mathrm{LSE}(\log q + \log w) - \mathrm{LSE}(\log q), \qquad
    \hat\Delta = \sum_k (\tilde\omega_k - \omega_k) \, X_k

to zeroth order, where :math:`\omega` and :math:`\tilde\omega` are the softmaxes of :math:`\log q`
and of :math:`\log q + \log w`, or :math:`(\sigma_t^2 / \alpha_t) \nabla \log \hat h_t(x_t)` through
the draws to first order. Unlike a bank of the prior, draws of the posterior are where the kernel
looks at every t, and so no dimension is too high for them; each costs network calls.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..bank import Bank
from ..models import Model
from ..prediction import Prediction
from ..schedules import working_dtype
from ..support import checks
from ..support.conditions import take
from ..support.describe import summary
from ..support.randomness import Generators, generator_for, normal
from ..tilt import Tilt
from ..weights import ess
from .base import (
    ConditionalExpectation,
    Estimate,
    gradient_to_shift,
    gradients_of,
    input_gradient,
    shift_norm,
)
from .importance import ImportanceSampling
from .posterior_draws import PosteriorDraws

__all__ = ["PosteriorSampling"]

_BISECTIONS = 60
"""Halvings of the bracket of a coefficient, enough for double precision."""


class PosteriorSampling(ConditionalExpectation):
    r"""Weighs draws of the posterior by the tilt; first order also takes the reward's gradient.

    Exact in the limit of draws if these are of :math:`p(x_0 | x_t)`, for any law, tilt and path.
    With n draws both answers are self-normalized. With :math:`\chi^2` the relative variance of w
    given :math:`x_t`, :math:`\log \hat h_t` is too low by :math:`\chi^2 / 2 n` on average, and the
    shift too short by a share of order :math:`\chi^2 / n`; both fall as 1 / n.

    Zeroth order needs values of the reward alone. Its squared error relative to the shift grows as
    d / n with the dimension d. First order is free of noise where the reward is linear and the
    posterior Gaussian. It fails for rewards with steps, where their gradients cannot be trusted,
    and between modes at high noise: there the few draws that are about to change modes carry all of
    the gradient, and its error is many times the shift where that of zeroth order is a half. Where
    the state says nothing of :math:`x_0` (:math:`\alpha_t = 0`, and the time
    :attr:`rwguidance.Model.start`), draws are of the prior, and zeroth order is taken.

    A bank makes a control variate: along the shift that it estimates, the draws are reweighted so
    that their mean is the model's own, :math:`E[x_0 | x_t]`, which is known. That takes the noise
    of what is linear in this direction from :math:`\log \hat h_t`, whatever the bank, and costs
    no call. The shift gains little: it compares two means of the same draws.

    The noise of draw k at time t is a function of (`seed`, t, k), so that an estimate is a function
    of the state; errors of states at one time are not independent. One estimate costs one call at
    the states and n times those of `draws`, for n B states at once.

    The diagnostics are, per sample, ``ess_tilted``, the effective draws of :math:`\tilde\omega`,
    ``max_weight``, its largest, and ``shift_norm``.

    Arguments:
        tilt: The tilt; differentiable for first order.
        draws: The way to draw from the posterior.
        n: Number of draws of each state, at least 1 (2 for zeroth order, which compares them).
        first_order: Whether to differentiate through the draws.
        bank: Draws of the prior for the control variate, for every condition; None for none.
        seed: The seed of the noise.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `n` is too small, or, when it is called, if all draws of a state have zero
            weight.

    References:
        | GLASS Flows (Holderrieth et al., 2025), arXiv:2509.25170
        | On the Guidance of Flow Matching (Feng et al., 2025), arXiv:2502.02150
    """

    depends_on = ("tilt", "draws", "n", "first_order", "control", "seed")

    def __init__(
        self,
        tilt: Tilt,
        draws: PosteriorDraws,
        n: int = 16,
        first_order: bool = False,
        bank: Bank | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        checks.instance("draws", draws, PosteriorDraws, "PosteriorDraws such as InnerFlow(8)")
        checks.instance("bank", bank, (Bank, type(None)), "a Bank or None")
        self.tilt = tilt
        self.draws = draws
        self.first_order = checks.flag("first_order", first_order)
        self.n = checks.integer("n", n, 1 if self.first_order else 2)
        self.control = None if bank is None else ImportanceSampling(bank, tilt)
        self.seed = checks.integer("seed", seed)

    def __repr__(self) -> str:
        names = ("tilt", "draws", "n", "first_order", "seed")
        control = {} if self.control is None else {"control": self.control}
        return summary(self, **{name: getattr(self, name) for name in names}, **control)

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        times = t.expand(len(x_t))
        parts, order = [], []
        for time in times.unique():
            rows = (times == time).nonzero().flatten().tolist()
            parts.append(self._estimate(model, x_t[rows], time.cpu(), take(condition, rows)))
            order += rows
        back = torch.tensor(order).argsort().to(x_t.device)
        merged = {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
        mean, noise, log_h, shift = (merged.pop(k) for k in ("mean", "noise", "log_h", "shift"))
        prediction = Prediction(mean, noise, model.schedule.at(t, like=x_t))
        return Estimate(prediction, log_h, shift, {**merged, "shift_norm": shift_norm(shift)})

    def _estimate(self, model: Model, x_t: Tensor, t: Tensor, condition: Any) -> dict[str, Tensor]:
        """The estimate for states of one time, by name."""

        alpha = model.schedule.at(t, like=x_t).alpha
        first_order = self.first_order and float(alpha) > 0 and t != model.start
        with gradients_of(x_t) if first_order else _no_gradients(x_t) as x:
            prediction = model(x, t, condition)
            x_0, log_w, log_q = self._weighed(model, prediction, x, t, condition)
            if self.control is not None:
                log_q = log_q + self._calibration(model, prediction, x, t, condition, x_0, log_q)
            log_h = (log_q + log_w).logsumexp(1) - log_q.logsumexp(1)
            _check_weights(log_h, t)
            gradient = input_gradient(log_h, x, "the log-weight") if first_order else None
        prediction, log_w, log_q = prediction.detach(), log_w.detach(), log_q.detach()
        tilted = (log_q + log_w).softmax(1)
        if gradient is not None:
            shift = gradient_to_shift(gradient, prediction, "use first_order=False")
        else:
            weights = (tilted - log_q.softmax(1)).to(x_0)
            shift = torch.einsum("bk,bk...->b...", weights, x_0)
        return {
            "mean": prediction.mean,
            "noise": prediction.noise,
            "log_h": log_h.detach(),
            "shift": shift.to(prediction.mean.dtype),
            "ess_tilted": ess(log_q + log_w),
            "max_weight": tilted.amax(1),
        }

    def _weighed(
        self, model: Model, prediction: Prediction, x_t: Tensor, t: Tensor, condition: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws less the mean, (B, n, *event), their log-weights and log-importances, (B, n)."""

        b = len(x_t)
        rows = [i for i in range(b) for _ in range(self.n)]
        name = f"{float(t):.9f}"  # of the time, whatever its last bits
        generator = [generator_for(self.seed, name, k) for _ in range(b) for k in range(self.n)]
        states, conditions = x_t[rows], take(condition, rows)
        x_0, log_q = self._draw(model, prediction, states, rows, t, conditions, generator)
        log_w = self.tilt(x_0, conditions)
        log_q = log_q.to(working_dtype(log_w.dtype, log_q.dtype))
        shape = (b, self.n)
        # Less the mean, of which they differ little where sigma_t is small.
        centered = x_0.reshape(*shape, *x_t.shape[1:]) - prediction.mean[:, None]
        return centered, log_w.reshape(shape), log_q.reshape(shape)

    def _draw(
        self,
        model: Model,
        prediction: Prediction,
        states: Tensor,
        rows: list[int],
        t: Tensor,
        condition: Any,
        generator: Generators,
    ) -> tuple[Tensor, Tensor]:
        """Draws for states that were repeated, as `rows` says, with their log-importances."""

        scales = model.schedule.at(t, like=states)
        base = model.starting(None)  # states of these runs are those of the path
        if t == model.start:  # noise that knows nothing of x_0: any other would do as well
            noise = normal(states.shape, generator, states.device, states.dtype)
            states = (scales.sigma * noise).to(states.dtype)
            return self.draws.draw(base, states, t, condition, generator)
        if scales.sigma == 0:
            mean = prediction.mean[rows]
            return mean, mean.new_zeros(len(rows))
        known = Prediction(prediction.mean[rows], prediction.noise[rows], scales)
        base = _Known(base, states, known)
        return self.draws.draw(base, states, t, condition, generator)

    def _calibration(
        self,
        model: Model,
        prediction: Prediction,
        x_t: Tensor,
        t: Tensor,
        condition: Any,
        x_0: Tensor,
        log_q: Tensor,
    ) -> Tensor:
        """Changes of log-importances after which draws have the model's mean along one direction.

        Returns:
            The changes in nats, with shape (B, n).
        """

        assert self.control is not None
        with torch.no_grad():
            known = _Known(model, x_t, prediction).starting(model.start)
            direction = self.control(known, x_t, t, condition).shift
            along = torch.einsum("b...,bk...->bk", direction.to(x_0.dtype), x_0)
            return centering(along.to(log_q.dtype), log_q)


class _Known(Model):
    """A model whose answer for one batch of states is known, and is not asked for again."""

    depends_on = ("model",)

    def __init__(self, model: Model, x_t: Tensor, prediction: Prediction) -> None:
        super().__init__(model.schedule)
        self.model, self.x_t, self.prediction = model, x_t, prediction

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Prediction:
        return self.prediction if x_t is self.x_t else self.model(x_t, t, condition)


def centering(values: Tensor, log_q: Tensor) -> Tensor:
    r"""Returns the multiple :math:`\lambda v_k` with which the mean of `values` becomes zero.

    .. math:: \sum_k v_k \, q_k \, e^{\lambda v_k} = 0

    has one solution if values of both signs have weight. Else the values cannot be centered, and
    the multiple is zero.

    Arguments:
        values: Values v with mean zero under the law of which they are draws, with shape (B, n).
        log_q: Log-weights, in nats, with shape (B, n).
    """

    size = values.abs().amax(1, keepdim=True)
    unit = values / size.clamp_min(torch.finfo(values.dtype).tiny)
    # Beyond 50 nats between the largest value and its mean the draws cannot tell what the mean is.
    low, high = unit.new_full((len(unit), 1), -50.0), unit.new_full((len(unit), 1), 50.0)
    mean = lambda factor: ((log_q + factor * unit).softmax(1) * unit).sum(1, keepdim=True)
    solvable = (mean(low) < 0) & (mean(high) > 0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = mean(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(solvable, (low + high) / 2 * unit, torch.zeros_like(unit))


@contextmanager
def _no_gradients(x_t: Tensor) -> Iterator[Tensor]:
    with torch.no_grad():
        yield x_t


def _check_weights(log_h: Tensor, t: Tensor) -> None:
    """Raises ValueError where all draws of a state have zero weight."""

    bad = (~log_h.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"all draws of states {bad[:5]} at t = {float(t):.3g} have zero weight (reward -inf); "
            "use more draws"
        )
