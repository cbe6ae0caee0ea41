"""Levels instead of weights: against closed forms, and the conditions of optimality on the bank."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from common import assert_within, randn, seeds
from rewards.constraints import constrained_tilt
from rwguidance import Bank, ImportanceSampling, Tilt, toy


class Named:
    """A linear reward with a name, as rewards of the package have it."""

    def __init__(self, name, direction):
        self.spec = type("Spec", (), {"name": name})
        self.direction = torch.as_tensor(direction, dtype=torch.float64)

    def __call__(self, x, condition=None):
        return x.double() @ self.direction


def columns(n):
    return [lambda x, condition=None, k=k: x[:, k] for k in range(n)]


def groups_of(bank, scores):
    return [scores[rows].double().numpy() for rows in bank.rows.values()]


def laws(groups, multipliers):
    """Weights of the draws for each condition, from the definition, in numpy."""

    result = []
    for group in groups:
        log_w = group @ np.asarray(multipliers)
        w = np.exp(log_w - log_w.max())
        result.append(w / w.sum())
    return result


def a_case(seed, n_rewards, sizes, reach, units, dtype=torch.float64):
    """A bank with correlated rewards in odd units, and levels between its means and its maxima.

    `reach` says how far each level is along the way to a mean that is certainly reached: that under
    a random tilt.
    """

    n = sum(sizes)
    mixing = randn(seed + 1, n_rewards, n_rewards) + torch.eye(n_rewards)
    unit = torch.tensor([units**k for k in range(n_rewards)], dtype=torch.float64)
    scores = ((randn(seed, n, n_rewards) @ mixing + 3.0) * unit).to(dtype)
    labels = [i for i, size in enumerate(sizes) for _ in range(size)]
    bank = Bank(randn(seed, n, 2), labels, scores if n_rewards > 1 else scores[:, 0])
    groups = groups_of(bank, scores)
    direction = randn(seed + 2, n_rewards) / unit / scores.double().std(0).mul(1 / unit).max()
    there = laws(groups, direction.numpy())
    reached = np.mean([p @ g for p, g in zip(there, groups, strict=True)], axis=0)
    start = np.mean([g.mean(0) for g in groups], axis=0)
    # Beyond 1 is below what that tilt reaches, wherever the mean lies.
    spread = scores.double().std(0).numpy()
    levels = reached - (1 - np.asarray(reach)) * (np.abs(reached - start) + 0.1 * spread)
    return bank, groups, levels.tolist(), spread


cases = given(
    seeds,
    st.integers(1, 4),
    st.lists(st.integers(8, 40), min_size=1, max_size=3),
    st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    st.sampled_from([1e-3, 1.0, 30.0]),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases
def test_the_conditions_of_optimality_hold(dtype, seed, n_rewards, sizes, reach, units):
    bank, groups, levels, spread = a_case(seed, n_rewards, sizes, reach[:n_rewards], units, dtype)
    result = constrained_tilt(columns(n_rewards), levels, bank)
    multipliers = np.asarray(result.multipliers)

    assert (multipliers >= 0).all()
    p = laws(groups, multipliers)
    means = np.mean([w @ g for w, g in zip(p, groups, strict=True)], axis=0)
    excess = (means - levels) / spread
    assert (excess >= -1e-8).all()
    assert np.abs(excess[multipliers > 0]).max(initial=0) <= 1e-8

    # What is reported is what this law has.
    np.testing.assert_allclose(result.rewards, means, rtol=0, atol=1e-10 * spread.max())
    n = [len(g) for g in groups]
    kl = np.mean([np.sum(w * np.log(np.maximum(w, 1e-300) * k)) for w, k in zip(p, n, strict=True)])
    assert result.kl == pytest.approx(kl, abs=1e-11)
    share = np.mean([1 / (k * np.sum(w**2)) for w, k in zip(p, n, strict=True)])
    assert result.ess == pytest.approx(share, rel=1e-9)
    # No duality gap: the value of the dual is the KL.
    dual = -np.mean([np.log(np.mean(np.exp((g - levels) @ multipliers))) for g in groups])
    assert dual == pytest.approx(kl, abs=1e-7)


@cases
def test_the_tilt_holds_the_active_rewards(seed, n_rewards, sizes, reach, units):
    bank, _, levels, _ = a_case(seed, n_rewards, sizes, reach[:n_rewards], units)
    functions = columns(n_rewards)
    result = constrained_tilt(functions, levels, bank)
    active = [k for k, value in enumerate(result.multipliers) if value > 0]
    assert result.active == tuple(active)
    for multiplier, beta in zip(result.multipliers, result.betas, strict=True):
        assert beta == (1 / multiplier if multiplier else math.inf)
    if not active:
        assert result.tilt is None
        assert (result.kl, result.ess, result.iterations) == (0.0, pytest.approx(1.0), 0)
        assert result.bank is bank
        return
    assert result.tilt.rewards == tuple(functions[k] for k in active)
    assert result.tilt.betas == tuple(result.betas[k] for k in active)
    scores = bank.rewards if n_rewards > 1 else bank.rewards[:, None]
    log_w = result.tilt.weigh(result.bank.rewards)
    expected = scores @ torch.tensor(result.multipliers, dtype=torch.float64)
    torch.testing.assert_close(
        log_w, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max())
    )
    ImportanceSampling(result.bank, result.tilt)


@given(seeds, st.lists(st.integers(10, 40), min_size=1, max_size=3), st.floats(0.1, 0.8))
def test_one_active_level_is_the_tilt_for_that_reward(seed, sizes, share):
    bank, groups, _, _ = a_case(seed, 1, sizes, [0.5], 1.0)
    low, high = (np.mean([f(g) for g in groups]) for f in (np.mean, np.max))
    level = float(low + share * (high - low))
    result = constrained_tilt(columns(1)[0], level, bank)
    direct = Tilt.for_reward(columns(1)[0], bank, level)
    assert result.betas[0] == pytest.approx(direct.betas[0], rel=1e-8)


@given(seeds, st.integers(1, 3), st.floats(1e-3, 1e3))
def test_another_unit_of_a_reward_is_another_unit_of_its_beta(seed, n_rewards, c):
    bank, _, levels, _ = a_case(seed, n_rewards, [40, 30], [0.9, 0.5, 0.7][:n_rewards], 1.0)
    scores = bank.rewards.reshape(len(bank), -1).clone()
    scores[:, 0] *= c
    scaled = Bank(bank.x_0, bank.condition, scores)
    plain = constrained_tilt(columns(n_rewards), levels, bank)
    other = constrained_tilt(columns(n_rewards), [c * levels[0], *levels[1:]], scaled)
    factors = np.asarray([c, *[1.0] * (n_rewards - 1)])
    np.testing.assert_allclose(
        other.multipliers, plain.multipliers / factors, rtol=1e-6, atol=1e-9 / c
    )
    np.testing.assert_allclose(
        other.rewards, np.multiply(plain.rewards, factors), rtol=1e-8, atol=1e-9
    )
    assert other.kl == pytest.approx(plain.kl, abs=1e-9)


def test_a_reward_may_lie_far_from_zero():
    # Counts of bytes or clicks: float32 has steps of 8 at 1e8, and would see two or three values.
    rewards, offset = randn(0, 200), 2.0**27
    bank = Bank(randn(1, 200, 2), None, rewards)
    far = Bank(bank.x_0, None, (rewards * 2**20).round() / 2**20 + offset)
    near = Bank(bank.x_0, None, far.rewards - offset)
    level = 0.5
    expected = constrained_tilt(columns(1), level, near).tilt.betas[0]
    found = constrained_tilt(columns(1), level + offset, far).tilt.betas[0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_linear_rewards_of_a_gaussian_have_the_closed_form():
    """For x ~ N(m, S), r = A x: E r = A m + A S A' l, so l solves a linear system where active."""

    mean, root = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64), randn(1, 3, 3)
    covariance = root @ root.T / 3
    law = toy.Gaussian(mean.tolist(), covariance.tolist())
    a = torch.tensor([[1.0, 0.5, 0.0], [-0.3, 1.0, 0.2], [0.0, 0.3, 1.0]], dtype=torch.float64)
    gram, start = a @ covariance @ a.T, a @ mean
    exact = torch.tensor([0.5, 0.0, 0.3], dtype=torch.float64)
    levels = start + gram @ exact
    levels[1] -= 0.5  # slack: the other two bring more than this
    n = 200_000
    bank = Bank(law.sample(n, torch.Generator().manual_seed(0)).double())
    rewards = [Named(name, row) for name, row in zip("abc", a, strict=True)]
    result = constrained_tilt(rewards, levels.tolist(), bank)

    # Delta method: noise of the weighted means at the exact multipliers, over the Hessian there.
    rows = [0, 2]
    r = (bank.x_0 @ a.T)[:, rows]
    w = n * (r @ exact[rows]).softmax(0)
    influence = w[:, None] * (r - levels[rows]) @ torch.linalg.inv(gram[rows][:, rows])
    error = influence.std(0) / math.sqrt(n)
    got = torch.tensor(result.multipliers, dtype=torch.float64)
    assert got[1] == 0
    assert_within(got[rows], exact[rows], error)
    assert bool((error < 0.02).all())
    assert result.rewards[0] == pytest.approx(float(levels[0]), abs=1e-9)
    assert result.kl == pytest.approx(float(exact @ gram @ exact) / 2, rel=0.05)


