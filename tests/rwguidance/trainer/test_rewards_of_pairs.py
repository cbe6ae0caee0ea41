"""Rewards of pairs: a known linear utility is found again, within the errors of its likelihood."""

import math

import pytest
import torch

from rwguidance.trainer.preferences import (
    RIDGES,
    Comparisons,
    _agreement,
    _chosen_ridge,
    _expanded,
    _mean_over_prompts,
    _slope,
    fit_weights,
)

UTILITY = torch.tensor([1.5, -0.7, 0.0, 0.4], dtype=torch.float64)
SIZES = torch.tensor([1.0, 0.3, 2.0, 0.05], dtype=torch.float64)


def drawn(n=6000, votes=2, seed=0):
    """Pairs of a linear utility, each with the mean of some votes: with two, many are ties."""

    generator = torch.Generator().manual_seed(seed)
    x = SIZES * torch.randn(n, len(SIZES), generator=generator, dtype=torch.float64)
    share = (x @ UTILITY).sigmoid()
    draws = torch.rand(votes, n, generator=generator, dtype=torch.float64)
    preferences = (draws < share).double().mean(0)
    return Comparisons(x, preferences, torch.arange(n) % 60, {})


def errors_of(pairs, votes=2):
    """Standard errors of the weights by the information of the votes."""

    share = (pairs.differences @ UTILITY).sigmoid()
    curvature = (pairs.differences * (share * (1 - share))[:, None]).T @ pairs.differences
    return (curvature.inverse().diag() / votes).sqrt()


class TestWeights:
    @pytest.mark.parametrize("votes", [1, 2])
    def test_a_known_utility_is_found_again(self, votes):
        pairs = drawn(votes=votes)
        assert bool((pairs.preferences == 0.5).any()) == (votes == 2)
        z = (fit_weights(pairs, 1e-9) - UTILITY) / errors_of(pairs, votes)
        assert z.abs().max() < 5
        far = UTILITY.abs() / errors_of(pairs, votes)
        assert far[0] > 20  # so that a wrong sign or scale would be seen

    def test_ties_hold_back(self):
        pairs = drawn()
        decided = pairs.some(pairs.preferences != 0.5)
        z = (fit_weights(decided, 1e-9) - UTILITY) / errors_of(pairs)
        assert z[0] > 5  # of two votes that agree, the log-odds are twice as large

    def test_the_gradient_of_loss_and_penalty_is_zero(self):
        pairs, ridge = drawn(200), 0.1
        weights = fit_weights(pairs, ridge).requires_grad_()
        sizes = pairs.differences.square().mean(0).sqrt()
        s = pairs.differences @ weights
        p = pairs.preferences
        entropy = -(p * s.sigmoid().log() + (1 - p) * (-s).sigmoid().log()).mean()
        loss = entropy + ridge / 2 * (weights * sizes).square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        assert (gradient / sizes).abs().max() < 1e-9

    def test_gradient_and_hessian_are_slopes_of_the_value(self):
        pairs, v = drawn(200), torch.tensor([0.3, -2.0, 1.0, 0.5], dtype=torch.float64)
        at = lambda v: _expanded(pairs, v, SIZES, 0.7)
        _, gradient, hessian = at(v)
        for i, step in enumerate(1e-5 * torch.eye(4, dtype=torch.float64)):
            up, down = at(v + step), at(v - step)
            assert (up[0] - down[0]) / 2e-5 == pytest.approx(float(gradient[i]), abs=1e-8)
            assert torch.allclose((up[1] - down[1]) / 2e-5, hessian[i], atol=1e-8)

    def test_single_precision_is_summed_in_double(self):
        pairs = drawn(300)
        single = Comparisons(pairs.differences.float(), pairs.preferences, pairs.prompts, {})
        double = Comparisons(single.differences.double(), pairs.preferences, pairs.prompts, {})
        found = fit_weights(single, 0.1)
        assert found.dtype == torch.float64
        assert torch.equal(found, fit_weights(double, 0.1))
        assert torch.allclose(fit_weights(single, 0.1, found), found, rtol=1e-12)

    def test_swapped_pictures_say_the_same(self):
        pairs = drawn(300)
        swapped = Comparisons(-pairs.differences, 1 - pairs.preferences, pairs.prompts, {})
        assert torch.allclose(fit_weights(pairs, 0.01), fit_weights(swapped, 0.01))

    def test_features_that_do_not_vary_weigh_nothing(self):
        pairs = drawn(300)
        pairs.differences[:, 1] = 0
        assert fit_weights(pairs, 0.01)[1] == 0

    def test_separable_pairs_are_bounded_by_the_penalty(self):
        x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
        pairs = Comparisons(x, (x[:, 0] > 0).double(), torch.zeros(40, dtype=torch.long), {})
        weak, strong = (float(fit_weights(pairs, ridge)) for ridge in (1e-4, 1e-2))
        assert 0 < strong < weak < 1e3

    @pytest.mark.parametrize("ridge", [0, -1.0, math.nan])
    def test_no_penalty_is_refused(self, ridge):
        with pytest.raises(ValueError, match="ridge must be"):
            fit_weights(drawn(10), ridge)

    def test_the_penalty_is_chosen_by_prompts_that_the_fit_has_not_seen(self):
        many, few = drawn(6000), drawn(60)
        noise = torch.randn(60, 40, generator=torch.Generator().manual_seed(3)).double()
        wide = Comparisons(torch.cat([few.differences, noise], 1), few.preferences, few.prompts, {})
        assert _chosen_ridge(many) < 0.01 < _chosen_ridge(wide)

    def test_too_few_prompts_cannot_choose_it(self):
        pairs = drawn(9)
        with pytest.raises(ValueError, match="ridge must be given, since 9 prompts"):
            _chosen_ridge(pairs)
        assert _chosen_ridge(drawn(10)) in RIDGES


