"""Where a run begins from noise that knows nothing of the clean state, the kernel is flat."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import randn, schedules, seeds
from pixel_law import Brightness, Law
from rwguidance import (
    DDIM,
    Bank,
    ConditionalExpectation,
    Estimate,
    GuidedModel,
    ImportanceSampling,
    TargetESS,
    Tempered,
    Tilt,
    sample,
    toy,
)
from rwguidance.generation.run import Run
from rwguidance.schedules import VPSchedule

LAW = toy.Gaussian(torch.full((3,), 0.5).double(), torch.diag(torch.tensor([1.0, 2, 4]).double()))
TILT = Tilt(toy.Linear(torch.ones(3).double()), 2.0)
KERNELS = [None, Tempered(0.3), TargetESS(0.4)]
times = st.floats(0.05, 1.0)


class Probe(ConditionalExpectation):
    """No shift; keeps the start of the model that it is given."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, model, x_t, t, condition=None):
        self.told.append((float(t), model.start))
        shift = torch.zeros_like(x_t)
        return Estimate(model(x_t, t, condition), shift.flatten(1).sum(1), shift)


def draws(n=200, seed=0):
    return LAW.sample(n, torch.Generator().manual_seed(seed))


def test_a_view_shares_its_weights_and_leaves_the_model_as_it_was():
    model = Law()
    view = model.starting(0.8)
    assert (model.start, view.start) == (None, 0.8)
    assert type(view) is Law
    view.calls, model.network = 3, Brightness()  # whatever changes, changes on both
    assert model.calls == 3
    assert view.network is model.network
    assert view.starting(None).start is None
    assert (view.start, model.start) == (0.8, None)
    assert copy.deepcopy(model).start is None
    again = copy.deepcopy(view)
    assert (again.start, again.calls) == (None, 3)
    again.calls = 4
    assert view.calls == 3
    again.__setstate__((again.__dict__, {"_start": 0.8}))  # as PyTorch without a __getstate__ does
    assert (again.start, again.calls) == (None, 4)


def test_a_guided_model_has_the_start_of_its_base():
    model, probe = LAW.model(VPSchedule()), Probe()
    guided = GuidedModel(model, probe)
    view = guided.starting(0.7)
    assert (guided.start, guided.base.start) == (None, None)
    assert view.start == 0.7
    assert GuidedModel(model.starting(0.6), probe).start == 0.6
    sample(view, DDIM(), randn(0, 2, 3), (0.7, 0.4, 0.0))
    assert probe.told == [(0.7, 0.7), (0.4, 0.7)]
    sample(guided, DDIM(), randn(0, 2, 3), (0.7, 0.4))
    assert probe.told[2:] == [(0.7, None)]


@pytest.mark.parametrize("t", [-0.1, 1.5, math.nan])
def test_a_start_is_a_time(t):
    with pytest.raises(ValueError, match="t must"):
        LAW.model(VPSchedule()).starting(t)
    with pytest.raises(TypeError, match="t must"):
        LAW.model(VPSchedule()).starting("noise")


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@given(seed=seeds, schedule=schedules, t=times, weighted=st.booleans())
def test_at_the_start_the_shift_is_that_of_the_prior(kernel, seed, schedule, t, weighted):
    points = randn(seed, 30, 3)
    log_importance = randn(seed + 1, 30) if weighted else None
    bank = Bank(points, rewards=points.sum(1), log_importance=log_importance)
    model = LAW.model(schedule).starting(t)
    estimate = ImportanceSampling(bank, TILT, kernel)(model, 3 * randn(seed + 2, 4, 3), t)
    log_omega = torch.zeros(30).double() if log_importance is None else log_importance
    omega, tilted = log_omega.softmax(0), (log_omega + points.sum(1) / 2).softmax(0)
    exact = tilted @ points - omega @ points
    torch.testing.assert_close(estimate.shift, exact.expand(4, 3), rtol=1e-9, atol=1e-9)
    log_h = (log_omega + points.sum(1) / 2).logsumexp(0) - log_omega.logsumexp(0)
    torch.testing.assert_close(estimate.log_h, log_h.expand(4), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.diagnostics["ess"], (1 / omega.square().sum()).expand(4))