def test_levels_hold_for_the_mean_over_conditions_each_counting_the_same():
    """Two Gaussians' worth of draws, nine times as many of the first."""

    scores = torch.cat((randn(0, 900), 5 + randn(1, 100)))
    bank = Bank(scores[:, None], [0] * 900 + [1] * 100, scores)
    mean = float((scores[:900].mean() + scores[900:].mean()) / 2)
    assert constrained_tilt(columns(1), [mean - 1e-9], bank).tilt is None
    result = constrained_tilt(columns(1), [mean + 0.3], bank)
    parts = [(result.multipliers[0] * s).softmax(0) @ s for s in (scores[:900], scores[900:])]
    assert float(sum(parts)) / 2 == pytest.approx(mean + 0.3, abs=1e-10)


def test_an_unscored_bank_is_scored_once_and_what_is_decoded_is_scored():
    calls = []

    def decode(x):
        calls.append(len(x))
        return 2 * x

    rewards = [Named("a", [1.0, 0.0]), Named("b", [0.0, 1.0])]
    bank = Bank(randn(0, 100, 2))
    result = constrained_tilt(rewards, [0.8, -9.0], bank, decode)
    assert sum(calls) == 100
    assert result.tilt.decode is decode
    assert torch.equal(result.bank.rewards, 2 * bank.x_0[:, 0])
    again = constrained_tilt(rewards, [0.8, -9.0], bank.scored(Tilt(rewards, [1.0, 1.0], decode)))
    assert again.multipliers == result.multipliers


