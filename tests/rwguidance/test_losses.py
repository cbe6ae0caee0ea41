"""Losses: the minimizer over a family that contains the truth is the truth, derivatives, limits.

The fits are M-estimators: the minimizer of a sample mean of losses is normal around the population
minimizer, with covariance H^-1 S H^-1 / n (H the mean Hessian, S the covariance of the per-sample
gradients). So "recovers the exact coefficients" has a standard error. The broken twins at the end
show that the same fit with a wrong formula leaves it.
"""

import math

import pytest
import torch

from common import SCHEDULES, assert_within, randn
from rwguidance import Tilt
from rwguidance.losses import (
    centered_residual,
    contrastive,
    exp_mse,
    itakura_saito,
    log_mse,
    marginal_residual,
    poisson,
    weighted_bce,
)
from rwguidance.toy import Gaussian, Linear, Quadratic

N = 24_000
LAW = Gaussian([0.4, -0.3], [[1.0, 0.3], [0.3, 0.6]])
# beta is not 1, so that a reward taken for a log-weight is wrong
TILTS = {
    "linear": Tilt(Linear([1.2, -0.8], c=0.5), 2.0),
    "quadratic": Tilt(Quadratic([-0.6, 0.9], [[1.4, 0.5], [0.5, 1.0]], b=[0.6, 0.8]), 2.0),
}
POINTWISE = {
    "exp_mse": exp_mse,
    "poisson": poisson,
    "itakura_saito": itakura_saito,
    "weighted_bce": weighted_bce,
}
PATHS = [("vp", 0.25), ("cosine", 0.5), ("rectified", 0.7), ("ve", 0.6)]


