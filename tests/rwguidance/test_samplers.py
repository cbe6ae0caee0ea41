r"""Samplers: single steps against formulas, whole runs against the exact law of the discrete chain.

With a Gaussian law and a closed tilt every step is affine in the state, so the mean and covariance
of the chain follow exactly from the affine maps of the *real* steps. Samples are compared with that
law, at standard errors, and that law with the tilted Gaussian, at the order of the method. Neither
tolerance has to hide the other error.
"""

import itertools
import math
import re
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from common import SCHEDULES, assert_rounds_to, assert_within, inner_times, randn, schedules, seeds
from rwguidance import (
    DDIM,
    Bank,
    DiscreteSchedule,
    GuidedModel,
    Heun,
    ImportanceSampling,
    LearnedShift,
    Model,
    Prediction,
    RectifiedSchedule,
    TargetESS,
    Tilt,
    UnreliableEstimate,
    VESchedule,
    sample,
    toy,
)
from rwguidance.samplers import (
    ADVICE,
    AncestralSampler,
    check_times,
    doubts_of,
    draws_noise,
    explain_doubts,
)

EPS = torch.finfo(torch.float64).eps
LAW = toy.Gaussian([1.0, -0.5], [[0.8, 0.2], [0.2, 0.5]])
TILTS = {
    "linear": Tilt(toy.Linear([1.0, -1.0]), 0.8),
    "quadratic": Tilt(toy.Quadratic([0.5, 0.5], [[1.0, 0.3], [0.3, 2.0]], [0.2, 0.0]), 0.8),
}
SAMPLERS = {
    "ddim 0": DDIM(),
    "ddim 0.5": DDIM(0.5),
    "ddim 1": DDIM(1.0),
    "heun": Heun(),
}
ORDERS = {"ddim 0": 1, "ddim 0.5": 1, "ddim 1": 1, "heun": 2}


class Counted(Model):
    """A model that counts how often it is called."""

    def __init__(self, model):
        super().__init__(model.schedule)
        self.model = model
        self.calls = 0

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        return self.model(x_t, t, condition)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def grid(steps, start=1.0, end=0.0):
    """Decreasing times, closer to each other near the data, where sigma may grow like sqrt(t)."""

    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return end + (start - end) * u**2


def smooth_grid(schedule, steps, start=1.0, end=0.0):
    """The same, except on a table, whose kinks would disturb an order of convergence."""

    times = grid(steps, start, end)
    if isinstance(schedule, DiscreteSchedule):  # where a rectified path has the same log-SNR
        first, last = RectifiedSchedule().time(schedule.log_snr(times[[0, -1]]))
        times[1:-1] = schedule.time(RectifiedSchedule().log_snr(grid(steps, first, last)))[1:-1]
    return times


def observed_order(errors):
    """Order of convergence from errors at n, 2n and 4n steps.

    The next term of the expansion bends a slope by O(1 / n); extrapolating the two slopes removes
    that bend and leaves O(1 / n^2).
    """

    coarse, fine = (math.log2(a / b) for a, b in itertools.pairwise(errors))
    return 2 * fine - coarse


# One step.


@given(schedules, st.floats(0, 1), st.floats(0, 1), seeds)
def test_without_noise_a_true_pair_stays_on_its_line(schedule, t, s, seed):
    assume(s < t)
    x_0, noise = randn(seed, 3, 2), randn(seed + 1, 3, 2)
    prediction = Prediction(x_0, noise, schedule.at(t, x_0))
    scales = schedule.at(s, x_0)
    transition = DDIM().transition(prediction, scales)
    assert torch.equal(transition.mean, scales.alpha * x_0 + scales.sigma * noise)
    assert not transition.std.any()


