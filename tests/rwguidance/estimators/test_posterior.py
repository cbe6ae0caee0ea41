"""PosteriorSampling: the exact law of its draws, their limits, and both of its orders."""

import itertools
import math

import pytest
import torch

from common import SCHEDULES, assert_within, randn
from problems import law_of, mixture, noised, scales_at, tilt_of, visited
from rwguidance import DDIM, Bank, Heun, RectifiedSchedule, Tilt, sample
from rwguidance.estimators import FlowMap, InnerFlow, PosteriorDraws, PosteriorSampling, Renoising
from rwguidance.estimators.posterior import centering
from rwguidance.support.randomness import generator_for, normal
from rwguidance.testing import check_estimator
from rwguidance.toy import Gaussian, Linear, Step


def estimates(tilt, draws, model, x_t, t, seeds, n, **options):
    """Estimates with independent noise: log h, (S, B), and shifts, (S, B, D)."""

    run = lambda seed: PosteriorSampling(tilt, draws, n, seed=seed, **options)(model, x_t, t)
    results = [run(seed) for seed in range(seeds)]
    return torch.stack([r.log_h for r in results]), torch.stack([r.shift for r in results])


def assert_mean_is(values, truth, bias=0.0):
    """The mean over seeds is the truth within five standard errors and a bound on the bias."""

    error = values.std(0) / math.sqrt(len(values))
    assert_within(values.mean(0), truth, error + bias / 5)


def affine(function, d):
    """The matrix and the offset of an affine map of rows."""

    points = torch.cat((torch.zeros(1, d), torch.eye(d))).double()
    values = function(points)
    return (values[1:] - values[0]).T, values[0]


# --- the law of the draws -----------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_renoising_has_the_law_of_its_steps(schedule, t):
    law, tilt = law_of("gaussian", 3, 2), tilt_of("quadratic", 7, 2)
    model, x_t = law.model(schedule), visited(law, schedule, t, 5, 1)
    times = [t, 0.6 * t, 0.3 * t, 0.1 * t, 0.0]
    mean, covariance = x_t[0], torch.zeros(2, 2).double()
    for now, then in itertools.pairwise(times[:-1]):  # every step is affine
        scales = schedule.at(then, like=x_t)
        step = lambda x, now=now, scales=scales: DDIM(1.0).transition(model(x, now), scales)
        matrix, offset = affine(lambda x, step=step: step(x).mean, 2)
        mean = matrix @ mean + offset
        covariance = matrix @ covariance @ matrix.T + float(step(x_t).std) ** 2 * torch.eye(2)
    matrix, offset = affine(lambda x: model(x, times[-2]).mean, 2)
    exact = Gaussian(matrix @ mean + offset, matrix @ covariance @ matrix.T)

    log_h, shift = estimates(tilt, Renoising(times), model, x_t, t, seeds=12, n=60)
    log_z, tilted = exact.log_normalizer(tilt), exact.tilted(tilt).means[0]
    assert_mean_is((log_h - log_z).exp(), torch.ones(1))
    assert_mean_is(shift, (tilted - exact.mean)[None], bias=0.05)


