"""Learned estimators: an exact network gives the exact shift, whatever the mode and the shapes."""

import pytest
import torch
from hypothesis import given
from torch import nn

from common import SCHEDULES, assert_rounds_to, inner_times, randn, schedules, seeds
from problems import mixture, visited
from rwguidance import GuidedModel, Tilt
from rwguidance.estimators import LearnedExpectation, LearnedShift
from rwguidance.toy import Linear, Oracle

LAW = mixture(3, 3)
TILT = Tilt(Linear([0.9, -0.6, 0.4], c=0.3), 1.5)


class ExactLogH(nn.Module):
    def __init__(self, schedule, law=LAW, offset=0.0):
        super().__init__()
        self.schedule, self.law, self.offset = schedule, law, offset

    def forward(self, x_t, t, condition=None):
        assert t.shape == (len(x_t),)
        assert t.dtype == torch.float64
        return self.law.log_h(TILT, x_t, t, self.schedule) + self.offset


class ExactShift(nn.Module):
    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, condition=None):
        assert t.shape == (len(x_t),)
        assert t.dtype == torch.float64
        return LAW.shift(TILT, x_t, t, self.schedule)


class Function(nn.Module):
    """A network that is a formula."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, x_t, t, condition=None):
        return self.formula(x_t, t, condition)


def test_of_a_network_in_half_precision_estimates_are_in_single():
    x_t, model = randn(0, 4, 3).float(), LAW.model(SCHEDULES["rectified"])
    log_h = lambda x_t, t, condition: x_t.bfloat16().sum(1)
    shift = lambda x_t, t, condition: x_t.bfloat16()
    for estimator in (LearnedExpectation(Function(log_h)), LearnedShift(Function(shift))):
        estimate = estimator(model, x_t, 0.5)
        assert (estimate.log_h.dtype, estimate.shift.dtype) == (torch.float32, torch.float32)
        assert not estimate.log_h.requires_grad


@given(schedules, inner_times, seeds)
def test_an_exact_network_gives_the_exact_shift(schedule, t, seed):
    x_t = visited(LAW, schedule, t, seed % 1000, 6)
    estimate = LearnedExpectation(ExactLogH(schedule))(LAW.model(schedule), x_t, t)
    log_h, shift = LAW.tilted_moments(TILT, x_t, t, schedule)
    torch.testing.assert_close(estimate.shift, shift, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(estimate.log_h, log_h, rtol=1e-12, atol=1e-12)
    size = estimate.diagnostics["shift_norm"]
    torch.testing.assert_close(size, shift.square().sum(1).sqrt(), rtol=1e-9, atol=1e-10)


def test_a_constant_in_log_h_does_not_matter(schedule):
    x_t = visited(LAW, schedule, 0.5, 1, 6)
    model = LAW.model(schedule)
    one = LearnedExpectation(ExactLogH(schedule))(model, x_t, 0.5)
    two = LearnedExpectation(ExactLogH(schedule, offset=7.0))(model, x_t, 0.5)
    assert torch.equal(one.shift, two.shift)
    torch.testing.assert_close(two.log_h - one.log_h, torch.full((6,), 7.0, dtype=torch.float64))


@pytest.mark.parametrize("build", [ExactLogH, ExactShift])
def test_guidance_by_an_exact_network_is_guidance_by_the_oracle(build, schedule):
    x_t, model = visited(LAW, schedule, 0.4, 2, 6), LAW.model(schedule)
    learned = (LearnedExpectation if build is ExactLogH else LearnedShift)(build(schedule))
    found = GuidedModel(model, learned)(x_t, 0.4)
    exact = GuidedModel(model, Oracle(LAW, TILT))(x_t, 0.4)
    torch.testing.assert_close(found.mean, exact.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.noise, exact.noise, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", [LearnedExpectation, LearnedShift])
def test_scalar_and_batched_times_agree(build, schedule):
    network = (ExactLogH if build is LearnedExpectation else ExactShift)(schedule)
    estimator, model = build(network), LAW.model(schedule)
    x_t = visited(LAW, schedule, 0.3, 4, 5)
    scalar = estimator(model, x_t, 0.3)
    batched = estimator(model, x_t, torch.full((5,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(scalar.shift, batched.shift, rtol=1e-13, atol=1e-13)
    mixed = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    together = estimator(model, x_t, mixed)
    for i in range(5):
        alone = estimator(model, x_t[i : i + 1], mixed[i])
        torch.testing.assert_close(together.shift[i : i + 1], alone.shift, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            together.log_h[i : i + 1], alone.log_h, rtol=1e-11, atol=1e-11, equal_nan=True
        )


@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_a_gradient_cannot_guide_pure_noise(name):
    schedule = SCHEDULES[name]
    estimator = LearnedExpectation(ExactLogH(schedule))
    with pytest.raises(ValueError, match=r"alpha_t = 0.*use LearnedShift.*window"):
        estimator(LAW.model(schedule), randn(0, 4, 3), 1.0)
    times = torch.tensor([0.5, 1.0, 0.2, 0.1], dtype=torch.float64)
    with pytest.raises(ValueError, match="use LearnedShift"):
        estimator(LAW.model(schedule), randn(0, 4, 3), times)


@pytest.mark.parametrize("t", [0.0, 0.37, 1.0])
def test_a_shift_network_is_taken_at_its_word(schedule, t):
    network = Function(lambda x, t, condition: 0.3 * x + t[:, None])
    x_t, model = visited(LAW, schedule, t, 5, 4), LAW.model(schedule)
    estimate = LearnedShift(network)(model, x_t, t)
    assert torch.equal(estimate.shift, 0.3 * x_t + t)
    assert estimate.log_h.shape == (4,)
    assert bool(estimate.log_h.isnan().all())
    assert torch.equal(estimate.prediction.mean, model(x_t, t).mean)
    size = estimate.shift.square().sum(1).sqrt()
    torch.testing.assert_close(estimate.diagnostics["shift_norm"], size, rtol=1e-14, atol=0)
    assert bool(GuidedModel(model, LearnedShift(network))(x_t, t).mean.isfinite().all())


TIME_TIMES_STATE = {
    LearnedExpectation: lambda x, t, condition: (t[:, None] * x**2).sum(1),
    LearnedShift: lambda x, t, condition: t[:, None] * x,
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("build", TIME_TIMES_STATE)
def test_it_works_where_gradients_are_off(build, mode):
    schedule = SCHEDULES["cosine"]
    estimator, model = build(Function(TIME_TIMES_STATE[build])), LAW.model(schedule)
    x_t, times = randn(0, 4, 3), [0.2, 0.4, 0.6, 0.8]
    expected = estimator(model, x_t, torch.tensor(times, dtype=torch.float64))
    with mode():
        # created in here: neither the states nor the times may be saved for a backward pass
        x, t = x_t.clone(), torch.tensor(times, dtype=torch.float64)
        estimate = estimator(model, x, t)
        assert_rounds_to(estimate.shift, expected.shift, terms=16)
        assert_rounds_to(estimate.log_h, expected.log_h, terms=16)
        assert not estimate.shift.requires_grad
        assert not torch.is_grad_enabled()


def test_nothing_of_the_callers_is_changed():
    schedule = SCHEDULES["vp"]
    linear = _linear()
    estimator = LearnedExpectation(Function(lambda x, t, condition: linear(x).squeeze(1)))
    x_t, t = randn(0, 4, 3), torch.full((4,), 0.5, dtype=torch.float64)

    def greedy(x, t, condition):
        t.mul_(1000)  # a network that wants timesteps
        return linear(x).squeeze(1)

    before = x_t.clone()
    estimate = estimator(LAW.model(schedule), x_t, t)
    again = LearnedExpectation(Function(greedy))(LAW.model(schedule), x_t, t)
    assert torch.equal(again.shift, estimate.shift)
    assert torch.equal(x_t, before)
    assert not x_t.requires_grad
    assert x_t.grad is None
    assert bool((t == 0.5).all())
    assert linear.weight.grad is None
    assert not estimate.shift.requires_grad
    assert not estimate.log_h.requires_grad


def _linear():
    layer = nn.utils.skip_init(nn.Linear, 3, 1, dtype=torch.float64)
    layer.weight.data, layer.bias.data = randn(1, 1, 3), randn(2, 1)
    return layer


@pytest.mark.parametrize("build", [LearnedExpectation, LearnedShift])
def test_the_model_and_the_network_see_the_condition(build):
    schedule, seen = SCHEDULES["cosine"], []

    def formula(x, t, condition):
        seen.append(condition)
        return x.sum(1) if build is LearnedExpectation else x

    model = LAW.model(schedule)
    predict = model.forward
    model.forward = lambda x, t, condition=None: (seen.append(condition), predict(x, t))[1]
    build(Function(formula))(model, randn(0, 2, 3), 0.5, ["cat", "dog"])
    assert seen == [["cat", "dog"]] * 2  # one call of the model, one of the network


@pytest.mark.parametrize("shape", [(4, 1), (), (1,), (4, 3)])
def test_log_h_must_be_one_value_per_item(shape):
    network = Function(lambda x, t, condition: x.sum() + torch.zeros(shape))
    with pytest.raises(ValueError, match=r"one value per item, shape \(4,\), got"):
        LearnedExpectation(network)(LAW.model(SCHEDULES["vp"]), randn(0, 4, 3), 0.5)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 3), (4, 4)])
def test_a_shift_must_have_the_shape_of_the_state(shape):
    network = Function(lambda x, t, condition: torch.zeros(shape))
    with pytest.raises(ValueError, match=r"the shape of the state, \(4, 3\), got"):
        LearnedShift(network)(LAW.model(SCHEDULES["vp"]), randn(0, 4, 3), 0.5)


def test_log_h_must_be_differentiable():
    network = Function(lambda x, t, condition: x.detach().sum(1))
    with pytest.raises(ValueError, match=r"the network must be differentiable.*LearnedShift"):
        LearnedExpectation(network)(LAW.model(SCHEDULES["vp"]), randn(0, 4, 3), 0.5)


@pytest.mark.parametrize("build", [LearnedExpectation, LearnedShift])
def test_a_class_is_no_network(build):
    with pytest.raises(TypeError, match=r"callable \(x_t, t, condition\), got the class Function"):
        build(Function)


@pytest.mark.parametrize("build", [LearnedExpectation, LearnedShift])
def test_it_owns_its_network(build):
    layer = _linear()
    assert {id(p) for p in build(layer).parameters()} == {id(p) for p in layer.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_states_get_float32_answers(dtype):
    schedule = SCHEDULES["rectified"]
    x_t = randn(0, 4, 3).to(dtype)
    for build, formula in TIME_TIMES_STATE.items():
        network = Function(lambda x, t, condition, f=formula: f(x, t.to(x.dtype), condition))
        estimate = build(network)(LAW.model(schedule), x_t, 0.5)
        assert estimate.shift.dtype == estimate.log_h.dtype == torch.float32