def test_a_level_just_above_the_mean_is_reached_and_one_within_rounding_costs_nothing():
    x = randn(0, 200, 1)
    mean, std = x.mean().item(), x.std(correction=0).item()
    result = constrained_tilt(columns(1), [mean + 1e-6 * std], Bank(x))
    # The mean moves by the variance times the multiplier, to first order.
    assert result.multipliers[0] == pytest.approx(1e-6 / std, rel=1e-4)
    assert result.rewards[0] - mean == pytest.approx(1e-6 * std, rel=1e-6)
    assert constrained_tilt(columns(1), [mean + 1e-13 * std], Bank(x)).tilt is None


def test_copies_of_a_reward_share_its_multiplier():
    x = randn(0, 200, 1)
    same = lambda x, condition=None: x[:, 0]
    one = constrained_tilt(same, 0.5, Bank(x))
    two = constrained_tilt([same, same], [0.5, 0.5], Bank(x))
    assert sum(two.multipliers) == pytest.approx(one.multipliers[0], rel=1e-9)
    higher = constrained_tilt([same, same], [0.2, 0.5], Bank(x))
    assert higher.multipliers == pytest.approx((0.0, one.multipliers[0]), rel=1e-9)


def test_copies_are_solved_beside_a_reward_that_hardly_varies_under_the_tilt():
    x = randn(0, 60, 2)
    x[:, 1] = 0
    x[:7, 1] = 1
    level = float(x[:7, 0].mean()) + 0.5
    same, rare = columns(2)
    twin = lambda x, condition=None: 3 * x[:, 0] + 0.7
    levels = [level, 3 * level + 0.7, 1 - 1e-5]
    result = constrained_tilt([same, twin, rare], levels, Bank(x))
    assert result.rewards == pytest.approx(levels, abs=1e-9)
    one = constrained_tilt([same, rare], [level, 1 - 1e-5], Bank(x))
    a, b, c = result.multipliers
    assert (a + 3 * b, c) == pytest.approx(one.multipliers, rel=1e-6)