@pytest.mark.parametrize("sampler", [DDIM(), Heun()], ids=["ddim", "heun"])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_an_inner_flow_has_the_law_of_an_affine_map_of_noise(schedule, t, sampler):
    law, tilt = law_of("gaussian", 3, 2), tilt_of("quadratic", 7, 2)
    model, x_t = law.model(schedule), visited(law, schedule, t, 5, 1)
    time = torch.tensor(t).double()
    draws, n = InnerFlow(4, sampler), 3
    generators = [generator_for(0, "noise", k) for k in range(n)]
    noise = normal((n, 2), [generator_for(0, "noise", k) for k in range(n)], dtype=torch.float64)
    x_0, log_q = draws.draw(model, x_t.expand(n, 2), time, None, generators)
    assert not log_q.any()
    rows = torch.cat((noise, torch.ones(n, 1)), 1).double()
    matrix = torch.linalg.solve(rows, x_0)
    exact = Gaussian(matrix[2], matrix[:2].T @ matrix[:2])

    log_h, _ = estimates(tilt, draws, model, x_t, t, seeds=12, n=60)
    assert_mean_is((log_h - exact.log_normalizer(tilt)).exp(), torch.ones(1))


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_many_steps_of_the_inner_flow_end_in_the_posterior(schedule, t):
    """Moments by Gauss-Hermite nodes of the noise, in one dimension: no chance at all."""

    law, tilt = mixture(3, 1), tilt_of("bumps", 4, 1)
    x_t = visited(law, schedule, t, 5, 1)
    log_h, shift = law.tilted_moments(tilt, x_t, t, schedule)
    errors = []
    for steps in (8, 32):
        x_0, log_weight = inner_quadrature(law.model(schedule), x_t, t, InnerFlow(steps, Heun()))
        log_w = tilt(x_0)
        error = (log_weight + log_w).logsumexp(0) - log_h[0]
        tilted = (log_weight + log_w).softmax(0) @ x_0[:, 0] - log_weight.exp() @ x_0[:, 0]
        errors.append(max(float(error.abs()), float((tilted - shift[0, 0]).abs())))
    assert errors[1] < max(errors[0] / 4, 1e-3)
    assert errors[1] < 1e-2


def inner_quadrature(model, x_t, t, draws):
    """Draws at 2,001 quantiles of the noise, with equal log-weights."""

    from rwguidance.estimators.posterior_draws import _GivenState, _run

    n = 2001
    quantiles = (torch.arange(n).double() + 0.5) / n
    given = _GivenState(model, x_t.expand(n, 1), torch.tensor(t).double())
    times = torch.linspace(1, 0, draws.steps + 1, dtype=torch.float64)
    noise = torch.special.ndtri(quantiles)[:, None]
    x_0 = _run(given, draws.sampler, noise, times, None, None)
    return x_0, torch.full((n,), -math.log(n)).double()


@pytest.mark.parametrize("name", ["vp", "rectified"])
def test_a_state_within_the_posterior_is_denoised_as_what_both_say(name):
    """Of N(1/4, 1/2), with the precisions of both observations, in double precision."""

    from rwguidance.estimators.posterior_draws import _GivenState

    schedule, x_t, y = SCHEDULES[name], randn(0, 5, 1), randn(1, 5, 1)
    t, s = torch.tensor([0.4, 0.7], dtype=torch.float64)
    given = _GivenState(Gaussian([0.25], [[0.5]]).model(schedule), x_t, t)
    outer = schedule.at(t, like=x_t)
    precision = 2 + (outer.alpha / outer.sigma) ** 2 + ((1 - s) / s) ** 2
    mean = (0.5 + outer.alpha / outer.sigma**2 * x_t + (1 - s) / s**2 * y) / precision
    found = given(y, s).mean
    torch.testing.assert_close(found, mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 7])
def test_times_of_an_inner_flow_are_equal_steps_of_u(steps):
    schedule, seen = RectifiedSchedule(), []
    model, t = Gaussian([0.25], [[0.5]]).model(schedule), torch.tensor(0.4, dtype=torch.float64)
    model.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    InnerFlow(steps).draw(model, randn(0, 2, 1), t, None, generator_for(0))
    ratios = [math.hypot(0.6 / 0.4, k / (steps - k)) for k in range(steps)]  # (1 - u) / u
    exact = torch.tensor([[1 / (1 + ratio)] * 2 for ratio in ratios], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(seen), exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("kind", "nodes"), [("gaussian", 1), ("mixture", 24)])
