"""Pooled candidates against Gaussian laws, whose tilts, means and constants are known.

The law is N(0, 1) and the reward the state, so that a tilt of strength s is N(s, 1) with log Z
= s^2 / 2. Guided draws of N(s', 1) are those of guidance that only tilts.
"""

import math

import pytest
import torch

from common import assert_within
from rwguidance.pooling import pool
from rwguidance.temperature import beta_for_kl
from rwguidance.weights import ess, log_mean_exp, residual, systematic

F64 = torch.float64


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def normal(n, mean, seed):
    return mean + torch.randn(n, generator=generator_of(seed), dtype=F64)


def mean_of(pooled, values):
    return float(pooled.log_w.softmax(0) @ values)


def repeated(make, runs=200):
    """Mean and standard error of what is made with one seed after another."""

    values = torch.tensor([make(seed) for seed in range(runs)], dtype=F64)
    return values.mean(), values.std() / math.sqrt(runs)


class TestPool:
    @pytest.mark.parametrize("strength", [0.5, 1.5])
    @pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
    @pytest.mark.parametrize("importance", [False, True])
    def test_weights_are_exact_where_guidance_only_tilts(self, strength, share, importance):
        def errors(seed):
            bank, guided = (
                normal(3000, 0.6 * importance, seed),
                normal(1000, share * strength, -seed),
            )
            log_q = 0.18 - 0.6 * bank if importance else None  # log N(x; 0, 1) - log N(x; 0.6, 1)
            pooled = pool(bank, guided, 1 / strength, log_q)
            x = torch.cat((bank, guided))
            second = mean_of(pooled, x.square()) - 1 - strength**2
            return mean_of(pooled, x) - strength, second, pooled.log_z - strength**2 / 2

        for error, se in zip(*repeated_each(errors), strict=True):
            # self-normalized weights have a bias of the order of one over the effective draws
            assert_within(error, 0.0, math.hypot(float(se), 0.002))

    def test_without_guided_draws_a_bank_has_the_weights_of_the_tilt(self):
        rewards = normal(50, 0.0, 0)
        pooled = pool(rewards, None, 0.7)
        torch.testing.assert_close(pooled.log_w - pooled.log_w[0], (rewards - rewards[0]) / 0.7)
        torch.testing.assert_close(pooled.log_z, float(log_mean_exp(rewards / 0.7)))
        assert pooled.reach == 0
        assert math.isnan(pooled.misfit)
        assert pooled.effective == pytest.approx(float(ess(rewards / 0.7)))

    def test_guided_draws_of_the_whole_tilt_make_candidates_of_equal_worth(self):
        bank, guided = normal(1000, 0.0, 1), normal(100_000, 2.0, 2)
        pooled = pool(bank, guided, 0.5)
        assert pooled.reach > 0.9
        assert pooled.effective > 0.9 * len(guided)
        assert pool(bank, None, 0.5).effective < 0.15 * len(bank)

    def test_pooling_needs_fewer_draws_than_a_bank(self):
        bank = lambda seed: normal(64, 0.0, seed)
        alone = repeated(
            lambda seed: abs(mean_of(pool(bank(seed), None, 0.5), bank(seed)) - 2), 400
        )
        guided = lambda seed: normal(16, 1.2, -seed - 1)
        both = repeated(
            lambda seed: abs(
                mean_of(pool(bank(seed), guided(seed), 0.5), torch.cat((bank(seed), guided(seed))))
                - 2
            ),
            400,
        )
        assert both[0] < alone[0] - 5 * math.hypot(float(both[1]), float(alone[1]))

    def test_a_constant_in_the_rewards_changes_the_constant_alone(self):
        bank, guided = normal(40, 0.0, 3), normal(16, 0.8, 4)
        one, other = pool(bank, guided, 0.8), pool(bank + 5, guided + 5, 0.8)
        torch.testing.assert_close(one.log_w.log_softmax(0), other.log_w.log_softmax(0))
        assert other.log_z - one.log_z == pytest.approx(5 / 0.8)
        torch.testing.assert_close(one.log_importance, other.log_importance)

    def test_log_importances_count_by_their_differences(self):
        bank, guided, shares = normal(40, 0.0, 3), normal(16, 0.8, 4), normal(40, 0.0, 5)
        one = pool(bank, guided, 0.8, log_importance=shares)
        other = pool(bank, guided, 0.8, log_importance=shares + 2.0**31)
        torch.testing.assert_close(one.log_w, other.log_w, rtol=0, atol=1e-5)
        assert (one.log_w - pool(bank, guided, 0.8).log_w).abs().max() > 0.1

    def test_units_of_reward_cancel_with_those_of_beta(self):
        bank, guided = normal(40, 0.0, 3), normal(16, 0.8, 4)
        for factor in (1e-6, 1e6):
            scaled = pool(factor * bank, factor * guided, factor * 0.8)
            torch.testing.assert_close(scaled.log_w, pool(bank, guided, 0.8).log_w)

    def test_candidates_are_a_weighted_bank_of_the_law(self):
        bank, guided = normal(4000, 0.0, 5), normal(4000, 1.0, 6)
        pooled, rewards = pool(bank, guided, 0.5), torch.cat((bank, guided))
        share = pooled.log_importance.softmax(0)
        assert_within(float(share @ rewards), 0.0, 1 / math.sqrt(4000))
        assert_within(float(share @ rewards.square()), 1.0, math.sqrt(2 / 4000))
        # and a temperature is found on them as on a bank: 1/2 nat is a strength of 1
        beta = beta_for_kl([rewards], 0.5, [pooled.log_importance])
        assert beta == pytest.approx(1.0, abs=0.05)

    def test_what_only_tilts_fits(self):
        odd = [pool(normal(256, 0, k), normal(64, 0.9, -k - 1), 0.7).misfit > 1 for k in range(400)]
        assert sum(odd) / len(odd) < 0.05 + 5 * math.sqrt(0.05 / 400)

    def test_what_does_more_than_tilt_does_not(self):
        for k in range(20):
            narrow = 0.9 + 0.2 * normal(64, 0, -k - 1)
            assert pool(normal(256, 0, k), narrow, 0.7).misfit > 1

    @pytest.mark.parametrize(("n", "m"), [(6000, 1500), (3000, 3000), (1500, 6000)])
    def test_a_law_that_is_not_a_tilt_leaves_the_error_that_follows(self, n, m):
        """Guided draws of N(1, 1/4), taken for N(1, 1); the target is N(1.5, 1)."""

        def moments(seed):
            bank, guided = normal(n, 0.0, seed), 1 + 0.5 * normal(m, 0.0, -seed)
            pooled, x = pool(bank, guided, 1 / 1.5), torch.cat((bank, guided))
            return mean_of(pooled, x), mean_of(pooled, x.square())

        x = torch.linspace(-8, 9, 20_001, dtype=F64)
        log_normal = lambda mean, std: -(((x - mean) / std) ** 2) / 2 - math.log(std)
        candidates = torch.logaddexp(
            math.log(n) + log_normal(0, 1), math.log(m) + log_normal(1, 0.5)
        )
        assumed = torch.logaddexp(torch.tensor(math.log(n)).to(x), math.log(m) + x - 0.5)
        share = (candidates + 1.5 * x - assumed).softmax(0)
        found, se = repeated_each(moments)
        exact = torch.stack((share @ x, share @ x.square()))
        # as above, for the bias of self-normalized weights
        assert_within(found, exact, (se**2 + 0.003**2).sqrt())
        # which is less than that of the guided draws: 0.5 of the mean, 0.75 of the variance
        mean, variance = exact[0], exact[1] - exact[0] ** 2
        assert abs(mean - 1.5) < 0.5
        assert abs(variance - 1) < 0.75

    def test_gradients_are_left_behind(self):
        given = [normal(20, 0.0, seed).requires_grad_() for seed in range(3)]
        pooled = pool(given[0], given[1], 1.0, log_importance=given[2])
        assert not pooled.log_w.requires_grad
        assert not pooled.log_importance.requires_grad

    def test_zero_weights_are_legal(self):
        bank = torch.tensor([0.0, -math.inf, 1.0], dtype=F64)
        for guided in (None, torch.tensor([-math.inf, 2.0]), torch.tensor([-math.inf])):
            pooled = pool(bank, guided, 1.0)
            assert not pooled.log_w.isnan().any()
            rewards = bank if guided is None else torch.cat((bank, guided.double()))
            assert torch.equal(pooled.log_w == -math.inf, rewards == -math.inf)
            assert rewards[pooled.draw(64, generator_of(0))].isfinite().all()
        assert pool(bank, torch.tensor([-math.inf]), 1.0).reach == 0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"rewards": torch.tensor([math.nan, 1.0])},
                "rewards must be finite or -inf, got NaN or .inf in item 0",
            ),
            ({"guided": torch.tensor([1.0, math.inf])}, r"guided must be finite or -inf"),
            ({"rewards": torch.full((2,), -math.inf)}, "finite for one draw of the bank"),
            ({"beta": 0.0}, "beta must be positive"),
            ({"log_importance": torch.zeros(3)}, "log_importance must have shape"),
        ],
    )
    def test_wrong_values_are_named(self, change, message):
        given = {"rewards": torch.tensor([0.0, 1.0]), "guided": torch.tensor([1.0]), "beta": 1.0}
        with pytest.raises(ValueError, match=message):
            pool(**given | change)
        with pytest.raises(TypeError, match="rewards must"):
            pool(torch.zeros(2, 2), None, 1.0)