def test_two_levels_can_fix_a_mean_from_both_sides():
    x = randn(0, 200, 2)
    rewards = [Named("up", [1.0, 0]), Named("down", [-1.0, 0]), Named("other", [0, 1.0])]
    result = constrained_tilt(rewards, [-0.4, 0.4, 0.3], Bank(x))
    assert result.rewards == pytest.approx((-0.4, 0.4, 0.3), abs=1e-9)
    assert result.multipliers[0] == pytest.approx(0, abs=0.01)
    assert result.multipliers[1] > 0.2


def test_a_reward_that_is_constant_for_every_condition_is_met_or_not():
    x = randn(0, 108, 1)
    labels = [0, 1, 2] * 36  # 36 tenths do not sum to 3.6 in floating point
    thirds = lambda x, condition: torch.tensor([0.1 * (c + 1) for c in condition]).double()
    bank = Bank(x, labels)
    result = constrained_tilt([thirds, columns(1)[0]], [0.2, 0.4], bank)  # the mean is 0.2
    assert result.active == (1,)
    always = lambda value: lambda x, condition=None: x.new_full((len(x),), value)
    for value in (0.0, 0.1):  # whose mean over the bank rounds to something else
        both = [always(value), columns(1)[0]]
        assert constrained_tilt(both, [value, 0.4], Bank(x[:19])).active == (1,)
    with pytest.raises(ValueError, match=r"reward 0: level 0.2001, .* reaches is 0.2$"):
        constrained_tilt([thirds, columns(1)[0]], [0.2001, 0.4], bank)


# Out of reach.

TRIANGLE = Bank(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]).double())
THREE = [Named("right", [1.0, 0, 0]), Named("up", [0, 1.0, 0]), Named("free", [0, 0, 1.0])]


def test_a_level_above_the_best_draw_is_named():
    with pytest.raises(ValueError, match=r"^a level is out of reach; up: level 1.5, .* is 1$"):
        constrained_tilt(THREE, [0.2, 1.5, 0.0], TRIANGLE)
    with pytest.raises(ValueError, match=r"right: level 3, .* is 1; free: level 2.5, .* is 2$"):
        constrained_tilt(THREE, [3.0, 0.1, 2.5], TRIANGLE)


def test_the_reach_is_the_mean_over_conditions():
    scores = torch.tensor([0.0, 1.0, 5.0, 7.0]).double()
    bank = Bank(scores[:, None], list("aabb"), scores)
    with pytest.raises(
        ValueError, match=r"reward 0: level 4\.1, the most that this bank reaches is 4$"
    ):
        constrained_tilt(columns(1), [4.1], bank)
    assert constrained_tilt(columns(1), [3.9], bank).rewards == pytest.approx((3.9,))


def test_levels_that_exclude_each_other_are_named_and_no_others():
    message = (
        r"one by one, but not together; right: level 0.6, at most 0.4 beside the others; "
        r"up: level 0.6, at most 0.4 beside the others\. Lower"
    )
    with pytest.raises(ValueError, match=message):
        constrained_tilt(THREE, [0.6, 0.6, 0.1], TRIANGLE)
    # "free" prefers what "right" prefers: it is what excludes "up".
    message = (
        r"; up: level 0.6, at most 0.25 beside the others; free: level 1.5, at most 0.8 beside"
    )
    with pytest.raises(ValueError, match=message):
        constrained_tilt(THREE, [0.1, 0.6, 1.5], TRIANGLE)


