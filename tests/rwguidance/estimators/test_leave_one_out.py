"""LeaveOneOut: the kernel that predicts the rewards of a bank best, without a number to set."""

import math
from dataclasses import replace

import pytest
import torch

from common import randn
from rwguidance import (
    Bank,
    ImportanceSampling,
    LeaveOneOut,
    RectifiedSchedule,
    Tempered,
    Tilt,
    toy,
)

SCHEDULE = RectifiedSchedule()
FACTORS = LeaveOneOut().factors


def gaussian(d, spread=1.0):
    return toy.Gaussian(torch.zeros(d).double(), spread * torch.eye(d).double())


def linear(d, beta=1.0):
    direction = torch.zeros(d).double()
    direction[0] = 1
    return Tilt(toy.Linear(direction), beta)


def bank_of(law, n, seed=0):
    return Bank(law.sample(n, torch.Generator().manual_seed(seed)))


def states(law, t, n, seed=7):
    x_0 = law.sample(n, torch.Generator().manual_seed(seed))
    return SCHEDULE.perturb(x_0, t, randn(seed + 1, *x_0.shape)), x_0


def chosen(bank, tilt, t, kernel=None, condition=None):
    d = bank.x_0.shape[1]
    estimator = ImportanceSampling(bank, tilt, kernel or LeaveOneOut())
    model = gaussian(d).model(SCHEDULE)
    estimate = estimator(model, randn(9, 2, d).to(bank.x_0.dtype), t, condition)
    return estimate.diagnostics["temper"].tolist()


def squared_errors(law, bank, t, factor, n=4000):
    """Squared errors of the rewards of fresh draws, as a bank predicts them."""

    x_t, x_0 = states(law, t, n)
    scales = SCHEDULE.at(t, like=x_t)
    square = torch.cdist(x_t, scales.alpha * bank.x_0).square()
    predicted = (-factor * square / (2 * scales.sigma**2)).softmax(1) @ bank.x_0[:, 0]
    return (predicted - x_0[:, 0]).square()


@pytest.mark.parametrize("d", [4, 32])
@pytest.mark.parametrize("t", [0.7, 0.5, 0.3])
def test_it_chooses_the_least_risk_as_far_as_256_draws_can_tell(d, t):
    law = gaussian(d)
    bank = bank_of(law, 256)
    errors = torch.stack([squared_errors(law, bank, t, factor) for factor in FACTORS])
    excess = errors - errors[errors.mean(1).argmin()]
    z = (excess.mean(1) / (excess.std(1) / math.sqrt(256))).nan_to_num(0.0)
    assert z.max() > 2.5, "there is nothing to choose"
    assert z[FACTORS.index(chosen(bank, linear(d), t)[0])] < 2


@pytest.mark.parametrize("offset", [1e6, -1e9])
def test_an_offset_of_the_reward_is_taken_off_before_rounding(offset):
    plain = bank_of(gaussian(6), 64)
    bank, tilt = Bank(plain.x_0.float()), Tilt(lambda x, condition: x[:, 0].double(), 1.0)
    moved = Tilt(lambda x, condition: x[:, 0].double() + offset, 1.0)
    found = [chosen(bank, tilt, t)[0] for t in (0.8, 0.5, 0.3)]
    assert len(set(found)) > 1
    assert [chosen(bank, moved, t)[0] for t in (0.8, 0.5, 0.3)] == found


def test_a_bank_in_half_precision_is_compared_in_single():
    bank, kernel = bank_of(gaussian(6), 64), LeaveOneOut()
    tilt = Tilt(lambda x, condition: x[:, 0].double(), 1.0)
    rough = bank.x_0.bfloat16()
    found = {}
    risks = kernel._risks
    kernel._risks = lambda *given: found.setdefault(given[0].x_0.dtype, risks(*given))
    for x_0 in (rough, rough.float()):
        estimator = ImportanceSampling(Bank(x_0), tilt, kernel)
        estimator(gaussian(6).model(SCHEDULE), randn(9, 2, 6).float(), 0.5, None)
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32], rtol=1e-5, atol=0)