def test_importances_of_a_flow_map_are_those_of_the_noised_state(schedule, kind, nodes):
    law, t, n, lost = law_of(kind, 3, 3), 0.5, 12, 1.2
    model, time = law.model(schedule), torch.tensor(t).double()
    x_t = visited(law, schedule, t, 5, 1).expand(n, 3)
    times = [1.0, 0.6, 0.2, 0.0]
    x_0, log_q = FlowMap(times, lost, nodes).draw(model, x_t, time, None, generator_for(0))

    s = float(schedule.time(schedule.log_snr(time) - lost))
    alpha, sigma, _, _ = scales_at(schedule, t)
    lower, wider, _, _ = scales_at(schedule, s)
    noise = normal((n, 3), generator_for(0), dtype=torch.float64)
    spread = math.sqrt(wider**2 - (lower / alpha * sigma) ** 2)
    x_s = lower / alpha * x_t + spread * noise
    path = [s, *(time for time in times[:-1] if time < s)]
    end = sample(model, DDIM(), x_s, path) if len(path) > 1 else x_s
    torch.testing.assert_close(x_0, model(end, path[-1]).mean, rtol=1e-9, atol=1e-9)
    log_ratio = noised(law, schedule, s).log_prob(x_s) + 0.5 * noise.square().sum(1)
    log_ratio = log_ratio - 0.5 * ((x_t - alpha * x_0) / sigma).square().sum(1)
    torch.testing.assert_close(
        log_q - log_q.mean(), log_ratio - log_ratio.mean(), rtol=1e-6, atol=1e-6
    )


# --- exact in the limit -------------------------------------------------------------------------

LINE = torch.linspace(1, 0, 17)

SOURCES = {
    "renoising": (Renoising(LINE), "vp"),
    "inner flow": (InnerFlow(6, Heun()), "discrete"),
    "flow map": (FlowMap(LINE, renoise=1.5, nodes=3, sampler=Heun()), "rectified"),
}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_both_orders_reach_the_oracle(source, first_order):
    draws, name = SOURCES[source]
    law, tilt, schedule, t = mixture(3, 2), tilt_of("quadratic", 7, 2), SCHEDULES[name], 0.5
    model, x_t = law.model(schedule), visited(law, schedule, t, 5, 1)
    exact_log_h, exact = law.tilted_moments(tilt, x_t, t, schedule)
    options = dict(first_order=first_order)
    log_h, shift = estimates(tilt, draws, model, x_t, t, seeds=8, n=50, **options)
    # The error of the steps, of order 1 / 16 for the first-order sampler, and that of 1 / n.
    bias = 0.1 if source == "renoising" else 0.03
    assert_mean_is((log_h - exact_log_h).exp(), torch.ones(1), bias)
    assert_mean_is(shift, exact, bias)


class Exact(PosteriorDraws):
    """Draws of the posterior of a Gaussian law, those of different states independent."""

    depends_on = ()

    def __init__(self, law):
        self.law = law

    def draw(self, model, x_t, t, condition, generator):
        scales = model.schedule.at(t, like=x_t)
        marginal = scales.alpha**2 * self.law.covariance + scales.sigma**2 * torch.eye(x_t.shape[1])
        covariance = scales.sigma**2 * torch.linalg.solve(marginal, self.law.covariance)
        noise = randn(generator[0].initial_seed() % 2**31, *x_t.shape)
        x_0 = model(x_t, t).mean + noise @ torch.linalg.cholesky(covariance).T
        return x_0, x_0.new_zeros(len(x_0))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("d", [1, 3, 16])
def test_dimensions(d, first_order, schedule):
    n, states, t = 50, 40, 0.6
    law, tilt = law_of("gaussian", 3, d), tilt_of("quadratic", 7, d)
    x_t = visited(law, schedule, t, 5, 1).expand(states, d)
    exact_log_h, exact = law.tilted_moments(tilt, x_t, t, schedule)
    estimator = PosteriorSampling(tilt, Exact(law), n, first_order)
    estimate = estimator(law.model(schedule), x_t, t)
    ratio = (estimate.log_h - exact_log_h).exp()
    assert_mean_is(ratio[:, None], torch.ones(1))
    chi2 = float(ratio.var()) * n
    # To first order in 1 / n, of the size of the shift or of the spread of a tilted posterior.
    assert_mean_is(estimate.shift, exact[0], bias=2 * chi2 / n)