class TestFigures:
    @pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
    def test_the_slope_tells_rewards_that_are_too_sure(self, factor):
        pairs = drawn()
        found = _slope(factor * (pairs.differences @ UTILITY), pairs)
        assert abs(found.value - 1 / factor) < 5 * found.error
        assert 0.005 / factor < found.error < 0.1 / factor

    def test_agreement_is_that_of_the_law(self):
        pairs = drawn(votes=1)
        scores = pairs.differences @ UTILITY
        found = _agreement(scores, pairs)
        expected = float(scores.abs().sigmoid().mean())
        assert abs(found.value - expected) < 5 * found.error
        turned = _agreement(-scores, pairs)
        assert turned.value == pytest.approx(1 - found.value)

    def test_equal_scores_are_half_right_and_ties_and_failures_do_not_count(self):
        pairs = Comparisons(
            torch.zeros(4, 1),
            torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64),
            torch.tensor([0, 1, 1, 0]),
            {},
        )
        scores = torch.tensor([0.0, -1.0, 3.0, math.nan])
        assert _agreement(scores, pairs).value == pytest.approx(0.75)

    def test_errors_are_over_prompts(self):
        values = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        found = _mean_over_prompts(values, torch.tensor([0, 0, 1, 1]))
        assert found == pytest.approx((0.5, 0.5))
        # Without one of three prompts the means are 1/3, 3/4 and 3/5.
        found = _mean_over_prompts(
            torch.tensor([1, 1, 0.5, 0.5, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 2])
        )
        left = torch.tensor([0.5 / 3, 2.5 / 4, 3 / 5], dtype=torch.float64)
        error = (2 / 3 * (left - left.mean()).square().sum()).sqrt()
        assert found == pytest.approx((0.5, float(error)))
        assert _mean_over_prompts(values, torch.tensor([0, 1, 2, 3])).error < 0.3