def assert_is_the_bridge(schedule, t, s, seed):
    x_0, noise = randn(seed, 3, 2), randn(seed + 1, 3, 2)
    now, new = schedule.at(t, x_0), schedule.at(s, x_0)
    x_t = now.alpha * x_0 + now.sigma * noise
    transition = DDIM(1.0).transition(Prediction(x_0, noise, now), new)
    # q(x_s | x_t, x_0) by Bayes' rule from q(x_s | x_0) and q(x_t | x_s) = N(a x_s, v).
    a = now.alpha / new.alpha
    v = now.sigma**2 - a**2 * new.sigma**2
    mean = (new.alpha * x_0 * v + a * new.sigma**2 * x_t) / now.sigma**2
    size = float((new.alpha * x_0).abs().max() + (new.sigma * noise).abs().max())
    torch.testing.assert_close(transition.mean, mean, rtol=0, atol=64 * EPS * size)
    variance = new.sigma**2 * v / now.sigma**2
    atol = 64 * EPS * float(new.sigma**2)
    torch.testing.assert_close(transition.std**2, variance, rtol=0, atol=atol)


@given(schedules, st.floats(1e-3, 1), st.floats(1e-6, 1), seeds)
def test_with_all_its_noise_a_true_pair_follows_the_gaussian_bridge(schedule, t, s, seed):
    assume(s < t)
    assert_is_the_bridge(schedule, t, s, seed)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.5, 0.0), (1.0, 0.0), (1.0, 0.999)])
def test_the_bridge_at_the_ends(schedule, t, s):
    assert_is_the_bridge(schedule, t, s, 0)


@given(schedules, st.floats(0, 1), inner_times, st.floats(0, 1), seeds)
def test_any_amount_of_noise_keeps_the_marginals(schedule, eta, t, s, seed):
    """With x_0 fixed, x_s has mean alpha_s x_0 and variance sigma_s^2, whatever eta."""

    assume(s < t)
    x_0 = randn(seed, 1, 1)
    scales = schedule.at(s, x_0)
    step = lambda noise: DDIM(eta).transition(
        Prediction(x_0, torch.full_like(x_0, noise), schedule.at(t, x_0)), scales
    )
    gain = step(1.0).mean - step(0.0).mean  # x_s = alpha_s x_0 + gain * noise + std * z
    variance = gain**2 + step(0.0).std ** 2
    atol = 64 * EPS * float(scales.sigma**2 + scales.sigma * x_0.abs())
    torch.testing.assert_close(variance, scales.sigma**2, rtol=0, atol=atol)
    assert torch.equal(step(0.0).mean, scales.alpha * x_0)


@given(inner_times, st.floats(0, 1), seeds)
def test_ddim_is_euler_on_rectified_paths(t, s, seed):
    assume(s < t)
    model, x_t = LAW.model(RectifiedSchedule()), randn(seed, 3, 2)
    x_s, _ = DDIM().step(model, x_t, tensor(t), tensor(s))
    expected = x_t + (s - t) * model(x_t, t).velocity
    torch.testing.assert_close(x_s, expected, rtol=1e-13, atol=1e-13)


@given(inner_times, st.floats(0, 1), seeds)
def test_ddim_is_euler_in_sigma_on_ve_paths(t, s, seed):
    assume(s < t)
    schedule = VESchedule(0.01, 50.0)
    model, x_t = LAW.model(schedule), randn(seed, 3, 2)
    now, new = schedule.at(t, x_t), schedule.at(s, x_t)
    slope = model(x_t, t).velocity / now.sigma_rate  # dx / dsigma
    x_s, _ = DDIM().step(model, x_t, tensor(t), tensor(s))
    expected = x_t + (new.sigma - now.sigma) * slope
    torch.testing.assert_close(x_s, expected, rtol=1e-12, atol=1e-12)


