"""The objective for shifts that takes the bank's own estimate: its targets, and its optimum."""

from dataclasses import replace

import pytest
import torch

from common import SCHEDULES, assert_within, randn
from rwguidance import Bank, ImportanceSampling, LearnedShift, Tilt
from rwguidance.networks import ShiftMLP
from rwguidance.toy import Gaussian, GaussianMixture, Linear, Quadratic
from rwguidance.training import EstimatedShiftObjective, ShiftObjective, train
from training_problems import MODEL, SCHEDULE, TILT, make_bank, make_network, rng

ALWAYS, NEVER = 1, 1e9


def targets(objective, generator):
    """A batch of an objective, its targets, and the numbers of its draws."""

    index = objective._index(generator)
    t = objective.times(len(index), generator)
    batch = objective._noise(objective.bank, objective.log_w, index, t, generator)
    return batch, objective.target(batch, index), index


def weighted_bank(n=24, condition=None):
    plain = make_bank(n, condition)
    return Bank(plain.x_0, condition, plain.rewards, log_importance=0.8 * randn(2, n))


@pytest.mark.parametrize("make", [make_bank, weighted_bank])
def test_the_target_is_the_shift_of_importance_sampling(make):
    bank = make(24, ["cat"] * 10 + ["dog"] * 14)
    objective = EstimatedShiftObjective(MODEL, bank, TILT, batch_size=32, effective=ALWAYS)
    batch, target, _ = targets(objective, rng())
    estimate = ImportanceSampling(bank, TILT)(MODEL, batch.x_t, batch.t, batch.condition)
    torch.testing.assert_close(target.shift, estimate.shift, rtol=1e-9, atol=1e-12)
    least = torch.minimum(estimate.diagnostics["ess"], estimate.diagnostics["ess_tilted"])
    torch.testing.assert_close(target.ess, least, rtol=1e-9, atol=1e-12)
    assert torch.equal(target.log_weight, torch.zeros(32, dtype=torch.float64))


@pytest.mark.parametrize("make", [make_bank, weighted_bank])
def test_elsewhere_it_is_weighted_regression_averaged_over_the_draw(make):
    bank = make()
    objective = EstimatedShiftObjective(MODEL, bank, TILT, batch_size=6, effective=NEVER, tilted=0)
    batch, target, _ = targets(objective, rng())
    guess = randn(9, 6, 2)
    found = target.log_weight.exp()[:, None] * (guess - target.shift)

    scales = SCHEDULE.at(batch.t, like=batch.x_t)
    distance = (batch.x_t[:, None] - scales.alpha[..., None] * bank.x_0).square().sum(-1)
    chances = (-distance / (2 * scales.sigma**2)).softmax(1)
    log_w = objective.log_w
    if bank.log_importance is not None:
        log_w = log_w + objective.log_importance
    residual = (guess + objective.base(batch).mean)[:, None] - bank.x_0
    expected = torch.einsum("bn,n,bnd->bd", chances, log_w.exp(), residual)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("effective", [ALWAYS, NEVER])
def test_targets_have_the_precision_of_the_states_or_single(effective, dtype):
    plain = make_bank()  # whose rewards are float64
    bank = Bank(plain.x_0.to(dtype), rewards=plain.rewards, log_importance=0.8 * randn(2, 24))
    options = {"batch_size": 6, "effective": effective}
    batch, target, index = targets(EstimatedShiftObjective(MODEL, bank, TILT, **options), rng())
    assert batch.x_t.dtype == dtype
    assert target.shift.dtype == target.log_weight.dtype == target.ess.dtype == torch.float32

    wide = Bank(bank.x_0.double(), rewards=bank.rewards, log_importance=bank.log_importance)
    objective = EstimatedShiftObjective(MODEL, wide, TILT, **options)
    exact = objective.target(replace(batch, x_t=batch.x_t.double()), index)
    rounding = 100 * torch.finfo(torch.float32).eps
    for name in ("shift", "log_weight", "ess"):
        found, expected = getattr(target, name).double(), getattr(exact, name)
        torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)


def test_a_bank_may_be_wider_than_states():
    objective = EstimatedShiftObjective(MODEL, make_bank(), TILT, batch_size=6, effective=3)
    batch, target, index = targets(objective, rng())
    found = objective.target(replace(batch, x_t=batch.x_t.float()), index)
    for name in ("shift", "log_weight", "ess"):
        value = getattr(found, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(target, name), rtol=1e-4, atol=1e-5)


def test_the_loss_is_a_weighted_mean_of_squares_over_axes_and_states():
    options = {"batch_size": 7, "effective": NEVER, "tilted": 0.3}
    objective = EstimatedShiftObjective(MODEL, weighted_bank(), TILT, **options)
    _, target, _ = targets(objective, rng())
    guess = randn(9, 7, 2)
    found = objective(lambda *given: guess, rng())
    squares = (guess - target.shift).square().sum(1) / 2
    assert target.log_weight.std() > 0.1
    expected = (target.log_weight.exp() * squares).sum() / 7
    assert list(found) == ["loss"]
    torch.testing.assert_close(found["loss"], expected, rtol=1e-12, atol=0)


