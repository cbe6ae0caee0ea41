"""Toy laws are oracles, so they are checked against identities that they were not built from."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from common import SCHEDULES, assert_within, inner_times, randn, schedules, seeds
from problems import (
    EPS,
    LAWS,
    TILTS,
    all_times,
    law_of,
    mixture,
    noised,
    scales_at,
    symmetric,
    tilt_of,
    visited,
)
from rwguidance import RectifiedSchedule, Tilt
from rwguidance.toy import (
    Bumps,
    Empirical,
    Gaussian,
    GaussianMixture,
    Linear,
    NoClosedForm,
    Oracle,
    Quadratic,
    Step,
    StepTilted,
    quadrature,
)

COMBINATIONS = [
    (law, tilt, st.integers(1, 64 if tilt == "linear" else 8)) for law in LAWS for tilt in TILTS
] + [(law, "step", st.just(1)) for law in LAWS]

every_combination = pytest.mark.parametrize(
    ("law", "tilt", "dims"), COMBINATIONS, ids=[f"{law}-{tilt}" for law, tilt, _ in COMBINATIONS]
)
few = settings(max_examples=4)


def problem(law, tilt, data, dims):
    seed, d = data.draw(seeds), data.draw(dims)
    return law_of(law, seed, d), tilt_of(tilt, seed + 5, d), seed


# --- log h, shift and the tilted law ----------------------------------------------------------


@every_combination
@few
@given(st.data())
def test_shift_is_the_finite_difference_of_log_h(law, tilt, dims, data):
    law, tilt, seed = problem(law, tilt, data, dims)
    schedule, t = data.draw(schedules), data.draw(inner_times)
    alpha, sigma, _, _ = scales_at(schedule, t)
    x_t = visited(law, schedule, t, seed + 9, 3)
    direction = torch.nn.functional.normalize(randn(seed + 8, *x_t.shape), dim=1)
    log_h = lambda step: law.log_h(tilt, x_t + step * direction, t, schedule)

    # log h changes over distances of sigma and of sigma^2 / alpha; fourth order in a part of them
    step = 1e-3 * min(sigma, sigma**2 / alpha)
    slope = 8 * (log_h(step) - log_h(-step)) - (log_h(2 * step) - log_h(-2 * step))
    slope = slope / (12 * step)
    exact = (alpha / sigma**2 * law.shift(tilt, x_t, t, schedule) * direction).sum(1)
    # the rounding of log h, of size eps log h times the number of terms, is divided by the step
    rounding = 100 * EPS * (1 + log_h(0.0).abs().max().item() + x_t.abs().max().item()) / step
    torch.testing.assert_close(slope, exact, rtol=1e-6, atol=1e-6 + rounding)


@every_combination
@few
@given(st.data())
def test_the_tilted_law_has_the_base_model_plus_the_shift(law, tilt, dims, data):
    law, tilt, seed = problem(law, tilt, data, dims)
    schedule, t = data.draw(schedules), data.draw(all_times)
    x_t = visited(law, schedule, t, seed + 9, 4)
    shift = law.shift(tilt, x_t, t, schedule)
    expected = law.tilted(tilt).model(schedule)(x_t, t).mean
    actual = law.model(schedule)(x_t, t).shifted(shift).mean
    # posterior weights are known to the rounding of |x|^2 / variance, 1e4 at the most
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@every_combination
@few
@given(st.data())
def test_the_tilted_density_is_the_density_times_the_weight(law, tilt, dims, data):
    law, tilt, seed = problem(law, tilt, data, dims)
    if isinstance(law, Empirical) and law.bandwidth == 0:
        expected = (law.log_weights + tilt(law.points)).log_softmax(0)
        actual = law.tilted(tilt).log_weights
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        return
    x = 2 * randn(seed + 9, 20, *law.event)
    ratio = law.tilted(tilt).log_prob(x) - law.log_prob(x) - tilt(x)
    base = law._mixture if isinstance(law, Empirical) else law
    expected = -base.log_normalizer(tilt).expand(20)
    size = 1 + law.log_prob(x).abs().max().item() + tilt(x).abs().max().item()
    torch.testing.assert_close(ratio, expected, rtol=0, atol=100 * EPS * law.event[0] * size)


@every_combination
@few
@given(st.data())
def test_log_h_at_the_noise_end_is_the_normalizer(law, tilt, dims, data):
    law, tilt, seed = problem(law, tilt, data, dims)
    x_t = randn(seed, 4, *law.event)
    log_h, shift = law.tilted_moments(tilt, x_t, 1.0, SCHEDULES["rectified"])
    assert float(log_h.max() - log_h.min()) <= 1e-12 * (1 + log_h.abs().max())
    assert float((shift - shift[0]).abs().max()) <= 1e-12 * (1 + shift.abs().max())
    if isinstance(law, Empirical) and law.bandwidth == 0:
        expected = (law.log_weights + tilt(law.points)).logsumexp(0)
    else:
        base = law._mixture if isinstance(law, Empirical) else law
        expected = base.log_normalizer(tilt)
    torch.testing.assert_close(log_h[0], expected, rtol=1e-12, atol=1e-12)


@every_combination
@few
@given(st.data())
def test_log_h_at_the_data_end_is_the_log_weight(law, tilt, dims, data):
    law, tilt, seed = problem(law, tilt, data, dims)
    x_0 = law.sample(5, torch.Generator().manual_seed(seed))
    for name in ("vp", "cosine", "rectified", "discrete"):
        log_h, shift = law.tilted_moments(tilt, x_0, 0.0, SCHEDULES[name])
        torch.testing.assert_close(log_h, tilt(x_0), rtol=1e-12, atol=1e-12)
        assert shift.abs().max() <= 1e-13


@every_combination
@few
@given(st.data())
def test_batched_times_equal_one_time_per_sample(law, tilt, dims, data):
    law, tilt, seed = problem(law, tilt, data, dims)
    schedule = data.draw(schedules)
    times = [0.0, data.draw(inner_times), data.draw(inner_times), 1.0]
    x_t = torch.cat([visited(law, schedule, t, seed + i, 1) for i, t in enumerate(times)])
    t = torch.tensor(times, dtype=torch.float64)
    log_h, shift = law.tilted_moments(tilt, x_t, t, schedule)
    mean = law.denoise(x_t, t, schedule)
    for i, time in enumerate(times):
        one = x_t[i : i + 1]
        alone = law.tilted_moments(tilt, one, time, schedule)
        tolerance = dict(rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(log_h[i : i + 1], alone[0], **tolerance)
        torch.testing.assert_close(shift[i : i + 1], alone[1], **tolerance)
        torch.testing.assert_close(mean[i : i + 1], law.denoise(one, time, schedule), **tolerance)


@every_combination
@few
@given(st.data())
def test_a_constant_reward_on_top_moves_log_h_only(law, tilt, dims, data):
    law, tilt, seed = problem(law, tilt, data, dims)
    if any(isinstance(reward, Step) for reward in tilt.rewards):
        return  # a step is closed alone
    schedule, t = data.draw(schedules), data.draw(all_times)
    x_t = visited(law, schedule, t, seed, 3)
    constant = Linear(torch.zeros(law.event[0]), c=1.7)
    more = Tilt([*tilt.rewards, constant], [*tilt.betas, 0.4])
    before = law.tilted_moments(tilt, x_t, t, schedule)
    after = law.tilted_moments(more, x_t, t, schedule)
    torch.testing.assert_close(after[0], before[0] + 1.7 / 0.4, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after[1], before[1], rtol=1e-10, atol=1e-12)


@every_combination
def test_the_mean_of_h_is_the_normalizer_at_every_time(law, tilt, dims, schedule):
    del dims
    d = 1 if tilt == "step" else 3
    law, tilt = law_of(law, 1, d), tilt_of(tilt, 2, d)
    base = law._mixture if isinstance(law, Empirical) and law.bandwidth > 0 else law
    if isinstance(law, Empirical) and law.bandwidth == 0:
        log_z = (law.log_weights + tilt(law.points)).logsumexp(0)
    else:
        log_z = base.log_normalizer(tilt)
    for i, t in enumerate((0.1, 0.5, 0.9)):
        x_t = visited(law, schedule, t, 10 + i, 4000)
        ratio = (law.log_h(tilt, x_t, t, schedule) - log_z).exp()  # mean one
        error = max(ratio.std().item() / math.sqrt(4000), 1e-12)  # no spread where alpha = 0
        assert_within(ratio.mean(), 1.0, error)


@pytest.mark.parametrize("tilt", [*TILTS, "step"])
@settings(max_examples=10)
@given(seeds, schedules, st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_h_is_a_martingale_along_the_path(tilt, seed, schedule, s, t):
    s, t = sorted((s, t))
    if t - s < 0.02:
        return
    law, tilt = mixture(seed, 1), tilt_of(tilt, seed + 5, 1)
    x_t = visited(law, schedule, t, seed + 9, 1)
    alpha_s, sigma_s, _, _ = scales_at(schedule, s)
    alpha_t, sigma_t, _, _ = scales_at(schedule, t)

    # p(x_s | x_t) = p_s(x_s) N(x_t; (alpha_t / alpha_s) x_s, ...) up to a constant. A sum over an
    # even grid integrates a smooth density that vanishes at both ends to rounding.
    ratio = alpha_t / alpha_s
    variance = sigma_t**2 - ratio**2 * sigma_s**2
    marginal = noised(law, schedule, s)
    reach = 12 * marginal.covariances.max().sqrt().item()
    low, high = marginal.means.min().item() - reach, marginal.means.max().item() + reach
    near = 12 * math.sqrt(variance) / ratio
    low = max(low, x_t.item() / ratio - near)
    high = min(high, x_t.item() / ratio + near)
    x_s = torch.linspace(low, high, 4001, dtype=torch.float64)[:, None]
    log_p = marginal.log_prob(x_s) - (x_t - ratio * x_s)[:, 0] ** 2 / (2 * variance)
    log_h = law.log_h(tilt, x_s, s, schedule)
    expected = (log_p + log_h).logsumexp(0) - log_p.logsumexp(0)
    torch.testing.assert_close(law.log_h(tilt, x_t, t, schedule)[0], expected, rtol=1e-8, atol=1e-8)


def test_h_is_a_martingale_in_several_dimensions(schedule):
    law, tilt, n = law_of("points", 3, 4), tilt_of("sum", 4, 4), 20_000
    s, t = 0.35, 0.6
    alpha_s, sigma_s, _, _ = scales_at(schedule, s)
    alpha_t, sigma_t, _, _ = scales_at(schedule, t)
    x_t = visited(law, schedule, t, 5, 1)
    # posterior draws of x_0, then the Gaussian bridge from (x_0, x_t) to x_s
    log_p = law.log_weights - (x_t - alpha_t * law.points).square().sum(1) / (2 * sigma_t**2)
    x_0 = Empirical(law.points, log_weights=log_p).sample(n, torch.Generator().manual_seed(6))
    ratio = alpha_t / alpha_s
    gain = ratio * sigma_s**2 / sigma_t**2
    std = math.sqrt(sigma_s**2 - gain * ratio * sigma_s**2)
    x_s = alpha_s * x_0 + gain * (x_t - alpha_t * x_0) + std * randn(7, n, 4)
    ratio = (law.log_h(tilt, x_s, s, schedule) - law.log_h(tilt, x_t, t, schedule)).exp()
    assert_within(ratio.mean(), 1.0, max(ratio.std().item() / math.sqrt(n), 1e-12))


# --- quadrature -------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("law", ["gaussian", "mixture", "shared"])
@settings(max_examples=8)
@given(seeds, schedules, all_times)
def test_quadrature_equals_the_closed_forms(law, tilt, seed, schedule, t):
    law, tilt = law_of(law, seed, 1), tilt_of(tilt, seed + 5, 1)
    x_t = visited(law, schedule, t, seed + 9, 4)
    actual = quadrature(law, tilt, x_t, t, schedule)
    expected = law.tilted_moments(tilt, x_t, t, schedule)
    # 61 nodes integrate these weights, smooth on the scale of the components, to ten digits
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=1e-9)


def integral(function, support, breaks):
    """Adaptive integration over the support, split where the integrand is not smooth."""

    low, high = support
    pieces = np.linspace(low, high, 9)[1:-1].tolist() + [p for p in breaks if low < p < high]
    value, _ = integrate.quad(
        function, low, high, epsabs=0, epsrel=1e-11, limit=400, points=sorted(pieces)
    )
    return value


@pytest.mark.parametrize("kind", ["wave", "kink", "step"])
@settings(max_examples=8)
@given(seeds, schedules, inner_times)
def test_one_dimensional_oracles_equal_adaptive_integration(kind, seed, schedule, t):
    law, beta = mixture(seed, 1), 0.7
    x_t = visited(law, schedule, t, seed + 9, 1)
    alpha, sigma, _, _ = scales_at(schedule, t)
    tolerance, breaks = 1e-8, []
    if kind == "wave":
        reward = lambda x: math.sin(x) + 0.1 * x
        tilt = Tilt(lambda x, condition: torch.sin(x[:, 0]) + 0.1 * x[:, 0], beta)
        actual = quadrature(law, tilt, x_t, t, schedule)
    elif kind == "kink":  # not smooth: the error falls as 1 / nodes only
        tolerance, breaks = 1e-2, [0.0]
        reward = lambda x: -abs(x)
        tilt = Tilt(lambda x, condition: -x[:, 0].abs(), beta)
        actual = quadrature(law, tilt, x_t, t, schedule, nodes=180)
    else:
        breaks = [0.3]
        reward = lambda x: 1.5 * (x >= 0.3)
        actual = law.tilted_moments(Tilt(Step(0.3, 1.5), beta), x_t, t, schedule)

    means, variances = law.means[:, 0].numpy(), law.covariances[:, 0, 0].numpy()
    heights = law.log_weights.numpy() - 0.5 * np.log(variances)
    state = x_t.item()

    def log_p(x):
        kernel = (state - alpha * x) ** 2 / (2 * sigma**2)
        exponents = heights - (x[..., None] - means) ** 2 / (2 * variances)
        return np.logaddexp.reduce(exponents, axis=-1) - kernel

    grid = np.linspace(-15, 15, 100_001)
    values = log_p(grid)
    top = values.max()
    support = grid[values > top - 50][[0, -1]] + [-3e-4, 3e-4]

    def moment(strength, power):
        density = lambda x: math.exp(log_p(np.asarray(x)) - top + strength * reward(x))
        return integral(lambda x: density(x) * x**power, support, breaks)

    base, tilted = moment(0, 0), moment(1 / beta, 0)
    shift = moment(1 / beta, 1) / tilted - moment(0, 1) / base
    assert actual[0].item() == pytest.approx(math.log(tilted / base), abs=tolerance)
    assert actual[1].item() == pytest.approx(shift, abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quadrature_is_done_in_double_precision(dtype, schedule):
    law, tilt = law_of("mixture", 0, 1), tilt_of("sum", 1, 1)
    x_t = visited(law, schedule, 0.5, 2, 3).to(dtype)
    expected = quadrature(law, tilt, x_t.double(), 0.5, schedule)
    for actual, exact in zip(quadrature(law, tilt, x_t, 0.5, schedule), expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, exact.float())


def test_quadrature_is_for_one_dimension():
    with pytest.raises(ValueError, match="dimension 1, got 2"):
        quadrature(mixture(0, 2), tilt_of("linear", 0, 2), randn(0, 3, 2), 0.5, SCHEDULES["vp"])


# --- densities and samples --------------------------------------------------------------------


@given(seeds, st.integers(1, 64), st.booleans())
def test_log_prob_is_that_of_torch_distributions(seed, d, shared):
    law = mixture(seed, d, shared=shared)
    x = 2 * randn(seed + 9, 5, d)
    covariances = law.covariances.expand(3, d, d)
    components = torch.distributions.MultivariateNormal(law.means, covariances)
    expected = (law.log_weights + components.log_prob(x[:, None])).logsumexp(1)
    torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-11, atol=1e-11)
    assert law.log_weights.exp().sum().item() == pytest.approx(1, abs=1e-14)


def exact_moments(law):
    weights = law.log_weights.exp()
    mean = weights @ law.means
    centered = law.means - mean
    covariance = torch.einsum("k,ki,kj->ij", weights, centered, centered)
    return mean, covariance + torch.einsum("k,kij->ij", weights, law._expand(law.covariances))


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "shared", "blurred", "tilted"])
@pytest.mark.parametrize("d", [1, 5])
def test_samples_have_the_exact_mean_and_covariance(kind, d):
    n = 40_000
    law = mixture(3, d).tilted(tilt_of("sum", 4, d)) if kind == "tilted" else law_of(kind, 3, d)
    mean, covariance = exact_moments(law._mixture if kind == "blurred" else law)
    x = law.sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, d)
    assert x.dtype == torch.float64
    assert_within(x.mean(0), mean, covariance.diagonal().sqrt() / math.sqrt(n))
    products = torch.einsum("ni,nj->nij", x - mean, x - mean)
    assert_within(products.mean(0), covariance, products.std(0) / math.sqrt(n))


@pytest.mark.parametrize(
    "law",
    [
        Gaussian([0.0], [[1.0]]),
        GaussianMixture([0.0, 0.0], torch.zeros(2, 1), torch.ones(2, 1, 1)),
        Empirical(torch.zeros(2, 1), 1.0),
    ],
)
def test_noise_is_drawn_in_double_precision(law):
    x = law.sample(50, torch.Generator().manual_seed(0))
    assert bool((x != x.float().double()).any())
    tilted = StepTilted(Gaussian([0.0], [[1.0]]), Tilt(Step(0.0, 1.0), 1.0))
    x = tilted.sample(50, torch.Generator().manual_seed(0))
    uniform = 2 * torch.special.ndtr(-x.abs()) * 2**24  # of single precision they are integers
    assert float((uniform - uniform.round()).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["linear", "quadratic", "bumps", "step"])
def test_rewards_are_in_the_dtype_of_states(name, dtype):
    (reward,) = tilt_of(name, 5, 1).rewards
    assert reward(torch.zeros(3, 1, dtype=dtype), None).dtype == dtype


def one_dimensional_cdf(law, x):
    std = law._expand(law.covariances)[:, 0, 0].sqrt().numpy()
    phi = stats.norm.cdf(np.asarray(x)[..., None], law.means[:, 0].numpy(), std)
    return phi @ law.log_weights.exp().numpy()


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "shared"])
@pytest.mark.parametrize("seed", range(3))
def test_samples_pass_a_kolmogorov_smirnov_test(kind, seed):
    law = law_of(kind, seed, 1)
    x = law.sample(20_000, torch.Generator().manual_seed(seed))[:, 0].numpy()
    assert stats.kstest(x, lambda x: one_dimensional_cdf(law, x)).pvalue > 1e-5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("height", [2.0, -3.0, 12.0])
def test_step_tilted_samples_pass_a_kolmogorov_smirnov_test(seed, height):
    law = mixture(seed, 1)
    threshold = float(2 * randn(seed, 1))
    tilted = law.tilted(Tilt(Step(threshold, 0.5 * height), 0.5))
    assert isinstance(tilted, StepTilted)
    below = one_dimensional_cdf(law, threshold)

    def cdf(x):
        low = one_dimensional_cdf(law, np.minimum(x, threshold))
        high = one_dimensional_cdf(law, np.maximum(x, threshold)) - below
        return (low + math.exp(height) * high) / (below + math.exp(height) * (1 - below))

    x = tilted.sample(20_000, torch.Generator().manual_seed(seed))[:, 0].numpy()
    assert stats.kstest(x, cdf).pvalue > 1e-5


@pytest.mark.parametrize("height", [2.0, -3.0])
def test_step_tilted_density_and_denoiser_agree(height):
    tilted = mixture(2, 1).tilted(Tilt(Step(0.4, height), 1.0))
    grid = torch.linspace(-15, 15, 300_001, dtype=torch.float64)[:, None]
    p = tilted.log_prob(grid).exp()
    dx = 1e-4
    assert p.sum().item() * dx == pytest.approx(1, abs=dx)  # a jump costs half a cell
    for t in (0.3, 0.8):
        x_t = torch.tensor([[0.7]], dtype=torch.float64)
        kernel = p * torch.exp(-((x_t - (1 - t) * grid)[:, 0] ** 2) / (2 * t**2))
        expected = (kernel * grid[:, 0]).sum() / kernel.sum()
        mean = tilted.model(RectifiedSchedule())(x_t, t).mean
        assert mean.item() == pytest.approx(expected.item(), abs=2 * dx)


def test_samples_of_points_have_the_right_frequencies_and_blur():
    n = 50_000
    points, log_weights = randn(0, 6, 2, 3), randn(1, 6)
    law = Empirical(points, log_weights=log_weights)
    x = law.sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 2, 3)
    hits = (x[:, None] == points).flatten(2).all(2)
    assert bool((hits.sum(1) == 1).all())
    expected = n * log_weights.softmax(0)
    assert stats.chisquare(hits.sum(0).numpy(), expected.numpy()).pvalue > 1e-5

    blurred = Empirical(points[:1], bandwidth=0.3).sample(n, torch.Generator().manual_seed(1))
    noise = ((blurred - points[0]) / 0.3).flatten().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-5


@pytest.mark.parametrize("kind", [*LAWS, "step-tilted"])
def test_samples_depend_on_the_generator_only(kind):
    if kind == "step-tilted":
        law = mixture(0, 1).tilted(tilt_of("step", 0, 1))
    else:
        law = law_of(kind, 0, 3)
    draw = lambda seed: law.sample(50, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


# --- limits of existence, shapes, dtypes ------------------------------------------------------


@given(seeds, st.integers(1, 8), st.floats(0.01, 0.2))
def test_a_quadratic_tilt_exists_exactly_up_to_the_precision_of_the_law(seed, d, margin):
    covariance = symmetric(seed, 1, d, 0.2, 2.0)[0]
    law, beta = Gaussian(randn(seed + 1, d), covariance), 0.7
    limit = beta * torch.linalg.inv(covariance)
    limit = 0.5 * (limit + limit.mT)
    inside = Tilt(Quadratic(randn(seed + 2, d), -(1 - margin) * limit), beta)
    tilted = law.tilted(inside)
    torch.testing.assert_close(tilted.covariance, covariance / margin, rtol=1e-9, atol=1e-9)
    outside = Tilt(Quadratic(randn(seed + 2, d), -(1 + margin) * limit), beta)
    with pytest.raises(ValueError, match="tilted law does not exist"):
        law.tilted(outside)
    with pytest.raises(ValueError, match="tilted law does not exist"):
        law.log_normalizer(outside)
    x_t = randn(seed + 3, 2, d)
    with pytest.raises(ValueError, match="tilted law does not exist"):
        law.log_h(outside, x_t, 1.0, SCHEDULES["rectified"])
    # near the data the posterior is narrower than the prior, and h exists again
    assert bool(law.log_h(outside, x_t, 0.1, SCHEDULES["rectified"]).isfinite().all())


def test_a_tilted_mixture_exists_only_if_all_of_its_components_do():
    law = GaussianMixture([0.0, 0.0], [[0.0], [1.0]], [[[0.1]], [[1.0]]])
    with pytest.raises(ValueError, match="tilted law does not exist"):
        law.tilted(Tilt(Quadratic([0.0], [[-2.0]]), 1.0))


def test_the_density_of_blurred_points_is_exact_in_double_precision():
    points, x = randn(0, 5, 2), randn(1, 3, 2)
    square = (x[:, None] - points).square().sum(2)
    exact = (-square / (2 * 0.3**2)).logsumexp(1) - math.log(5 * 2 * math.pi * 0.3**2)
    torch.testing.assert_close(Empirical(points, 0.3).log_prob(x), exact, rtol=0, atol=1e-12)


@given(seeds, st.integers(1, 16), schedules, all_times)
def test_points_blurred_by_nothing_are_the_limit_of_a_small_blur(seed, d, schedule, t):
    points, log_weights = randn(seed, 5, d), randn(seed + 1, 5)
    sharp, blurred = (Empirical(points, b, log_weights) for b in (0.0, 1e-7))
    tilt = tilt_of("sum", seed + 2, d)
    x_t = visited(sharp, schedule, t, seed + 3, 3)
    _, sigma, _, _ = scales_at(schedule, t)
    if sigma == 0:
        return
    expected, actual = (law.tilted_moments(tilt, x_t, t, schedule) for law in (sharp, blurred))
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-5)


@given(seeds, schedules, inner_times, st.sampled_from([(2, 3), (1, 2, 3), (6,)]))
def test_points_of_any_event_shape_are_flat_vectors(seed, schedule, t, shape):
    points = randn(seed, 7, 6)
    tilt = tilt_of("linear", seed, 6)
    for bandwidth in (0.0, 0.4):
        flat = Empirical(points, bandwidth)
        law = Empirical(points.reshape(7, *shape), bandwidth)
        x_t = visited(flat, schedule, t, seed + 3, 3)
        expected = flat.tilted_moments(tilt, x_t, t, schedule)
        actual = law.tilted_moments(tilt, x_t.reshape(3, *shape), t, schedule)
        assert torch.equal(actual[0], expected[0])
        assert actual[1].shape == (3, *shape)
        assert torch.equal(actual[1].flatten(1), expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("law", LAWS)
def test_results_are_float32_or_wider_and_computed_in_float64(law, dtype, schedule):
    law, tilt = law_of(law, 0, 4), tilt_of("sum", 1, 4)
    x_t = visited(law, schedule, 0.5, 2, 3).to(dtype)
    expected = law.tilted_moments(tilt, x_t.double(), 0.5, schedule)
    for actual, exact in zip(law.tilted_moments(tilt, x_t, 0.5, schedule), expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, exact.float())
    mean = law.denoise(x_t, 0.5, schedule)
    assert torch.equal(mean, law.denoise(x_t.double(), 0.5, schedule).float())


def test_many_blurred_points_are_handled_in_blocks(monkeypatch, schedule):
    law, tilt = law_of("blurred", 0, 3), tilt_of("sum", 1, 3)
    x_t = visited(law, schedule, 0.5, 2, 7)
    sharp = Empirical(law.points)
    for t in (0.5, torch.linspace(0.1, 0.9, 7, dtype=torch.float64)):
        whole = law.tilted_moments(tilt, x_t, t, schedule)
        sharp_whole = sharp.tilted_moments(tilt, x_t, t, schedule)
        with monkeypatch.context() as patch:
            patch.setattr("rwguidance.toy.empirical._BLOCK", 2 * law.points.numel())
            parts = law.tilted_moments(tilt, x_t, t, schedule)
            sharp_parts = sharp.tilted_moments(tilt, x_t, t, schedule)
        for a, b in zip((*parts, *sharp_parts), (*whole, *sharp_whole), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@given(seeds, schedules, all_times)
def test_the_oracle_is_the_law_seen_as_an_estimator(seed, schedule, t):
    law, tilt = mixture(seed, 3), tilt_of("sum", seed + 5, 3)
    x_t = visited(law, schedule, t, seed + 9, 4)
    model = law.model(schedule)
    estimate = Oracle(law, tilt)(model, x_t, t)
    assert torch.equal(estimate.log_h, law.log_h(tilt, x_t, t, schedule))
    assert torch.equal(estimate.shift, law.shift(tilt, x_t, t, schedule))
    assert torch.equal(estimate.prediction.mean, model(x_t, t).mean)
    assert torch.equal(estimate.diagnostics["shift_norm"], estimate.shift.norm(dim=1))


# --- rewards ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TILTS)
@given(seeds, st.integers(1, 16))
def test_the_exponents_of_a_reward_are_its_weight(kind, seed, d):
    tilt = tilt_of(kind, seed, d)
    x = randn(seed + 9, 6, d)
    total = torch.zeros(6, dtype=torch.float64)
    for reward, beta in zip(tilt.rewards, tilt.betas, strict=True):
        c, b, precision = reward.exponents(beta)
        squares = torch.einsum("ni,jik,nk->nj", x, precision, x)
        log_w = (c + x @ b.mT - 0.5 * squares).logsumexp(1)
        torch.testing.assert_close(log_w, reward(x) / beta, rtol=1e-11, atol=1e-11)
        total = total + log_w
    torch.testing.assert_close(tilt(x), total, rtol=1e-11, atol=1e-11)


def test_rewards_are_the_documented_formulas():
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    assert Linear([1.0, -2.0], c=0.5)(x).tolist() == [-2.5, -1.5]
    quadratic = Quadratic([1.0, 0.0], [[2.0, 1.0], [1.0, 3.0]], b=[1.0, 1.0])
    assert quadratic(x).tolist() == [-6.0 + 3.0, -0.5 * (8.0 - 2.0 + 0.75) - 0.5]
    heights, centers = [0.0, 1.0], [[1.0, 2.0], [-1.0, 0.5]]
    bumps = Bumps(heights, centers, [[[2.0, 0.0], [0.0, 2.0]]] * 2)
    far = 4 + 1.5**2
    expected = [math.log(1 + math.exp(1 - far)), math.log(math.exp(-far) + math.e)]
    assert bumps(x).tolist() == pytest.approx(expected, rel=1e-14)
    assert Step(0.5, -3.0)(x[:, :1]).tolist() == [-3.0, 0.0]
    assert Step(1.0, 2.0)(x[:, :1]).tolist() == [2.0, 0.0]  # the threshold itself is above


def test_what_has_no_closed_form_says_so():
    law, x_t, schedule = mixture(0, 1), randn(0, 2, 1), SCHEDULES["vp"]
    step, line = Step(0.0, 1.0), Linear([1.0])
    for tilt in (
        Tilt(lambda x, condition: x[:, 0], 1.0),
        Tilt(bumps := tilt_of("bumps", 0, 1).rewards[0], 0.5),
        Tilt([step, line], [1.0, 1.0]),
        Tilt(line, 1.0, decode=lambda x: 2 * x),
        Tilt(step, 1.0, decode=lambda x: 2 * x),
    ):
        with pytest.raises(NoClosedForm):
            law.log_h(tilt, x_t, 0.5, schedule)
        with pytest.raises(NoClosedForm):
            law.tilted(tilt)
        points = Empirical(randn(1, 5, 1))  # any reward is closed on points
        assert bool(points.log_h(tilt, x_t, 0.5, schedule).isfinite().all())
    assert callable(bumps)
    with pytest.raises(NoClosedForm):
        StepTilted(law, Tilt(line, 1.0))
    with pytest.raises(NoClosedForm):
        Empirical(randn(1, 5, 1)).log_prob(x_t)


def test_laws_refuse_what_is_not_a_law():
    eye = torch.eye(2)[None]
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture([0.0], torch.zeros(1, 2), -eye)
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture([0.0], torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture([0.0], torch.zeros(1, 2), torch.ones(1, 2, 2) - torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="symmetric"):
        GaussianMixture([0.0], torch.zeros(1, 2), eye + torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"\(K,\) and \(K, D\)"):
        GaussianMixture([0.0, 0.0], torch.zeros(1, 2), eye)
    with pytest.raises(ValueError, match="covariances must have shape"):
        GaussianMixture([0.0], torch.zeros(1, 2), eye[0])
    with pytest.raises(ValueError, match=r"b must be finite, got \[1.0, nan\]"):
        Linear([1.0, math.nan])  # one number is enough
    with pytest.raises(ValueError, match="at least 0"):
        Empirical(torch.zeros(3, 2), bandwidth=-0.1)
    with pytest.raises(ValueError, match=r"shape \(B, \*event\)"):
        Empirical(torch.zeros(3))
    with pytest.raises(ValueError, match="log_weights must have shape"):
        Empirical(torch.zeros(3, 2), log_weights=torch.zeros(2))
    with pytest.raises(ValueError, match=r"states must have shape \(B, 2\)"):
        mixture(0, 2).log_prob(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="for states of size 3, got 2"):
        mixture(0, 2).tilted(tilt_of("linear", 0, 3))