class Sample:
    """Noised draws at one time, with the features in which the truth is linear."""

    def __init__(self, kind, path, t, seed=0, n=N, tilt=None):
        generator = torch.Generator().manual_seed(seed)
        self.tilt, self.schedule, self.t = tilt or TILTS[kind], SCHEDULES[path], t
        self.x_0 = LAW.sample(n, generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        self.x_t = self.schedule.perturb(self.x_0, t, noise)
        self.log_w = self.tilt(self.x_0)
        self.log_h, self.shift = LAW.tilted_moments(self.tilt, self.x_t, t, self.schedule)
        self.mean = LAW.denoise(self.x_t, t, self.schedule)
        ones, (x, y) = torch.ones(n, dtype=torch.float64), self.x_t.unbind(1)
        self.affine = torch.stack((ones, x, y), dim=1)
        more = (x * x, x * y, y * y) if kind == "quadratic" else ()
        self.features = torch.stack((ones, x, y, *more), dim=1)

    def coefficients(self, values, features):
        """Of values that are exactly linear in the features, which is asserted."""

        solution = torch.linalg.lstsq(features, values).solution
        torch.testing.assert_close(features @ solution, values, rtol=1e-9, atol=1e-9)
        return solution


def scores_at(theta, losses, n):
    """Gradient of every unit's loss, shape (n, parameters): each gets its own copy of theta."""

    copies = theta.expand(n, *theta.shape).clone().requires_grad_()
    (scores,) = torch.autograd.grad(losses(copies).sum(), copies)
    return scores.flatten(1)


def minimize(losses, n, start):
    """Minimizer of the mean of `losses(theta)`, shape (n,), and its sandwich standard errors."""

    mean = lambda theta: losses(theta).mean()
    theta, size = start, start.numel()
    for _ in range(30):  # Newton, with steps halved until they descend
        curvature = torch.autograd.functional.hessian(mean, theta).reshape(size, size)
        lowest = torch.linalg.eigvalsh(curvature)[0]
        identity = torch.eye(size, dtype=torch.float64)
        damped = curvature + (0.1 - lowest) * identity if lowest <= 0 else curvature
        (slope,) = torch.autograd.grad(mean(p := theta.clone().requires_grad_()), p)
        step = -torch.linalg.solve(damped, slope.flatten()).reshape(theta.shape)
        if lowest > 0 and step.abs().max() < 1e-9:
            break
        while step.abs().max() > 1e-6 and not mean(theta + step) <= mean(theta):
            step = 0.5 * step
        theta = theta + step
    assert lowest > 0, "not a strict minimum"
    scores = scores_at(theta, losses, n)
    inverse = curvature.inverse()
    error = (inverse @ (scores.T.cov() / len(scores)) @ inverse).diag().sqrt().reshape(theta.shape)
    assert bool((step.abs() < 1e-4 * error).all()), "the fit has not converged"
    return theta, error


def fit(loss, sample, log_w=None):
    log_w = sample.log_w if log_w is None else log_w
    start = torch.zeros(sample.features.shape[1], dtype=torch.float64)
    losses = lambda theta: loss((sample.features * theta).sum(-1), log_w)
    return minimize(losses, len(log_w), start)


def misses(found, error, truth):
    """Whether some coefficient is off by more than 20 standard errors."""

    return bool((((found - truth) / error).abs() > 20).any())


# -- the minimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "t"), PATHS)
@pytest.mark.parametrize("kind", TILTS)
@pytest.mark.parametrize("name", POINTWISE)
def test_the_minimizer_is_log_h(name, kind, path, t):
    sample = Sample(kind, path, t)
    truth = sample.coefficients(sample.log_h, sample.features)
    found, error = fit(POINTWISE[name], sample)
    assert misses(torch.zeros_like(truth), error, truth), "this test has no power"
    assert_within(found, truth, error)


def fit_contrastive(loss, sample, k):
    features = sample.features[:, 1:].reshape(len(sample.x_t) // k, k, -1)
    log_w = sample.log_w.reshape(-1, k)
    start = torch.zeros(1, features.shape[-1], dtype=torch.float64)
    losses = lambda theta: loss((features * theta).sum(-1), log_w)
    found, error = minimize(losses, len(log_w), start)
    return found[0], error[0]


@pytest.mark.parametrize(("path", "t"), PATHS)
@pytest.mark.parametrize("kind", TILTS)
@pytest.mark.parametrize("k", [2, 6])
def test_the_contrastive_minimizer_is_log_h_up_to_a_constant(k, kind, path, t):
    sample = Sample(kind, path, t)
    truth = sample.coefficients(sample.log_h, sample.features)[1:]
    found, error = fit_contrastive(contrastive, sample, k)
    assert misses(torch.zeros_like(truth), error, truth), "this test has no power"
    assert_within(found, truth, error)


def normalized_labels(log_h, log_w):
    """The public code's variant: labels are normalized over the group."""

    return -(log_w.softmax(1) * log_h.log_softmax(1)).sum(1)


def test_contrastive_labels_normalized_over_a_small_group_are_biased_towards_zero():
    sample = Sample("linear", "cosine", 0.5, tilt=Tilt(Linear([1.2, -0.8]), 1.0))
    truth = sample.coefficients(sample.log_h, sample.features)[1:]
    biased, error = fit_contrastive(normalized_labels, sample, 2)
    assert misses(biased, error, truth)
    assert bool((biased / truth).abs().max() < 0.9)
    found, error = fit_contrastive(contrastive, sample, 2)
    assert_within(found, truth, error)
    assert ((biased - truth).abs() / error).max() > 10


@pytest.mark.parametrize(("path", "t"), PATHS)
def test_log_mse_lies_below_by_half_the_variance(path, t):
    sample = Sample("linear", path, t)
    reward, beta = sample.tilt.rewards[0], sample.tilt.betas[0]
    b = reward.b / beta
    expected = sample.coefficients(reward.c / beta + sample.mean @ b, sample.features)
    found, error = fit(log_mse, sample)
    assert_within(found, expected, error)

    scales = sample.schedule.at(t, sample.x_t)
    alpha, sigma = scales.alpha.item(), scales.sigma.item()
    noised = alpha**2 * LAW.covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    gap = 0.5 * b @ (sigma**2 * LAW.covariance @ noised.inverse()) @ b
    truth = sample.coefficients(sample.log_h, sample.features)
    torch.testing.assert_close(truth[0] - expected[0], gap, rtol=1e-9, atol=0)
    torch.testing.assert_close(truth[1:], expected[1:], rtol=1e-9, atol=1e-12)
    assert truth[0] - found[0] > 20 * error[0]


# -- the shift -----------------------------------------------------------------------------------


def fit_shift(loss, sample):
    start = torch.zeros(3, 2, dtype=torch.float64)
    losses = lambda theta: loss((sample.affine[..., None] * theta).sum(-2), sample)
    return minimize(losses, len(sample.x_t), start)


def mrgm(shift, sample):
    return marginal_residual(shift, sample.mean, sample.x_0, sample.log_w)


def crg(shift, sample):
    return centered_residual(shift, sample.mean, sample.x_0, sample.log_w, sample.log_h)


@pytest.mark.parametrize(("path", "t"), PATHS)
@pytest.mark.parametrize("kind", TILTS)
@pytest.mark.parametrize("loss", [mrgm, crg])
def test_the_minimizer_is_the_shift(loss, kind, path, t):
    sample = Sample(kind, path, t)
    truth = sample.coefficients(sample.shift, sample.affine)
    if kind == "linear":  # the shift is lambda P b everywhere
        assert truth[1:].abs().max() < 1e-9
    found, error = fit_shift(loss, sample)
    assert misses(torch.zeros_like(truth), error, truth), "this test has no power"
    assert_within(found, truth, error)


@pytest.mark.parametrize("kind", TILTS)
def test_the_centered_target_is_less_noisy(kind):
    sample = Sample(kind, "cosine", 0.3)
    assert bool((fit_shift(crg, sample)[1] < fit_shift(mrgm, sample)[1]).all())


@pytest.mark.parametrize("t", [0.3, 0.6])
def test_the_residual_noise_is_the_closed_form(t):
    # prior N(0, I), linear log-weight of slope tau, posterior variance p: with v = tau^2 p,
    # E|target - shift|^2 = e^v (p d + 4 v p) - p d - 3 v p for the centered target,
    # and E w |shift + D - x_0|^2 = Z p d for the weighted one
    d, tau, n = 3, 0.8, 200_000
    schedule, generator = SCHEDULES["rectified"], torch.Generator().manual_seed(3)
    law = Gaussian(torch.zeros(d), torch.eye(d))
    tilt = Tilt(Linear([tau, 0.0, 0.0]), 1.0)
    x_0 = law.sample(n, generator)
    x_t = schedule.perturb(x_0, t, torch.randn(n, d, generator=generator, dtype=torch.float64))
    log_h, shift = law.tilted_moments(tilt, x_t, t, schedule)
    mean, log_w = law.denoise(x_t, t, schedule), tilt(x_0)
    p = t**2 / (t**2 + (1 - t) ** 2)
    v = tau**2 * p
    centered = centered_residual(shift, mean, x_0, log_w, log_h)
    expected = (math.exp(v) * (p * d + 4 * v * p) - p * d - 3 * v * p) / d
    assert_within(centered.mean(), expected, centered.std() / n**0.5)
    weighted = marginal_residual(shift, mean, x_0, log_w)
    assert_within(weighted.mean(), math.exp(0.5 * tau**2) * p, weighted.std() / n**0.5)


# -- derivatives, offsets, zero weights ----------------------------------------------------------

F = 1.5 * randn(1, 64)
LOG_W = 1.5 * randn(2, 64)
ZERO_WEIGHTS = LOG_W.clone().index_fill_(0, torch.arange(0, 64, 3), -math.inf)
GRADIENTS = {
    "exp_mse": (exp_mse, lambda f, w: 2 * f.exp() * (f.exp() - w)),
    "poisson": (poisson, lambda f, w: f.exp() - w),
    "itakura_saito": (itakura_saito, lambda f, w: 1 - w * torch.exp(-f)),
    "weighted_bce": (weighted_bce, lambda f, w: torch.sigmoid(f) * (1 + w) - w),
    "log_mse": (log_mse, lambda f, w: 2 * (f - w.log())),
}


def gradient(loss, f, log_w):
    f = f.clone().requires_grad_()
    value = loss(f, log_w)
    (result,) = torch.autograd.grad(value.sum(), f)
    return value.detach(), result


@pytest.mark.parametrize("log_w", [LOG_W, ZERO_WEIGHTS], ids=["positive", "some zero"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_table(name, log_w):
    loss, formula = GRADIENTS[name]
    if name == "log_mse":  # which needs positive weights
        log_w = log_w.clamp(min=-5)
    value, result = gradient(loss, F, log_w)
    assert value.shape == F.shape
    assert bool(value.isfinite().all())
    assert bool(result.isfinite().all())
    torch.testing.assert_close(result, formula(F, log_w.exp()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("log_w", [LOG_W, ZERO_WEIGHTS], ids=["positive", "some zero"])
def test_the_contrastive_gradient_is_that_of_the_table(log_w):
    f, log_w = F.reshape(16, 4), log_w.reshape(16, 4)
    value, result = gradient(contrastive, f, log_w)
    w = log_w.exp()
    assert value.shape == (16,)
    expected = (w.sum(1, keepdim=True) * f.softmax(1) - w) / 4
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in GRADIENTS if name != "log_mse"])
def test_pointwise_losses_are_stationary_at_the_mean_weight(name):
    # two weights at one state: the derivative of the sum vanishes at the log of their mean
    log_w = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    f = (log_w.logsumexp(0) - math.log(2)).expand(2)
    _, result = gradient(GRADIENTS[name][0], f, log_w)
    assert result.sum().abs() < 1e-14
    assert result.abs().min() > 0.1


def test_shift_losses_survive_zero_weights():
    x_0, mean, shift = randn(1, 64, 2, 3), randn(2, 64, 2, 3), randn(3, 64, 2, 3)
    zero = ZERO_WEIGHTS.isneginf()
    weighted = marginal_residual(shift, mean, x_0, ZERO_WEIGHTS)
    centered = centered_residual(shift, mean, x_0, ZERO_WEIGHTS, F)
    assert bool((weighted[zero] == 0).all())
    expected = (shift + x_0 - mean).square().flatten(1).mean(1)
    torch.testing.assert_close(centered[zero], expected[zero], rtol=1e-13, atol=0)
    for value in (weighted, centered):
        assert value.shape == (64,)
        assert bool(value.isfinite().all())


@pytest.mark.parametrize("offset", [-3.0, 0.7, 40.0])
def test_itakura_saito_moves_with_the_offset(offset):
    moved = itakura_saito(F + offset, LOG_W + offset)
    torch.testing.assert_close(moved, itakura_saito(F, LOG_W) + offset, rtol=1e-12, atol=1e-12)
    _, before = gradient(itakura_saito, F, LOG_W)
    _, after = gradient(itakura_saito, F + offset, LOG_W + offset)
    torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)


def test_the_itakura_saito_minimizer_moves_with_the_offset():
    sample = Sample("quadratic", "vp", 0.3, n=2000)
    found, error = fit(itakura_saito, sample)
    moved, _ = fit(itakura_saito, sample, sample.log_w + 2.5)
    expected = found + torch.tensor([2.5, 0, 0, 0, 0, 0], dtype=torch.float64)
    # both fits have converged to 1e-4 standard errors, which is asserted there
    assert bool(((moved - expected).abs() < 2e-4 * error).all())


def test_contrastive_is_blind_to_offsets():
    f, log_w = F.reshape(16, 4), LOG_W.reshape(16, 4)
    offset = randn(5, 16, 1)
    value = contrastive(f, log_w)
    torch.testing.assert_close(contrastive(f + offset, log_w), value, rtol=1e-12, atol=1e-12)
    scaled = contrastive(f, log_w + offset)  # of the rewards: a weight of the group, nothing else
    torch.testing.assert_close(scaled, offset[:, 0].exp() * value, rtol=1e-12, atol=1e-12)


def test_the_expectation_network_is_not_trained_through_the_centered_residual():
    log_h = F.clone().requires_grad_()
    shift = randn(3, 64, 2).requires_grad_()
    centered_residual(shift, randn(1, 64, 2), randn(2, 64, 2), LOG_W, log_h).sum().backward()
    assert log_h.grad is None
    assert shift.grad.abs().min() > 0


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [*POINTWISE.values(), log_mse, contrastive])
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match=r"same shape, got \(4, 1\) and \(4,\)"):
        loss(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_contrastive_needs_groups(shape):
    with pytest.raises(ValueError, match=r"\(G, K\) with K >= 2"):
        contrastive(torch.zeros(shape), torch.zeros(shape))


def test_shift_losses_need_equal_shapes():
    x, row, log_w = torch.zeros(4, 2), torch.zeros(4, 1), torch.zeros(4)
    with pytest.raises(ValueError, match=r"shift, mean and x_0 must have the same shape"):
        marginal_residual(x, row, x, log_w)
    with pytest.raises(ValueError, match=r"shift, mean and x_0 must have the same shape"):
        centered_residual(x, x, row, log_w, log_w)
    with pytest.raises(ValueError, match=r"log_h and log_w must have the same shape"):
        centered_residual(x, x, x, log_w, log_w[:, None])


# -- broken twins --------------------------------------------------------------------------------

TWINS = {
    "w for 1 / w": lambda loss, f, log_w: loss(f, -log_w),
    "log h and log w swapped": lambda loss, f, log_w: loss(log_w, f),
    "wrong sign of f": lambda loss, f, log_w: loss(-f, log_w),
    "beta forgotten": lambda loss, f, log_w: loss(f, 2 * log_w),
    "log w off by log 1.2": lambda loss, f, log_w: loss(f, log_w + math.log(1.2)),
}


def z_scores(loss, sample):
    """The mean gradient at the truth in its standard errors: of order one for a right formula."""

    truth = sample.coefficients(sample.log_h, sample.features)
    losses = lambda theta: loss((sample.features * theta).sum(-1), sample.log_w)
    scores = scores_at(truth, losses, len(sample.x_t))
    return scores.mean(0).abs() / (scores.std(0) / len(scores) ** 0.5)


@pytest.mark.parametrize("kind", TILTS)
@pytest.mark.parametrize("name", POINTWISE)
def test_a_broken_twin_is_noticed(name, kind):
    sample, loss = Sample(kind, "cosine", 0.5), POINTWISE[name]
    assert z_scores(loss, sample).max() < 5
    for twin, broken in TWINS.items():
        if name == "exp_mse" and "swapped" in twin:
            continue  # symmetric
        z = z_scores(lambda f, log_w, b=broken: b(loss, f, log_w), sample).max()
        assert z > 6, (twin, z)