class TestResampling:
    def test_counts_are_the_expected_ones_rounded(self):
        log_w = normal(20, 0.0, 0)
        expected = 50 * log_w.softmax(0)
        for seed in range(20):
            counts = systematic(log_w, 50, generator_of(seed)).bincount(minlength=20)
            assert ((counts - expected).abs() < 1).all()

    @pytest.mark.parametrize("resample", [systematic, residual])
    def test_counts_are_right_on_average(self, resample):
        log_w = torch.tensor([0.0, 1.0, -math.inf, 0.3], dtype=F64)
        counts = torch.stack(
            [resample(log_w, 3, generator_of(k)).bincount(minlength=4) for k in range(4000)]
        ).double()
        se = counts.std(0) / math.sqrt(4000)
        assert_within(counts.mean(0), 3 * log_w.softmax(0), se.clamp(min=1e-12))

    @pytest.mark.parametrize("resample", [systematic, residual])
    def test_the_order_says_nothing(self, resample):
        first = torch.stack([resample(torch.zeros(4), 4, generator_of(k))[0] for k in range(2000)])
        share = first.bincount(minlength=4) / 2000
        assert_within(share, torch.full((4,), 0.25), math.sqrt(0.25 * 0.75 / 2000))

    @pytest.mark.parametrize("resample", [systematic, residual])
    def test_no_weight_is_lost_to_rounding(self, resample):
        log_w = torch.cat((torch.zeros(10**5), torch.tensor([-math.inf])))
        for seed in range(20):
            assert resample(log_w, 7, generator_of(seed)).max() < 10**5

    @pytest.mark.parametrize("resample", [systematic, residual])
    def test_of_many_equal_weights_each_is_taken_once(self, resample):
        picks = resample(torch.zeros(10**6), 10**6, generator_of(147))  # whose offset is 0.9925
        assert bool((picks.bincount(minlength=10**6) == 1).all())

    @pytest.mark.parametrize("resample", [systematic, residual])
    def test_a_row_without_weight_is_refused(self, resample):
        for bad in (torch.full((2,), -math.inf), torch.tensor([math.nan, 0]), torch.zeros(2, 2)):
            with pytest.raises(ValueError, match="log_w must be a row"):
                resample(bad, 2)

    @pytest.mark.parametrize("resample", [systematic, residual])
    def test_indices_do_not_feel_a_constant(self, resample):
        log_w = (normal(40, 0.0, 3) * 2**20).round() / 2**20
        found = [resample(log_w + offset, 300, generator_of(0)) for offset in (0, 2**24)]
        assert torch.equal(*found)

    def test_residual_copies_need_no_chance(self):
        log_w = normal(20, 0.0, 0)
        least = (50 * log_w.softmax(0)).floor()
        for seed in range(20):
            counts = residual(log_w, 50, generator_of(seed)).bincount(minlength=20)
            assert (counts >= least).all()
        for n in (1, 7, 49, 1000):  # 49 (1 / 49) is below 1
            for weights in (torch.zeros(n), torch.full((n,), -1e3)):
                assert residual(weights, n, generator_of(n)).sort().values.equal(torch.arange(n))


def repeated_each(make, runs=40):
    values = torch.tensor([make(seed) for seed in range(1, runs + 1)], dtype=F64)
    return values.mean(0), values.std(0) / math.sqrt(runs)
