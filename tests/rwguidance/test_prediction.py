"""Prediction: conversions, their limits at both ends, and the one place where guidance enters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import SCHEDULES, assert_rounds_to, inner_times, randn, schedules, seeds
from problems import EPS, all_times, law_of, noised, scales_at, visited
from rwguidance import DiscreteSchedule, Prediction

KINDS = ("mean", "noise", "score", "velocity")
STARTS_CLEAN = ("vp", "cosine", "rectified", "discrete")  # sigma_0 = 0
ENDS_NOISE = ("cosine", "rectified")  # alpha_1 = 0
ROOT = ("vp", "discrete")  # sigma_t like the root of t: an infinite rate at 0

shapes = st.one_of(
    st.integers(1, 64).map(lambda d: (d,)), st.sampled_from([(), (1, 1), (3, 4, 4), (2, 5)])
)


def a_prediction(seed, shape, schedule, t):
    mean, noise = randn(seed, 3, *shape), randn(seed + 1, 3, *shape)
    prediction = Prediction(mean, noise, schedule.at(t, like=mean))
    return prediction, schedule.perturb(mean, t, noise)


def convert(kind, prediction, x_t):
    build = getattr(Prediction, f"from_{kind}")
    return build(getattr(prediction, kind), x_t, prediction.scales)


def assert_same(actual, expected, error):
    """Both members agree, up to 16 times their forward error bounds."""

    for a, b, bound in zip(
        (actual.mean, actual.noise), (expected.mean, expected.noise), error, strict=True
    ):
        assert bool(((a - b).abs() <= 16 * EPS * bound).all()), (a - b).abs().max()


def conditioning(kind, p, x_t):
    """What rounding may do to (mean, noise) when they are computed from `kind`, in units of eps."""

    a, s, a_rate, s_rate = (
        value.abs()
        for value in (p.scales.alpha, p.scales.sigma, p.scales.alpha_rate, p.scales.sigma_rate)
    )
    size = x_t.abs() + a * p.mean.abs() + s * p.noise.abs()
    if kind == "mean":
        return p.mean.abs(), size / s
    if kind in ("noise", "score"):
        return size / a, p.noise.abs()
    velocity = a_rate * p.mean.abs() + s_rate * p.noise.abs()
    determinant = a_rate * s + s_rate * a
    return (
        (s * velocity + s_rate * size) / determinant,
        (a_rate * size + a * velocity) / determinant,
    )


def limit_exists(kind, schedule, t):
    alpha, sigma, _, sigma_rate = scales_at(schedule, t)
    return {
        "mean": sigma > 0,
        "noise": alpha > 0,
        "score": alpha > 0 and sigma > 0,
        "velocity": sigma_rate < float("inf"),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@given(seeds, shapes, schedules, all_times)
def test_round_trips_wherever_the_limit_exists(kind, seed, shape, schedule, t):
    if limit_exists(kind, schedule, t):
        prediction, x_t = a_prediction(seed, shape, schedule, t)
        back = convert(kind, prediction, x_t)
        assert_same(back, prediction, conditioning(kind, prediction, x_t))


@pytest.mark.parametrize("kind", KINDS)
@given(seeds, schedules, st.lists(inner_times, min_size=3, max_size=3))
def test_batched_times_convert_like_one_time_per_sample(kind, seed, schedule, times):
    t = torch.tensor(times, dtype=torch.float64)
    prediction, x_t = a_prediction(seed, (2, 3), schedule, t)
    value = getattr(prediction, kind)
    back = convert(kind, prediction, x_t)
    for i, time in enumerate(times):
        rows = slice(i, i + 1)
        alone = schedule.at(time, like=x_t[rows])
        single = Prediction(prediction.mean[rows], prediction.noise[rows], alone)
        largest = max(float(getattr(prediction, name).abs().max()) for name in ("mean", kind))
        assert_rounds_to(getattr(single, kind), value[rows], terms=32, scale=largest)
        one = getattr(Prediction, f"from_{kind}")(value[rows], x_t[rows], alone)
        part = Prediction(back.mean[rows], back.noise[rows], alone)
        assert_same(one, part, conditioning(kind, part, x_t[rows]))


@pytest.mark.parametrize("name", STARTS_CLEAN)
def test_at_the_data_end_the_state_is_the_mean(name):
    prediction, x_t = a_prediction(0, (5,), SCHEDULES[name], 0.0)
    assert torch.equal(x_t, prediction.mean)
    other = randn(2, 3, 5)

    from_mean = Prediction.from_mean(x_t, x_t, prediction.scales)
    assert torch.equal(from_mean.mean, x_t)
    assert not from_mean.noise.any()  # independent of the state, hence its own mean, zero
    from_noise = Prediction.from_noise(other, x_t, prediction.scales)
    assert torch.equal(from_noise.mean, x_t)
    assert torch.equal(from_noise.noise, other)
    from_score = Prediction.from_score(other, x_t, prediction.scales)
    assert torch.equal(from_score.mean, x_t)
    assert not from_score.noise.any()


@pytest.mark.parametrize("name", STARTS_CLEAN)
def test_the_data_end_has_no_score(name):
    prediction, _ = a_prediction(0, (5,), SCHEDULES[name], 0.0)
    with pytest.raises(ValueError, match="score is not determined where sigma_t = 0"):
        _ = prediction.score


@pytest.mark.parametrize("name", STARTS_CLEAN)
def test_one_state_at_the_data_end_will_do_to_have_none(name):
    times = torch.tensor([0.5, 0.0, 0.3], dtype=torch.float64)
    prediction, _ = a_prediction(0, (5,), SCHEDULES[name], times)
    with pytest.raises(ValueError, match="score is not determined where sigma_t = 0"):
        _ = prediction.score


@pytest.mark.parametrize("name", ROOT)
def test_an_infinite_rate_has_no_velocity(name):
    prediction, x_t = a_prediction(0, (5,), SCHEDULES[name], 0.0)
    with pytest.raises(ValueError, match="velocity is not determined"):
        _ = prediction.velocity
    with pytest.raises(ValueError, match="velocity is not determined"):
        Prediction.from_velocity(x_t, x_t, prediction.scales)


ENDING = DiscreteSchedule([0.9, 0.5, 0.0])  # alpha_t like a root at the noise end


@pytest.mark.parametrize(("schedule", "t"), [(SCHEDULES["vp"], 0.0), (ENDING, 1.0)])
@pytest.mark.parametrize("first", [True, False])
def test_one_infinite_rate_will_do_to_have_no_velocity(schedule, t, first):
    times = torch.tensor([t, 0.5] if first else [0.5, t], dtype=torch.float64)
    x_t = randn(0, 2, 5)
    prediction = Prediction(x_t, randn(1, 2, 5), schedule.at(times, like=x_t))
    with pytest.raises(ValueError, match="velocity is not determined"):
        _ = prediction.velocity
    with pytest.raises(ValueError, match="velocity is not determined"):
        Prediction.from_velocity(x_t, x_t, prediction.scales)


@pytest.mark.parametrize("name", ENDS_NOISE)
def test_at_the_noise_end_the_state_is_the_noise(name):
    prediction, x_t = a_prediction(0, (5,), SCHEDULES[name], 1.0)
    assert torch.equal(x_t, prediction.noise)
    back = convert("mean", prediction, x_t)
    assert torch.equal(back.mean, prediction.mean)
    assert torch.equal(back.noise, x_t)
    assert torch.equal(prediction.score, -x_t)


@pytest.mark.parametrize("name", ENDS_NOISE)
@pytest.mark.parametrize("kind", ["noise", "score"])
@pytest.mark.parametrize("t", [1.0, torch.tensor([0.3, 1.0, 0.5], dtype=torch.float64)])
def test_noise_and_score_hold_no_mean_where_alpha_is_zero(name, kind, t):
    prediction, x_t = a_prediction(0, (5,), SCHEDULES[name], t)
    with pytest.raises(ValueError, match=f"{kind} prediction holds no information"):
        convert(kind, prediction, x_t)


@given(seeds, shapes, schedules, inner_times)
def test_velocity_is_the_time_derivative_of_the_path(seed, shape, schedule, t):
    step = 1e-6
    if isinstance(schedule, DiscreteSchedule):  # piecewise: stay inside one piece
        t = (int(t * 100) + 0.5) / 100
    prediction, _ = a_prediction(seed, shape, schedule, t)
    ahead = schedule.perturb(prediction.mean, t + step, prediction.noise)
    behind = schedule.perturb(prediction.mean, t - step, prediction.noise)
    difference = (ahead - behind) / (2 * step)
    # rounding eps |x| / step = 1e-8 and curvature step^2 x''' / 6 < 1e-7, for |x| < 200
    torch.testing.assert_close(prediction.velocity, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "shared", "blurred", "points"])
@given(seeds, st.integers(1, 64), schedules, inner_times)
def test_score_is_the_gradient_of_the_exact_log_density(kind, seed, d, schedule, t):
    law = law_of(kind, seed, d)
    x_t = visited(law, schedule, t, seed + 9, 3)
    score = law.model(schedule)(x_t, t).score

    x_t.requires_grad_()
    (gradient,) = torch.autograd.grad(noised(law, schedule, t).log_prob(x_t).sum(), x_t)
    # score = (alpha D - x) / sigma^2, with D exact to the rounding of log densities of size d
    _, sigma, _, _ = scales_at(schedule, t)
    bound = 100 * d * EPS * (1 + x_t.detach().abs().max().item()) ** 2 / sigma**3
    torch.testing.assert_close(score, gradient, rtol=1e-9, atol=max(bound, 1e-10))


@given(seeds, shapes, schedules, inner_times)
def test_shifted_obeys_every_row_of_the_conversion_table(seed, shape, schedule, t):
    base, x_t = a_prediction(seed, shape, schedule, t)
    shift = randn(seed + 2, 3, *shape)
    new = base.shifted(shift)
    a, s, a_rate, s_rate = scales_at(schedule, t)
    gradient = a / s**2 * shift  # of log h

    def moved(actual, before, by, by_gradient):
        for expected in (before + by, before + by_gradient):
            size = (actual.abs() + before.abs() + by.abs()).max().item()
            torch.testing.assert_close(actual, expected, rtol=0, atol=16 * EPS * size)

    assert torch.equal(new.mean, base.mean + shift)
    moved(new.mean, base.mean, shift, s**2 / a * gradient)
    moved(new.score, base.score, a / s**2 * shift, gradient)
    moved(new.noise, base.noise, -a / s * shift, -s * gradient)
    log_ratio_rate = a_rate / a - s_rate / s  # of alpha / sigma
    moved(
        new.velocity,
        base.velocity,
        (a_rate - s_rate * a / s) * shift,
        s**2 * log_ratio_rate * gradient,
    )
    state = a * new.mean + s * new.noise
    size = (x_t.abs() + (a * shift).abs()).max().item()
    torch.testing.assert_close(state, x_t, rtol=0, atol=16 * EPS * size)


@pytest.mark.parametrize("name", ["vp", "cosine", "discrete"])
@given(seeds, inner_times)
def test_shifted_moves_the_v_prediction_of_variance_preserving_models(name, seed, t):
    base, _ = a_prediction(seed, (7,), SCHEDULES[name], t)
    shift = randn(seed + 2, 3, 7)
    a, s, _, _ = scales_at(SCHEDULES[name], t)
    v = lambda p: a * p.noise - s * p.mean
    new = v(base.shifted(shift))
    torch.testing.assert_close(new, v(base) - shift / s, rtol=1e-13, atol=1e-13 / s)
    gradient = a / s**2 * shift
    torch.testing.assert_close(new, v(base) - s / a * gradient, rtol=1e-13, atol=1e-13 / s)


@given(seeds, schedules, inner_times)
def test_shifted_moves_the_slope_of_the_equivalent_exploding_path(seed, schedule, t):
    base, x_t = a_prediction(seed, (7,), schedule, t)
    shift = randn(seed + 2, 3, 7)
    a, s, _, _ = scales_at(schedule, t)
    x, noise_to_signal = x_t / a, s / a  # the coordinates in which alpha = 1
    slope = lambda p: (x - p.mean) / noise_to_signal
    torch.testing.assert_close(slope(base), base.noise, rtol=1e-9, atol=1e-9 * a / s)
    new = base.shifted(shift)
    torch.testing.assert_close(new.noise, slope(new), rtol=1e-9, atol=1e-9 * a / s)
    gradient = a * (a / s**2 * shift)  # in x = x_t / alpha
    expected = base.noise - noise_to_signal * gradient
    torch.testing.assert_close(new.noise, expected, rtol=1e-12, atol=1e-12 * a / s)


@given(seeds, inner_times)
def test_shifted_moves_the_velocity_of_rectified_flows(seed, t):
    base, _ = a_prediction(seed, (7,), SCHEDULES["rectified"], t)
    shift = randn(seed + 2, 3, 7)
    new, gradient = base.shifted(shift), (1 - t) / t**2 * shift
    # towards noise (SD3, FLUX), then towards data with clock 1 - t (the flow matching papers)
    expected = base.velocity - shift / t
    torch.testing.assert_close(new.velocity, expected, rtol=1e-13, atol=1e-13 / t)
    expected = base.velocity - t / (1 - t) * gradient
    torch.testing.assert_close(new.velocity, expected, rtol=1e-13, atol=1e-13 / t)
    clock = 1 - t
    expected = -base.velocity + (1 - clock) / clock * gradient
    torch.testing.assert_close(-new.velocity, expected, rtol=1e-13, atol=1e-13 / t)


@given(seeds, shapes, schedules, all_times)
def test_shifts_add_up_and_a_zero_shift_changes_nothing(seed, shape, schedule, t):
    base, _ = a_prediction(seed, shape, schedule, t)
    one, two = randn(seed + 2, 3, *shape), randn(seed + 3, 3, *shape)
    twice, once = base.shifted(one).shifted(two), base.shifted(one + two)
    torch.testing.assert_close(twice.mean, once.mean, rtol=0, atol=1e-14)
    size = once.noise.abs().max().item() + base.shifted(one).noise.abs().max().item()
    torch.testing.assert_close(twice.noise, once.noise, rtol=0, atol=16 * EPS * size)
    same = base.shifted(torch.zeros_like(one))
    assert torch.equal(same.mean, base.mean)
    assert torch.equal(same.noise, base.noise)


@pytest.mark.parametrize("name", STARTS_CLEAN)
def test_shifted_leaves_the_noise_alone_where_sigma_is_zero(name):
    base, x_t = a_prediction(0, (4,), SCHEDULES[name], torch.tensor([0.0, 0.5, 1.0]))
    new = base.shifted(torch.ones_like(x_t))
    assert torch.equal(new.noise[0], base.noise[0])
    assert bool((new.noise[1] < base.noise[1]).all())
    assert bool(new.noise.isfinite().all())


def test_the_noise_of_a_mean_at_mixed_times_is_finite(schedule):
    base, x_t = a_prediction(0, (4,), schedule, torch.tensor([0.0, 0.5, 1.0]))
    back = Prediction.from_mean(base.mean, x_t, base.scales)
    torch.testing.assert_close(back.noise[1:], base.noise[1:], rtol=0, atol=1e-13)
    assert bool(back.noise.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_float32_or_wider_and_lose_nothing(schedule, kind, dtype):
    value, x_t = randn(0, 3, 2, 5).to(dtype), randn(1, 3, 2, 5).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    build = getattr(Prediction, f"from_{kind}")
    prediction = build(value, x_t, schedule.at(0.4, like=x_t))
    expected = build(value.to(wide), x_t.to(wide), schedule.at(0.4, like=x_t.to(wide)))
    for name in KINDS:
        assert getattr(prediction, name).dtype == wide
        assert torch.equal(getattr(prediction, name), getattr(expected, name))
    assert prediction.shifted(value).noise.dtype == wide
    assert prediction.shifted(value).mean.dtype == wide


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_another_shape_is_refused(kind):
    prediction, x_t = a_prediction(0, (5,), SCHEDULES["rectified"], 0.5)
    with pytest.raises(ValueError, match=rf"{kind} must have the shape of the state, \(3, 5\)"):
        getattr(Prediction, f"from_{kind}")(x_t[:, :1], x_t, prediction.scales)
    with pytest.raises(ValueError, match="shift must have the shape"):
        prediction.shifted(x_t[0])


def test_guidance_keeps_the_diagnostics_and_detach_cuts_the_graph():
    mean = randn(0, 3, 5).requires_grad_()
    scales = SCHEDULES["rectified"].at(0.5, like=mean)
    prediction = Prediction(mean, 2 * mean, scales, diagnostics={"ess": torch.ones(3)})
    assert prediction.shifted(mean).diagnostics is prediction.diagnostics
    assert prediction.shifted(mean).noise.requires_grad
    cut = prediction.detach()
    assert not cut.mean.requires_grad
    assert not cut.noise.requires_grad
    assert torch.equal(cut.noise, prediction.noise)


@pytest.mark.parametrize("name", ["vp", "cosine", "rectified", "discrete"])
def test_at_the_data_end_the_state_is_the_clean_sample_whatever_the_network_says(name):
    x_t, wrong = randn(0, 3, 2), randn(1, 3, 2)
    prediction = Prediction.from_mean(wrong, x_t, SCHEDULES[name].at(0.0, x_t))
    assert torch.equal(prediction.mean, x_t)
    assert not prediction.noise.any()
