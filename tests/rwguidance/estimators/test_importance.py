"""ImportanceSampling: exact for the law of its bank, consistent for the law it was drawn from."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import SCHEDULES, assert_within, inner_times, randn, schedules, seeds
from problems import EPS, all_times, mixture, rand, scales_at, tilt_of, visited
from rwguidance import (
    Bank,
    DenoiserModel,
    ImportanceSampling,
    RectifiedSchedule,
    Schedule,
    TargetESS,
    Tempered,
    Tilt,
    VESchedule,
)
from rwguidance.estimators import Kernel, kernels
from rwguidance.toy import Empirical
from rwguidance.weights import pareto_k

events = st.one_of(
    st.integers(1, 64).map(lambda d: (d,)), st.sampled_from([(1, 1), (3, 4, 4), (2, 5)])
)
sizes = st.integers(1, 60)


class Zero(DenoiserModel):
    """A model whose prediction must not matter to the shift; it counts its calls."""

    def __init__(self, schedule):
        super().__init__(schedule)
        self.calls = 0

    def denoise(self, x_t, t, condition=None):
        self.calls += 1
        return torch.zeros_like(x_t)


def rewards_of(seed, n, dead=0.2):
    """Random rewards, some -inf, the first finite."""

    rewards = 2 * randn(seed, n)
    zero = rand(seed + 1, n) < dead
    zero[0] = False
    return rewards.masked_fill(zero, -math.inf)


def no_reward(x, condition):
    raise AssertionError("a scored bank must not be scored again")


def scored(points, rewards, beta=0.7, condition=None):
    return Bank(points, condition, rewards), Tilt(no_reward, beta)


def tabulated(rewards, beta=0.7):
    """The tilt that has the given rewards on the points of an empirical law, in order."""

    return Tilt(lambda x, condition: rewards, beta)


def near(points, schedule, t, seed, n):
    """Noised members of a bank."""

    x_0 = points[torch.arange(n) % len(points)].double()
    return schedule.perturb(x_0, t, randn(seed, *x_0.shape))


def assert_equal_estimates(one, two, **tolerance):
    tolerance = tolerance or dict(rtol=0, atol=0)
    torch.testing.assert_close(one.log_h, two.log_h, **tolerance)
    torch.testing.assert_close(one.shift, two.shift, **tolerance)
    assert one.diagnostics.keys() == two.diagnostics.keys()
    for name, value in one.diagnostics.items():
        other = two.diagnostics[name]
        torch.testing.assert_close(value, other, equal_nan=True, **tolerance)


# --- exactness --------------------------------------------------------------------------------


@settings(max_examples=100)
@given(seeds, events, sizes, schedules, all_times, st.floats(0.2, 5))
def test_it_is_exact_for_the_empirical_law_of_its_bank(seed, event, n, schedule, t, beta):
    points, rewards = randn(seed, n, *event), rewards_of(seed + 1, n)
    x_t = near(points, schedule, t, seed + 3, 4)
    estimate = ImportanceSampling(*scored(points, rewards, beta))(Zero(schedule), x_t, t)
    law = Empirical(points)
    log_h, shift = law.tilted_moments(tabulated(rewards, beta), x_t, t, schedule)
    alpha, sigma, _, _ = scales_at(schedule, t)
    # the kernel is a difference of squares, divided by sigma^2; at sigma = 0 nothing is divided
    size = alpha * x_t.abs().max().item() * points.flatten(1).norm(dim=1).max().item()
    rounding = 16 * EPS * size * math.prod(event) ** 0.5 / sigma**2 if sigma else 0.0
    atol = 1e-10 + rounding
    # where the only draw left has no weight, h = 0 and there is no tilted law
    torch.testing.assert_close(estimate.log_h, log_h, rtol=1e-10, atol=atol)
    torch.testing.assert_close(estimate.shift, shift, rtol=1e-10, atol=atol, equal_nan=True)
    assert estimate.shift.shape == x_t.shape
    assert sigma == 0 or not estimate.prediction.mean.any()


@pytest.mark.parametrize("event", [(1,), (5,), (3, 4, 4)])
@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_at_the_noise_end_it_is_the_reweighted_mean_of_the_bank(event, name):
    points, rewards = randn(0, 50, *event), rewards_of(1, 50)
    estimate = ImportanceSampling(*scored(points, rewards, 0.5))(
        Zero(SCHEDULES[name]), randn(2, 3, *event), 1.0
    )
    w = (rewards / 0.5).exp()
    expected = (w @ points.flatten(1)) / w.sum() - points.flatten(1).mean(0)
    torch.testing.assert_close(
        estimate.shift.flatten(1), expected.expand(3, -1), rtol=0, atol=1e-13
    )
    torch.testing.assert_close(estimate.log_h, w.mean().log().expand(3), rtol=0, atol=1e-13)
    torch.testing.assert_close(estimate.diagnostics["ess"], torch.full((3,), 50.0).double())


@pytest.mark.parametrize("name", ["vp", "cosine", "rectified", "discrete"])
def test_at_the_data_end_the_shift_is_zero(name):
    points, rewards = randn(0, 20, 4), randn(1, 20)
    estimator = ImportanceSampling(*scored(points, rewards))
    estimate = estimator(Zero(SCHEDULES[name]), points[:5].clone(), 0.0)
    assert not estimate.shift.any()
    torch.testing.assert_close(estimate.log_h, rewards[:5] / 0.7, rtol=1e-15, atol=0)


@given(seeds, st.integers(1, 16), schedules, inner_times)
def test_the_shift_is_the_gradient_of_its_own_log_h(seed, d, schedule, t):
    points, rewards = randn(seed, 30, d), rewards_of(seed + 1, 30)
    estimator = ImportanceSampling(*scored(points, rewards))
    x_t = near(points, schedule, t, seed + 3, 4).requires_grad_()
    estimate = estimator(Zero(schedule), x_t, t)
    (gradient,) = torch.autograd.grad(estimate.log_h.sum(), x_t)
    alpha, sigma, _, _ = scales_at(schedule, t)
    expected = alpha / sigma**2 * estimate.shift.detach()
    scale = alpha / sigma**2 * (1 + x_t.abs().max().item() / sigma**2 * EPS * 1e3)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11 * scale)


def test_the_gradient_is_right_halfway_between_two_draws():
    points = torch.tensor([[-1.0], [1.0], [3.0], [-3.0]], dtype=torch.float64)
    estimator = ImportanceSampling(*scored(points, randn(0, 4)))
    x_t = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)  # a tie of the kernel
    estimate = estimator(Zero(RectifiedSchedule()), x_t, 0.4)
    (gradient,) = torch.autograd.grad(estimate.log_h.sum(), x_t)
    expected = 0.6 / 0.4**2 * estimate.shift.detach()
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


@given(seeds, schedules, all_times, st.floats(-50, 50), st.floats(0.2, 5))
def test_a_constant_reward_moves_log_h_by_its_weight_only(seed, schedule, t, c, beta):
    points, rewards = randn(seed, 30, 6), rewards_of(seed + 1, 30, dead=0.0)
    x_t = near(points, schedule, t, seed + 3, 4)
    before = ImportanceSampling(*scored(points, rewards, beta))(Zero(schedule), x_t, t)
    after = ImportanceSampling(*scored(points, rewards + c, beta))(Zero(schedule), x_t, t)
    # rounding of log-weights of size c / beta
    atol = 1e-12 + 16 * EPS * abs(c) / beta
    torch.testing.assert_close(after.log_h, before.log_h + c / beta, rtol=1e-13, atol=atol)
    torch.testing.assert_close(after.shift, before.shift, rtol=0, atol=20 * atol)


@given(seeds, schedules, inner_times)
def test_several_rewards_have_their_own_temperatures(seed, schedule, t):
    points, rewards = randn(seed, 30, 6), randn(seed + 1, 30, 2)
    x_t = near(points, schedule, t, seed + 3, 4)
    tilt = Tilt([no_reward, no_reward], [0.5, 2.0])
    both = ImportanceSampling(Bank(points, rewards=rewards), tilt)(Zero(schedule), x_t, t)
    total = rewards[:, 0] / 0.5 + rewards[:, 1] / 2.0
    one = ImportanceSampling(*scored(points, total, 1.0))(Zero(schedule), x_t, t)
    assert_equal_estimates(both, one, rtol=1e-12, atol=1e-12)


# --- consistency ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "sum"])
@pytest.mark.parametrize("log_snr", [-3.0, -1.0, 1.0])
def test_it_converges_to_the_exact_shift_of_the_law(schedule, kind, log_snr):
    n, d = 100_000, 3
    law, tilt = mixture(1, d), tilt_of(kind, 2, d)
    t = schedule.time(torch.tensor(log_snr, dtype=torch.float64))
    x_t = visited(law, schedule, t, 3, 4)
    points = law.sample(n, torch.Generator().manual_seed(4))
    model = law.model(schedule)
    estimate = ImportanceSampling(Bank(points), tilt)(model, x_t, t)
    assert bool(estimate.diagnostics["reliable"].all())
    log_h, shift = law.tilted_moments(tilt, x_t, t, schedule)

    # delta method: both are ratios of means over the bank, whose bias is of order 1 / n
    alpha, sigma, _, _ = scales_at(schedule, t)
    mean = model(x_t, t).mean
    for i in range(len(x_t)):
        kernel = (-((x_t[i] - alpha * points) ** 2).sum(1) / (2 * sigma**2)).softmax(0) * n
        tilted = (tilt(points) + kernel.log()).softmax(0) * n
        influence = tilted[:, None] * (points - mean[i] - shift[i])
        influence = influence - kernel[:, None] * (points - mean[i])
        error = influence.std(0) / math.sqrt(n)
        assert error.max() < 0.15 * points.std()  # so that the comparison means something
        assert_within(estimate.shift[i], shift[i], error)
        error = (tilted - kernel).std() / math.sqrt(n)
        assert_within(estimate.log_h[i], log_h[i], error)


def test_the_bank_is_scored_once_with_the_reward():
    calls = []

    def reward(x, condition):
        calls.append(condition)
        return x.flatten(1).sum(1)

    points = randn(0, 100, 2, 3)
    labels = ["a"] * 50 + ["b"] * 50
    estimator = ImportanceSampling(Bank(points, labels), Tilt(reward, 0.5))
    torch.testing.assert_close(estimator.log_w, points.flatten(1).sum(1) / 0.5)
    assert [key for keys in calls for key in keys] == labels
    count = len(calls)
    estimator(Zero(RectifiedSchedule()), randn(1, 2, 2, 3), 0.5, ["a", "b"])
    assert len(calls) == count


# --- batches, conditions, chunks --------------------------------------------------------------


@given(seeds, schedules, st.lists(all_times, min_size=5, max_size=5), st.booleans())
def test_a_batch_of_n_equals_n_batches_of_one(seed, schedule, times, tempered):
    points, rewards = randn(seed, 40, 3, 2), rewards_of(seed + 1, 40, dead=0.0)
    t = torch.tensor(times, dtype=torch.float64)
    x_t = torch.cat([near(points, schedule, s, seed + i, 1) for i, s in enumerate(times)])
    kernel = TargetESS(0.3) if tempered else None
    estimator = ImportanceSampling(*scored(points, rewards), kernel)
    together = estimator(Zero(schedule), x_t, t)
    for i, s in enumerate(times):
        alone = estimator(Zero(schedule), x_t[i : i + 1], s)
        _, sigma, _, _ = scales_at(schedule, s)
        tolerance = dict(rtol=1e-9, atol=1e-10 + (1e2 * EPS / sigma**2 if sigma else 0))
        torch.testing.assert_close(together.log_h[i : i + 1], alone.log_h, **tolerance)
        torch.testing.assert_close(together.shift[i : i + 1], alone.shift, **tolerance)
        assert together.diagnostics.keys() == alone.diagnostics.keys()


@settings(max_examples=60)
@given(seeds, schedules, inner_times, st.data())
def test_a_batch_may_mix_conditions_in_any_order(seed, schedule, t, data):
    labels = data.draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=8, max_size=40))
    n = len(labels)
    asked = data.draw(st.lists(st.sampled_from(sorted(set(labels))), min_size=1, max_size=6))
    batched = data.draw(st.booleans())
    points, rewards = randn(seed, n, 2, 2), rewards_of(seed + 1, n, dead=0.0)
    x_t = near(points, schedule, t, seed + 3, len(asked))
    times = torch.full((len(asked),), t, dtype=torch.float64) if batched else t
    mixed = ImportanceSampling(*scored(points, rewards, condition=labels))
    estimate = mixed(Zero(schedule), x_t, times, asked)
    _, sigma, _, _ = scales_at(schedule, t)
    tolerance = dict(rtol=1e-9, atol=1e-10 + 1e2 * EPS / sigma**2)
    for i, key in enumerate(asked):
        mine = torch.tensor([label == key for label in labels])
        alone = ImportanceSampling(*scored(points[mine], rewards[mine]))
        expected = alone(Zero(schedule), x_t[i : i + 1], t)
        torch.testing.assert_close(estimate.log_h[i : i + 1], expected.log_h, **tolerance)
        torch.testing.assert_close(estimate.shift[i : i + 1], expected.shift, **tolerance)
        for name, value in expected.diagnostics.items():
            actual = estimate.diagnostics[name][i : i + 1]
            torch.testing.assert_close(actual, value, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_different_times_go_with_their_own_condition():
    labels = ["a", "b"] * 10
    points, rewards = randn(0, 20, 3), randn(1, 20)
    x_t, t = randn(2, 4, 3), torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64)
    asked = ["b", "a", "b", "a"]
    mixed = ImportanceSampling(*scored(points, rewards, condition=labels))
    estimate = mixed(Zero(RectifiedSchedule()), x_t, t, asked)
    for i in range(4):
        mine = slice(0, None, 2) if asked[i] == "a" else slice(1, None, 2)
        alone = ImportanceSampling(*scored(points[mine], rewards[mine]))
        expected = alone(Zero(RectifiedSchedule()), x_t[i : i + 1], t[i])
        torch.testing.assert_close(estimate.shift[i : i + 1], expected.shift)


def test_none_may_be_one_condition_among_others():
    points, rewards = randn(0, 20, 3), randn(1, 20)
    mixed = ImportanceSampling(*scored(points, rewards, condition=[None] * 10 + ["a"] * 10))
    x_t = randn(2, 2, 3)
    estimate = mixed(Zero(RectifiedSchedule()), x_t, 0.5, ["a", None])
    for i, mine in enumerate((slice(10, 20), slice(0, 10))):
        alone = ImportanceSampling(*scored(points[mine], rewards[mine]))
        expected = alone(Zero(RectifiedSchedule()), x_t[i : i + 1], 0.5)
        torch.testing.assert_close(estimate.shift[i : i + 1], expected.shift)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [None, TargetESS(0.2)])
def test_blocks_of_rows_and_of_draws_change_nothing(monkeypatch, schedule, dtype, kernel):
    points, rewards = randn(0, 37, 3, 2).to(dtype), randn(1, 37)
    x_t = randn(2, 9, 3, 2)
    t = torch.linspace(0.2, 0.9, 9, dtype=torch.float64)
    labels = ["a", "b", "b"] * 12 + ["a"]
    for condition, asked in ((None, None), (labels, ["a", "b", "b"] * 3)):
        bank, tilt = scored(points, rewards, condition=condition)
        whole = ImportanceSampling(bank, tilt, kernel)(Zero(schedule), x_t, t, asked)
        with monkeypatch.context() as patch:
            here = "rwguidance.estimators"
            patch.setattr(f"{here}.importance._ROWS_BYTES", 2 * 8 * 37)  # two rows at once
            patch.setattr(f"{here}.draws._CAST_BYTES", 5 * 6 * 8)  # five draws at once
            parts = ImportanceSampling(bank, tilt, kernel)(Zero(schedule), x_t, t, asked)
        # products of size |x|^2 < 100 are summed in another order, then divided by sigma^2; the
        # bank's own norms are kept in its dtype, float32 or wider
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        atol = 100 * eps / schedule.sigma(t[0]).item() ** 2
        for name in ("log_h", "shift"):
            actual, expected = getattr(parts, name), getattr(whole, name)
            torch.testing.assert_close(actual, expected, rtol=100 * eps, atol=atol)
        for name, value in whole.diagnostics.items():
            tolerance = dict(rtol=1e-6 + 1e3 * eps, atol=1e-6 + 40 * atol, equal_nan=True)
            torch.testing.assert_close(parts.diagnostics[name], value, **tolerance)


@given(seeds, schedules, inner_times)
def test_the_order_of_the_bank_does_not_matter(seed, schedule, t):
    points, rewards = randn(seed, 40, 5), rewards_of(seed + 1, 40)
    x_t = near(points, schedule, t, seed + 3, 4)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    one = ImportanceSampling(*scored(points, rewards))(Zero(schedule), x_t, t)
    two = ImportanceSampling(*scored(points[order], rewards[order]))(Zero(schedule), x_t, t)
    _, sigma, _, _ = scales_at(schedule, t)
    tolerance = dict(rtol=1e-9, atol=1e-10 + 1e2 * EPS / sigma**2)
    torch.testing.assert_close(one.log_h, two.log_h, **tolerance)
    torch.testing.assert_close(one.shift, two.shift, **tolerance)


@given(seeds, schedules, inner_times, st.floats(-30, 30))
def test_moving_bank_and_state_together_changes_nothing(seed, schedule, t, offset):
    points, rewards = randn(seed, 40, 5), rewards_of(seed + 1, 40)
    x_t = near(points, schedule, t, seed + 3, 4)
    alpha, sigma, _, _ = scales_at(schedule, t)
    one = ImportanceSampling(*scored(points, rewards))(Zero(schedule), x_t, t)
    moved = ImportanceSampling(*scored(points + offset, rewards))
    two = moved(Zero(schedule), x_t + alpha * offset, t)
    tolerance = dict(rtol=1e-8, atol=1e-9 + 1e4 * EPS / sigma**2)
    torch.testing.assert_close(one.log_h, two.log_h, **tolerance)
    torch.testing.assert_close(one.shift, two.shift, **tolerance)


@pytest.mark.parametrize("labels", [None, ["x", "y"] * 20, torch.arange(40) % 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_saved_bank_gives_identical_estimates(tmp_path, labels, dtype):
    bank = Bank(randn(0, 40, 2, 3).to(dtype), labels, rewards_of(1, 40))
    bank.save(tmp_path / "bank.safetensors")
    loaded = Bank.load(tmp_path / "bank.safetensors")
    assert loaded.rows == bank.rows
    asked = None if labels is None else list(bank.rows)[::-1] * 2
    n = 4 if asked is None else len(asked)
    tilt, x_t = Tilt(no_reward, 0.7), randn(2, n, 2, 3)
    one, two = (
        ImportanceSampling(b, tilt)(Zero(RectifiedSchedule()), x_t, 0.5, asked)
        for b in (bank, loaded)
    )
    assert_equal_estimates(one, two, rtol=1e-12, atol=1e-12)  # the file is mapped


# --- precision and modes ----------------------------------------------------------------------


@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=10)
@given(seeds, schedules, inner_times)
def test_lower_precision_agrees_with_float64(bank_dtype, state_dtype, seed, schedule, t):
    points, rewards = randn(seed, 40, 3, 4).to(bank_dtype), rewards_of(seed + 1, 40)
    x_t = near(points, schedule, t, seed + 3, 4).to(state_dtype)
    low = ImportanceSampling(*scored(points, rewards.float()))(Zero(schedule), x_t, t)
    high = ImportanceSampling(*scored(points.double(), rewards.float().double()))(
        Zero(schedule), x_t.double(), t
    )
    assert low.log_h.dtype == low.shift.dtype == torch.float32
    # storage is rounded alike on both sides, so that only float32 arithmetic differs: log-weights
    # and log h by eps |x_t| |x| alpha / sigma^2, and the shift by that times the size of the bank
    alpha, sigma, _, _ = scales_at(schedule, t)
    norms = [value.double().flatten(1).norm(dim=1).max().item() for value in (x_t, points)]
    eps = torch.finfo(torch.float32).eps
    size = alpha * (norms[0] + alpha * norms[1]) * norms[1] / sigma**2
    atol = 8 * eps * (10 + size)
    torch.testing.assert_close(low.log_h.double(), high.log_h, rtol=1e-6, atol=atol)
    torch.testing.assert_close(low.shift.double(), high.shift, rtol=1e-6, atol=2 * atol * norms[1])


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_products_in_bfloat16_hardly_move_the_estimate(offset, monkeypatch):
    """They are off by 2^-9; without taking out the mean draw, by that of its size."""

    points = (offset + randn(0, 1024, 256)).bfloat16()
    estimator = ImportanceSampling(*scored(points, randn(1, 1024).float()))
    for t in (0.95, 0.85):
        path = RectifiedSchedule()
        x_t = near(points.double(), path, t, 2, 16).float()
        estimates = []
        for units in (False, True):
            monkeypatch.setattr(
                "rwguidance.estimators.draws._multiplies_bfloat16", lambda units=units: units
            )
            estimates.append(estimator(Zero(path), x_t, t))
        exact, narrow = estimates
        assert exact.diagnostics["ess_tilted"].median() > 5
        assert not torch.equal(exact.shift, narrow.shift)  # they really were narrow
        error = (narrow.shift - exact.shift).norm(dim=1) / exact.shift.norm(dim=1)
        assert float(error.max()) < 0.03
        torch.testing.assert_close(narrow.log_h, exact.log_h, rtol=0, atol=0.03)


def test_sums_by_products_in_bfloat16_are_in_the_precision_of_the_weights(monkeypatch):
    monkeypatch.setattr("rwguidance.estimators.draws._multiplies_bfloat16", lambda: True)
    points = (30 + randn(0, 1024, 256)).bfloat16()
    draws = ImportanceSampling(*scored(points, randn(1, 1024).float()))._draws(0)
    weights = (randn(2, 3, 1024).softmax(1) - randn(3, 3, 1024).softmax(1)).float()
    found, exact = draws.difference(weights), weights.double() @ points.double()
    assert found.dtype == weights.dtype
    assert float((found - exact).norm() / exact.norm()) < 0.02


def test_gradients_of_a_bfloat16_bank_are_of_float32_products(monkeypatch):
    points = randn(0, 1024, 256).bfloat16()
    estimator = ImportanceSampling(*scored(points, randn(1, 1024).float()))
    gradients = []
    for units in (False, True):
        monkeypatch.setattr(
            "rwguidance.estimators.draws._multiplies_bfloat16", lambda units=units: units
        )
        x_t = randn(2, 4, 256).float().requires_grad_()
        log_h = estimator(Zero(RectifiedSchedule()), x_t, 0.9).log_h
        gradients.append(torch.autograd.grad(log_h.sum(), x_t)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_works_without_gradients(mode, schedule):
    points, rewards = randn(0, 40, 3), rewards_of(1, 40)
    x_t, t = randn(2, 4, 3), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    for kernel in (None, TargetESS(0.2)):
        expected = ImportanceSampling(*scored(points, rewards), kernel)(Zero(schedule), x_t, t)
        with mode():
            bank, tilt = scored(randn(0, 40, 3), rewards_of(1, 40))
            inside = ImportanceSampling(bank, tilt, kernel)
            actual = inside(Zero(schedule), randn(2, 4, 3), t)
        assert_equal_estimates(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_log_weights(dtype, schedule):
    points, rewards = randn(0, 40, 8).float(), randn(1, 40).float()
    estimator = ImportanceSampling(*scored(points, rewards), TargetESS(0.2))
    x_t = randn(2, 4, 8).float()
    expected = estimator(Zero(schedule), x_t, 0.5)
    with torch.autocast("cpu", dtype=dtype):
        assert (points @ points.T).dtype == dtype  # autocast is really on
        actual = estimator(Zero(schedule), x_t, 0.5)
    assert_equal_estimates(actual, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_log_weights_beyond_single_precision_are_refused_there_alone(sign):
    rewards = sign * torch.tensor([0.0, 1e39, -2.0, 5.0], dtype=torch.float64)
    bank, tilt = scored(randn(0, 4, 3), rewards, 1.0)
    model, x_t = Zero(RectifiedSchedule()), randn(2, 2, 3)
    found = ImportanceSampling(bank, tilt)(model, x_t, 0.5)
    assert bool(found.log_h.isfinite().all())
    single = ImportanceSampling(bank.to(dtype=torch.float32), tilt)
    with pytest.raises(
        ValueError, match=r"reach 1e\+39 nats, beyond torch.float32, .* larger beta"
    ):
        single(model, x_t.float(), 0.5)


def test_half_precision_log_weights_are_refused():
    estimator = ImportanceSampling(*scored(randn(0, 9, 3), randn(1, 9))).to(torch.bfloat16)
    with pytest.raises(TypeError, match="half precision"):
        estimator(Zero(RectifiedSchedule()), randn(2, 2, 3), 0.5)


# --- kernels ----------------------------------------------------------------------------------


@given(seeds, schedules, all_times)
def test_a_kernel_tempered_by_one_is_the_exact_kernel(seed, schedule, t):
    points, rewards = randn(seed, 40, 5), rewards_of(seed + 1, 40, dead=0.0)
    x_t = near(points, schedule, t, seed + 3, 4)
    exact = ImportanceSampling(*scored(points, rewards))(Zero(schedule), x_t, t)
    one = ImportanceSampling(*scored(points, rewards), Tempered(1.0))(Zero(schedule), x_t, t)
    assert torch.equal(one.log_h, exact.log_h)
    assert torch.equal(one.shift, exact.shift)
    assert "temper" not in exact.diagnostics
    assert torch.equal(one.diagnostics["temper"], torch.ones(4, dtype=torch.float64))


@given(seeds, schedules, inner_times, st.floats(0.05, 1.0))
def test_a_tempered_kernel_is_the_exact_kernel_of_larger_noise(seed, schedule, t, factor):
    class Noisier(Schedule):
        def alpha(self, t):
            return schedule.alpha(t)

        def sigma(self, t):
            return schedule.sigma(t) / math.sqrt(factor)

        def time(self, log_snr):
            return schedule.time(log_snr - math.log(factor))

    points, rewards = randn(seed, 40, 5), rewards_of(seed + 1, 40)
    x_t = near(points, schedule, t, seed + 3, 4)
    kernel = Tempered(factor)
    tempered = ImportanceSampling(*scored(points, rewards), kernel)(Zero(schedule), x_t, t)
    noisier = ImportanceSampling(*scored(points, rewards))(Zero(Noisier()), x_t, t)
    _, sigma, _, _ = scales_at(schedule, t)
    tolerance = dict(rtol=1e-10, atol=1e-10 + 1e2 * EPS / sigma**2)
    torch.testing.assert_close(tempered.log_h, noisier.log_h, **tolerance)
    torch.testing.assert_close(tempered.shift, noisier.shift, **tolerance)


@settings(max_examples=100)
@given(
    seeds, st.integers(1, 64), st.integers(2, 200), schedules, inner_times, st.floats(0.01, 0.99)
)
def test_target_ess_holds_its_target_and_is_tight(seed, d, n, schedule, t, fraction):
    points, rewards = randn(seed, n, d), rewards_of(seed + 1, n)
    x_t = near(points, schedule, t, seed + 3, 5)
    exact = ImportanceSampling(*scored(points, rewards))(Zero(schedule), x_t, t)
    kernel = TargetESS(fraction)
    estimate = ImportanceSampling(*scored(points, rewards), kernel)(Zero(schedule), x_t, t)
    factor, ess = estimate.diagnostics["temper"], estimate.diagnostics["ess"]
    target = fraction * n
    assert bool(((factor > 0) & (factor <= 1)).all())
    assert bool((ess >= target * (1 - 1e-9)).all())
    flattened = factor < 1
    assert bool((ess[flattened] <= target * (1 + 1.1e-3)).all())
    clear = (exact.diagnostics["ess"] - target).abs() > 1e-9 * target
    assert torch.equal(~flattened[clear], (exact.diagnostics["ess"] >= target)[clear])
    torch.testing.assert_close(estimate.shift[~flattened], exact.shift[~flattened])
    torch.testing.assert_close(estimate.log_h[~flattened], exact.log_h[~flattened])


class Steep(Kernel):
    """A kernel whose factor depends smoothly on the log-kernel, as that of no constant does."""

    def temper(self, log_kernel, draws, alpha, sigma):
        return log_kernel.mean(1, keepdim=True).exp() / 2 + 0.1


@pytest.mark.parametrize("kernel", [Steep(), TargetESS(0.5)], ids=["smooth", "target"])
def test_the_factor_of_a_kernel_is_a_constant_to_the_gradient(kernel):
    bank, tilt = scored(randn(0, 40, 3), randn(1, 40))
    model = Zero(RectifiedSchedule())

    def estimated(kernel):
        x_t = randn(2, 1, 3).requires_grad_()
        estimate = ImportanceSampling(bank, tilt, kernel)(model, x_t, 0.3)
        (gradient,) = torch.autograd.grad(estimate.log_h.sum(), x_t)
        return gradient, estimate.diagnostics["temper"]

    gradient, factor = estimated(kernel)
    assert 0.01 < float(factor) < 0.99
    assert not factor.requires_grad
    expected, _ = estimated(Tempered(float(factor)))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_target_ess_leaves_the_data_end_exact():
    points, rewards = randn(0, 40, 5), randn(1, 40)
    exact, flat = (
        ImportanceSampling(*scored(points, rewards), kernel)(
            Zero(RectifiedSchedule()), points[:3].clone(), 0.0
        )
        for kernel in (None, TargetESS(0.5))
    )
    assert torch.equal(exact.shift, flat.shift)
    assert torch.equal(exact.log_h, flat.log_h)


@pytest.mark.parametrize("factor", [0.0, -0.1, 1.1, math.nan])
def test_a_tempering_factor_lies_between_zero_and_one(factor):
    with pytest.raises(ValueError, match="factor must lie in"):
        Tempered(factor)
    with pytest.raises(ValueError, match="fraction must lie in"):
        TargetESS(factor)


@given(seeds, st.integers(2, 40), schedules, inner_times, st.sampled_from([None, 0.5]))
def test_importances_count_as_draws_that_come_so_many_times(seed, n, schedule, t, factor):
    points, rewards = randn(seed, n, 3), rewards_of(seed + 1, n)
    times = (4 * rand(seed + 2, n)).long() + 1
    bank, tilt = scored(points, rewards)
    weighted = replace(bank, log_importance=times.double().log() + 3)
    repeated, _ = scored(points.repeat_interleave(times, 0), rewards.repeat_interleave(times))
    x_t = near(points, schedule, t, seed + 3, 4)
    kernel = None if factor is None else Tempered(factor)
    estimate, expected = (
        ImportanceSampling(one, tilt, kernel)(Zero(schedule), x_t, t)
        for one in (weighted, repeated)
    )
    rounding = dict(rtol=1e-8, atol=1e-8 + 1e3 * EPS / scales_at(schedule, t)[1] ** 2)
    torch.testing.assert_close(estimate.log_h, expected.log_h, **rounding)
    torch.testing.assert_close(estimate.shift, expected.shift, **rounding)


# --- diagnostics and errors -------------------------------------------------------------------


@given(seeds, st.integers(1, 150), schedules, inner_times, st.floats(0.1, 1.0))
def test_diagnostics_are_the_naive_formulas(seed, n, schedule, t, factor):
    points, rewards = randn(seed, n, 2), rewards_of(seed + 1, n)
    x_t = near(points, schedule, t, seed + 3, 4)
    kernel = Tempered(factor)
    estimator = ImportanceSampling(*scored(points, rewards), kernel, pareto_k=True)
    estimate = estimator(Zero(schedule), x_t, t)
    alpha, sigma, _, _ = scales_at(schedule, t)
    square = ((x_t[:, None] - alpha * points) ** 2).sum(-1)
    log_kernel = -factor * square / (2 * sigma**2)
    log_tilted = log_kernel + rewards / 0.7
    weight, tilted = log_kernel.softmax(1), log_tilted.softmax(1)
    expected = {
        "ess": 1 / (weight**2).sum(1),
        "ess_tilted": 1 / (tilted**2).sum(1),
        "max_weight": tilted.max(1).values,
        "pareto_k": pareto_k(log_tilted),
        "shift_norm": estimate.shift.norm(dim=1),
        "temper": torch.full((4,), factor, dtype=torch.float64),
    }
    actual = estimate.diagnostics
    reliable = actual["ess_tilted"] >= 5
    assert torch.equal(actual["reliable"], reliable)
    assert actual.keys() == expected.keys() | {"reliable"}
    atol = 1e-8 + 1e3 * EPS / sigma**2
    for name, value in expected.items():
        tolerance = dict(rtol=1e-8, atol=atol, equal_nan=True)
        torch.testing.assert_close(actual[name], value, **tolerance)


def test_estimates_call_the_model_once_and_carry_its_prediction():
    model = Zero(RectifiedSchedule())
    points, rewards = randn(0, 40, 5), randn(1, 40)
    x_t = randn(2, 4, 5)
    estimate = ImportanceSampling(*scored(points, rewards))(model, x_t, 0.5)
    assert model.calls == 1
    assert torch.equal(estimate.prediction.noise, x_t / 0.5)


def test_the_tail_is_fitted_only_if_it_is_asked_for():
    bank, tilt = scored(randn(0, 60, 5), randn(1, 60))
    model, x_t = Zero(RectifiedSchedule()), randn(2, 4, 5)
    plain = ImportanceSampling(bank, tilt)(model, x_t, 0.5)
    asked = ImportanceSampling(bank, tilt, pareto_k=True)(model, x_t, 0.5)
    assert asked.diagnostics.keys() - plain.diagnostics.keys() == {"pareto_k"}
    assert torch.equal(asked.shift, plain.shift)
    assert bool(asked.diagnostics["pareto_k"].isfinite().all())
    with pytest.raises(TypeError, match="pareto_k must be"):
        ImportanceSampling(bank, tilt, pareto_k=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.9, 0.3, 0.05, 0.01])
@pytest.mark.parametrize("strength", [0.1, 10.0, 60.0, 300.0, 1e4, 1e6])
@pytest.mark.parametrize("dead", [0.0, 0.2])
def test_extreme_strengths_agree_with_sums_of_exponentials_in_logs(strength, t, dtype, dead):
    # One exponential serves both laws until what it rounds to zero counts; then the logs do.
    points, rewards = randn(0, 50, 3).to(dtype), strength * rewards_of(1, 50, dead)
    x_t = near(points, RectifiedSchedule(), t, 3, 6).to(dtype)
    estimator = ImportanceSampling(*scored(points, rewards, 1.0))
    estimate = estimator(Zero(RectifiedSchedule()), x_t, t)
    wide, x = points.double(), x_t.double()
    log_kernel = -torch.cdist(x, (1 - t) * wide).square() / (2 * t**2)
    log_tilted = log_kernel + rewards
    log_h = log_tilted.logsumexp(1) - log_kernel.logsumexp(1)
    weight, tilted = log_kernel.softmax(1), log_tilted.softmax(1)
    assert estimate.log_h.dtype == estimate.shift.dtype == dtype
    eps = torch.finfo(dtype).eps
    size = log_kernel.amax().abs() + 16 / t**2 + strength  # of what is subtracted in the precision
    atol = float(16 * eps * size)
    torch.testing.assert_close(estimate.log_h.double(), log_h, rtol=8 * eps, atol=atol)
    if atol > 0.1:
        return  # rounding alone decides between draws
    shift = (tilted - weight) @ wide
    torch.testing.assert_close(estimate.shift.double(), shift, rtol=0, atol=8 * atol)
    for name, value in (("ess", weight), ("ess_tilted", tilted)):
        expected = 1 / value.square().sum(1)
        assert estimate.diagnostics[name].dtype == dtype
        actual = estimate.diagnostics[name].double()
        torch.testing.assert_close(actual, expected, rtol=8 * atol + 1e-6, atol=0)


def test_what_one_exponential_rounds_to_zero_still_counts():
    # The best draw is e^-200 as likely as the nearest, and e^300 times as good.
    points = torch.tensor([[0.0], [1.0], [1.01]])
    rewards = torch.tensor([0.0, 300.0, 301.0])
    estimator = ImportanceSampling(*scored(points, rewards, 1.0))
    t = 0.0477
    estimate = estimator(Zero(RectifiedSchedule()), torch.zeros(1, 1), t)
    log_kernel = -(((1 - t) * points[:, 0].double()) ** 2) / (2 * t**2)
    assert log_kernel[1] < -190
    log_tilted = log_kernel + rewards
    expected = log_tilted.logsumexp(0) - log_kernel.logsumexp(0)
    torch.testing.assert_close(estimate.log_h.double()[0], expected, rtol=1e-5, atol=1e-4)
    shift = (log_tilted.softmax(0) - log_kernel.softmax(0)) @ points[:, 0].double()
    torch.testing.assert_close(estimate.shift.double()[0, 0], shift, rtol=1e-4, atol=0)


@pytest.mark.parametrize("n", [3, 10, 300, 5000])
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("spread", [0.01, 1.0, 1e3, 1e6])
def test_target_ess_is_found_in_few_steps(monkeypatch, n, fraction, spread):
    steps = []
    inner = kernels._log_ess
    monkeypatch.setattr(kernels, "_log_ess", lambda *a: steps.append(1) or inner(*a))
    log_kernel = -spread * randn(n, 20, n).square()
    log_kernel = log_kernel - log_kernel.amax(1, keepdim=True)
    factor = TargetESS(fraction).temper(log_kernel, None, None, None)
    assert len(steps) <= 16
    weight = (factor * log_kernel).softmax(1)
    found, target = 1 / weight.square().sum(1), fraction * n
    assert bool((found >= target * (1 - 1e-9)).all())
    flattened = factor[:, 0] < 1
    assert bool((found[flattened] <= max(target, 1) * (1 + 1.1e-3)).all())


def test_reliable_tells_a_good_bank_from_a_collapsed_one():
    points = randn(0, 2000, 16)
    estimator = ImportanceSampling(*scored(points, points[:, 0].clone(), 1.0))
    model = Zero(RectifiedSchedule())
    x_0, noise = randn(1, 20, 16), randn(2, 20, 16)
    good = estimator(model, model.schedule.perturb(x_0, 0.95, noise), 0.95)
    collapsed = estimator(model, model.schedule.perturb(x_0, 0.2, noise), 0.2)
    assert bool(good.diagnostics["reliable"].all())
    assert not bool(collapsed.diagnostics["reliable"].any())


def test_mistakes_are_explained():
    points, rewards = randn(0, 10, 3), randn(1, 10)
    model, x_t = Zero(VESchedule(0.01, 50.0)), randn(2, 2, 3)
    conditional = ImportanceSampling(*scored(points, rewards, condition=["a"] * 10))
    with pytest.raises(ValueError, match="condition is required"):
        conditional(model, x_t, 0.5)
    with pytest.raises(ValueError, match="holds no draws for condition 'b'"):
        conditional(model, x_t, 0.5, ["a", "b"])
    with pytest.raises(ValueError, match=r"states of shape \(3,\)"):
        conditional(model, randn(2, 2, 4), 0.5, ["a", "a"])
    dead = rewards.clone()
    dead[5:] = -math.inf
    with pytest.raises(ValueError, match="condition 'b' has zero weight"):
        ImportanceSampling(*scored(points, dead, condition=["a"] * 5 + ["b"] * 5))
    with pytest.raises(TypeError, match="bank must be a Bank"):
        ImportanceSampling(points, Tilt(no_reward, 1.0))
    with pytest.raises(TypeError, match="tilt must be a Tilt"):
        ImportanceSampling(Bank(points), no_reward)
    with pytest.raises(TypeError, match="kernel must be a Kernel"):
        ImportanceSampling(*scored(points, rewards), 0.5)
