"""Arithmetic of log-weights: exact in log space, whatever the offset, zero weights included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import genpareto, gumbel_r, kstest

from common import assert_rounds_to, assert_within, randn, seeds
from problems import EPS, rand
from rwguidance.support.randomness import generator_for
from rwguidance.weights import ess, gumbel, log_mean_exp, log_uniform, pareto_k

offsets = st.sampled_from([0.0, 1e4, -1e4, 700.0])


def log_weights(seed, *shape, spread=3.0, zeros=0.3):
    """Random log-weights, some of them -inf, the first one of each row finite."""

    log_w = spread * randn(seed, *shape)
    dead = rand(seed + 1, *shape) < zeros
    dead[..., 0] = False
    return log_w.masked_fill(dead, -math.inf)


def rounding(offset):
    return 16 * EPS * (20 + abs(offset))


@given(seeds, st.integers(1, 64), offsets)
def test_ess_is_the_formula_in_linear_space_at_any_offset(seed, n, offset):
    log_w = log_weights(seed, n)
    w = log_w.exp()
    expected = w.sum() ** 2 / (w**2).sum()
    actual = ess(log_w + offset)
    torch.testing.assert_close(actual, expected, rtol=rounding(offset), atol=0)
    assert 1 - rounding(offset) <= actual <= n * (1 + rounding(offset))


@given(seeds, st.integers(1, 64), st.integers(0, 64), offsets)
def test_ess_counts_equal_weights(seed, n, zeros, offset):
    log_w = torch.cat((torch.zeros(n).double() + offset, torch.full((zeros,), -math.inf).double()))
    order = torch.randperm(len(log_w), generator=torch.Generator().manual_seed(seed))
    assert ess(log_w[order]).item() == pytest.approx(n, rel=rounding(offset))


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_ess_in_float32_does_not_feel_the_offset(offset):
    log_w = randn(0, 1000).mul(8).round().div(8)  # exact in float32, at these offsets, too
    shifted = (log_w + offset).float()
    assert torch.equal(shifted.double() - offset, log_w)
    assert ess(shifted).item() == pytest.approx(ess(log_w).item(), rel=1e-5)


@given(seeds, st.integers(1, 64), offsets)
def test_log_mean_exp_is_the_log_of_the_mean_weight(seed, n, offset):
    log_w = log_weights(seed, n)
    expected = math.log(math.fsum(log_w.exp().tolist()) / n) + offset
    assert abs(log_mean_exp(log_w + offset).item() - expected) <= rounding(offset)


@given(seeds, offsets, st.sampled_from([-2, -1, 0, 1, 2]))
def test_reductions_act_on_one_axis_only(seed, offset, dim):
    log_w = log_weights(seed, 3, 4, 5) + offset
    log_w[:, 0, :] = log_w[0, :, :] = offset  # so that no slice is all zero weights
    for function in (ess, log_mean_exp):
        slices = log_w.movedim(dim, -1).reshape(-1, log_w.shape[dim])
        expected = torch.stack([function(row) for row in slices])
        actual = function(log_w, dim=dim)
        tolerance = dict(rtol=rounding(offset), atol=rounding(offset))
        torch.testing.assert_close(actual.flatten(), expected, **tolerance)


def test_no_weight_at_all_has_log_mean_minus_infinity():
    assert log_mean_exp(torch.full((5,), -math.inf)).item() == -math.inf


# --- random numbers ---------------------------------------------------------------------------


def test_log_uniform_is_the_log_of_a_uniform_number(generator):
    log_u = log_uniform((20_000,), generator)
    assert log_u.dtype == torch.float64
    assert kstest(log_u.exp().numpy(), "uniform").pvalue > 1e-5


def test_log_uniform_is_finite_and_negative_for_every_normal_number(monkeypatch):
    # a normal number made of two 53-bit uniform ones is at most sqrt(2 log 2^53) = 8.57 in size
    ends = torch.tensor([-8.6, 8.6], dtype=torch.float64)
    monkeypatch.setattr("rwguidance.weights.normal", lambda *arguments: ends)
    assert bool((log_uniform((2,)) < 0).all())
    assert bool(log_uniform((2,)).isfinite().all())
    assert bool(gumbel((2,)).isfinite().all())


def test_gumbel_noise_has_its_law(generator):
    assert kstest(gumbel((20_000,), generator).numpy(), gumbel_r.cdf).pvalue > 1e-5


def test_the_largest_log_weight_with_gumbel_noise_is_a_draw_by_weight(generator):
    n, log_w = 50_000, torch.tensor([1.0, -math.inf, 0.3, -2.0, 3.0], dtype=torch.float64) - 700
    counts = (log_w + gumbel((n, 5), generator)).argmax(1).bincount(minlength=5)
    assert counts[1] == 0
    kept = log_w.isfinite()
    share = log_w.softmax(0)[kept]
    assert_within(counts[kept] / n, share, (share * (1 - share) / n).sqrt())


def test_rows_of_gumbel_noise_come_from_their_own_generators():
    rows = gumbel((3, 4), [generator_for(1, i) for i in range(3)])
    fewer = gumbel((2, 4), [generator_for(1, i) for i in (1, 2)])
    assert_rounds_to(rows[1:], fewer, terms=4)
    assert len(rows.unique()) == 12


# --- pareto_k ---------------------------------------------------------------------------------


def reference_pareto_k(w):
    """Zhang and Stephens' estimator with the PSIS prior, transcribed with loops."""

    w = np.sort(np.asarray(w, dtype=np.float64))
    n = len(w)
    m = int(min(np.ceil(0.2 * n), np.ceil(3 * np.sqrt(n))))
    x = w[-m:] - w[-m - 1]
    grid = 30 + int(np.sqrt(m))
    theta, profile = [], []
    for j in range(1, grid + 1):
        b = (1 - math.sqrt(grid / (j - 0.5))) / (3 * x[int(m / 4 + 0.5) - 1]) + 1 / x[-1]
        k = np.mean(np.log1p(-b * x))
        theta.append(b)
        profile.append(m * (math.log(-b / k) - k - 1))
    weights = [1 / sum(math.exp(b - a) for b in profile) for a in profile]
    b = math.fsum(w * b for w, b in zip(weights, theta, strict=True))
    k = np.mean(np.log1p(-b * x))
    return (m * k + 10 * 0.5) / (m + 10)


