"""Comparing samples with samples: how far is a guided law from its target?"""

import torch
from torch import Tensor

from .support import checks

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(
    x: Tensor, y: Tensor, projections: int = 256, generator: torch.Generator | None = None
) -> float:
    r"""Sliced 2-Wasserstein distance between two sets of samples, in data units.

    .. math:: \mathrm{SW}_2^2 = E_\theta \int_0^1
        \big( F_{\theta^\top x}^{-1}(u) - F_{\theta^\top y}^{-1}(u) \big)^2 du

    It is biased upwards for finite samples: compare with the distance between two sets of draws of
    the target itself.

    Arguments:
        x: Samples, with shape (N, \*event).
        y: Samples, with shape (M, \*event). If M differs from N, the larger set's quantiles are
            taken at those of the smaller.
        projections: Number of random directions.
        generator: Source of randomness of the directions.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a set is empty or the event shapes differ.
    """

    checks.states("x", x, finite=True)
    checks.states("y", y, finite=True)
    projections = checks.integer("projections", projections, 1)
    checks.instance(
        "generator", generator, (torch.Generator, type(None)), "a torch.Generator or None"
    )
    if x.shape[1:] != y.shape[1:] or len(x) == 0 or len(y) == 0:
        raise ValueError(
            "x and y must be non-empty sets of states of one shape, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = x.flatten(1).double(), y.flatten(1).double()
    theta = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    theta = (theta / theta.norm(dim=0)).to(x.device)
    n = min(len(x), len(y))
    u = (torch.arange(n, dtype=torch.float64, device=x.device) + 0.5) / n
    quantiles = [
        (z @ theta).sort(dim=0).values[(u * len(z)).long().clamp(max=len(z) - 1)] for z in (x, y)
    ]
    return float((quantiles[0] - quantiles[1]).square().mean().sqrt())