@given(inner_times, st.floats(0.01, 1), seeds)
def test_heun_is_the_textbook_method_on_rectified_paths(t, s, seed):
    assume(s < t)
    model, x_t = LAW.model(RectifiedSchedule()), randn(seed, 3, 2)
    slope = model(x_t, t).velocity
    ahead = model(x_t + (s - t) * slope, s).velocity
    x_s, prediction = Heun().step(model, x_t, tensor(t), tensor(s))
    expected = x_t + (s - t) * (slope + ahead) / 2
    torch.testing.assert_close(x_s, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(prediction.mean, model(x_t, t).mean)


def test_noise_may_enter_in_places():
    class Partly(DDIM):
        def transition(self, prediction, scales):
            law = super().transition(prediction, scales)
            return replace(law, std=law.std * torch.tensor([1.0, 0.0]))

    x_t, generator = randn(0, 3, 2), torch.Generator().manual_seed(0)
    model = LAW.model(RectifiedSchedule())
    step = lambda sampler: sampler.step(model, x_t, tensor(0.5), tensor(0.3), None, generator)[0]
    expected = Partly(1.0).transition(model(x_t, 0.5), model.schedule.at(0.3, x_t)).mean
    moved = step(Partly(1.0)) != expected
    assert moved.tolist() == [[True, False]] * 3


def test_a_step_that_single_precision_does_not_see_draws_noise():
    t, s = tensor(0.5), tensor(0.5 - 1e-9)
    assert draws_noise(DDIM(1.0), RectifiedSchedule(), t, s)


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Heun()], ids=repr)
def test_models_see_states_in_their_own_dtype(sampler, generator):
    model, seen = LAW.model(RectifiedSchedule()), []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    x_1 = randn(0, 3, 2).bfloat16()
    x_0 = sample(model, sampler, x_1, (1, 0.6, 0.2), generator=generator)
    assert {x_0.dtype, *seen} == {torch.bfloat16}


def test_heun_ends_with_a_first_order_step():
    model, x_t = Counted(LAW.model(RectifiedSchedule())), randn(0, 3, 2)
    x_s, prediction = Heun().step(model, x_t, tensor(0.1), tensor(0.0))
    assert torch.equal(x_s, prediction.mean)
    assert model.calls == 1


def gaussian_flow(schedule, x_t, t, s):
    """Probability flow of a Gaussian: alpha mu + (alpha^2 C + sigma^2 I)^(1/2) z keeps its z."""

    variances, axes = torch.linalg.eigh(LAW.covariance)
    now, new = schedule.at(t, x_t), schedule.at(s, x_t)
    z = (x_t - now.alpha * LAW.mean) @ axes / (now.alpha**2 * variances + now.sigma**2).sqrt()
    root = (new.alpha**2 * variances + new.sigma**2).sqrt()
    return new.alpha * LAW.mean + (z * root) @ axes.T


@pytest.mark.parametrize("name", ["ddim 0", "heun"])
@pytest.mark.parametrize("span", [(0.95, 0.05), (0.95, 0.0)], ids=["inside", "to the data"])
def test_the_order_of_convergence_on_a_gaussian(schedule, name, span):
    start, end = span
    x_t = schedule.perturb(LAW.sample(8, torch.Generator().manual_seed(0)), start, randn(1, 8, 2))
    exact = gaussian_flow(schedule, x_t, start, end)
    model, errors = LAW.model(schedule), []
    for steps in (16, 32, 64):
        x_s = sample(model, SAMPLERS[name], x_t, smooth_grid(schedule, steps, start, end))
        errors.append(float((x_s - exact).norm()))
    assert abs(observed_order(errors) - ORDERS[name]) < 0.1


# Whole runs.


def test_one_step_is_one_call_and_lands_on_the_posterior_mean(schedule):
    model = Counted(LAW.model(schedule))
    x_1 = model.schedule.at(1.0, randn(0, 4, 2)).sigma * randn(0, 4, 2)
    for sampler in (DDIM(), DDIM(1.0)):
        model.calls = 0
        x_0 = sample(model, sampler, x_1, (1, 0), generator=torch.Generator().manual_seed(0))
        assert model.calls == 1
        if schedule.at(0.0, x_1).sigma == 0:
            assert torch.equal(x_0, model(x_1, 1.0).mean)


