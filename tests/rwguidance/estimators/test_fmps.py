"""FMPS: the velocity corrected by the gradient where a straight flow ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import SCHEDULES, inner_times, randn, seeds
from problems import mixture, scales_at, tilt_of, visited
from rwguidance import RectifiedSchedule, Tilt
from rwguidance.estimators import FMPS
from rwguidance.testing import check_estimator
from rwguidance.toy import Gaussian, Linear


@given(seeds, st.floats(0.02, 0.95))
def test_the_velocity_gains_the_gradient_where_a_straight_flow_ends(seed, t):
    law, tilt = mixture(seed, 4), tilt_of("sum", seed + 5, 4)
    model, x_t = law.model(RectifiedSchedule()), visited(law, RectifiedSchedule(), t, seed, 3)
    estimate = FMPS(tilt)(model, x_t, t)
    x, noise = x_t.clone().requires_grad_(), estimate.prediction.noise
    (gradient,) = torch.autograd.grad(tilt((x - t * noise) / (1 - t)).sum(), x)
    guided = estimate.prediction.shifted(estimate.shift).velocity
    expected = estimate.prediction.velocity - t / (1 - t) * gradient  # beta_t of the paper
    torch.testing.assert_close(guided, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(estimate.log_h, tilt(estimate.prediction.mean))


@pytest.mark.parametrize("name", SCHEDULES)
@given(seeds, inner_times, st.floats(0.1, 10.0))
def test_on_a_gaussian_law_it_is_too_long_by_a_known_factor(name, seed, t, v):
    schedule, law = SCHEDULES[name], Gaussian(randn(seed, 5), v * torch.eye(5).double())
    tilt = Tilt(Linear(randn(seed + 1, 5)), 0.7)
    x_t = visited(law, schedule, t, seed + 2, 3)
    shift = FMPS(tilt)(law.model(schedule), x_t, t).shift
    alpha, sigma = scales_at(schedule, t)[:2]
    exact = law.shift(tilt, x_t, t, schedule)
    torch.testing.assert_close(shift, (1 + (sigma / alpha) ** 2 / v) * exact, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("t", [0.001, 0.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_at_the_data_end_it_is_right_for_every_law(name, t):
    schedule, law = SCHEDULES[name], mixture(0, 3)
    tilt = tilt_of("linear", 1, 3)
    x_t = visited(law, schedule, t, 2, 3)
    shift = FMPS(tilt)(law.model(schedule), x_t, t).shift
    sigma = scales_at(schedule, t)[1]
    exact = law.shift(tilt, x_t, t, schedule)
    torch.testing.assert_close(shift, exact, rtol=0.05, atol=0.02 * sigma**2 + 1e-14)


def test_it_conforms(schedule):
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    check_estimator(FMPS(tilt), law.model(schedule), visited(law, schedule, 0.5, 3, 3))


def test_ends_and_settings_are_explained():
    law, tilt = mixture(0, 3), tilt_of("sum", 5, 3)
    with pytest.raises(ValueError, match=r"alpha_t = 0.*PlugIn\(jacobian=False\)"):
        FMPS(tilt)(law.model(RectifiedSchedule()), randn(0, 2, 3), 1.0)
    with pytest.raises(TypeError, match="tilt must be a Tilt"):
        FMPS(Linear([1.0]))
    with pytest.raises(ValueError, match="must be differentiable"):
        FMPS(Tilt(lambda x, c: x.detach().sum(1), 1.0))(
            law.model(RectifiedSchedule()), randn(0, 2, 3), 0.5
        )
