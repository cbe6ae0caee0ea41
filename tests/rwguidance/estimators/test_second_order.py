"""SecondOrderPlugIn: exact for quadratic rewards on Gaussian laws, sound everywhere else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import SCHEDULES, inner_times, randn, schedules, seeds
from problems import law_of, mixture, scales_at, symmetric, tilt_of, visited
from rwguidance import PlugIn, RectifiedSchedule, Tilt
from rwguidance.estimators import SecondOrderPlugIn
from rwguidance.estimators.second_order import solve
from rwguidance.testing import check_estimator
from rwguidance.toy import Gaussian, Quadratic


@given(seeds, st.integers(1, 12), schedules, inner_times, st.floats(0.3, 5.0))
def test_it_is_exact_for_quadratic_rewards_on_gaussian_laws(seed, d, schedule, t, beta):
    law, precision = law_of("gaussian", seed, d), symmetric(seed + 2, 1, d, 0.1, 2.0)[0]
    tilt = Tilt(Quadratic(randn(seed + 3, d), precision, b=randn(seed + 5, d)), beta)
    x_t = visited(law, schedule, t, seed + 4, 3)
    estimate = SecondOrderPlugIn(tilt, iterations=2 * d)(law.model(schedule), x_t, t)
    log_h, shift = law.tilted_moments(tilt, x_t, t, schedule)
    size = 1 + shift.abs().max().item()
    torch.testing.assert_close(estimate.shift, shift, rtol=1e-6, atol=1e-6 * size)

    # The value lacks the determinant alone: half of log det(I + P H).
    alpha, sigma, _, _ = scales_at(schedule, t)
    identity = torch.eye(d, dtype=torch.float64)
    p = sigma**2 * torch.linalg.solve(
        alpha**2 * law.covariance + sigma**2 * identity, law.covariance
    )
    gap = 0.5 * torch.linalg.slogdet(identity + p @ precision / beta).logabsdet
    size = 1 + estimate.log_h.abs().max().item()
    torch.testing.assert_close(estimate.log_h - log_h, gap.expand(3), rtol=1e-6, atol=1e-6 * size)


@given(seeds, st.integers(1, 12), schedules, st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_without_the_jacobian_it_is_exact_for_isotropic_laws(seed, d, schedule, t):
    law = Gaussian(randn(seed, d), 0.7 * torch.eye(d).double())
    tilt = Tilt(Quadratic(randn(seed + 3, d), symmetric(seed + 2, 1, d, 0.1, 2.0)[0]), 0.8)
    x_t = visited(law, schedule, t, seed + 4, 3)
    estimator = SecondOrderPlugIn(tilt, False, iterations=2 * d, prior_variance=0.7)
    shift = estimator(law.model(schedule), x_t, t).shift
    torch.testing.assert_close(shift, law.shift(tilt, x_t, t, schedule), rtol=1e-8, atol=1e-8)


def test_one_iteration_is_enough_for_isotropic_curvature(schedule):
    law, t = Gaussian(randn(0, 30), torch.eye(30).double()), 0.6
    tilt = Tilt(Quadratic(randn(1, 30), 2 * torch.eye(30).double()), 1.0)
    x_t = visited(law, schedule, t, 5, 4)
    estimate = SecondOrderPlugIn(tilt, iterations=1)(law.model(schedule), x_t, t)
    exact = law.shift(tilt, x_t, t, schedule)
    torch.testing.assert_close(estimate.shift, exact, rtol=1e-9, atol=1e-11)
    assert bool((estimate.diagnostics["residual"] < 1e-7).all())


@pytest.mark.parametrize("jacobian", [True, False])
def test_a_linear_reward_needs_first_order_alone(jacobian):
    law, tilt, schedule = mixture(0, 5), tilt_of("linear", 1, 5), RectifiedSchedule()
    x_t = visited(law, schedule, 0.5, 2, 3)
    second = SecondOrderPlugIn(tilt, jacobian)(law.model(schedule), x_t, 0.5)
    first = PlugIn(tilt, jacobian)(law.model(schedule), x_t, 0.5)
    torch.testing.assert_close(second.shift, first.shift, rtol=1e-12, atol=1e-14)


def test_where_the_curvature_is_not_sound_the_shift_is_of_first_order():
    """A weight that grows faster than the posterior decays, in a law that is bounded."""

    law, schedule = mixture(0, 4), RectifiedSchedule()
    tilt = Tilt(Quadratic(randn(1, 4), -50 * torch.eye(4).double()), 1.0)
    x_t = visited(law, schedule, 0.6, 2, 3)
    second = SecondOrderPlugIn(tilt)(law.model(schedule), x_t, 0.6)
    torch.testing.assert_close(second.shift, PlugIn(tilt)(law.model(schedule), x_t, 0.6).shift)
    assert bool((second.diagnostics["residual"] == 1).all())


@given(seeds, st.integers(1, 10))
def test_conjugate_gradients_solve_the_system(seed, d):
    p, h = symmetric(seed, 1, d, 0.0, 3.0)[0], symmetric(seed + 1, 1, d, -0.2, 2.0)[0]
    g = randn(seed + 2, 4, d)
    g[0] = 0  # which is solved at once
    shift, _ = solve(lambda v: v @ p, lambda v: v @ h, g, 3 * d)
    exact = torch.linalg.solve(torch.eye(d).double() + p @ h, p @ g.T).T
    torch.testing.assert_close(shift, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("jacobian", [True, False])
def test_it_conforms(jacobian):
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    x_t = visited(law, SCHEDULES["vp"], 0.5, 3, 3)
    check_estimator(SecondOrderPlugIn(tilt, jacobian, 4), law.model(SCHEDULES["vp"]), x_t)


def test_settings_and_ends_are_explained():
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    model = law.model(RectifiedSchedule())
    with pytest.raises(ValueError, match=r"alpha_t = 0.*jacobian=False"):
        SecondOrderPlugIn(tilt)(model, randn(0, 2, 3), 1.0)
    with pytest.raises(ValueError, match="iterations must be"):
        SecondOrderPlugIn(tilt, iterations=0)
    with pytest.raises(ValueError, match="prior_variance must be positive"):
        SecondOrderPlugIn(tilt, prior_variance=0.0)
    with pytest.raises(ValueError, match="the log-weight must be differentiable"):
        SecondOrderPlugIn(Tilt(lambda x, c: x.detach().sum(1), 1.0))(model, randn(0, 2, 3), 0.5)
