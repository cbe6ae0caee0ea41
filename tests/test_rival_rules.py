"""Rules of rivals against closed forms: Gaussian laws, linear rewards, and runs of few steps."""

import itertools
import math

import pytest
import torch

import rwguidance as rw
from benchmarks.rivals import rules
from benchmarks.rivals.counting import CountedModel, CountedReward
from benchmarks.rivals.laws import FAMILIES
from benchmarks.rivals.methods import METHODS, OURS
from benchmarks.rivals.toys import Cell, kept
from common import assert_within
from rwguidance import toy
from rwguidance.noise_space import flow_map

D = 3
SLOPE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
LAW = toy.Gaussian(torch.tensor([0.3, 0.0, -1.0]), 0.6 * torch.eye(D))
MODEL = LAW.model(rw.RectifiedSchedule())
TILT = rw.Tilt(toy.Linear(SLOPE), 2.0)
TIMES = torch.linspace(1, 0, 9, dtype=torch.float64)


def noise(n, seed=0):
    return torch.randn(n, D, generator=source(seed), dtype=torch.float64)


def source(seed=1):
    return torch.Generator().manual_seed(seed)


def plain(n, eta=1.0, times=TIMES):
    return rw.sample(MODEL, rw.DDIM(eta), noise(n), times, generator=source())


def test_universal_guidance_is_the_plug_in_with_the_jacobian():
    guided = rw.GuidedModel(MODEL, rw.PlugIn(TILT), 0.7, (0.0, 0.999))
    expected = rw.sample(guided, rw.DDIM(), noise(4), TIMES)
    found = rules.universal_guidance(MODEL, TILT, noise(4), TIMES, 0.7)
    torch.testing.assert_close(found, expected)


def test_a_recurrence_keeps_the_law_of_the_model():
    found = rules.universal_guidance(MODEL, TILT, noise(20_000), TIMES, 0.0, 3, None, source())
    expected = rules.universal_guidance(MODEL, TILT, noise(20_000), TIMES, 0.0)
    for one, other in zip(found.T, expected.T, strict=True):
        assert_within(one.mean(), float(other.mean()), float(other.std()) / 100)
    assert found.var(0).sum() / expected.var(0).sum() == pytest.approx(1.0, abs=0.2)


def test_dps_moves_by_the_gradient_of_the_predicted_weight():
    last = TIMES[-2:]  # one step, whose end is the mean
    x = noise(4)
    t = float(last[0])
    jacobian = 0.6 * (1 - t) / (0.6 * (1 - t) ** 2 + t**2)  # of the mean in the state
    expected = MODEL(x, last[0]).mean + 0.3 * jacobian * SLOPE / 2
    torch.testing.assert_close(rules.dps(MODEL, TILT, x, last, 0.3, None, source()), expected)
    still = rules.dps(MODEL, TILT, noise(4), TIMES, 0.0, None, source())
    torch.testing.assert_close(still, plain(4))


def test_fmps_corrects_the_velocity_by_a_share_of_its_length():
    times = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
    x = rw.sample(MODEL, rw.DDIM(), noise(4), times[:2])
    prediction = MODEL(x, times[1])
    length = prediction.velocity.norm(dim=1, keepdim=True)
    velocity = prediction.velocity - 0.3 * 0.6 / 0.4 * length * SLOPE / SLOPE.norm()
    found = rules.fmps(MODEL, TILT, noise(4), times, 0.3)
    torch.testing.assert_close(found, x - 0.6 * velocity)


def test_map_ascent_moves_by_its_rate_and_is_held_by_its_width():
    times, x = torch.tensor([0.5, 0.0], dtype=torch.float64), noise(4)
    unit = SLOPE / SLOPE.norm()
    moved = rules.map_ascent(MODEL, TILT, x, times, 0.2, 1.0)
    torch.testing.assert_close(moved, MODEL(x + 0.2 * unit, times[0]).mean)
    # Two moves overshoot where a narrow Gaussian has its maximum, so the second goes back.
    back = rules.map_ascent(MODEL, TILT, x, times, 0.2, 0.01, 2)
    torch.testing.assert_close(back, MODEL(x, times[0]).mean)


def test_svdd_of_one_candidate_is_the_model():
    found = rules.svdd(MODEL, TILT, noise(4), TIMES, 1, math.inf, None, source())
    torch.testing.assert_close(found, plain(4))


