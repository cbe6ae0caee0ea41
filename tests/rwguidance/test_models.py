"""Models: implement one of the four conventions and get all of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import SCHEDULES, assert_rounds_to, inner_times, randn, schedules, seeds
from problems import EPS, mixture, scales_at, visited
from rwguidance import (
    DenoiserModel,
    Model,
    NoiseModel,
    RectifiedSchedule,
    ScoreModel,
    VelocityModel,
    VPSchedule,
)


class Answer:
    """What the four models share: the exact prediction of a law, and a record of the calls."""

    def __init__(self, law, schedule):
        super().__init__(schedule)
        self.exact = law.model(schedule)
        self.calls = []

    def answer(self, kind, x_t, t, condition):
        self.calls.append((x_t, t, condition))
        return getattr(self.exact(x_t, t), kind)


class Denoiser(Answer, DenoiserModel):
    def denoise(self, x_t, t, condition=None):
        return self.answer("mean", x_t, t, condition)


class Noise(Answer, NoiseModel):
    def noise(self, x_t, t, condition=None):
        return self.answer("noise", x_t, t, condition)


class Score(Answer, ScoreModel):
    def score(self, x_t, t, condition=None):
        return self.answer("score", x_t, t, condition)


class Velocity(Answer, VelocityModel):
    def velocity(self, x_t, t, condition=None):
        return self.answer("velocity", x_t, t, condition)


FOUR = (Denoiser, Noise, Score, Velocity)


@pytest.mark.parametrize("convention", FOUR)
@given(seeds, st.integers(1, 64), schedules, inner_times)
def test_every_convention_gives_the_same_prediction(convention, seed, d, schedule, t):
    law = mixture(seed, d)
    x_t = visited(law, schedule, t, seed + 9, 3)
    exact = law.model(schedule)(x_t, t)
    prediction = convention(law, schedule)(x_t, t)
    a, s, a_rate, s_rate = (abs(value) for value in scales_at(schedule, t))
    # each convention divides by alpha, sigma or the determinant, and so does rounding
    size = 1 + x_t.abs().max().item()
    worst = 1 / a + 1 / s + (a + s) * (a_rate + s_rate) / (a_rate * s + s_rate * a) / a / s
    atol = 64 * EPS * size * worst
    for kind in ("mean", "noise"):
        actual, expected = getattr(prediction, kind), getattr(exact, kind)
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=atol)


@pytest.mark.parametrize("convention", FOUR)
def test_a_model_asks_its_network_once_and_passes_the_condition_on(convention):
    model = convention(mixture(0, 3), RectifiedSchedule())
    x_t, t, condition = randn(0, 2, 3), torch.tensor([0.2, 0.7]), ["one", "two"]
    model(x_t, t, condition)
    ((seen, time, passed),) = model.calls
    assert seen is x_t
    assert time.dtype == torch.float64  # as the states are
    torch.testing.assert_close(time, t.double(), rtol=0, atol=0)
    assert passed is condition


@pytest.mark.parametrize("convention", FOUR)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_model_works_without_gradients(convention, mode, schedule):
    law = mixture(1, 4)
    x_t = visited(law, schedule, 0.4, 0, 3)
    expected = convention(law, schedule)(x_t, 0.4)
    with mode():
        actual = convention(law, schedule)(x_t, 0.4)
        for part in ("velocity", "mean", "noise"):
            assert_rounds_to(getattr(actual, part), getattr(expected, part), terms=64)


@pytest.mark.parametrize("convention", FOUR)
def test_a_model_is_differentiable_in_the_state(convention, schedule):
    law = mixture(2, 4)
    x_t = visited(law, schedule, 0.5, 0, 1)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: convention(law, schedule)(x, 0.5).mean.sum(0), x_t
    )[:, 0]
    alpha, sigma, _, _ = scales_at(schedule, 0.5)
    # Tweedie's second order: the covariance of x_0 given x_t, symmetric and positive
    covariance = sigma**2 / alpha * jacobian
    torch.testing.assert_close(covariance, covariance.mT, rtol=0, atol=1e-9 * sigma**2)
    assert bool((torch.linalg.eigvalsh(covariance) > 0).all())


@pytest.mark.parametrize("convention", FOUR)
@given(seeds, schedules, inner_times, inner_times)
def test_batched_times_equal_one_time_per_sample(convention, seed, schedule, t, s):
    law = mixture(seed, 5)
    x_t = torch.cat([visited(law, schedule, time, seed + 9, 1) for time in (t, s)])
    model = convention(law, schedule)
    together = model(x_t, torch.tensor([t, s], dtype=torch.float64))
    for i, time in enumerate((t, s)):
        alone = model(x_t[i : i + 1], time)
        a, sigma, _, _ = scales_at(schedule, time)
        tolerance = dict(rtol=1e-12, atol=1e-12 / min(a, sigma) ** 2)
        torch.testing.assert_close(together.mean[i : i + 1], alone.mean, **tolerance)
        torch.testing.assert_close(together.noise[i : i + 1], alone.noise, **tolerance)


@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_mean_and_velocity_models_are_exact_at_the_noise_end(name):
    law, x_t = mixture(3, 4), randn(0, 3, 4)
    mean = (law.log_weights.exp()[:, None] * law.means).sum(0).expand(3, 4)
    for convention in (Denoiser, Velocity):
        prediction = convention(law, SCHEDULES[name])(x_t, 1.0)
        torch.testing.assert_close(prediction.mean, mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(prediction.noise, x_t, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_noise_and_score_models_refuse_the_noise_end(name):
    for convention in (Noise, Score):
        model = convention(mixture(3, 4), SCHEDULES[name])
        with pytest.raises(ValueError, match="no information about x_0 where alpha_t = 0"):
            model(randn(0, 3, 4), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("convention", FOUR)
def test_half_precision_networks_give_float32_predictions(convention, dtype):
    class Half(Answer):
        def answer(self, kind, x_t, t, condition):
            assert x_t.dtype == dtype
            return super().answer(kind, x_t, t, condition).to(dtype)

    model = type("HalfModel", (Half, convention), {})(mixture(4, 6), VPSchedule())
    prediction = model(randn(0, 3, 6).to(dtype), 0.5)
    assert prediction.mean.dtype == torch.float32
    assert prediction.noise.dtype == torch.float32


def test_a_schedule_is_required():
    with pytest.raises(TypeError, match="schedule must be a Schedule, got float"):
        Denoiser(mixture(0, 2), 0.5)


def test_a_model_without_its_method_is_abstract():
    for base in (Model, DenoiserModel, NoiseModel, ScoreModel, VelocityModel):
        with pytest.raises(TypeError, match="abstract"):
            base(VPSchedule())


@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.tensor([0.25, 0.5, 1.0])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("convention", FOUR)
def test_a_hook_gets_one_time_per_state_in_float32_or_wider(convention, dtype, t):
    model = convention(mixture(0, 2), VPSchedule())
    model(randn(0, 3, 2).to(dtype), t)
    ((_, times, _),) = model.calls
    assert times.shape == (3,)
    assert times.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(times.double(), torch.as_tensor(t).double().expand(3))
    times.mul_(999)  # its own copy: nobody else sees this


def test_forward_gets_every_digit_of_the_times():
    seen = []

    class Whole(Denoiser):
        def forward(self, x_t, t, condition=None):
            seen.append(t)
            return super().forward(x_t, t, condition)

    Whole(mixture(0, 2), VPSchedule())(randn(0, 3, 2).float(), 0.1)
    assert seen[0].tolist() == [0.1] * 3


def test_states_of_older_versions_come_without_a_start():
    model = mixture(2, 1).model(SCHEDULES["vp"]).starting(0.9)
    copy = object.__new__(type(model))
    copy.__setstate__((model.__dict__, {"_start": 0.9}))  # as Python makes it of slots
    assert copy.schedule is model.schedule
    assert copy.start is None


def test_a_model_must_return_a_prediction():
    class Nothing(Model):
        def forward(self, x_t, t, condition=None):
            return None

    with pytest.raises(TypeError, match=r"Nothing\.forward must return a Prediction, got None"):
        Nothing(VPSchedule())(randn(0, 3, 2), 0.5)
