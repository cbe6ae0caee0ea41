"""Random problems for the property tests: laws, tilts and states that a path visits."""

import torch
from hypothesis import strategies as st

from common import randn
from rwguidance import Tilt
from rwguidance.toy import Bumps, Empirical, Gaussian, GaussianMixture, Linear, Quadratic, Step

TILTS = ("linear", "quadratic", "indefinite", "bumps", "sum")
"""Tilts that are closed in every dimension; "step" is closed in one."""

LAWS = ("gaussian", "mixture", "shared", "blurred", "points")

EPS = torch.finfo(torch.float64).eps

all_times = st.one_of(st.floats(0.02, 0.98), st.sampled_from([0.0, 1.0]))
"""Inner times and both ends."""


def rand(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def symmetric(seed, k, d, low, high):
    """Random symmetric matrices with eigenvalues in [low, high], shape (k, d, d)."""

    axes, _ = torch.linalg.qr(randn(seed, k, d, d))
    values = low + (high - low) * rand(seed + 1, k, 1, d)
    matrices = (axes * values) @ axes.mT
    return 0.5 * (matrices + matrices.mT)


def mixture(seed, d, k=3, shared=False):
    covariances = symmetric(seed + 1, 1 if shared else k, d, 0.2, 2.0)
    return GaussianMixture(randn(seed + 2, k), 1.5 * randn(seed + 3, k, d), covariances)


def law_of(kind, seed, d):
    if kind == "gaussian":
        return Gaussian(randn(seed, d), symmetric(seed + 1, 1, d, 0.2, 2.0)[0])
    if kind in ("mixture", "shared"):
        return mixture(seed, d, shared=kind == "shared")
    bandwidth = 0.5 if kind == "blurred" else 0.0
    return Empirical(randn(seed, 12, d), bandwidth, log_weights=randn(seed + 1, 12))


def tilt_of(kind, seed, d):
    """A tilt of order one nat, with beta other than 1 wherever the closed form allows it."""

    beta = 0.5 + 1.5 * float(rand(seed, 1))
    if kind == "linear":
        return Tilt(Linear(randn(seed + 1, d) * d**-0.5, c=0.3), beta)
    if kind == "quadratic":
        precision = beta * symmetric(seed + 1, 1, d, 0.1, 1.5)[0] * d**-0.5
        return Tilt(Quadratic(randn(seed + 2, d), precision, b=randn(seed + 3, d)), beta)
    if kind == "indefinite":  # above -1/2, the precision of the widest component
        precision = beta * symmetric(seed + 1, 1, d, -0.3, 0.4)[0]
        return Tilt(Quadratic(0.3 * randn(seed + 2, d), precision), beta)
    if kind == "bumps":
        return Tilt(bumps(seed + 1, d), 1.0)
    if kind == "step":
        return Tilt(Step(float(randn(seed, 1)), float(2 * randn(seed + 1, 1))), beta)
    assert kind == "sum"
    quadratic = Quadratic(randn(seed + 2, d), symmetric(seed + 3, 1, d, 0.1, 0.5)[0])
    linear = Linear(randn(seed + 4, d) * d**-0.5)
    return Tilt([linear, bumps(seed + 5, d), quadratic], [beta, 1.0, 2 * beta])


def bumps(seed, d):
    precisions = symmetric(seed, 2, d, 0.1, 0.6) * d**-0.5
    return Bumps(randn(seed + 1, 2), randn(seed + 2, 2, d), precisions)


def visited(law, schedule, t, seed, n):
    """States that the path really visits: noised draws of the law."""

    x_0 = law.sample(n, torch.Generator().manual_seed(seed))
    return schedule.perturb(x_0, t, randn(seed + 1, *x_0.shape))


def noised(law, schedule, t):
    """The exact law of x_t, written without any posterior: components alpha mu, a^2 C + s^2 I."""

    scales = schedule.at(t, torch.zeros(1, 1, dtype=torch.float64))
    alpha, sigma = scales.alpha.item(), scales.sigma.item()
    if isinstance(law, Empirical):
        d = law.points[0].numel()
        means = law.points.flatten(1)
        covariances = law.bandwidth**2 * torch.eye(d, dtype=torch.float64)[None]
    else:
        means, covariances = law.means, law.covariances
    identity = torch.eye(means.shape[1], dtype=torch.float64)
    return GaussianMixture(
        law.log_weights, alpha * means, alpha**2 * covariances + sigma**2 * identity
    )


def scales_at(schedule, t):
    scales = schedule.at(t, torch.zeros(1, 1, dtype=torch.float64))
    return tuple(
        value.item() for value in (scales.alpha, scales.sigma, scales.alpha_rate, scales.sigma_rate)
    )