def test_svdd_picks_by_the_weight_of_the_predicted_state():
    times = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    found = rules.svdd(MODEL, TILT, noise(2000), times, 64, 1.0, None, source())
    # The noise of variance v is tilted by the slope of log w(D), and D moves by its Jacobian.
    jacobian = 0.6 * 0.5 / (0.6 * 0.25 + 0.25)
    scales = MODEL.schedule.at(times[1], like=noise(1))
    law = rw.DDIM(1.0).transition(MODEL(noise(1), times[0]), scales)
    variance = float(law.std.flatten()[0]) ** 2
    base = rules.svdd(MODEL, TILT, noise(2000), times, 1, 1.0, None, source(2))
    shift = jacobian**2 * variance * SLOPE / 2
    error = math.sqrt(2 * jacobian**2 * variance / 2000) + 0.02 * float(shift.abs().max())
    for one, expected in zip((found - base).mean(0), shift.tolist(), strict=True):
        assert_within(one, expected, error)
    best = rules.svdd(MODEL, TILT, noise(2000), times, 64, math.inf, None, source())
    assert TILT(best).mean() > TILT(found).mean() > TILT(base).mean()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("potential", [None, torch.maximum])
def test_fk_steering_samples_the_tilted_steps(potential, every):
    n, groups = 2000, 4
    made = rw.TwistedSMC(TILT, rw.LookAhead(TILT)).sample(
        MODEL, rw.DDIM(1.0), noise(8000), TIMES, generator=source(3)
    )
    exact = made.log_w[0].softmax(0) @ made.x_0
    start = noise(n * groups, 5)
    found = rules.fk_steering(
        MODEL, TILT, start, TIMES, n, n, every, potential, None, source(4)
    ).reshape(groups, n, D)
    means = found.mean(1)
    error = means.std(0) / math.sqrt(groups) + 0.02
    for one, expected, e in zip(means.mean(0), exact.tolist(), error.tolist(), strict=True):
        assert_within(one, expected, e)
    assert (TILT(found.flatten(0, 1)).mean() - TILT(plain(4000)).mean()) > 0.3


def test_fk_steering_keeps_some_of_each_group():
    x = rules.fk_steering(MODEL, TILT, noise(12), TIMES, 4, 2, 1, None, None, source())
    assert x.shape == (6, D)
    one = rules.fk_steering(MODEL, TILT, noise(5), TIMES, 1, 1, 1, None, None, source())
    assert one.shape == (5, D)


def test_reno_takes_nesterov_s_steps_of_clipped_gradients():
    generate = flow_map(MODEL, rw.DDIM(), TIMES, gradient=True)
    torch.testing.assert_close(
        rules.reno(generate, TILT, noise(4), 1, 1.0, 0.0), generate(noise(4), None)
    )
    # The flow of a Gaussian is affine along each axis, so the gradient is that of the reward.
    unit = SLOPE / SLOPE.norm()
    found = rules.reno(generate, TILT, noise(4), 2, 1.0, 0.0)
    torch.testing.assert_close(found, generate(noise(4) + 1.9 * 0.1 * unit, None))
    third = noise(4) + (1.9 + 0.9 * 1.9 + 1) * 0.1 * unit
    torch.testing.assert_close(
        rules.reno(generate, TILT, noise(4), 3, 1.0, 0.0), generate(third, None)
    )
    down = rules.reno(generate, TILT, noise(4), 3, -1.0, 0.0)  # the best on the way is the first
    torch.testing.assert_close(down, generate(noise(4), None))


def test_calls_are_counted_forward_and_back():
    model, reward = CountedModel(MODEL), CountedReward(toy.Linear(SLOPE))
    tilt = rw.Tilt(reward, 1.0)
    rw.PlugIn(tilt)(model, noise(5), 0.5)
    assert (model.calls, reward.calls) == (15, 15)
    model(noise(5), 0.5)
    assert model.calls == 20


def test_all_methods_have_as_many_trials_and_keep_to_their_calls(tmp_path):
    assert {len(trials) for _, trials in METHODS.values()} == {6}
    assert set(OURS) <= set(METHODS)
    for method, (_, trials) in METHODS.items():
        cell = Cell("DAS", "nine modes", method, 64, 0, 16, trials[0])
        found = kept(cell, tmp_path)
        assert "failed" not in found, (method, found)
        # The draws that tell the variance are many for 16 states, and few for as many as count.
        most = 65 if method == "damped plug-in" else 64
        assert found["network"] <= most, method
        assert kept(cell, tmp_path) == found
    assert len([*tmp_path.glob("cells/*.json")]) == len(METHODS)


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_of_the_target_have_more_reward_than_those_of_the_law(family):
    for name, make in itertools.islice(FAMILIES[family].items(), 3):
        problem = make(0)
        target = problem.target(400, source())
        assert target.shape == (400, *problem.law.event), name
        plain = problem.law.sample(400, source())
        assert problem.reward(target).mean() > problem.reward(plain).mean()
