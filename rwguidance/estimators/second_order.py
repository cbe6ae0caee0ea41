r"""The plug-in estimator of second order: it minds the spread of the clean state.

To second order around the posterior mean :math:`D = E[x_0 | x_t]`, the log-weight has gradient g
and curvature :math:`-H`, and on a Gaussian posterior of covariance P it moves the mean by

.. math:: \Delta = P \, (I + H P)^{-1} g = (P^{-1} + H)^{-1} g, \qquad
    \log h_t = \log w(D) + \tfrac12 \, g^\top \Delta - \tfrac12 \log \det(I + P H).

The first-order plug-in, :math:`P g`, overshoots by :math:`I + P H`. Neither matrix is ever formed:
conjugate gradients in the inner product of P take one product with P and one with H an iteration.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..support import checks
from ..support.describe import summary
from ..tilt import Tilt
from .base import (
    ConditionalExpectation,
    Estimate,
    gradient_to_shift,
    gradients_of,
    input_gradient,
    shift_norm,
)
from .plug_in import isotropic_variance

__all__ = ["SecondOrderPlugIn"]

Product = Callable[[Tensor], Tensor]
r"""Multiplies states, (B, \*event), each with the matrix of its own sample."""


class SecondOrderPlugIn(ConditionalExpectation):
    r"""Evaluates the tilt at the posterior mean to second order; needs two derivatives of it.

    Exact for Gaussian laws and quadratic rewards after as many iterations as the state has
    dimensions, and in practice after a few: as many as HP has eigenvalues that differ. It samples
    no tilted law otherwise: it never chooses between modes, and trusts the curvature at one point.
    Where the curvature makes :math:`I + P H` indefinite, as where a weight grows faster than the
    posterior decays, there is no such minimum: iterations end at the last that was sound, at
    the latest with the first-order shift. Rewards that are piecewise linear, as networks of
    rectifiers are, have no curvature, and are treated to first order.

    With the Jacobian, P is the model's own, a product with which is a backward pass through it;
    without, that of an isotropic Gaussian prior, as in :class:`~rwguidance.PlugIn`, which needs no
    backward pass and is defined at both ends of the path. One estimate costs one call of the model,
    one backward pass through it per iteration and one more (with the Jacobian), and two backward
    passes through reward and decoder per iteration.

    Reported as ``log_h`` is the value above without the determinant, which is constant in the state
    for Gaussian laws and quadratic rewards. The diagnostics are ``shift_norm`` and ``residual``,
    the length of what is left of g in the inner product of P, relative to that of g.

    Arguments:
        tilt: The tilt; its rewards must be twice differentiable in the state.
        jacobian: Whether to differentiate through the model.
        iterations: Number of iterations, at least 1. They end early where the residual is small.
        prior_variance: Variance of the data, per dimension, in squared data units; used by
            `jacobian=False`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of its range.

    References:
        | On the Guidance of Flow Matching (Feng et al., 2025), arXiv:2502.02150
        | Damping: arXiv:2606.02884
        | Methods of Conjugate Gradients for Solving Linear Systems (Hestenes & Stiefel, 1952)
    """

    depends_on = ("tilt", "jacobian", "iterations", "prior_variance")

    def __init__(
        self,
        tilt: Tilt,
        jacobian: bool = True,
        iterations: int = 8,
        prior_variance: float = 1.0,
    ) -> None:
        super().__init__()
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        self.tilt = tilt
        self.jacobian = checks.flag("jacobian", jacobian)
        self.iterations = checks.integer("iterations", iterations, 1)
        self.prior_variance = checks.number("prior_variance", prior_variance, above=0)

    def __repr__(self) -> str:
        names = ("tilt", "jacobian", "iterations", "prior_variance")
        return summary(self, **{name: getattr(self, name) for name in names})

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        with gradients_of(x_t) as x, torch.set_grad_enabled(self.jacobian):
            prediction = model(x, t, condition)
            known = prediction.detach()

            def by_model(v: Tensor) -> Tensor:
                """Products with the model's posterior covariance, by a backward pass."""

                inner = (prediction.mean * v).flatten(1).sum(1)
                gradient = input_gradient(inner, x, "the prediction", retain_graph=True)
                return gradient_to_shift(gradient, known, "use jacobian=False")

            variance = isotropic_variance(known.scales, self.prior_variance)
            covariance: Product = by_model if self.jacobian else lambda v: variance * v
            with gradients_of(known.mean) as mean:
                log_w = self.tilt(mean, condition)
                gradient, curvature = _derivatives(log_w, mean)
                shift, residual = solve(covariance, curvature, gradient, self.iterations)
        gain = 0.5 * (gradient * shift).flatten(1).sum(1)
        diagnostics = {"shift_norm": shift_norm(shift), "residual": residual}
        return Estimate(known, log_w.detach() + gain, shift, diagnostics)


def _derivatives(log_w: Tensor, mean: Tensor) -> tuple[Tensor, Product]:
    """The gradient of log-weights in the means, and products with their curvature."""

    slope = input_gradient(log_w, mean, "the log-weight", create_graph=True)

    def curvature(v: Tensor) -> Tensor:
        product = None
        if slope.requires_grad:  # else the log-weight is linear
            inner = (slope * v).sum()
            (product,) = torch.autograd.grad(inner, mean, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if product is None else -product

    return slope.detach(), curvature


def solve(
    covariance: Product, curvature: Product, gradient: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    r"""Returns :math:`P (I + H P)^{-1} g` by conjugate gradients in the inner product of P.

    Arguments:
        covariance: Products with P, symmetric and not negative.
        curvature: Products with H, symmetric.
        gradient: The gradients g, with shape (B, \*event).
        iterations: Number of iterations, at most.

    Returns:
        The solutions, with shape (B, \*event), and the relative lengths of their residuals, (B,).
    """

    dot = lambda a, b: (a * b).flatten(1).sum(1)
    wide = lambda v: v.reshape(-1, *(1,) * (gradient.ndim - 1))
    enough = torch.finfo(gradient.dtype).eps ** 2
    residual = direction = gradient
    moved = covariance(residual)  # P times the direction
    start = square = dot(residual, moved)
    shift, active = torch.zeros_like(gradient), torch.ones_like(square, dtype=torch.bool)
    for number in range(iterations):
        image = direction + curvature(moved)
        power = dot(moved, image)
        active = active & (power > 0) & (square > enough * start)
        step = torch.where(active, square / power, 0.0 if number else 1.0)
        shift = shift + wide(step) * moved
        if not bool(active.any()):
            break
        residual = residual - wide(step) * image
        product = covariance(residual)
        new = dot(residual, product)
        ratio = torch.where(active, new / square, 0.0)
        direction, moved = residual + wide(ratio) * direction, product + wide(ratio) * moved
        square = torch.where(active, new, square)
    left = torch.where(start > 0, (square / start).clamp_min(0).sqrt(), 0.0)
    return shift, left