def test_states_of_the_tilted_law_need_no_weights():
    objective = EstimatedShiftObjective(
        MODEL, weighted_bank(), TILT, batch_size=10, effective=NEVER, tilted=0.4
    )
    _, target, _ = targets(objective, rng())
    assert torch.equal(target.log_weight[6:], torch.zeros(4, dtype=torch.float64))
    assert target.log_weight[:6].abs().min() > 0


def test_the_switch_is_by_effective_draws():
    objective = EstimatedShiftObjective(MODEL, make_bank(), TILT, batch_size=64, effective=6)
    _, target, _ = targets(objective, rng())
    good = target.ess >= 6
    assert 5 < good.sum() < 59
    for effective, of in ((ALWAYS, good), (NEVER, ~good)):
        other = EstimatedShiftObjective(
            MODEL, make_bank(), TILT, batch_size=64, effective=effective
        )
        assert torch.equal(target.shift[of], targets(other, rng())[1].shift[of])


@pytest.mark.parametrize("make", [make_bank, weighted_bank])
def test_half_of_the_draws_are_of_the_tilted_law(make):
    bank = make(5)
    objective = EstimatedShiftObjective(MODEL, bank, TILT, batch_size=40_000)
    index = objective._index(rng())
    log_w = TILT.weigh(bank.rewards)
    log_w = log_w if bank.log_importance is None else log_w + bank.log_importance
    for part, shares in (
        (index[:20_000], torch.full((5,), 0.2, dtype=torch.float64)),
        (index[20_000:], log_w.softmax(0)),
    ):
        found = part.bincount(minlength=5) / 20_000
        assert_within(found, shares, (shares * (1 - shares) / 20_000).sqrt())


def test_where_a_run_starts_the_bank_is_the_prior():
    times = lambda n, generator: torch.full((n,), 0.9, dtype=torch.float64)
    bank = make_bank()
    objective = EstimatedShiftObjective(
        MODEL.starting(0.9), bank, TILT, batch_size=8, times=times, effective=ALWAYS
    )
    _, target, _ = targets(objective, rng())
    w = TILT.weigh(bank.rewards).softmax(0)
    expected = (w @ bank.x_0 - bank.x_0.mean(0)).expand(8, 2)
    torch.testing.assert_close(target.shift, expected, rtol=1e-9, atol=1e-12)


LAWS = {
    "gaussian": (
        Gaussian(torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.6, 0.2], [0.2, 0.4]])),
        Tilt(Quadratic([0.5, 1.0], torch.eye(2)), 1.0),
    ),
    "mixture": (
        GaussianMixture([0.0, 0.4], [[1.2, 0.4], [-0.9, -0.7]], 0.25 * torch.eye(2)[None]),
        Tilt(Linear([1.0, -0.5]), 0.8),
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_it_is_nearer_to_the_oracle_than_single_draws(name):
    law, tilt = LAWS[name]
    schedule = SCHEDULES["rectified"]
    model, bank = law.model(schedule), Bank(law.sample(1000, rng(1))).scored(tilt)
    x_0 = torch.cat((law.sample(500, rng(2)), law.tilted(tilt).sample(500, rng(3)))).double()
    t = 0.05 + 0.95 * torch.rand(1000, generator=rng(4), dtype=torch.float64)
    x_t = schedule.perturb(x_0, t, randn(5, 1000, 2))
    exact = law.shift(tilt, x_t, t, schedule)
    errors = {}
    for kind in (ShiftObjective, EstimatedShiftObjective):
        network = ShiftMLP((2,), schedule, width=48, depth=2).double()
        train(network, kind(model, bank, tilt, batch_size=64), 250, learning_rate=1e-2)
        with torch.no_grad():
            found = LearnedShift(network)(model, x_t, t).shift
        errors[kind] = float((found - exact).norm() / exact.norm())
    assert errors[EstimatedShiftObjective] < 0.12
    assert errors[EstimatedShiftObjective] < 0.6 * errors[ShiftObjective]


def test_wrong_shares_are_refused():
    for name, value in (("tilted", 1.5), ("tilted", -0.1), ("effective", 0)):
        with pytest.raises(ValueError, match=name):
            EstimatedShiftObjective(MODEL, make_bank(), TILT, **{name: value})


def test_zero_weights_are_kept():
    rewards = make_bank().rewards.clone()
    rewards[::3] = -torch.inf
    objective = EstimatedShiftObjective(MODEL, make_bank(rewards=rewards), TILT, batch_size=64)
    _, target, index = targets(objective, rng())
    assert bool(target.shift.isfinite().all())
    assert not bool((index[32:] % 3 == 0).any())


def test_it_trains_what_it_is_given():
    network = ShiftMLP((2,), SCHEDULE, width=8, depth=2).double()
    objective = EstimatedShiftObjective(MODEL, make_bank(), TILT, batch_size=16)
    assert bool(train(network, objective, 3).isfinite().all())
    with pytest.raises(TypeError, match="model"):
        EstimatedShiftObjective(make_network(), make_bank(), TILT)
