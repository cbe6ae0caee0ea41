"""PlugIn: exact where first order is enough, wrong by a known factor where it is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import SCHEDULES, assert_rounds_to, inner_times, randn, schedules, seeds
from problems import all_times, law_of, mixture, scales_at, symmetric, tilt_of, visited
from rwguidance import NoiseModel, PlugIn, RectifiedSchedule, Tilt
from rwguidance.toy import Gaussian, GaussianMixture, Linear, Quadratic, Step

dims = st.integers(1, 64)
variances = st.floats(0.05, 5.0)
betas = st.floats(0.1, 10.0)
clean_names = ("vp", "cosine", "rectified", "discrete")


def isotropic(seed, d, v):
    return Gaussian(randn(seed, d), v * torch.eye(d, dtype=torch.float64))


def posterior_variance(schedule, t, v):
    alpha, sigma, _, _ = scales_at(schedule, t)
    return v * sigma**2 / (sigma**2 + alpha**2 * v)


def has_signal(schedule, t):
    return scales_at(schedule, t)[0] > 0


def near(schedule, t):
    """Rounding of sigma^2 / alpha times an input gradient, alpha / sigma^2 times a covariance."""

    alpha, sigma, _, _ = scales_at(schedule, t)
    return dict(rtol=1e-10, atol=1e-12 * (1 + sigma / alpha if alpha else 1))


# --- where it is exact ------------------------------------------------------------------------


@given(seeds, dims, schedules, all_times, betas)
def test_the_shift_is_exact_for_a_linear_reward_and_a_gaussian_law(seed, d, schedule, t, beta):
    if not has_signal(schedule, t):
        return
    law = law_of("gaussian", seed, d)
    tilt = Tilt(Linear(randn(seed + 2, d), c=0.4), beta)
    x_t = visited(law, schedule, t, seed + 3, 3)
    estimate = PlugIn(tilt)(law.model(schedule), x_t, t)
    log_h, shift = law.tilted_moments(tilt, x_t, t, schedule)
    torch.testing.assert_close(estimate.shift, shift, **near(schedule, t))

    mean = law.denoise(x_t, t, schedule)
    torch.testing.assert_close(estimate.log_h, tilt(mean), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(estimate.prediction.mean, mean, rtol=1e-13, atol=1e-13)
    # what Jensen's inequality takes away: half the variance of the log-weight, b' P b / beta^2
    alpha, sigma, _, _ = scales_at(schedule, t)
    marginal = alpha**2 * law.covariance + sigma**2 * torch.eye(d, dtype=torch.float64)
    b = tilt.rewards[0].b
    spread = sigma**2 * (b @ torch.linalg.solve(marginal, law.covariance) @ b)
    gap = (0.5 * spread / beta**2).expand(3)
    size = 1 + log_h.abs().max().item()
    torch.testing.assert_close(log_h - estimate.log_h, gap, rtol=1e-9, atol=1e-12 * size)


@given(seeds, dims, schedules, all_times, betas, variances)
def test_without_jacobian_the_shift_is_exact_for_an_isotropic_law(seed, d, schedule, t, beta, v):
    law, slope = isotropic(seed, d, v), randn(seed + 2, d)
    tilt = Tilt(Linear(slope), beta)
    x_t = visited(law, schedule, t, seed + 3, 3)
    estimate = PlugIn(tilt, jacobian=False, prior_variance=v)(law.model(schedule), x_t, t)
    expected = law.shift(tilt, x_t, t, schedule)
    torch.testing.assert_close(estimate.shift, expected, rtol=1e-12, atol=1e-14)
    mean = estimate.prediction.mean
    size = float((mean.abs() @ slope.abs()).max()) / beta
    assert_rounds_to(estimate.log_h, tilt(mean), terms=d + 1, scale=size)


@pytest.mark.parametrize("jacobian", [True, False])
@given(seeds, dims, schedules, all_times, betas, variances, st.floats(0.0, 20.0))
def test_damping_is_exact_for_isotropic_quadratics(
    jacobian, seed, d, schedule, t, beta, v, precision
):
    if jacobian and not has_signal(schedule, t):
        return
    law = isotropic(seed, d, v)
    tilt = Tilt(Quadratic(randn(seed + 2, d), precision * torch.eye(d, dtype=torch.float64)), beta)
    x_t = visited(law, schedule, t, seed + 3, 3)
    model = law.model(schedule)
    exact = law.shift(tilt, x_t, t, schedule)
    curvature = precision / beta
    tolerance = near(schedule, t)
    tolerance["atol"] *= 1 + curvature * v
    damped = PlugIn(tilt, jacobian, damping=curvature, prior_variance=v)(model, x_t, t)
    torch.testing.assert_close(damped.shift, exact, **tolerance)

    # undamped, it overshoots by exactly 1 + k p
    plain = PlugIn(tilt, jacobian, prior_variance=v)(model, x_t, t)
    factor = 1 + curvature * posterior_variance(schedule, t, v)
    torch.testing.assert_close(plain.shift, factor * exact, **tolerance)
    assert torch.equal(damped.log_h, plain.log_h)


@given(seeds, st.integers(1, 16), schedules, inner_times, betas)
def test_undamped_it_overshoots_by_one_plus_p_h(seed, d, schedule, t, beta):
    law = law_of("gaussian", seed, d)
    precision = symmetric(seed + 2, 1, d, 0.1, 2.0)[0]
    tilt = Tilt(Quadratic(randn(seed + 3, d), precision), beta)
    x_t = visited(law, schedule, t, seed + 4, 3)
    alpha, sigma, _, _ = scales_at(schedule, t)
    identity = torch.eye(d, dtype=torch.float64)
    marginal = alpha**2 * law.covariance + sigma**2 * identity
    p = sigma**2 * torch.linalg.solve(marginal, law.covariance)
    expected = law.shift(tilt, x_t, t, schedule) @ (identity + p @ precision / beta).T
    shift = PlugIn(tilt)(law.model(schedule), x_t, t).shift
    tolerance = near(schedule, t)
    tolerance["atol"] *= 1 + 10 * d / beta
    torch.testing.assert_close(shift, expected, **tolerance)


@given(seeds, dims, schedules, inner_times)
def test_the_shift_is_the_rescaled_gradient_of_its_own_log_h(seed, d, schedule, t):
    law, tilt = mixture(seed, d), tilt_of("sum", seed + 5, d)
    x_t = visited(law, schedule, t, seed + 3, 2)
    model = law.model(schedule)
    shift = PlugIn(tilt)(model, x_t, t).shift
    direction = torch.nn.functional.normalize(randn(seed + 4, 2, d), dim=1)
    alpha, sigma, _, _ = scales_at(schedule, t)
    step = 1e-3 * min(sigma, sigma**2 / alpha)
    log_h = lambda size: PlugIn(tilt)(model, x_t + size * direction, t).log_h
    slope = 8 * (log_h(step) - log_h(-step)) - (log_h(2 * step) - log_h(-2 * step))
    slope = slope / (12 * step)
    exact = (alpha / sigma**2 * shift * direction).sum(1)
    size = 1 + log_h(0.0).abs().max().item() + x_t.abs().max().item()
    torch.testing.assert_close(slope, exact, rtol=1e-6, atol=1e-6 + 1e-14 * size / step)


# --- the value --------------------------------------------------------------------------------


@pytest.mark.parametrize("jacobian", [True, False])
@given(seeds, dims, schedules, inner_times)
def test_log_h_is_below_the_exact_one_where_the_log_weight_is_convex(
    jacobian, seed, d, schedule, t
):
    law = mixture(seed, d)
    precision = -symmetric(seed + 2, 1, d, 0.05, 0.4)[0]  # convex, and the tilted law exists
    for reward in (Quadratic(randn(seed + 3, d), precision), Linear(randn(seed + 4, d))):
        tilt = Tilt(reward, 1.0)
        x_t = visited(law, schedule, t, seed + 3, 5)
        log_h = PlugIn(tilt, jacobian)(law.model(schedule), x_t, t).log_h
        exact = law.log_h(tilt, x_t, t, schedule)
        assert bool((log_h < exact + 1e-12 * (1 + exact.abs())).all())
        if scales_at(schedule, t)[1] > 0.1:
            assert bool((log_h < exact).all())


@pytest.mark.parametrize("name", clean_names)
@pytest.mark.parametrize("jacobian", [True, False])
def test_at_the_data_end_the_shift_is_zero_and_the_value_is_exact(name, jacobian):
    law, tilt = mixture(0, 4), tilt_of("sum", 1, 4)
    x_0 = visited(law, SCHEDULES[name], 0.0, 2, 5)
    estimate = PlugIn(tilt, jacobian, damping=2.0)(law.model(SCHEDULES[name]), x_0, 0.0)
    assert not estimate.shift.any()
    torch.testing.assert_close(estimate.log_h, tilt(x_0), rtol=1e-12, atol=1e-12)


# --- batches, modes, precision ----------------------------------------------------------------


@pytest.mark.parametrize("jacobian", [True, False])
@given(seeds, schedules, inner_times, inner_times)
def test_a_batch_of_n_equals_n_batches_of_one(jacobian, seed, schedule, t, s):
    law, tilt = mixture(seed, 5), tilt_of("sum", seed + 5, 5)
    x_t = torch.cat([visited(law, schedule, time, seed + 3, 1) for time in (t, s)])
    estimator = PlugIn(tilt, jacobian, damping=0.7, prior_variance=1.3)
    together = estimator(law.model(schedule), x_t, torch.tensor([t, s], dtype=torch.float64))
    for i, time in enumerate((t, s)):
        alone = estimator(law.model(schedule), x_t[i : i + 1], time)
        torch.testing.assert_close(together.log_h[i : i + 1], alone.log_h, rtol=1e-11, atol=1e-11)
        tolerance = near(schedule, time)
        torch.testing.assert_close(together.shift[i : i + 1], alone.shift, **tolerance)


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_works_without_gradients(jacobian, mode, schedule):
    law, tilt = mixture(0, 4), tilt_of("sum", 1, 4)
    estimator = PlugIn(tilt, jacobian, damping=0.5)
    expected = estimator(law.model(schedule), visited(law, schedule, 0.5, 2, 3), 0.5)
    with mode():
        x_t = visited(law, schedule, 0.5, 2, 3)  # an inference tensor, in one of the modes
        actual = estimator(law.model(schedule), x_t, 0.5)
        assert not actual.shift.requires_grad
    assert_rounds_to(actual.shift, expected.shift, terms=128)
    assert_rounds_to(actual.log_h, expected.log_h, terms=128)


@pytest.mark.parametrize("jacobian", [True, False])
def test_estimates_are_cut_from_the_graph_and_leave_the_state_alone(jacobian):
    law, tilt = mixture(0, 4), tilt_of("sum", 1, 4)
    x_t = randn(2, 3, 4).requires_grad_()
    estimate = PlugIn(tilt, jacobian)(law.model(RectifiedSchedule()), x_t, 0.5)
    assert not estimate.shift.requires_grad
    assert not estimate.log_h.requires_grad
    assert x_t.grad is None
    assert torch.equal(estimate.diagnostics["shift_norm"], estimate.shift.norm(dim=1))


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float32, 2e-7), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
)
def test_lower_precision_agrees_with_float64(jacobian, dtype, eps, schedule):
    law, tilt = mixture(0, 4), tilt_of("sum", 1, 4)
    x_t = visited(law, schedule, 0.4, 2, 3).to(dtype)
    model, estimator = law.model(schedule), PlugIn(tilt, jacobian, damping=0.5)
    low, high = estimator(model, x_t, 0.4), estimator(model, x_t.double(), 0.4)
    assert low.shift.dtype == low.log_h.dtype == torch.float32
    # the toy model works in float64; the reward in float32; an input gradient in the state's dtype
    torch.testing.assert_close(low.log_h.double(), high.log_h, rtol=1e-5, atol=1e-5)
    rtol = max(4 * eps, 1e-5) if jacobian else 1e-5
    size = high.shift.abs().max().item()
    torch.testing.assert_close(low.shift.double(), high.shift, rtol=rtol, atol=1e-5 * (1 + size))


def test_the_condition_reaches_the_model_and_the_reward_once():
    seen = []

    class Recorder(NoiseModel):
        def noise(self, x_t, t, condition=None):
            seen.append(("model", condition))
            return 0.5 * x_t

    def reward(x, condition):
        seen.append(("reward", condition))
        return x.square().sum(1)

    for jacobian in (True, False):
        PlugIn(Tilt(reward, 1.0), jacobian)(Recorder(RectifiedSchedule()), randn(0, 2, 3), 0.5, "y")
        assert seen == [("model", "y"), ("reward", "y")]
        seen.clear()


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "rectified"])
@pytest.mark.parametrize("t", [1.0, torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)])
def test_an_input_gradient_says_nothing_where_alpha_is_zero(name, t):
    law, tilt = mixture(0, 4), tilt_of("sum", 1, 4)
    model, x_t = law.model(SCHEDULES[name]), randn(2, 3, 4)
    with pytest.raises(ValueError, match=r"alpha_t = 0.*PlugIn\(\.\.\., jacobian=False\)"):
        PlugIn(tilt)(model, x_t, t)
    # the advice works, and gives v times the gradient at the prior mean
    estimate = PlugIn(tilt, jacobian=False, prior_variance=1.7)(model, x_t, 1.0)
    mean = law.denoise(x_t, 1.0, SCHEDULES[name]).requires_grad_()
    (gradient,) = torch.autograd.grad(tilt(mean).sum(), mean)
    torch.testing.assert_close(estimate.shift, 1.7 * gradient, rtol=1e-13, atol=1e-13)


class Rounded(torch.nn.Module):
    """A reward with trainable parameters, whose gradient in the state is cut."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x, condition):
        return x.detach().round().sum(1) * self.weight


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("reward", [Step(0.0, 1.0), Rounded()], ids=["step", "rounded"])
def test_a_reward_without_gradient_is_explained(jacobian, reward):
    model = mixture(0, 1).model(RectifiedSchedule())
    with pytest.raises(ValueError, match=r"must be differentiable.*use ImportanceSampling"):
        PlugIn(Tilt(reward, 1.0), jacobian)(model, randn(0, 2, 1), 0.5)


