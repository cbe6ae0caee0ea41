"""Temperature: beta from a target, held against the definitions and a closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from common import assert_within, randn, seeds
from rwguidance import Bank, Tilt, toy
from rwguidance.temperature import beta_for_ess, beta_for_kl, beta_for_reward
from rwguidance.weights import ess


def first(x, condition=None):
    return x.flatten(1)[:, 0]


def quantities(groups, beta):
    """KL, share of effective draws and mean reward, averaged over groups, from their definitions.

    Independent of the library: numpy, plain weights, zero weights dropped by hand.
    """

    rows = []
    for rewards in groups:
        r = np.asarray(rewards, dtype=np.float64)
        w = np.exp((r - r.max()) / beta)
        p = w / w.sum()
        kept = p > 0
        kl = np.sum(p[kept] * np.log(p[kept] * len(r)))
        rows.append((kl, 1 / (len(r) * np.sum(p**2)), np.sum(p[kept] * r[kept])))
    return np.mean(rows, axis=0)


CHOICES = [(Tilt.for_kl, 0), (Tilt.for_ess, 1), (Tilt.for_reward, 2)]
CHOICE_IDS = ["kl", "ess", "reward"]


@pytest.mark.parametrize(("choose", "index"), CHOICES, ids=CHOICE_IDS)
@given(
    seeds,
    st.lists(st.integers(4, 60), min_size=1, max_size=3),
    st.floats(0.2, 5.0),
    st.floats(1e-3, 1e3),
    st.booleans(),
)
def test_targets_are_hit_on_random_banks(choose, index, seed, sizes, strength, unit, rejected):
    n = sum(sizes)
    rewards = unit * (randn(seed, n) + 7.0)
    labels = [name for name, size in zip("abc", sizes, strict=False) for _ in range(size)]
    if rejected:
        rewards[0] = -math.inf
    groups = [rewards[[i for i in range(n) if labels[i] == name]].numpy() for name in set(labels)]
    target = quantities(groups, unit / strength)[index]
    ends = sorted(quantities(groups, unit * factor)[index] for factor in (1e-3, 1e6))
    assume(ends[0] * 1.001 < target < ends[1] * 0.999)  # well inside what the bank reaches

    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    bank = Bank(randn(seed, n, 2)[order], [labels[i] for i in order.tolist()], rewards[order])
    tilt = choose(first, bank, float(target))
    got = quantities(groups, tilt.betas[0])[index]
    # log beta is found to 1e-13; sums over the bank round to about n eps.
    assert got == pytest.approx(target, rel=1e-9)
    assert tilt.betas[0] == pytest.approx(unit / strength, rel=1e-4)


@pytest.mark.parametrize("index", [0, 1, 2], ids=CHOICE_IDS)
def test_a_gaussian_agrees_with_its_closed_form(index):
    """For x ~ N(0, 1), r = x, strength l = 1 / beta: KL = l^2 / 2, ESS / N = exp(-l^2), E r = l."""

    n, strength = 200_000, 0.6
    x = randn(index, n, 1)
    target = (strength**2 / 2, math.exp(-(strength**2)), strength)[index]
    tilt = CHOICES[index][0](first, Bank(x), target)

    # Influence of one draw on the quantity at fixed strength, over its slope in the strength.
    r = x[:, 0]
    p = n * (strength * r).softmax(0)
    excess = p * (r - strength)
    squares = p**2 / (p**2).mean()
    influence = (strength * excess - (p - 1), 2 * (p - 1) - (squares - 1), excess)[index]
    slope = (strength, 2 * strength, 1.0)[index]
    error = influence.std() / math.sqrt(n) / slope
    assert_within(1 / tilt.betas[0], strength, error)


@pytest.mark.parametrize(("choose", "index"), CHOICES, ids=CHOICE_IDS)
def test_an_unscored_bank_is_scored_and_a_scored_one_is_not(choose, index):
    calls = []

    def reward(x, condition=None):
        calls.append(len(x))
        return first(x)

    decode = lambda x: 3 * x
    bank = Bank(randn(0, 50, 2))
    scored = bank.scored(Tilt(reward, 1.0, decode))
    target = float(quantities([scored.rewards.numpy()], 1.5)[index])
    tilt = choose(reward, bank, target, decode)
    assert tilt.decode is decode
    assert tilt.rewards == (reward,)
    assert sum(calls) == 100
    assert choose(reward, scored, target, decode).betas == tilt.betas
    assert sum(calls) == 100


@pytest.mark.parametrize(
    ("choose", "target", "reach"),
    [
        (Tilt.for_kl, 0.0, r"nats must lie in .* reaches, \(0, 1.38629\), got 0.0"),
        (Tilt.for_kl, math.log(4), r"nats must lie in .* reaches, \(0, 1.38629\), got 1.386"),
        (Tilt.for_kl, -1.0, r"\(0, 1.38629\), got -1.0"),
        (Tilt.for_kl, math.nan, "nats must be finite, got nan"),
        (Tilt.for_ess, 0.25, r"fraction must lie in .* reaches, \(0.25, 1\), got 0.25"),
        (Tilt.for_ess, 1.0, r"\(0.25, 1\), got 1.0"),
        (Tilt.for_reward, 2.5, r"level must lie in .* reaches, \(2.5, 4\), got 2.5"),
        (Tilt.for_reward, 4.0, r"\(2.5, 4\), got 4.0"),
    ],
)
def test_out_of_reach_says_what_is_in_reach(choose, target, reach):
    bank = Bank(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    with pytest.raises(ValueError, match=reach):
        choose(first, bank, target)


def test_the_reach_is_that_of_the_mean_over_conditions():
    rewards = torch.tensor([0.0, 1.0, 5.0, -math.inf, 7.0, 7.0])
    bank = Bank(randn(0, 6, 1), list("aabbcc"), rewards)
    # Means of (0.5, 5, 7) and (1, 5, 7); of log-shares (0, log 2, 0) and (log 2, log 2, 0).
    with pytest.raises(ValueError, match=r"\(4.16667, 4.33333\)"):
        Tilt.for_reward(first, bank, 9.0)
    with pytest.raises(ValueError, match=r"\(0.231049, 0.462098\)"):
        Tilt.for_kl(first, bank, 9.0)
    with pytest.raises(ValueError, match=r"\(0.666667, 0.833333\)"):
        Tilt.for_ess(first, bank, 9.0)


def test_the_reach_ends_at_all_of_the_best_draws():
    bank = Bank(torch.tensor([[1.0], [4.0], [4.0]]))
    with pytest.raises(ValueError, match=r"\(0, 0.405465\)"):  # log(3 / 2)
        Tilt.for_kl(first, bank, 1.0)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (torch.ones(4), "rewards that vary, but they are constant"),
        (torch.tensor([1.0, 2.0, -math.inf, -math.inf]), "a finite reward for every condition"),
        (torch.ones(4, 2), r"scored by one reward, shape \(N,\), got rewards of shape \(4, 2\)"),
    ],
)
def test_banks_that_leave_no_choice(rewards, message):
    bank = Bank(randn(0, 4, 1), list("aabb"), rewards)
    with pytest.raises(ValueError, match=message):
        Tilt.for_kl(first, bank, 0.1)


def test_smaller_targets_mean_larger_betas():
    bank = Bank(toy.Gaussian([0.0], [[1.0]]).sample(500, torch.Generator().manual_seed(0)))
    betas = [Tilt.for_kl(first, bank, nats).betas[0] for nats in (1e-6, 1e-3, 0.1, 1.0, 3.0)]
    assert betas == sorted(betas, reverse=True)


def test_importances_count_as_draws_that_come_so_many_times():
    rewards, times = randn(0, 40), torch.arange(40) % 5 + 1
    times[20:] *= 3
    groups = list(rewards.split(20)), list(times.double().log().split(20))
    repeated = [r.repeat_interleave(k) for r, k in zip(groups[0], times.split(20), strict=True)]
    keys = ["a"] * 20 + ["b"] * 20
    bank = Bank(randn(1, 40, 2), keys, rewards, log_importance=times.double().log() - 7)
    for beta_for, target, choose in (
        (beta_for_kl, 0.4, Tilt.for_kl),
        (beta_for_reward, 1.0, Tilt.for_reward),
    ):
        expected = beta_for(repeated, target)
        assert beta_for(groups[0], target, groups[1]) == pytest.approx(expected, rel=1e-9)
        assert choose(first, bank, target).betas == pytest.approx((expected,), rel=1e-9)
        assert beta_for(groups[0], target) != pytest.approx(expected, rel=1e-2)


def test_the_effective_share_counts_importances():
    rewards, log_q = randn(0, 40), randn(1, 40)
    fraction = lambda beta: float(ess(rewards / beta + log_q)) / 40
    assert fraction(beta_for_ess([rewards], 0.3, [log_q])) == pytest.approx(0.3, rel=1e-9)
    with pytest.raises(ValueError, match=rf"\(0.025, {float(ess(log_q)) / 40:.6g}\), got 0.9"):
        beta_for_ess([rewards], 0.9, [log_q])
    with pytest.raises(ValueError, match=r"the shapes of the rewards, \[\(40,\)\]"):
        beta_for_ess([rewards], 0.3, [log_q[1:]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tilt_takes_the_beta_of_the_rewards_of_each_condition(dtype):
    rewards = randn(0, 30).to(dtype)
    groups = [rewards[:10], rewards[10:]]
    bank = Bank(randn(1, 30, 2), ["a"] * 10 + ["b"] * 20, rewards)
    for choose, beta_for, target in (
        (Tilt.for_kl, beta_for_kl, 0.3),
        (Tilt.for_ess, beta_for_ess, 0.6),
        (Tilt.for_reward, beta_for_reward, 0.5),
    ):
        assert choose(first, bank, target).betas == (beta_for(groups, target),)


def test_a_condition_of_constant_rewards_adds_nothing_to_the_mean_divergence():
    varied, constant = randn(0, 20), torch.ones(20, dtype=torch.float64)
    both = beta_for_kl([varied, constant], 0.1)
    assert both == pytest.approx(beta_for_kl([varied], 0.2), rel=1e-9)