def test_zeroth_order_takes_values_alone():
    schedule, t = RectifiedSchedule(), 0.5
    law, tilt = law_of("gaussian", 1, 1), Tilt(Step(0.2, 1.5), 1.0)
    x_t = visited(law, schedule, t, 5, 1).expand(50, 1)
    exact_log_h, exact = law.tilted_moments(tilt, x_t, t, schedule)
    estimate = PosteriorSampling(tilt, Exact(law), 100)(law.model(schedule), x_t, t)
    assert_mean_is((estimate.log_h - exact_log_h).exp()[:, None], torch.ones(1))
    assert_mean_is(estimate.shift, exact[0], bias=0.01)
    with pytest.raises(ValueError, match="must be differentiable"):
        PosteriorSampling(tilt, Exact(law), 4, first_order=True)(law.model(schedule), x_t, t)


def test_log_h_is_too_low_by_half_the_relative_variance_over_n():
    schedule, t, n = RectifiedSchedule(), 0.5, 16
    law, tilt = Gaussian([0.0], [[1.0]]), Tilt(Linear([1.0]), 1.0)
    x_t = torch.zeros(1000, 1).double()
    estimate = PosteriorSampling(tilt, Exact(law), n)(law.model(schedule), x_t, t)
    bias = estimate.log_h - law.log_h(tilt, x_t, t, schedule)
    chi2 = math.expm1(0.5)  # of the exponential of a normal number with the posterior variance 1/2
    error = float(bias.std()) / math.sqrt(len(bias))
    assert error < chi2 / (2 * n) / 2  # it would be seen if it were not there
    assert_within(bias.mean(), -chi2 / (2 * n), error + (chi2 / n) ** 2 / 5)


# --- first order --------------------------------------------------------------------------------