@pytest.mark.parametrize(("end", "calls"), [(0.0, 9), (0.01, 10)])
def test_heun_calls_twice_a_step_except_onto_clean_data(end, calls):
    model = Counted(LAW.model(RectifiedSchedule()))
    sample(model, Heun(), randn(0, 4, 2), torch.linspace(1, end, 6))
    assert model.calls == calls


def test_heun_cannot_skip_where_noise_remains():
    model = Counted(LAW.model(VESchedule(0.01, 50.0)))
    sample(model, Heun(), 50 * randn(0, 4, 2), torch.linspace(1, 0, 6))
    assert model.calls == 10


@pytest.mark.parametrize("sampler", list(SAMPLERS.values()), ids=list(SAMPLERS))
def test_a_point_is_recovered(schedule, sampler, generator):
    point = randn(0, 1, 2)
    model = toy.Empirical(point).model(schedule)
    x_1 = schedule.perturb(point.expand(5, 2), 1.0, randn(1, 5, 2))
    x_0 = sample(model, sampler, x_1, grid(4), generator=generator)
    sigma = float(schedule.at(0.0, x_1).sigma)
    atol = 6 * sigma + 1e-12  # a path that keeps noise at the end scatters around the point
    torch.testing.assert_close(x_0, point.expand(5, 2), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", [DDIM(0.5), Heun()], ids=["ddim", "heun"])
def test_states_keep_their_dtype_and_predictions_are_wide(dtype, sampler, generator):
    seen = []
    x_0 = sample(
        LAW.model(RectifiedSchedule()),
        sampler,
        randn(0, 4, 2, dtype=dtype),
        (1, 0.5, 0),
        generator=generator,
        trace=lambda t, prediction: seen.append(prediction.mean.dtype),
    )
    assert x_0.dtype == dtype
    assert set(seen) == {torch.float64 if dtype == torch.float64 else torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_in_half_precision_is_that_of_float32_rounded_once(dtype):
    model = LAW.model(RectifiedSchedule())
    x_t = randn(0, 64, 2).to(dtype)
    t, s = tensor(0.6), tensor(0.4)
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    half, _ = DDIM(1.0).step(model, x_t, t, s, generator=draws[0])
    wide, _ = DDIM(1.0).step(model, x_t.float(), t, s, generator=draws[1])
    # The predictions of both are the same: they are computed in float32 from the same numbers.
    assert half.dtype == dtype
    assert bool((half == wide.to(dtype)).all())


@pytest.mark.parametrize("sampler", list(SAMPLERS.values()), ids=list(SAMPLERS))
def test_inference_mode_changes_nothing(schedule, sampler):
    guided = GuidedModel(LAW.model(schedule), toy.Oracle(LAW, TILTS["linear"]))
    run = lambda: sample(
        guided, sampler, randn(0, 4, 2), grid(4), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        inside = run()
    assert_rounds_to(inside, run(), terms=4 * 64)  # in each of four steps, which do not amplify


def test_trace_sees_every_step_once_with_decreasing_times():
    seen = []
    times = [1.0, 0.7, 0.2, 0.0]
    x_1, model = randn(0, 4, 2), LAW.model(RectifiedSchedule())
    sample(model, Heun(), x_1, times, trace=lambda t, p: seen.append((t, p)))
    assert [t for t, _ in seen] == times[:-1]
    assert torch.equal(seen[0][1].mean, model(x_1, 1.0).mean)


def test_the_input_is_not_changed():
    x_1 = randn(0, 4, 2)
    sample(LAW.model(RectifiedSchedule()), DDIM(), x_1, (1, 0.5, 0))
    assert torch.equal(x_1, randn(0, 4, 2))


def test_progress_is_shown_when_asked_for(capsys):
    model, x_1 = LAW.model(RectifiedSchedule()), randn(0, 4, 2)
    x_0 = sample(model, DDIM(), x_1, grid(3), progress=True)
    assert "sampling" in capsys.readouterr().out
    assert torch.equal(x_0, sample(model, DDIM(), x_1, grid(3)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("sampler", [DDIM(), Heun()], ids=["ddim", "heun"])
def test_deterministic_samplers_draw_nothing(schedule, sampler, generator):
    before = generator.get_state()
    sample(LAW.model(schedule), sampler, randn(0, 4, 2), grid(4), generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_a_seed_fixes_a_stochastic_run(schedule):
    run = lambda seed: sample(
        LAW.model(schedule),
        DDIM(1.0),
        randn(0, 4, 2),
        grid(4),
        generator=torch.Generator().manual_seed(seed),
    )
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("sampler", [DDIM(), Heun()], ids=["ddim", "heun"])
def test_a_batch_is_its_samples_one_by_one(schedule, sampler):
    points = LAW.sample(30, torch.Generator().manual_seed(0))
    estimator = ImportanceSampling(Bank(points, ["a", "b", "c"] * 10), TILTS["quadratic"])
    guided = GuidedModel(LAW.model(schedule), estimator, window=(0.5, 1.0))
    x_1 = schedule.at(1.0, points).sigma * randn(1, 4, 2)
    condition = ["b", "a", "c", "b"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableEstimate)
        together = sample(guided, sampler, x_1, grid(4), condition)
        singly = [
            sample(guided, sampler, x_1[i : i + 1], grid(4), condition[i : i + 1]) for i in range(4)
        ]
    torch.testing.assert_close(together, torch.cat(singly), rtol=1e-10, atol=1e-10)


# The law of the samples.


def affine_step(sampler, model, t, s):
    """Matrix, offset and variance of one step, from the real code on 0 and the unit vectors."""

    d = LAW.event[0]
    probe = randn(0, 1, d)  # one more point proves that the step is affine
    x = torch.cat((torch.zeros(1, d), torch.eye(d), probe)).double()
    if isinstance(sampler, AncestralSampler):
        transition = sampler.transition(model(x, t), model.schedule.at(s, x))
        mean, variance = transition.mean, float(transition.std.squeeze() ** 2)
    else:
        mean, variance = sampler.step(model, x, t, s)[0], 0.0
    offset, matrix = mean[0], (mean[1 : d + 1] - mean[0]).T
    size = float(mean.abs().max())
    torch.testing.assert_close(mean[-1], probe[0] @ matrix.T + offset, rtol=0, atol=1e-12 * size)
    return matrix, offset, variance


def discrete_law(sampler, model, times, mean, covariance):
    """Exact mean and covariance at the last of `times` of a chain that starts in a Gaussian."""

    for t, s in itertools.pairwise(times):
        matrix, offset, variance = affine_step(sampler, model, t, s)
        mean = matrix @ mean + offset
        covariance = matrix @ covariance @ matrix.T + variance * torch.eye(len(mean)).double()
    return mean, covariance


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("tilt", list(TILTS))
def test_samples_follow_the_law_of_the_discrete_chain(schedule, name, tilt, generator):
    n, times = 20_000, grid(8)
    model = GuidedModel(LAW.model(schedule), toy.Oracle(LAW, TILTS[tilt]))
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    sigma = schedule.at(1.0, noise).sigma
    start = (torch.zeros(2).double(), sigma.squeeze() ** 2 * torch.eye(2).double())
    mean, covariance = discrete_law(SAMPLERS[name], model, times, *start)
    x_0 = sample(model, SAMPLERS[name], sigma * noise, times, generator=generator)
    variances = covariance.diagonal()
    assert_within(x_0.mean(0), mean, (variances / n).sqrt())
    error = ((variances[:, None] * variances + covariance**2) / n).sqrt()
    assert_within(x_0.T.cov(), covariance, error)


def tilted_chain(schedule, name, tilt, steps):
    """Moments of the chain from the exact tilted law at t = 1, and what they tend to."""

    like = torch.zeros(1, 2, dtype=torch.float64)
    law = LAW.tilted(TILTS[tilt])
    start, end = schedule.at(1.0, like), schedule.at(0.0, like)
    marginal = lambda scales: (
        scales.alpha[0] * law.mean,
        scales.alpha**2 * law.covariance + scales.sigma**2 * torch.eye(2),
    )
    model = GuidedModel(LAW.model(schedule), toy.Oracle(LAW, TILTS[tilt]))
    got = discrete_law(SAMPLERS[name], model, smooth_grid(schedule, steps), *marginal(start))
    flat = lambda moments: torch.cat([value.flatten() for value in moments])
    return flat(got), flat(marginal(end))


@pytest.mark.parametrize("name", ["ddim 0", "ddim 1", "heun"])
def test_the_discrete_law_tends_to_the_tilted_law_at_the_order_of_the_method(schedule, name):
    runs = [tilted_chain(schedule, name, "quadratic", steps) for steps in (16, 32, 64)]
    errors = [float((got - exact).norm()) for got, exact in runs]
    assert abs(observed_order(errors) - ORDERS[name]) < 0.1


def test_all_paths_reach_the_same_tilted_moments(schedule):
    coarse, _ = tilted_chain(schedule, "heun", "linear", 20)
    fine, exact = tilted_chain(schedule, "heun", "linear", 40)
    # At second order the finer run is off by a third of what the step size still changes.
    assert float((fine - exact).norm()) <= 0.5 * float((fine - coarse).norm())
    assert float((fine - exact).norm()) <= 0.02 * float(exact.norm())


MIXTURE = toy.GaussianMixture(
    [0.0, -0.3, 0.4],
    [[1.5, -0.5], [-1.0, 1.0], [0.0, 2.0]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.1, 0.0], [0.0, 0.1]]],
)
ATOMS = toy.Empirical(MIXTURE.sample(12, torch.Generator().manual_seed(5)))


def moments_of(law):
    """Mean and covariance of a mixture or an empirical law, exactly."""

    if isinstance(law, toy.Empirical):
        weights, points, within = law.log_weights.exp(), law.points, torch.zeros(1, 2, 2)
    else:
        weights, points, within = law.log_weights.exp(), law.means, law.covariances
    mean = weights @ points
    between = (points - mean)[:, :, None] * (points - mean)[:, None, :]
    return mean, torch.einsum("k,kij->ij", weights, within + between)


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
@pytest.mark.parametrize("kind", ["oracle", "importance sampling"])
def test_a_tilted_mixture_is_sampled(name, kind):
    """Modes are re-weighted as they should be; the estimator on atoms needs no gradient."""

    schedule, n = SCHEDULES[name], 2000
    if kind == "oracle":
        law, tilt = MIXTURE, TILTS["quadratic"]
        model = GuidedModel(law.model(schedule), toy.Oracle(law, tilt))
    else:
        law, tilt = ATOMS, Tilt(lambda x, condition: (x[:, 0] > 0).double() + x[:, 1].sin(), 0.7)
        model = GuidedModel(law.model(schedule), ImportanceSampling(Bank(law.points), tilt))
    tilted = law.tilted(tilt)
    x_1 = schedule.perturb(
        tilted.sample(n, torch.Generator().manual_seed(0)), 1.0, randn(1, n, 2)
    )  # exactly the tilted law at t = 1, also where alpha is not 0 there
    mean, covariance = moments_of(tilted)

    def run(steps):
        with warnings.catch_warnings():  # near the data few atoms matter, as it should be
            warnings.simplefilter("ignore", UnreliableEstimate)
            x_0 = sample(model, Heun(), x_1, grid(steps))
        z = x_0 - mean
        products = torch.stack((z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2), dim=1)
        return torch.cat((x_0, products), dim=1)

    coarse, fine = run(16), run(32)
    error = fine.std(0) / math.sqrt(n)
    # Halving the step changes the moments, of the same noise, by less than a standard error. The
    # finer run is off by less still, so that discretization cannot decide the comparison.
    assert bool(((fine - coarse).mean(0).abs() < error).all())
    residual = float(schedule.at(0.0, x_1).sigma) ** 2
    exact = torch.cat((mean, covariance[[0, 0, 1], [0, 1, 1]] + residual * tensor([1.0, 0, 1])))
    assert_within(fine.mean(0), exact, error)


# The warning.


def hopeless(kernel=None, beta=2.0):
    bank = Bank(randn(0, 64, 200))
    return GuidedModel(
        toy.Gaussian(torch.zeros(200), torch.eye(200)).model(RectifiedSchedule()),
        ImportanceSampling(bank, Tilt(lambda x, condition: x[:, 0], beta), kernel),
    )


def test_a_hopeless_bank_is_reported_once_per_run_with_advice():
    model, x_1 = hopeless(), randn(1, 4, 200)
    with pytest.warns(UnreliableEstimate) as record:
        sample(model, DDIM(), x_1, (1, 0.5, 0.3, 0.1, 0))
    assert len(record) == 1
    message = str(record[0].message)
    assert re.search(
        r"at t=0.5 \(1\.\d effective draws\), t=0.3 \(1\.\d .*\), t=0.1 \(1\.", message
    )
    for advice in ("window=(t, 1.0)", "kernel=LeaveOneOut()", "larger bank"):
        assert advice in message
    assert record[0].filename == __file__
    with pytest.warns(UnreliableEstimate) as again:
        sample(model, DDIM(), x_1, (1, 0.5, 0))
    assert len(again) == 1


def test_times_of_a_run_carry_no_graph():
    assert not check_times(torch.tensor([1.0, 0.0], requires_grad=True)).requires_grad


def test_the_effective_draws_of_a_warning_are_their_median():
    # One lucky sample of five, with 100 effective draws, must not make the others look better.
    scales = RectifiedSchedule().at(0.5, like=torch.zeros(5, 1))
    ess = torch.tensor([1.5, 100.0, 1.0, 2.0, 3.0])
    diagnostics = {"ess_tilted": ess, "reliable": ess >= 5}
    prediction = Prediction(torch.zeros(5, 1), torch.zeros(5, 1), scales, diagnostics)
    assert doubts_of(0.5, prediction) == [(0.5, 2.0)]


def test_many_hopeless_steps_are_summarized():
    message = r"t=0\.\d+ .* and 13 more steps\. You can guide"
    with pytest.warns(UnreliableEstimate, match=message) as record:
        sample(hopeless(), DDIM(), randn(1, 4, 200), [1, *torch.linspace(0.5, 0.02, 20).tolist()])
    assert str(record[0].message).count(" effective draws)") == 6


def test_advice_is_what_can_be_done():
    # At the first time there is no higher noise; where noise is pure, the kernel is flat already.
    x_1, times = randn(1, 4, 200), (0.5, 0.3)
    with pytest.warns(UnreliableEstimate) as record:
        sample(hopeless(), DDIM(), x_1, times)
    assert "higher noise" not in str(record[0].message)
    assert "model.starting(t)" in str(record[0].message)
    strong = hopeless(beta=0.2)
    with pytest.warns(UnreliableEstimate) as record:
        sample(strong.starting(0.5), DDIM(), x_1, (0.5, 0))
    message = str(record[0].message)
    assert "You can tilt less, with a larger beta; or use a larger bank." in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(hopeless().starting(0.5), DDIM(), x_1, (0.5, 0))


@pytest.mark.parametrize(
    ("doubtful", "start", "known", "helps"),
    [
        ([1.0, 0.5], 1.0, True, {"kernel", "beta"}),
        ([0.5], 1.0, True, {"window", "kernel"}),
        ([1.0], 1.0, True, {"beta"}),
        ([1.0], None, True, {"kernel"}),
        ([1.0, 0.5], None, False, {"start", "kernel"}),
        ([0.5], None, False, {"window", "kernel"}),
    ],
)
def test_each_piece_of_advice_is_given_where_it_helps(doubtful, start, known, helps):
    text = explain_doubts([(t, 1.5) for t in doubtful], 1.0, start, known)
    assert {name for name, advice in ADVICE.items() if advice in text} == {*helps, "bank"}


def test_the_advice_helps():
    x_1 = randn(1, 4, 200)
    model = hopeless()
    windowed = GuidedModel(model.base, model.estimator, window=(0.99, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(windowed, DDIM(), x_1, (1, 0.5, 0))
        sample(hopeless(TargetESS(0.3)), DDIM(), x_1, (1, 0.5, 0.3, 0))


def test_a_healthy_bank_is_not_reported():
    bank = Bank(LAW.sample(2000, torch.Generator().manual_seed(0)))
    estimator = ImportanceSampling(bank, TILTS["linear"])
    guided = GuidedModel(LAW.model(RectifiedSchedule()), estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(guided, Heun(), randn(1, 4, 2), (1, 0.8, 0.5, 0.2))


def test_a_run_keeps_a_graph_only_where_one_is_asked_for():
    x_1 = randn(0, 3, 2).requires_grad_()
    model = LAW.model(RectifiedSchedule())
    assert not sample(model, Heun(), x_1, (1, 0.5, 0)).requires_grad
    with torch.no_grad():
        x_0 = sample(model, Heun(), x_1, (1, 0.5, 0), gradient=True)
    (gradient,) = torch.autograd.grad(x_0.sum(), x_1)
    assert bool((gradient.abs() > 0).all())


class Breaks(Model):
    """The exact model, until a time, from which on item 1 is NaN."""

    def __init__(self, until):
        super().__init__(RectifiedSchedule())
        self.exact = LAW.model(self.schedule)
        self.until = until

    def forward(self, x_t, t, condition=None):
        prediction = self.exact(x_t, t)
        if float(t[0]) < self.until:
            prediction.mean[1] = math.nan
        return prediction


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Heun()])
def test_what_is_not_finite_is_named_with_step_item_and_source(sampler):
    run = lambda model: sample(
        model, sampler, randn(0, 3, 2), (1, 0.8, 0.5, 0), generator=torch.Generator()
    )
    with pytest.raises(
        FloatingPointError, match=r"step 2 of 3: .*in item 1 at t = 0\.8|step 1 of 3"
    ):
        run(Breaks(0.9))
    guided = GuidedModel(Breaks(0.9), toy.Oracle(LAW, TILTS["linear"]))
    with pytest.raises(
        FloatingPointError, match=r"the base prediction of Breaks .* in item 1 at t"
    ):
        run(guided)
    nothing = LearnedShift(
        lambda x_t, t, condition: x_t * torch.tensor([[1.0], [1.0], [torch.inf]])
    )
    with pytest.raises(
        FloatingPointError, match=r"step 1 of 3: the shift of LearnedShift .* item 2"
    ):
        run(GuidedModel(LAW.model(RectifiedSchedule()), nothing))
    with pytest.raises(ValueError, match="x_1 must be finite, got NaN or inf in item 0"):
        sample(guided, sampler, torch.full((1, 2), math.nan), (1, 0))


@pytest.mark.parametrize("rewards", [1.0, 1e39])
def test_an_overflowing_tilt_is_named(rewards):
    bank = Bank(randn(0, 40, 2).float(), rewards=rewards * randn(1, 40))

    def run():
        tilt = Tilt(toy.Linear([1.0, 0.0]), 1.0 if rewards > 1 else 1e-310)
        guided = GuidedModel(LAW.model(RectifiedSchedule()), ImportanceSampling(bank, tilt))
        sample(guided, DDIM(), randn(2, 3, 2).float(), (1, 0.5, 0))

    with pytest.raises(ValueError, match=r"log-weights .* use a larger beta"):
        run()


def test_times_carry_no_gradient_into_a_run():
    times = torch.linspace(1, 0, 4, dtype=torch.float64, requires_grad=True)
    assert not check_times(times).requires_grad
