"""Standard errors over the unit that was sampled, against the closed forms of a two-level model."""

import math

import pytest
import torch

from common import assert_within, randn
from rwguidance.statistics import (
    bootstrap_interval,
    jackknife_error,
    mean_and_error,
    paired_difference,
    ratio_and_error,
    sign_test,
    signed_rank_test,
    win_rate,
)


def two_levels(seed, runs, prompts, pictures, between=1.0, within=0.5):
    """Values with shape (runs, prompts * pictures): an effect of the prompt, and one of each."""

    effect = between * randn(seed, runs, prompts, 1)
    return (effect + within * randn(seed + 1, runs, prompts, pictures)).flatten(1)


@pytest.mark.parametrize("unit", [None, list("abcd")])
def test_with_a_value_per_unit_it_is_the_textbook_formula(unit):
    mean, error = mean_and_error([1.0, 2.0, 4.0, 5.0], unit)
    assert mean == 3
    assert error == pytest.approx(math.sqrt(10 / 3) / 2)


def test_values_are_averaged_within_a_unit_first():
    values, unit = [1.0, 3.0, 10.0, 0.0, 2.0, 0.0], ["a", "a", "b", "c", "c", "c"]
    # The means 2, 10, 2 / 3 count alike, however many values are behind them.
    assert mean_and_error(values, unit) == pytest.approx(mean_and_error([2.0, 10.0, 2 / 3]))
    shuffled = [5, 2, 0, 3, 1, 4]
    again = mean_and_error([values[i] for i in shuffled], [unit[i] for i in shuffled])
    assert again == pytest.approx(mean_and_error(values, unit))