def test_it_keeps_the_kernel_exact_where_the_bank_is_large():
    law = gaussian(2)
    bank = bank_of(law, 8000)
    for t in (0.5, 0.4):
        assert chosen(bank, linear(2), t) == [1.0, 1.0]


@pytest.mark.parametrize("t", [0.6, 0.5])
def test_in_many_dimensions_its_shift_is_nearer_to_the_truth_than_the_exact_kernel(t):
    d, n = 24, 256
    law, tilt = gaussian(d), linear(d)
    x_t, _ = states(law, t, 200)
    model, errors = law.model(SCHEDULE), {}
    _, exact = law.tilted_moments(tilt, x_t, t, SCHEDULE)
    for name, kernel in (("exact", None), ("chosen", LeaveOneOut())):
        errors[name] = torch.stack(
            [
                (ImportanceSampling(bank_of(law, n, seed), tilt, kernel)(model, x_t, t).shift)
                .sub(exact)
                .square()
                .sum(1)
                .mean()
                for seed in range(5)
            ]
        )
    difference = errors["exact"] - errors["chosen"]
    assert bool((difference > 0).all())
    assert errors["chosen"].mean() < 0.8 * errors["exact"].mean()
    assert chosen(bank_of(law, n), tilt, t)[0] < 1


def test_a_choice_is_made_once_per_condition_and_time():
    law, tilt = gaussian(6), linear(6)
    kernel, made = LeaveOneOut(), []
    inner = kernel._chosen
    kernel._chosen = lambda draws, *level: (
        made.append(tuple(map(float, level))) or inner(draws, *level)
    )
    x_0 = bank_of(law, 60).x_0
    estimator = ImportanceSampling(Bank(x_0, ["a", "b"] * 30), tilt, kernel)
    model, x_t = law.model(SCHEDULE), randn(1, 4, 6)
    t = torch.tensor([0.8, 0.5, 0.8, 0.5]).double()
    first = estimator(model, x_t, t, ["a", "a", "b", "b"])
    assert len(made) == 4
    again = estimator(model, 2 * x_t, t, ["a", "a", "b", "b"])
    assert len(made) == 4
    assert torch.equal(first.diagnostics["temper"], again.diagnostics["temper"])
    mixed = estimator(model, x_t[:1], 0.5, ["b"])
    assert mixed.diagnostics["temper"][0] == first.diagnostics["temper"][3]
    alone = ImportanceSampling(Bank(x_0[1::2]), tilt, LeaveOneOut())
    assert alone(model, x_t[:1], 0.5).diagnostics["temper"][0] == mixed.diagnostics["temper"][0]


@pytest.mark.parametrize(("n", "noised"), [(5, 255), (100, 200), (300, 256)])
def test_small_banks_are_noised_many_times(n, noised, monkeypatch):
    counts, risks = [], LeaveOneOut._risks

    def spy(self, draws, held, *given):
        counts.append(len(held))
        return risks(self, draws, held, *given)

    monkeypatch.setattr(LeaveOneOut, "_risks", spy)
    chosen(bank_of(gaussian(2), n), linear(2), 0.5)
    assert sum(counts) == noised


def test_the_estimate_is_that_of_the_factor():
    law, tilt = gaussian(24), linear(24)
    bank, x_t = bank_of(law, 50), states(law, 0.6, 5)[0]
    model = law.model(SCHEDULE)
    estimate = ImportanceSampling(bank, tilt, LeaveOneOut())(model, x_t, 0.6)
    factor = float(estimate.diagnostics["temper"][0])
    fixed = ImportanceSampling(bank, tilt, Tempered(factor))(model, x_t, 0.6)
    torch.testing.assert_close(estimate.shift, fixed.shift)
    torch.testing.assert_close(estimate.log_h, fixed.log_h)