def test_at_other_times_and_without_a_start_the_kernel_is_what_it_was(schedule):
    bank = Bank(draws())
    model = LAW.model(schedule)
    estimator = ImportanceSampling(bank, TILT)
    x_t = randn(1, 3, 3)
    t = torch.tensor([0.9, 0.6, 0.9], dtype=torch.float64)
    plain = estimator(model, x_t, t)
    mixed = estimator(model.starting(0.6), x_t, t)
    flat = estimator(model.starting(0.6), x_t[1:2], 0.6)
    torch.testing.assert_close(mixed.shift[[0, 2]], plain.shift[[0, 2]])
    torch.testing.assert_close(mixed.shift[1:2], flat.shift)
    assert (plain.shift[1] - flat.shift[0]).norm() > 0.05 * flat.shift.norm()
    halved = ImportanceSampling(bank, TILT, Tempered(0.5))(model.starting(0.6), x_t, t)
    assert halved.diagnostics["temper"].tolist() == [0.5, 1.0, 0.5]
    torch.testing.assert_close(halved.shift[1:2], flat.shift)
    # Exactly that time, and no other.
    near = estimator(model.starting(math.nextafter(0.6, 1)), x_t, t)
    torch.testing.assert_close(near.shift, plain.shift)


def test_conditions_have_their_own_priors_at_the_start():
    points = draws(40)
    bank = Bank(points, ["a", "b"] * 20)
    model = LAW.model(VPSchedule()).starting(0.5)
    shift = ImportanceSampling(bank, TILT)(model, randn(0, 3, 3), 0.5, ["b", "a", "b"]).shift
    for row, own in enumerate((points[1::2], points[::2], points[1::2])):
        exact = (own.sum(1) / 2).softmax(0) @ own - own.mean(0)
        torch.testing.assert_close(shift[row], exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_one_step_from_independent_noise_moves_every_sample_by_the_shift_of_the_prior(weighted):
    # alpha = .53 at t = .35: a kernel that is not flat would see a clean state in the noise.
    schedule, t, n = VPSchedule(), 0.35, 20_000
    law = LAW
    bank = Bank(draws(n))
    if weighted:  # draws of another law, whose weights lead back
        other = toy.Gaussian(LAW.mean - 0.3, 1.2 * LAW.covariance)
        x_0 = other.sample(n, torch.Generator().manual_seed(1))
        bank = replace(Bank(x_0), log_importance=LAW.log_prob(x_0) - other.log_prob(x_0))
    model = law.model(schedule)
    noise = schedule.at(t, like=randn(0, 1, 3)).sigma * randn(2, 8, 3)
    guided = GuidedModel(model, ImportanceSampling(bank, TILT))
    base = sample(model, DDIM(), noise, (t, 0.0))
    moved = sample(guided.starting(t), DDIM(), noise, (t, 0.0)) - base
    exact = law.tilted(TILT).mean - law.mean
    weights = (bank.x_0.sum(1) / 2).softmax(0) * n
    error = 2 * (weights[:, None] * bank.x_0).std(0) / math.sqrt(n)
    assert bool(((moved - exact).abs() < 5 * error).all())
    assert error.max() < 0.1 * exact.norm()
    without = sample(guided, DDIM(), noise, (t, 0.0)) - base
    assert (without.mean(0) - exact).norm() > 0.2 * exact.norm()


def test_generation_and_its_banks_begin_from_noise():
    class Recording(Law):
        def forward(self, x_t, t, condition=None):
            seen.append((float(t[0]), self.start))
            return super().forward(x_t, t, condition)

    seen, law, probe = [], Recording(), Probe()
    grid = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)  # as leading spacings begin
    run = Run(law, Brightness(), grid)
    run.bank("ab", 3, "bank")
    assert seen == [(0.9, 0.9), (0.5, 0.9)]
    run.sample(GuidedModel(law, probe), "ab", [("image", "ab", 0)])
    assert probe.told == [(0.9, 0.9), (0.5, 0.9)]
    assert law.start is None