def test_copies_of_values_within_units_change_nothing():
    values = randn(0, 20)
    unit = [i // 4 for i in range(20)]
    twice = mean_and_error(torch.cat((values, values)), unit + unit)
    assert twice == pytest.approx(mean_and_error(values, unit))


def test_the_error_over_prompts_is_that_of_the_model_and_the_error_over_pictures_is_not():
    prompts, pictures = 12, 8
    unit = [i // pictures for i in range(prompts * pictures)]
    found = [mean_and_error(values, unit) for values in two_levels(0, 2000, prompts, pictures)]
    naive = [mean_and_error(values)[1] for values in two_levels(0, 2000, prompts, pictures)]
    # Var of the mean = (between^2 + within^2 / pictures) / prompts, and its estimate is that times
    # chi^2 over its degrees of freedom.
    truth = (1.0 + 0.25 / pictures) / prompts
    squares = torch.tensor([error**2 for _, error in found])
    assert_within(squares.mean(), truth, truth * math.sqrt(2 / (prompts - 1) / 2000))
    assert float(torch.tensor(naive).square().mean()) < truth / 5

    # The mean lies within t of its error with the probability that Student's law states.
    z = torch.tensor([mean / error for mean, error in found]).abs()
    covered = (z < 2.200985).double().mean()  # 97.5 % of Student's t with 11 degrees of freedom
    assert_within(covered, 0.95, math.sqrt(0.95 * 0.05 / 2000))
    ratios = [abs(mean) / error for (mean, _), error in zip(found, naive, strict=True)]
    assert float((torch.tensor(ratios) < 1.985).double().mean()) < 0.75


@pytest.mark.parametrize(
    ("values", "unit", "mean"),
    [([], None, math.nan), ([2.0], None, 2.0), ([1.0, 3.0], ["a", "a"], 2.0)],
)
def test_fewer_than_two_units_have_no_error(values, unit, mean):
    found, error = mean_and_error(values, unit)
    assert found == pytest.approx(mean, nan_ok=True)
    assert math.isnan(error)


def test_nan_is_not_passed_over():
    assert all(map(math.isnan, mean_and_error([1.0, math.nan, 2.0], "abb")))


def test_half_precision_and_gradients_are_left_behind():
    values = torch.full((4096,), 1000.25, dtype=torch.float32, requires_grad=True)
    assert mean_and_error(values) == (1000.25, 0.0)
    assert mean_and_error(torch.ones(3, dtype=torch.bfloat16)) == (1.0, 0.0)


def test_a_ratio_to_one_is_a_mean():
    values, unit = randn(1, 30), [i % 7 for i in range(30)]
    assert ratio_and_error(values, torch.ones(30)) == pytest.approx(mean_and_error(values))
    expected = mean_and_error(values, unit)
    assert ratio_and_error(values, torch.ones(30), unit) == pytest.approx(expected)
    assert ratio_and_error(3 * values, torch.full((30,), 2.0)) == pytest.approx(
        [1.5 * x for x in mean_and_error(values)]
    )


def test_the_error_of_a_self_normalized_mean():
    values, log_w = randn(2, 50), randn(3, 50)
    mean, error = ratio_and_error(log_w.exp() * values, log_w.exp())
    weights = log_w.softmax(0)
    assert mean == pytest.approx(float((weights * values).sum()))
    delta = float((weights * (values - mean)).square().sum().sqrt())
    assert error == pytest.approx(delta * math.sqrt(50 / 49))


def test_the_error_of_a_ratio_is_its_spread():
    runs, n = 1000, 200
    b = 2 + 0.5 * randn(4, runs, n)
    a = 3 * b + randn(5, runs, n)
    found = torch.tensor([ratio_and_error(*pair) for pair in zip(a, b, strict=True)])
    spread = found[:, 0].std()  # known to 1 / sqrt(2 * runs)
    assert_within(found[:, 1].mean(), spread, spread / math.sqrt(2 * runs))
    assert_within(spread, 1 / 2 / math.sqrt(n), spread / math.sqrt(2 * runs))


def test_nothing_to_divide_by_has_no_ratio():
    assert all(map(math.isnan, ratio_and_error([1.0, 2.0], [0.0, 0.0])))
    assert all(map(math.isnan, ratio_and_error([], [])))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"values must have shape \(N,\), got \(2, 3\)"):
        mean_and_error(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one unit per value, 3, got 2"):
        mean_and_error([1.0, 2.0, 3.0], "ab")
    with pytest.raises(ValueError, match="as many as numerators, 2, got 1"):
        ratio_and_error([1.0, 2.0], [1.0])


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = randn(6, 30)
    without = (values.sum() - values) / 29
    assert jackknife_error(without) == pytest.approx(mean_and_error(values)[1])
    assert jackknife_error(5 - 2 * without) == pytest.approx(2 * mean_and_error(values)[1])


def test_the_jackknife_of_a_ratio_is_that_of_linearization():
    b = 2 + 0.2 * randn(7, 400)
    a = 3 * b + randn(8, 400)
    without = (a.sum() - a) / (b.sum() - b)
    assert jackknife_error(without) == pytest.approx(ratio_and_error(a, b)[1], rel=0.01)


def test_the_jackknife_takes_two_units():
    assert math.isnan(jackknife_error([1.0]))
    assert math.isnan(jackknife_error([1.0, math.nan, 2.0]))
    with pytest.raises(ValueError, match=r"without must have shape \(N,\), got \(2, 2\)"):
        jackknife_error(torch.zeros(2, 2))


def test_pairs_share_what_their_unit_does():
    shared, unit = 10 * randn(9, 20), [i // 2 for i in range(20)]
    after, before = shared + 1 + 0.1 * randn(10, 20), shared
    mean, error = paired_difference(after, before, unit)
    assert (mean, error) == pytest.approx(mean_and_error(after - before, unit))
    assert_within(mean, 1.0, error)
    assert error < mean_and_error(after, unit)[1] / 20
    with pytest.raises(ValueError, match="before must be as many as after, 2, got 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_tie_is_half_a_win_and_units_count_alike():
    after, before = [2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 1.0, 4.0]
    assert win_rate(after, before)[0] == 2.5 / 4
    rate, error = win_rate(after, before, "aaab")
    assert rate == pytest.approx((0.5 + 1) / 2)
    assert error == pytest.approx(0.25)
    assert all(map(math.isnan, win_rate([math.nan, 1.0], [0.0, 0.0])))


def test_the_sign_test_is_the_binomial_law():
    # Two tails of 0, 1, 9 or 10 heads in ten throws; ties do not count.
    after = [1.0] * 9 + [-1.0] + [0.0] * 5
    assert sign_test(after, [0.0] * 15) == pytest.approx(2 * 11 / 2**10)
    assert sign_test([0.0, 0.0], [0.0, 0.0]) == 1
    assert math.isnan(sign_test([math.nan, 1.0], [0.0, 0.0]))
    # Three pairs of one unit are one sign.
    assert sign_test([1.0, 1.0, -9.0, 1.0], [0.0] * 4, "aaab") == 1


def test_the_signed_rank_test_counts_all_signs():
    # Of 2^5 signs, those of five positive ranks and of none are as extreme.
    assert signed_rank_test([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5) == pytest.approx(2 / 32)
    assert signed_rank_test([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 6) == pytest.approx(2 / 32)
    assert signed_rank_test([1.0, 2.0], [1.0, 2.0]) == 1
    assert math.isnan(signed_rank_test([math.nan, 1.0], [0.0, 0.0]))
    assert signed_rank_test([3.0, 3.0, 1.0], [0.0, 0.0, 0.0], "aab") == pytest.approx(0.5)


@pytest.mark.parametrize("test", [sign_test, signed_rank_test])
def test_without_an_effect_few_p_values_are_small_and_with_one_they_are(test):
    differences = randn(11, 300, 40)
    found = torch.tensor([test(row, torch.zeros(40)) for row in differences])
    assert float((found < 0.05).double().mean()) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 300)
    assert float((found < 0.5).double().mean()) > 0.3
    assert test(differences[0] + 2, torch.zeros(40)) < 1e-3


def test_the_bootstrap_agrees_with_the_normal_interval(generator):
    values, unit = two_levels(12, 1, 60, 4)[0], [i // 4 for i in range(240)]
    mean, error = mean_and_error(values, unit)
    low, high = bootstrap_interval(values, unit, generator=generator, resamples=4000)
    z = torch.tensor([(low - mean) / error, (high - mean) / error])
    # Percentiles of 4000 are known to about 0.04 errors.
    torch.testing.assert_close(z, torch.tensor([-1.96, 1.96]), rtol=0, atol=0.25)
    narrow = bootstrap_interval(values, unit, generator=generator, level=0.5)
    assert low < narrow[0] < mean < narrow[1] < high


def test_the_bootstrap_interval_covers(generator):
    covered = [
        low < 0 < high
        for values in two_levels(13, 200, 40, 1)
        for low, high in [bootstrap_interval(values, generator=generator, resamples=400)]
    ]
    # Percentiles of 40 units are short by a few percent.
    assert_within(sum(covered) / 200, 0.94, math.sqrt(0.94 * 0.06 / 200), z=3.5)


def test_the_bootstrap_is_that_of_its_generator(generator):
    state = generator.get_state()
    first = bootstrap_interval([1.0, 2.0, 5.0], generator=generator)
    assert bootstrap_interval([1.0, 2.0, 5.0], generator=generator.set_state(state)) == first
    assert all(map(math.isnan, bootstrap_interval([1.0], generator=generator)))
    for _ in range(8):  # some of which draw no NaN
        found = bootstrap_interval([1.0, math.nan], generator=generator, resamples=1)
        assert all(map(math.isnan, found))
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator, got int"):
        bootstrap_interval([1.0, 2.0], generator=0)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 95"):
        bootstrap_interval([1.0, 2.0], generator=generator, level=95)
