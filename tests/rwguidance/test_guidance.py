"""GuidedModel: the base plus a scaled shift, inside a window, and nothing else."""

import pytest
import torch
from hypothesis import given

from common import inner_times, randn, schedules, seeds
from rwguidance import (
    Bank,
    ConditionalExpectation,
    Estimate,
    GuidedModel,
    ImportanceSampling,
    RectifiedSchedule,
    Tilt,
    toy,
)

COVARIANCE = [[0.8, 0.2], [0.2, 0.5]]
LAW = toy.Gaussian([1.0, -0.5], COVARIANCE)
MIXTURE = toy.GaussianMixture([0.0, -0.7], [[1.0, -0.5], [-1.0, 2.0]], [COVARIANCE])
LINEAR = Tilt(toy.Linear([1.0, -2.0]), 0.8)
QUADRATIC = Tilt(toy.Quadratic([0.5, 0.5], [[1.0, 0.3], [0.3, 2.0]], [0.2, 0.0]), 0.8)
PATH = RectifiedSchedule()
BASE = LAW.model(PATH)


class MustNotBeCalled(ConditionalExpectation):
    def forward(self, model, x_t, t, condition=None):
        raise AssertionError("the estimator was called")


class Given(ConditionalExpectation):
    """A given shift, with the condition and the time in the diagnostics."""

    def __init__(self, shift, diagnostics=None):
        super().__init__()
        self.shift = shift
        self.diagnostics = diagnostics or {}

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        return Estimate(prediction, torch.zeros(len(x_t)), self.shift, self.diagnostics)


def assert_same_bits(a, b):
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.noise, b.noise)


@pytest.mark.parametrize(
    ("arguments", "t"),
    [
        ({"scale": 0.0}, 0.5),
        ({"scale": lambda t: 0 * t}, 0.5),
        ({"scale": lambda t: 0 * t}, torch.tensor([0.2, 0.5, 0.9])),
        ({"window": (0.6, 1.0)}, 0.5),
        ({"window": (0.0, 0.4)}, 0.5),
        ({"window": (0.6, 0.8)}, torch.tensor([0.2, 0.5, 0.9])),
    ],
)
def test_without_guidance_it_is_the_base_and_the_estimator_is_not_called(arguments, t):
    x_t = randn(0, 3, 2)
    guided = GuidedModel(BASE, MustNotBeCalled(), **arguments)
    assert_same_bits(guided(x_t, t), BASE(x_t, t))
    assert guided(x_t, t).diagnostics is None


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_the_window_is_closed(t):
    x_t = randn(0, 3, 2)
    guided = GuidedModel(BASE, toy.Oracle(LAW, LINEAR), window=(0.3, 0.7))
    everywhere = GuidedModel(BASE, toy.Oracle(LAW, LINEAR))
    assert_same_bits(guided(x_t, t), everywhere(x_t, t))
    assert not torch.equal(guided(x_t, t).mean, BASE(x_t, t).mean)


def test_a_batch_of_times_may_lie_partly_inside(schedule):
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    x_t, base, oracle = randn(0, 5, 2), LAW.model(schedule), toy.Oracle(LAW, QUADRATIC)
    prediction = GuidedModel(base, oracle, scale=0.6, window=(0.25, 0.75))(x_t, t)
    inside, everywhere = torch.tensor([1, 2, 3]), GuidedModel(base, oracle, scale=0.6)(x_t, t)
    for part in ("mean", "noise"):
        got = getattr(prediction, part)
        assert torch.equal(got[[0, 4]], getattr(base(x_t, t), part)[[0, 4]])
        assert torch.equal(got[inside], getattr(everywhere, part)[inside])


def test_an_unusable_shift_outside_the_window_does_no_harm():
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    x_t = randn(0, 2, 2)
    shift = torch.tensor([[torch.nan, torch.inf], [1.0, 2.0]], dtype=torch.float64)
    prediction = GuidedModel(BASE, Given(shift), window=(0.5, 1.0))(x_t, t)
    base = BASE(x_t, t)
    assert torch.equal(prediction.mean[0], base.mean[0])
    assert torch.equal(prediction.noise[0], base.noise[0])
    assert torch.equal(prediction.mean[1], base.mean[1] + shift[1])