def test_three_levels_of_which_any_two_are_fine():
    bank = Bank(torch.eye(3, dtype=torch.float64))
    assert constrained_tilt(THREE[:2], [0.45, 0.45], bank).tilt is not None
    message = "right: level 0.4, at most 0.2 .* up: level 0.4, .* free: level 0.4, at most 0.2"
    with pytest.raises(ValueError, match=message):
        constrained_tilt(THREE, [0.4, 0.4, 0.4], bank)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0, 0.0, 0.0], r"at the edge .* infinite multiplier leads; right: level 1, .* is 1$"),
        (
            [0.5, 0.5, 0.0],
            r"together at the edge .*; right: level 0.5, .*; up: level 0.5, at most 0.5",
        ),
        (
            [0.3, 0.7, 0.0],
            r"together at the edge .*; right: level 0.3, .*; up: level 0.7, at most 0.7",
        ),
    ],
)
def test_levels_at_the_edge_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        constrained_tilt(THREE, levels, TRIANGLE)
    # A hair inside there is a solution, with large multipliers.
    inside = [level - 1e-4 if level else -1.0 for level in levels]
    result = constrained_tilt(THREE, inside, TRIANGLE)
    assert result.rewards[:2] == pytest.approx(np.maximum(inside[:2], result.rewards[:2]), abs=1e-9)
    assert max(result.multipliers) > 7


@given(seeds, st.integers(2, 4), st.floats(0.5, 2.0))
def test_what_is_refused_is_what_a_linear_program_refuses(seed, n_rewards, share):
    """Levels along a random ray, through the point where the convex hull of the bank ends."""

    from scipy.optimize import linprog

    assume(abs(share - 1) > 1e-3)
    scores = randn(seed, 12, n_rewards)
    ray = randn(seed + 1, n_rewards).abs() + 0.1
    center = scores.mean(0)
    end = linprog(
        [0.0] * 12 + [-1.0],
        A_ub=np.hstack([-(scores - center).numpy().T, ray[:, None].numpy()]),
        b_ub=np.zeros(n_rewards),
        A_eq=[[1.0] * 12 + [0.0]],
        b_eq=[1.0],
    )
    levels = (center + share * -end.fun * ray).tolist()
    bank = Bank(scores, None, scores)
    if share > 1:
        with pytest.raises(ValueError, match=r"out of reach|not together"):
            constrained_tilt(columns(n_rewards), levels, bank)
    else:
        assert constrained_tilt(columns(n_rewards), levels, bank).kl > 0


@pytest.mark.parametrize(
    ("rewards", "levels", "error", "message"),
    [
        (THREE, [1.0, 2.0], ValueError, "one number per reward, 3, got 2"),
        (THREE, 1.0, ValueError, "one number per reward, 3, got 1"),
        (THREE[0], math.nan, ValueError, "levels must be finite, got nan"),
        (THREE[:2], [0.0, -math.inf], ValueError, "levels must be finite, got -inf; leave out"),
        (THREE[:2], [0.0, "1"], TypeError, "levels must be numbers, got str"),
        ([], [], ValueError, "one number per reward, 0, got 0"),
        ([3.0], [0.1], TypeError, "must be callable, got float"),
    ],
)
def test_arguments_are_checked(rewards, levels, error, message):
    with pytest.raises(error, match=message):
        constrained_tilt(rewards, levels, TRIANGLE)


def test_banks_that_do_not_fit_are_refused():
    bank = Bank(randn(0, 4, 1), None, randn(0, 4, 2))
    with pytest.raises(ValueError, match=r"one column per reward, 3, .* shape \(4, 2\)"):
        constrained_tilt(THREE, [0.0, 0.0, 0.0], bank)
    rejected = torch.tensor([1.0, -math.inf, 0.0, 2.0])
    with pytest.raises(ValueError, match=r"1 draws have a reward of -inf, such as \[1\]; leave"):
        constrained_tilt(columns(1), [0.0], Bank(randn(0, 4, 1), None, rejected))


def test_rewards_of_one_name_are_told_apart():
    twins = [Named("right", [1.0, 0, 0]), Named("right", [0, 1.0, 0])]
    with pytest.raises(ValueError, match=r"right \(reward 1\): level 5"):
        constrained_tilt(twins, [0.0, 5.0], TRIANGLE)