@given(seeds, st.integers(21, 3000), st.floats(0.3, 4.0), offsets)
def test_pareto_k_is_the_reference_at_any_offset(seed, n, spread, offset):
    log_w = log_weights(seed, n, spread=spread, zeros=0.1)
    expected = reference_pareto_k((log_w - log_w.max()).exp())
    # the offset costs digits of the input itself; near-equal weights magnify that
    tolerance = 1e-9 + 1e4 * EPS * abs(offset)
    assert pareto_k(log_w + offset).item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_pareto_k_finds_the_shape_of_generalized_pareto_weights(k):
    repeats, n = 40, 20_000
    draws = genpareto.rvs(k, size=(repeats, n), random_state=np.random.default_rng(0))
    estimates = pareto_k(torch.from_numpy(draws).log() - 50)
    # Exceedances of a threshold keep the shape. Their maximum likelihood estimate has standard
    # deviation (1 + k) / sqrt(m); the prior counts as 10 more exceedances of shape 1/2.
    m = math.ceil(3 * math.sqrt(n))
    expected = (m * k + 5) / (m + 10)
    standard_error = (1 + k) / math.sqrt(m * repeats)
    assert_within(estimates.mean(), expected, standard_error)
    assert 0.5 < estimates.std().item() / ((1 + k) / math.sqrt(m)) < 2


@given(seeds, st.integers(21, 500), offsets)
def test_pareto_k_of_a_batch_is_that_of_its_rows(seed, n, offset):
    log_w = log_weights(seed, 2, 4, n) + offset
    log_w[0, 0] = 0.0  # flat
    log_w[0, 1] = -1e5  # a spike
    log_w[0, 1, 3] = 0.0
    batch = pareto_k(log_w)
    assert batch.shape == (2, 4)
    assert batch[0, 0] == 0
    assert batch[0, 1] == math.inf
    rows = torch.stack([pareto_k(row) for row in log_w.flatten(0, 1)])
    torch.testing.assert_close(batch.flatten(), rows, rtol=1e-12, atol=1e-12)


@given(st.integers(21, 200), st.floats(-1e4, 1e4))
def test_pareto_k_of_a_flat_tail_is_zero(n, level):
    assert pareto_k(torch.full((n,), level).double()).item() == 0
    tail = math.ceil(n / 5) + 1
    log_w = torch.full((n,), -math.inf).double()
    log_w[:tail] = level
    assert pareto_k(log_w).item() == 0


@given(st.integers(21, 200), st.sampled_from([800.0, 1e5, math.inf]))
def test_pareto_k_of_a_spike_is_infinite(n, gap):
    log_w = torch.zeros(n).double() - gap
    log_w[n // 2] = 0.0
    assert pareto_k(log_w).item() == math.inf


@pytest.mark.parametrize("n", [1, 5, 20])
def test_pareto_k_of_too_few_weights_is_unknown(n):
    assert bool(pareto_k(randn(0, 3, n)).isnan().all())
    assert bool(pareto_k(randn(0, 3, 21)).isfinite().all())


def test_pareto_k_in_float32_agrees_with_float64():
    log_w = 2 * randn(0, 5, 2000)
    torch.testing.assert_close(
        pareto_k(log_w.float() + 30), pareto_k(log_w).float(), rtol=0, atol=1e-3
    )


def test_pareto_k_takes_weights_that_tie_with_the_threshold():
    # Rewards that are counts: many equal weights at the threshold, a few larger ones above it.
    counts = torch.cat((torch.zeros(4000), torch.ones(200), torch.full((30,), 2.0)))
    counts = torch.cat((counts, torch.full((5,), 3.0))).double()
    m = math.ceil(3 * math.sqrt(len(counts)))
    top = counts.topk(m + 1).values.flip(0)
    assert top[0] == top[(m + 2) // 4], "the case under test: a tie at the lower quartile"
    k = pareto_k(counts)
    assert math.isfinite(k)
    assert k < 1