def test_first_order_is_free_of_noise_for_linear_rewards_and_gaussian_laws(schedule):
    law, tilt, t = law_of("gaussian", 3, 4), tilt_of("linear", 7, 4), 0.6
    model, x_t = law.model(schedule), visited(law, schedule, t, 5, 2)
    exact = law.shift(tilt, x_t, t, schedule)
    _, shift = estimates(tilt, InnerFlow(8, Heun()), model, x_t, t, 2, 2, first_order=True)
    torch.testing.assert_close(shift[0], shift[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shift[0], exact, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("source", SOURCES)
def test_first_order_is_the_rescaled_gradient_of_its_own_log_h(source):
    schedule, t = RectifiedSchedule(), 0.4
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    x_t, model = visited(law, schedule, t, 3, 2), law.model(schedule)
    estimator = PosteriorSampling(tilt, SOURCES[source][0], 3, first_order=True)
    direction = torch.nn.functional.normalize(randn(4, 2, 3), dim=1)
    step = 1e-4
    rise = estimator(model, x_t + step * direction, t).log_h
    rise = rise - estimator(model, x_t - step * direction, t).log_h
    alpha, sigma, _, _ = scales_at(schedule, t)
    slope = (alpha / sigma**2 * estimator(model, x_t, t).shift * direction).sum(1)
    torch.testing.assert_close(rise / (2 * step), slope, rtol=1e-5, atol=1e-6)


def test_the_look_ahead_gradient_is_that_of_the_reward_at_the_end_of_the_flow():
    schedule, t = RectifiedSchedule(), 0.7
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    model, x_t = law.model(schedule), visited(law, schedule, t, 3, 2)
    times = [1.0, 0.75, 0.5, 0.25, 0.0]
    look_ahead = PosteriorSampling(tilt, FlowMap(times), 1, first_order=True)(model, x_t, t)

    x = x_t.clone().requires_grad_()
    end = sample(model, DDIM(), x, [0.7, 0.5, 0.25, 0.0], gradient=True)
    (gradient,) = torch.autograd.grad(tilt(end).sum(), x)
    alpha, sigma, _, _ = scales_at(schedule, t)
    torch.testing.assert_close(look_ahead.shift, sigma**2 / alpha * gradient, rtol=1e-10, atol=0)
    torch.testing.assert_close(look_ahead.log_h, tilt(end).detach(), rtol=1e-10, atol=1e-12)


# --- the bank -----------------------------------------------------------------------------------


def test_a_bank_takes_noise_away_and_adds_no_bias():
    schedule, t, n = RectifiedSchedule(), 0.7, 32
    law, tilt = law_of("gaussian", 3, 3), Tilt(Linear([0.5, -0.3, 0.2]), 1.0)
    model, x_t = law.model(schedule), visited(law, schedule, t, 5, 1).expand(100, 3)
    exact_log_h, exact = law.tilted_moments(tilt, x_t, t, schedule)
    bank = Bank(law.sample(2000, torch.Generator().manual_seed(0)))
    plain = PosteriorSampling(tilt, Exact(law), n)(model, x_t, t)
    calm = PosteriorSampling(tilt, Exact(law), n, bank=bank)(model, x_t, t)
    assert bool(calm.log_h.var() < plain.log_h.var() / 3)
    # The shift compares two means of the same draws, which cancels most of that noise anyhow.
    assert bool(calm.shift.var(0).sum() < 1.3 * plain.shift.var(0).sum())
    assert_mean_is((calm.log_h - exact_log_h).exp()[:, None], torch.ones(1), bias=0.01)
    assert_mean_is(calm.shift, exact[0], bias=0.03)


def test_centering_makes_a_weighted_mean_zero_where_it_can():
    values, log_q = randn(0, 5, 30) + 0.3, randn(1, 5, 30)
    change = centering(values, log_q)
    mean = ((log_q + change).softmax(1) * values).sum(1)
    torch.testing.assert_close(mean, torch.zeros(5).double(), rtol=0, atol=1e-12)
    for sign in (1, -1):
        assert not centering(sign * (values.abs() + 0.1), log_q).any()
    assert not centering(torch.zeros(5, 30).double(), log_q).any()


def test_no_more_than_fifty_nats_are_centered():
    near, far = (torch.tensor([[-1.0, math.exp(-nats)]]).double() for nats in (40, 60))
    log_q = torch.zeros(1, 2).double()
    expected = torch.tensor([[-40.0, 40 * math.exp(-40)]]).double()  # 1 e^-40 = e^-40 1
    torch.testing.assert_close(centering(near, log_q), expected, rtol=1e-6, atol=0)
    assert not centering(far, log_q).any()


class Given(PosteriorDraws):
    """Draws and log-importances that are given, (B, n, D) and (B, n)."""

    depends_on = ()

    def __init__(self, draws, log_q):
        self.draws, self.log_q = draws, log_q

    def draw(self, model, x_t, t, condition, generator):
        return self.draws.flatten(0, 1), self.log_q.flatten()


def test_an_estimate_is_made_of_weighted_draws():
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    draws, log_q = randn(0, 2, 4, 3), randn(1, 2, 4)
    found = PosteriorSampling(tilt, Given(draws, log_q), 4)(
        law.model(RectifiedSchedule()), randn(2, 2, 3), 0.5
    )
    weight = log_q.exp() / log_q.exp().sum(1, keepdim=True)
    ratio = tilt(draws.flatten(0, 1)).reshape(2, 4).exp()
    total = (weight * ratio).sum(1, keepdim=True)
    tilted = weight * ratio / total
    torch.testing.assert_close(found.log_h, total.log()[:, 0])
    shift = torch.einsum("bk,bkd->bd", tilted - weight, draws)
    torch.testing.assert_close(found.shift, shift)
    expected = {"max_weight": tilted.max(1).values, "ess_tilted": 1 / tilted.square().sum(1)}
    expected["shift_norm"] = shift.square().sum(1).sqrt()
    assert found.diagnostics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.diagnostics[name], value)


# --- ends, batches, precision -------------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", ["cosine", "vp"])
def test_where_the_state_says_nothing_draws_are_of_the_prior(name, first_order):
    schedule = SCHEDULES[name]
    law, tilt = law_of("gaussian", 3, 2), tilt_of("linear", 7, 2)
    model, x_t = law.model(schedule).starting(1.0), 3 * randn(0, 2, 2)
    options = dict(first_order=first_order)
    log_h, shift = estimates(tilt, InnerFlow(6, Heun()), model, x_t, 1.0, 10, 50, **options)
    torch.testing.assert_close(log_h[:, 0], log_h[:, 1])  # whatever the state
    log_z, tilted = law.log_normalizer(tilt), law.tilted(tilt).means[0]
    assert_mean_is((log_h[:, :1] - log_z).exp(), torch.ones(1), bias=0.05)
    assert_mean_is(shift[:, :1], (tilted - law.mean)[None], bias=0.1)


@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_where_a_state_holds_no_signal_the_first_order_takes_values(name):
    model, tilt = mixture(0, 3).model(SCHEDULES[name]), tilt_of("sum", 5, 3)
    x_t = randn(0, 2, 3)
    one, two = (
        PosteriorSampling(tilt, InnerFlow(3), 4, first)(model, x_t, 1.0) for first in (False, True)
    )
    assert one.shift.abs().min() > 0
    torch.testing.assert_close(two.shift, one.shift)
    torch.testing.assert_close(two.log_h, one.log_h)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", ["cosine", "rectified", "discrete"])
def test_at_the_data_end_the_state_is_the_draw(name, first_order):
    law, tilt = mixture(0, 4), tilt_of("sum", 1, 4)
    x_0 = visited(law, SCHEDULES[name], 0.0, 2, 3)
    estimator = PosteriorSampling(tilt, InnerFlow(4), 2, first_order)
    estimate = estimator(law.model(SCHEDULES[name]), x_0, 0.0)
    assert not estimate.shift.any()
    torch.testing.assert_close(estimate.log_h, tilt(x_0), rtol=1e-12, atol=1e-12)


FEW = [1.0, 0.5, 0.2, 0.0]


@pytest.mark.parametrize(
    ("draws", "first_order", "controlled"),
    [
        (Renoising(FEW), False, False),
        (InnerFlow(2), True, True),
        (FlowMap(FEW, renoise=1.0), False, True),
        (FlowMap(FEW), True, False),
    ],
)
def test_it_conforms(draws, first_order, controlled):
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    bank = Bank(law.sample(50, torch.Generator().manual_seed(0))) if controlled else None
    estimator = PosteriorSampling(tilt, draws, 3, first_order, bank)
    x_t = visited(law, RectifiedSchedule(), 0.5, 3, 3)
    check_estimator(estimator, law.model(RectifiedSchedule()), x_t, calls=30)


def test_the_control_is_no_part_of_the_gradient():
    law, seen = mixture(0, 3), []
    bank = Bank(law.sample(50, torch.Generator().manual_seed(0)))
    estimator = PosteriorSampling(tilt_of("sum", 5, 3), InnerFlow(2), 3, True, bank)
    estimator.control.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    estimator(law.model(RectifiedSchedule()), visited(law, RectifiedSchedule(), 0.5, 3, 3), 0.5)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(
    ("source", "calls"),
    [(InnerFlow(1), 1), (InnerFlow(4), 4), (Renoising([1.0, 0.6, 0.3, 0.0]), 3)],
)
def test_the_first_call_of_a_draw_is_that_of_the_estimator(source, calls):
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    seen, model = [], law.model(RectifiedSchedule())
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    PosteriorSampling(tilt, source, 5)(model, randn(0, 2, 3), 0.9)
    assert seen == [2] + [10] * (calls - 1)


@pytest.mark.parametrize("source", [Renoising, FlowMap])
def test_draws_go_through_the_times_of_a_run(source):
    seen, law = [], Gaussian([0.25], [[0.5]])
    model = law.model(RectifiedSchedule())
    model.register_forward_pre_hook(lambda _, given: seen.extend(given[1].unique().tolist()))
    t = torch.tensor(0.85, dtype=torch.float64)
    source([1.0, 0.9, 0.7, 0.3, 0.1]).draw(model, randn(0, 3, 1), t, None, generator_for(0))
    assert list(dict.fromkeys(seen)) == [0.85, 0.7, 0.3]


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_tilt_there_is_no_shift(source):
    law, tilt = mixture(0, 3), Tilt(lambda x, condition: torch.full((len(x),), 0.7), 1.0)
    bank = Bank(law.sample(50, torch.Generator().manual_seed(0)))
    for options in ({}, {"bank": bank}):
        estimator = PosteriorSampling(tilt, SOURCES[source][0], 4, **options)
        estimate = estimator(law.model(RectifiedSchedule()), randn(0, 2, 3), 0.5)
        torch.testing.assert_close(estimate.shift, torch.zeros(2, 3).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            estimate.log_h, torch.full((2,), 0.7).double(), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", SOURCES)
def test_lower_precision_gives_estimates_of_the_same_size(source, dtype):
    law, tilt, t = mixture(0, 3), tilt_of("sum", 5, 3), 0.5
    model = law.model(RectifiedSchedule())
    x_t = visited(law, RectifiedSchedule(), t, 3, 2).to(dtype)
    for first_order in (False, True):
        estimate = PosteriorSampling(tilt, SOURCES[source][0], 8, first_order)(model, x_t, t)
        assert estimate.log_h.dtype == estimate.shift.dtype == torch.float32
        assert bool(estimate.shift.isfinite().all())
        assert not estimate.shift.requires_grad


def test_conditions_reach_every_draw():
    seen = []

    def reward(x, condition):
        seen.append(list(condition))
        return x.sum(1)

    law = mixture(0, 2)
    estimator = PosteriorSampling(Tilt(reward, 1.0), InnerFlow(2), 3)
    t = torch.tensor([0.5, 0.2]).double()
    estimator(law.model(RectifiedSchedule()), randn(0, 2, 2), t, ["a", "b"])
    assert seen == [["b"] * 3, ["a"] * 3]


# --- errors -------------------------------------------------------------------------------------


def test_zero_weights_count_and_none_but_them_is_an_error():
    law, x_t = mixture(0, 1), randn(0, 2, 1)
    half = Tilt(lambda x, c: torch.where(x[:, 0] > 0, 0.0, -torch.inf), 1.0)
    estimate = PosteriorSampling(half, InnerFlow(4), 64)(law.model(RectifiedSchedule()), x_t, 0.9)
    assert bool((estimate.log_h < 0).all())
    assert bool((estimate.shift > 0).all())
    none = Tilt(lambda x, c: torch.full((len(x),), -torch.inf), 1.0)
    with pytest.raises(ValueError, match=r"all draws of states \[0, 1\].*use more draws"):
        PosteriorSampling(none, InnerFlow(4), 4)(law.model(RectifiedSchedule()), x_t, 0.9)


def test_bad_settings_are_refused():
    tilt = tilt_of("linear", 0, 2)
    with pytest.raises(TypeError, match="draws must be PosteriorDraws"):
        PosteriorSampling(tilt, 16)
    with pytest.raises(ValueError, match="n must be"):
        PosteriorSampling(tilt, InnerFlow(2), 1)
    with pytest.raises(ValueError, match="steps must be"):
        InnerFlow(0)
    with pytest.raises(ValueError, match="times must decrease"):
        Renoising([0.0, 1.0])
    with pytest.raises(ValueError, match="renoise must be"):
        FlowMap(LINE, renoise=-1.0)
    model = mixture(0, 2).model(RectifiedSchedule())
    random = PosteriorSampling(tilt, FlowMap(LINE, sampler=DDIM(1.0)), 2)
    with pytest.raises(ValueError, match="a flow map must be deterministic"):
        random(model, randn(0, 2, 2), 0.5)


def test_a_reward_in_double_precision_is_weighed_in_it_for_states_in_single_precision():
    constant = Tilt(lambda x, condition: torch.full((len(x),), 0.3, dtype=torch.float64), 0.7)
    model, x_t = law_of("gaussian", 3, 2).model(RectifiedSchedule()), randn(0, 2, 2).float()
    found = PosteriorSampling(constant, InnerFlow(2), 3)(model, x_t, 0.5)
    exact = torch.full((2,), 0.3 / 0.7, dtype=torch.float64)
    torch.testing.assert_close(found.log_h, exact, rtol=0, atol=1e-12)