def test_bad_settings_are_refused():
    tilt = tilt_of("linear", 0, 2)
    with pytest.raises(TypeError, match="tilt must be a Tilt"):
        PlugIn(Linear([1.0]))
    for damping in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="damping must be"):
            PlugIn(tilt, damping=damping)
    for variance in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="prior_variance must be positive"):
            PlugIn(tilt, prior_variance=variance)


@pytest.mark.parametrize(
    ("damping", "jacobian", "uses"),
    [(None, None, True), (1.0, None, False), (1.0, True, True), (None, False, False)],
)
def test_damping_leaves_the_jacobian_out_unless_it_is_asked_for(damping, jacobian, uses):
    tilt = Tilt(Linear(torch.ones(2).double()), 1.0)
    estimator = PlugIn(tilt, jacobian, damping)
    assert estimator.jacobian is uses
    law, x_t = mixture(1, 2), randn(2, 3, 2)
    model = law.model(RectifiedSchedule())
    explicit = PlugIn(tilt, uses, damping)(model, x_t, 0.5)
    assert torch.equal(estimator(model, x_t, 0.5).shift, explicit.shift)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_between_two_modes_the_damped_shift_is_nearer_to_the_truth_without_the_jacobian(strength):
    means = torch.tensor([[-2.5, 0.0], [2.5, 0.0]]).double()
    covariances = 0.5 * torch.eye(2).double().expand(2, 2, 2)
    law = GaussianMixture(torch.zeros(2).double(), means, covariances)
    center, precision = torch.tensor([0.0, 2.5]).double(), 2 * torch.eye(2).double()
    tilt = Tilt(Quadratic(center, precision), 1 / strength)
    schedule, generator = RectifiedSchedule(), torch.Generator().manual_seed(0)
    model = law.model(schedule)
    for t in (0.8, 0.6, 0.4):
        x_t = schedule.perturb(law.sample(500, generator), t, randn(3, 500, 2))
        _, exact = law.tilted_moments(tilt, x_t, t, schedule)
        errors = [
            (PlugIn(tilt, jacobian, 2 * strength, 0.5)(model, x_t, t).shift - exact)
            .square()
            .sum(1)
            .mean()
            for jacobian in (None, True)
        ]
        assert errors[0] < errors[1] / 2