@pytest.mark.parametrize("scale", [-0.5, 0.1, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("t", [0.4, torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)])
def test_the_scale_multiplies_the_shift(scale, t):
    x_t, shift = randn(0, 3, 2), randn(1, 3, 2)
    prediction = GuidedModel(BASE, Given(shift), scale)(x_t, t)
    assert torch.equal(prediction.mean, BASE(x_t, t).mean + scale * shift)


def test_the_scale_may_depend_on_time():
    x_t, shift = randn(0, 3, 2), randn(1, 3, 2)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    guided = GuidedModel(BASE, Given(shift), scale=lambda t: 2 * t**2)
    expected = BASE(x_t, t).mean + 2 * t[:, None] ** 2 * shift
    torch.testing.assert_close(guided(x_t, t).mean, expected, rtol=1e-15, atol=1e-15)
    expected = BASE(x_t, 0.5).mean + 0.5 * shift
    torch.testing.assert_close(guided(x_t, 0.5).mean, expected, rtol=1e-15, atol=1e-15)


def test_a_scale_that_is_not_finite_at_one_of_the_times_is_refused():
    t = torch.tensor([0.2, 0.5], dtype=torch.float64)
    guided = GuidedModel(BASE, Given(randn(1, 2, 2)), scale=lambda t: 0.5 / (t > 0.3))
    with pytest.raises(
        ValueError, match=r"scale must be finite, got \[inf, 0.5\] at t = \[0.2, 0.5"
    ):
        guided(randn(0, 2, 2), t)


@given(schedules, inner_times, seeds)
def test_every_convention_is_guided_by_the_same_shift(schedule, t, seed):
    """The table of conversions: mean, noise, score and velocity of the guided model."""

    x_t, shift, base = randn(seed, 3, 2), randn(seed + 1, 3, 2), LAW.model(schedule)
    guided, plain = GuidedModel(base, Given(shift), 0.7)(x_t, t), base(x_t, t)
    scales = plain.scales
    a, s, a_rate, s_rate = scales.alpha, scales.sigma, scales.alpha_rate, scales.sigma_rate
    for part, factor in (
        ("mean", 1.0),
        ("noise", -a / s),
        ("score", a / s**2),
        ("velocity", a_rate - s_rate * a / s),
    ):
        move = 0.7 * factor * shift
        expected = getattr(plain, part) + move
        # Rounding of two terms of the velocity, each as large as s_rate * a / s * shift.
        size = float(expected.abs().max() + (s_rate * a / s * shift).abs().max())
        torch.testing.assert_close(getattr(guided, part), expected, rtol=0, atol=1e-14 * size)
    torch.testing.assert_close(a * guided.mean + s * guided.noise, x_t, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("law", [LAW, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("tilt", [LINEAR, QUADRATIC], ids=["linear", "quadratic"])
@pytest.mark.parametrize("t", [0.0, 0.02, 0.3, 0.8, 1.0])
def test_exact_guidance_is_the_model_of_the_tilted_law(schedule, law, tilt, t):
    """Both sides by independent formulas, at both ends of every path."""

    x_t = schedule.perturb(law.sample(5, torch.Generator().manual_seed(0)), t, randn(1, 5, 2))
    guided = GuidedModel(law.model(schedule), toy.Oracle(law, tilt))(x_t, t)
    tilted = law.tilted(tilt).model(schedule)(x_t, t)
    torch.testing.assert_close(guided.mean, tilted.mean, rtol=1e-12, atol=1e-12)
    scales = tilted.scales
    if bool(scales.sigma > 0):  # where it is 0 the pair does not determine the noise
        atol = 1e-12 * float(1 + scales.alpha / scales.sigma)
        torch.testing.assert_close(guided.noise, tilted.noise, rtol=1e-12, atol=atol)


def test_diagnostics_pass_through():
    diagnostics = {"ess": torch.tensor([3.0, 4.0])}
    guided = GuidedModel(BASE, Given(randn(0, 2, 2), diagnostics), scale=0.5)
    assert guided(randn(1, 2, 2), 0.5).diagnostics is diagnostics


def test_guiding_twice_is_guiding_by_both(schedule):
    both = Tilt([LINEAR.rewards[0], QUADRATIC.rewards[0]], [0.8, 0.8])
    x_t = randn(0, 4, 2)
    once = GuidedModel(LAW.model(schedule), toy.Oracle(LAW, both))
    first = GuidedModel(LAW.model(schedule), toy.Oracle(LAW, LINEAR))
    twice = GuidedModel(first, toy.Oracle(LAW.tilted(LINEAR), QUADRATIC))
    for t in (0.1, 0.5, 0.9):
        torch.testing.assert_close(twice(x_t, t).mean, once(x_t, t).mean, rtol=1e-12, atol=1e-12)


def test_the_condition_reaches_base_and_estimator():
    seen = []

    class Base(type(BASE)):
        def forward(self, x_t, t, condition=None):
            seen.append(condition)
            return super().forward(x_t, t, condition)

    class Asks(Given):
        def forward(self, model, x_t, t, condition=None):
            seen.append(condition)
            return super().forward(model, x_t, t, condition)

    condition = ["a", "b"]
    x_t = randn(0, 2, 2)
    GuidedModel(Base(LAW, PATH), Asks(x_t))(x_t, 0.5, condition)
    GuidedModel(Base(LAW, PATH), Asks(x_t), scale=0.0)(x_t, 0.5, condition)
    assert len(seen) == 3
    assert all(c is condition for c in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shift_is_not_rounded_to_the_dtype_of_the_states(dtype):
    x_t = randn(0, 3, 2, dtype=dtype)
    guided = GuidedModel(BASE, toy.Oracle(LAW, LINEAR), scale=1 / 3)
    prediction, base = guided(x_t, 0.5), BASE(x_t, 0.5)
    shift = LAW.shift(LINEAR, x_t, 0.5, PATH)
    assert prediction.mean.dtype == torch.float32
    torch.testing.assert_close(prediction.mean - base.mean, shift / 3, rtol=1e-5, atol=1e-6)


def test_moving_the_guided_model_moves_the_bank():
    bank = Bank(LAW.sample(30, torch.Generator().manual_seed(0)).float())
    guided = GuidedModel(BASE, ImportanceSampling(bank, LINEAR))
    assert guided.to("meta").estimator.x_0.device.type == "meta"
