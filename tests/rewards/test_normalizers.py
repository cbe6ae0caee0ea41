"""Normalizers: fitted, applied, saved and loaded."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import randn, seeds
from plain_rewards import Scripted, images
from rewards.composite import Normalized
from rewards.fitting import as_bank
from rewards.normalizers import Affine, Moments, Normalizer, Rank, ZScore


def a_bank(seed=0, prompts=4, each=6):
    """Rewards and their prompts, in random order, with another mean and spread per prompt."""

    texts = [f"prompt {i}" for i in range(prompts) for _ in range(each)]
    scale = 10.0 ** randn(seed, prompts).repeat_interleave(each)
    values = scale * randn(seed + 1, prompts * each) + 5 * randn(
        seed + 2, prompts
    ).repeat_interleave(each)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return values[order], [texts[i] for i in order]


@given(seeds, st.integers(1, 4), st.integers(2, 8))
def test_z_scores_of_the_fitted_bank_have_mean_0_and_std_1_for_every_prompt(seed, prompts, each):
    values, texts = a_bank(seed, prompts, each)
    fitted = ZScore.fit(values, texts, source="a test")
    scores = fitted(values, texts)
    assert (fitted.n, fitted.source, fitted.needs_prompt) == (prompts * each, "a test", True)
    for text in set(texts):
        own = scores[[i for i, other in enumerate(texts) if other == text]].numpy()
        assert fitted.prompts[text].n == each
        # Means are up to 1e3 spreads away from 0: a rounding error of 1e3 eps.
        np.testing.assert_allclose((own.mean(), own.std(ddof=1)), (0, 1), atol=1e-10)
    pooled = ZScore.fit(values)
    assert not pooled.needs_prompt
    scores = pooled(values, texts).numpy()
    np.testing.assert_allclose((scores.mean(), scores.std(ddof=1)), (0, 1), atol=1e-10)


def test_a_z_score_of_a_reward_uses_the_prompt_of_each_image():
    moments = {"a cat": Moments(1.0, 2.0), "x": Moments(-3.0, 0.5)}
    reward = Normalized(Scripted([1.0, 1.0, 5.0]), ZScore(0.0, 1.0, moments))
    assert reward(images(0, 3), ["a cat", "x", "a cat"]).tolist() == [0, 8, 2]
    assert reward.score_matrix(images(0, 3), ["x", "a cat"]).tolist() == [[8, 0], [8, 0], [16, 2]]


def test_unseen_prompts_raise_unless_pooling_is_asked_for():
    values, texts = a_bank()
    with pytest.raises(ValueError, match=r"no statistics for 'b', 'c'; .* pool_unseen=True"):
        ZScore.fit(values, texts)(values[:3], ["b", "prompt 0", "c"])
    pooling = ZScore.fit(values, texts, pool_unseen=True)
    got = pooling(values[:2], ["b", "prompt 0"])
    seen = ZScore.fit(values, texts)(values[1:2], ["prompt 0"])
    torch.testing.assert_close(got[:1], ZScore.fit(values)(values[:1]), rtol=1e-13, atol=0)
    torch.testing.assert_close(got[1:], seen, rtol=0, atol=0)
    with pytest.raises(ValueError, match="prompts must be given"):
        pooling(values)


@pytest.mark.parametrize(
    ("values", "prompts", "message"),
    [
        ([1.0, 2.0, 3.0], ["a", "b", "a"], r"two values for prompt 'b', got 1"),
        ([0.1, 2.0, 0.1, 3.0], ["a", "b", "a", "b"], r"vary for prompt 'a', got 2 from 0.1 to 0.1"),
        ([1.0], None, "two values, got 1"),
        ([], None, "two values, got 0"),
        ([0.1, 0.1, 0.1], None, "vary, got 3 from 0.1 to 0.1"),
        ([0.0, 5e-324], None, "vary, got 2 from 0 to 4.94"),  # whose spread is below floating point
        (
            [1e200, -1e200],
            None,
            r"vary, got 2 from -1e\+200 to 1e\+200",
        ),  # its variance is above it
        ([1.0, -math.inf], ["a", "b"], r"finite to fit .* got -inf as item 1 of prompt 'b'; leave"),
        ([math.nan, 1.0], None, "got nan as item 0; leave"),
        ([1.0, 2.0], ["a"], "one item per sample, 2, got 1"),
        (torch.ones(2, 2), None, r"shape \(n,\), got \(2, 2\)"),
    ],
)
def test_statistics_that_cannot_be_fitted(values, prompts, message):
    with pytest.raises(ValueError, match=message):
        ZScore.fit(values, prompts)
    if prompts is None and "vary" not in message:
        with pytest.raises(ValueError, match=message):
            Rank.fit(values)


def test_a_constant_bank_has_no_ranks():
    with pytest.raises(ValueError, match=r"values that vary, got 3 from 0.1 to 0.1"):
        Rank.fit([0.1, 0.1, 0.1])


@given(seeds, st.integers(2, 50))
def test_ranks_of_distinct_values_are_uniform(seed, n):
    values = randn(seed, n)
    ranks = Rank.fit(values)(values)
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    torch.testing.assert_close(ranks.sort().values, grid, rtol=0, atol=1e-14)
    assert torch.equal(ranks.argsort(), values.argsort())


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_ranks_of_ties_are_mid_ranks(counts):
    from scipy.stats import rankdata

    ranks = Rank.fit([float(v) for v in counts])(torch.tensor(counts, dtype=torch.float64))
    np.testing.assert_allclose(ranks, (rankdata(counts) - 0.5) / len(counts), atol=1e-14)


def test_ranks_are_straight_between_values_and_flat_outside():
    rank = Rank.fit([0.0, 1.0, 1.0, 5.0])  # 1/8 at 0, 1/2 at 1, 7/8 at 5
    x = torch.tensor([-9.0, 0.0, 0.5, 1.0, 3.0, 5.0, 7.0, -math.inf], dtype=torch.float64)
    x.requires_grad_()
    ranks = rank(x)
    expected = [1 / 8, 1 / 8, 5 / 16, 1 / 2, 11 / 16, 7 / 8, 7 / 8, -math.inf]
    assert ranks.tolist() == pytest.approx(expected, abs=1e-15)
    (slope,) = torch.autograd.grad(ranks.sum(), x)
    assert slope[[0, 2, 4, 6, 7]].tolist() == pytest.approx([0, 3 / 8, 3 / 32, 0, 0], abs=1e-15)
    assert bool(rank(torch.tensor([math.nan])).isnan())


def test_ranges_are_mapped_in_double_precision():
    # Numbers that float32 does not hold, before and after.
    assert Affine(-3.0, 0.1).interval(0.1, 0.7) == pytest.approx((-2.0, -0.2), abs=1e-14)


def test_values_to_fit_to_keep_no_graph():
    assert not as_bank(randn(0, 5).requires_grad_()).requires_grad


def test_ranks_tell_apart_what_float32_cannot():
    rank = Rank.fit([1.0, 1.0 + 1e-12, 2.0])
    assert rank.ranks == pytest.approx((1 / 6, 1 / 2, 5 / 6))
    got = rank(torch.tensor([1.0, 1.5, 2.0]))
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx([1 / 6, 2 / 3, 5 / 6])


def test_a_rank_that_was_used_without_gradients_has_them_later():
    rank = Rank.fit(randn(0, 20))
    with torch.inference_mode():
        rank(randn(1, 3))
    x = randn(1, 3).requires_grad_()
    rank(x).sum().backward()
    assert bool((x.grad > 0).any())


@pytest.mark.parametrize(
    "normalizer", [Affine(2.0, 1.0), ZScore(1.0, 2.0), Rank((0, 1), (0.1, 0.9))]
)
def test_zero_weights_stay_zero_weights_and_results_are_wide(normalizer):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        values = normalizer(torch.tensor([-math.inf, 0.5], dtype=dtype))
        assert values.dtype == torch.promote_types(dtype, torch.float32)
        assert values[0] == -math.inf
        assert math.isfinite(values[1])
    with pytest.raises(TypeError, match=r"floating-point tensor, got Tensor of torch\.int64"):
        normalizer(torch.tensor([1, 2]))


def test_a_flipped_zero_weight_is_refused():
    flipped = Normalized(Scripted([1.0, -math.inf]), Affine(-1.0))
    with pytest.raises(ValueError, match=r"^affine\(scripted\): .* item 1 \(inf\)"):
        flipped(images(0, 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Affine(0.0), ValueError, "scale must not be 0"),
        (lambda: Affine(math.inf), ValueError, "scale must be finite"),
        (lambda: Affine(1.0, "b"), TypeError, "shift must be a number, got str"),
        (lambda: ZScore(0.0, 0.0), ValueError, "std must be positive and finite, got 0"),
        (
            lambda: ZScore(0.0, 1.0, {"a": (0.0, -1.0)}),
            ValueError,
            "std for prompt 'a' must be pos",
        ),
        (lambda: ZScore(0.0, 1.0, {"a": (math.nan, 1.0)}), ValueError, "mean for prompt 'a' must"),
        (lambda: ZScore(0.0, 1.0, {3: (0.0, 1.0)}), TypeError, "prompts must be strings, got int"),
        (lambda: Rank((1.0, 1.0), (0.1, 0.2)), ValueError, "values must be ascending"),
        (lambda: Rank((1.0, 2.0), (0.3, 0.2)), ValueError, "ranks must be ascending"),
        (lambda: Rank((1.0, 2.0), (0.2, 0.2)), ValueError, "ranks must be ascending"),
        (
            lambda: Rank((1.0, 2.0, 3.0), (0.2, 0.5, 1.0)),
            ValueError,
            r"lie in \(0, 1\), got 0.2 to 1.0",
        ),
        (lambda: Rank((1.0, 2.0, 3.0), (0.1, 0.3, 0.2)), ValueError, "ranks must be ascending"),
        (lambda: Rank((1.0,), (0.3,)), ValueError, "at least two"),
        (lambda: Rank((1.0, 2.0), (0.1, 0.2, 0.3)), ValueError, "one rank per value, 2, got 3"),
        (lambda: Rank((1.0, 2.0), (0.0, 0.5)), ValueError, r"lie in \(0, 1\), got 0.0 to 0.5"),
    ],
)
def test_statistics_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


SAVED = {
    "affine": Affine(1 / 3, -1e-300, source="a test, ünïcode"),
    "zscore": ZScore.fit(*a_bank(), source="b", pool_unseen=True),
    "pooled": ZScore(0.1, 0.7),
    "rank": Rank.fit(a_bank()[0], source="c"),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_normalizer_is_the_same_to_the_last_bit(name, tmp_path):
    normalizer, path = SAVED[name], tmp_path / "statistics.json"
    normalizer.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.json"]
    for kind in (type(normalizer), Normalizer):
        assert kind.load(path) == normalizer
    values, texts = a_bank(9)
    assert torch.equal(type(normalizer).load(path)(values, texts), normalizer(values, texts))


def test_loading_refuses_what_is_no_normalizer(tmp_path):
    path = tmp_path / "statistics.json"
    with pytest.raises(FileNotFoundError, match="no normalizer at"):
        Rank.load(path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        SAVED["rank"].save(tmp_path / "missing" / "file.json")

    SAVED["rank"].save(path)
    text = path.read_text()
    content = json.loads(text)
    with pytest.raises(ValueError, match="holds a Rank, not a ZScore"):
        ZScore.load(path)

    statistics = content["statistics"]
    cases = [
        (text[: len(text) // 2], "no saved normalizer, or is cut off"),
        ("", "cut off"),
        ("[1, 2]", "no saved normalizer: it has no"),
        (json.dumps({**content, "format": "other"}), "no saved normalizer: it has no"),
        (json.dumps({**content, "version": 2}), "version 2 of the format, but .* of version 1"),
        (json.dumps({**content, "kind": "Other"}), "holds a Other, not a Rank"),
        (json.dumps({**content, "statistics": {"values": [1.0, 2.0]}}), "is damaged: .*ranks"),
        (json.dumps({**content, "statistics": {**statistics, "more": 1}}), "is damaged: .*more"),
        (json.dumps({**content, "statistics": {**statistics, "values": 3}}), "is damaged"),
        (json.dumps({**content, "statistics": None}), "is damaged"),
    ]
    for damaged, message in cases:
        path.write_text(damaged)
        with pytest.raises(ValueError, match=message):
            Rank.load(path)
    path.write_bytes(b"\x80\x81\xff")
    with pytest.raises(ValueError, match=re.escape(f"{path} is no saved normalizer")):
        Normalizer.load(path)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "statistics.json"
    SAVED["affine"].save(path)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SAVED["rank"].save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.json"]
    assert Normalizer.load(path) == SAVED["affine"]
