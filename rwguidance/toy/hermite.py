"""Numerical oracles for rewards without a closed form, in one dimension."""

import torch
from torch import Tensor

from ..schedules import Schedule, working_dtype
from ..support import checks
from ..tilt import Tilt
from .mixtures import GaussianMixture

__all__ = ["quadrature"]


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

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the law has more than one dimension, or `nodes` is less than 1.
    """

    checks.instance("law", law, GaussianMixture, "a GaussianMixture")
    checks.instance("tilt", tilt, Tilt, "a Tilt")
    nodes = checks.integer("nodes", nodes, 1)
    if law.event != (1,):
        raise ValueError(f"quadrature is for laws of dimension 1, got {law.event[0]}")
    from numpy.polynomial.hermite_e import hermegauss

    points, weights = (torch.as_tensor(values, dtype=torch.float64) for values in hermegauss(nodes))
    posterior = law._posterior(x_t, t, schedule)
    (root,) = posterior.roots.unbind(-1)
    x = posterior.means + root * points  # (B, K, nodes)
    log_rho = posterior.log_weights[..., None] + weights.log().log_softmax(0)
    log_w = tilt(x.reshape(-1, 1)).reshape(x.shape)
    log_tilted = (log_rho + log_w).flatten(1)
    difference = log_tilted.softmax(1) - log_rho.flatten(1).exp()
    shift = (difference * x.flatten(1)).sum(1, keepdim=True)
    dtype = working_dtype(x_t.dtype)
    return log_tilted.logsumexp(1).to(dtype), shift.to(dtype)