def test_at_the_start_of_a_run_nothing_is_chosen():
    law, tilt = gaussian(24), linear(24)
    kernel = LeaveOneOut()
    kernel._chosen = None
    estimator = ImportanceSampling(bank_of(law, 50), tilt, kernel)
    estimate = estimator(law.model(SCHEDULE).starting(0.9), randn(0, 3, 24), 0.9)
    assert estimate.diagnostics["temper"].tolist() == [1.0] * 3
    torch.testing.assert_close(estimate.diagnostics["ess"], torch.full((3,), 50.0).double())


def test_draws_of_another_law_are_predicted_and_predict_by_their_importance():
    # Where half of the draws do not count, the choice is that of the other half.
    law, tilt = gaussian(16), linear(16)
    bank, t = bank_of(law, 40), 0.6
    noise = 30 * randn(5, 40, 16)  # far away, with rewards that no kernel predicts
    both = Bank(
        torch.cat((bank.x_0, noise)),
        log_importance=torch.cat((torch.zeros(40), torch.full((40,), -60.0))).double(),
    )
    errors = []
    for draws in (bank, both):
        held = torch.arange(40)
        estimator = ImportanceSampling(draws, tilt, LeaveOneOut())
        generator = torch.Generator().manual_seed(3)
        alpha, sigma = torch.tensor(1 - t).double(), torch.tensor(t).double()
        kernel = estimator.kernel
        errors.append(kernel._risks(estimator._draws(0), held, alpha, sigma, generator))
    torch.testing.assert_close(errors[1], errors[0])
    # All factors fail alike on the far draws, which would decide if they counted.
    far = ImportanceSampling(both, tilt, LeaveOneOut())
    kernel, draws = far.kernel, far._draws(0)
    generator = torch.Generator().manual_seed(3)
    on_all = kernel._risks(draws, torch.arange(80), alpha, sigma, generator)
    torch.testing.assert_close(on_all, errors[0], rtol=0.2, atol=0)


def test_draws_of_zero_weight_take_no_part():
    law, t = gaussian(16), 0.6
    x_0 = bank_of(law, 60).x_0
    rewards = x_0[:, 0].clone()
    dead = torch.arange(60) % 3 == 0
    rewards[dead] = -math.inf
    tilt = Tilt(lambda x, condition: x[:, 0], 1.0)
    some = chosen(Bank(x_0, rewards=rewards), tilt, t)
    assert some == chosen(Bank(x_0[~dead], rewards=rewards[~dead]), tilt, t)
    assert all(math.isfinite(factor) for factor in some)


@pytest.mark.parametrize("n", [1, 2])
def test_so_few_draws_leave_nothing_to_choose(n):
    law = gaussian(8)
    assert chosen(bank_of(law, n), linear(8), 0.5) == [1.0, 1.0]


def test_at_the_data_end_the_kernel_is_exact():
    assert chosen(bank_of(gaussian(8), 30), linear(8), 0.0) == [1.0, 1.0]


def test_the_strength_and_the_offset_of_the_reward_do_not_matter():
    law, t = gaussian(16), 0.6
    bank = bank_of(law, 50)
    expected = chosen(bank, linear(16), t)
    assert chosen(bank, linear(16, beta=0.01), t) == expected
    moved = replace(bank, rewards=bank.x_0[:, 0] + 1e5)
    assert chosen(moved, Tilt(lambda x, condition: x[:, 0], 1.0), t) == expected


def test_banks_in_half_precision_are_compared_in_float32():
    law, t = gaussian(16), 0.6
    bank = bank_of(law, 50)
    half = bank.to(dtype=torch.bfloat16)
    wide = half.to(dtype=torch.float32)
    assert chosen(half, linear(16), t) == chosen(wide, linear(16), t)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"factors": ()}, ValueError, "factors must hold at least one"),
        ({"factors": (0.5, 1.5)}, ValueError, "factors must lie in"),
        ({"factors": (0.0,)}, ValueError, "factors must lie in"),
        ({"factors": 0.5}, TypeError, "factors must be a sequence"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ],
)
def test_mistakes_are_explained(keywords, error, message):
    with pytest.raises(error, match=message):
        LeaveOneOut(**keywords)
