"""Rewards made of rewards, and normalizers, on rewards that can be computed by hand."""

import copy
import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common import randn, seeds
from rewards import Reward, RewardFile, RewardSpec
from rewards.composite import Composite, LowerConfidenceBound, Normalized, WeightedSum
from rewards.joint_spec import joint_spec
from rewards.normalizers import Affine, Moments, Normalizer, Rank, ZScore
from rwguidance import Tilt
from rwguidance.testing import check_reward

PROMPTS = ["a cat", "", "a very red dog", "a cat", "x"]


def spec(name, **changes):
    facts = {
        "title": name.title(),
        "differentiable": True,
        "needs_prompt": False,
        "code_license": "MIT",
        "weights_license": "none",
        "formula": f"the {name}",
        "typical_range": (0.0, 1.0),
        "citation": "none",
        "commercial_use": True,
    }
    return RewardSpec(name=name, **{**facts, **changes})


class Brightness(Reward):
    """Mean of all channels; looks at the squares, so that its gradient depends on the image."""

    spec = spec("brightness")

    def forward(self, images, prompts):
        return images.flatten(1).square().mean(1)


class Redness(Reward):
    """Red minus green, times a weight."""

    spec = spec("redness", typical_range=(-2.0, 3.0), weights_license="Apache-2.0")

    def __init__(self, weight=1.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, images, prompts):
        color = images.flatten(2).mean(2)
        return (self.weight * (color[:, 0] - color[:, 1])).to(
            torch.promote_types(images.dtype, torch.float32)
        )


class Letters(Reward):
    """Number of letters of the prompt times the blue of the first pixel."""

    spec = spec("letters", needs_prompt=True, commercial_use=None)

    def forward(self, images, prompts):
        return images[:, 2, 0, 0] * images.new_tensor([len(prompt) for prompt in prompts])


class Scripted(Reward):
    """Returns the values it was given, and counts its calls."""

    spec = spec("scripted", differentiable=False)
    straight_through = True

    def __init__(self, values):
        super().__init__()
        self.values, self.calls = values, 0

    def forward(self, images, prompts):
        self.calls += 1
        return torch.tensor(self.values)[: len(images)]


def images(seed=0, n=5, h=4, w=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, h, w, generator=generator, dtype=dtype)


def a_bank(seed=0, prompts=4, each=6):
    """Rewards and their prompts, in random order, with another mean and spread per prompt."""

    texts = [f"prompt {i}" for i in range(prompts) for _ in range(each)]
    scale = 10.0 ** randn(seed, prompts).repeat_interleave(each)
    values = scale * randn(seed + 1, prompts * each) + 5 * randn(
        seed + 2, prompts
    ).repeat_interleave(each)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return values[order], [texts[i] for i in order]


def compositions():
    per_prompt = ZScore(0.2, 0.5, {p: Moments(0.1 * len(p), 0.3 + len(p)) for p in PROMPTS})
    total = WeightedSum([Brightness(), Redness(), Letters()], [0.7, -0.3, 2.0])
    return {
        "sum": total,
        "sum without prompts": WeightedSum([Brightness(), Redness()], [1.0, 1.0]),
        "bound": LowerConfidenceBound([Brightness(), Redness(), Letters()], 1.5),
        "affine": Normalized(Redness(), Affine(-2.0, 0.5)),
        "z-score": Normalized(Letters(), ZScore(0.1, 3.0)),
        "z-score per prompt": Normalized(Brightness(), per_prompt),
        "rank": Normalized(Redness(), Rank.fit(randn(0, 100))),
        "nested": LowerConfidenceBound(
            [Normalized(total, Affine(0.1)), WeightedSum([Normalized(Letters(), per_prompt)], [3])],
            0.5,
        ),
    }


EACH = pytest.mark.parametrize("name", compositions())


# All compositions.


@EACH
def test_the_contract_of_rewards_holds(name):
    check_reward(compositions()[name], images(), PROMPTS)


@EACH
def test_a_matrix_holds_every_image_with_every_prompt(name):
    reward, x = compositions()[name], images()
    matrix = reward.score_matrix(x, PROMPTS)
    assert matrix.shape == (len(x), len(PROMPTS))
    for j, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(
            matrix[:, j], reward(x, [prompt] * len(x)), rtol=1e-13, atol=1e-14
        )


@EACH
def test_lists_of_sizes_and_pil_images_score_as_they_do_alone(name):
    from PIL import Image

    levels = (images(3, 1)[0] * 255).byte().permute(1, 2, 0).numpy()
    mixed = [
        *images(0, 2, dtype=torch.float32),
        images(1, 1, 8, 8, dtype=torch.float32)[0],
        Image.fromarray(levels),
        images(2, 1, dtype=torch.float32)[0],
    ]
    reward = compositions()[name]
    got = reward(mixed, PROMPTS)
    alone = [
        reward(x[None] if isinstance(x, torch.Tensor) else x, [prompt])
        for x, prompt in zip(mixed, PROMPTS, strict=True)
    ]
    torch.testing.assert_close(got, torch.cat(alone), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        reward.score_matrix(mixed, PROMPTS).diagonal(), got, rtol=1e-6, atol=1e-6
    )


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_moving_reaches_the_parts_and_rounds_no_statistics(name, dtype):
    reward = compositions()[name].to(dtype)
    weights = [part.weight for part in reward.modules() if isinstance(part, Redness)]
    assert all(weight.dtype == dtype for weight in weights)
    assert len(weights) == (name not in ("z-score", "z-score per prompt"))
    x = images(dtype=dtype)
    values = reward(x, PROMPTS)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    twin = copy.deepcopy(reward).double()  # the same rounded weights and images, in float64
    # Three reward units at most, rounded on the way by the parts only.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        values.double(), twin(x.double(), PROMPTS), rtol=8 * eps, atol=40 * eps
    )


@EACH
def test_a_tilt_takes_a_composition(name):
    reward = compositions()[name]
    log_w = Tilt(reward, 0.5)(images(), PROMPTS)
    torch.testing.assert_close(log_w, 2 * reward(images(), PROMPTS), rtol=1e-14, atol=0)


@EACH
def test_prompts_are_asked_for_if_and_only_if_they_matter(name):
    reward, x = compositions()[name], images()
    if reward.spec.needs_prompt:
        assert not torch.equal(reward(x, PROMPTS), reward(x, ["a very red dog"] * 5))
        with pytest.raises(ValueError, match="needs prompts, one per image, got None"):
            reward(x)
        with pytest.raises(ValueError, match="must hold one item per sample, 5, got 4"):
            reward(x, PROMPTS[:4])
    else:
        assert torch.equal(reward(x), reward(x, PROMPTS))


def test_parts_that_round_are_combined_in_float32():
    class Half(Scripted):
        def forward(self, images, prompts):
            return super().forward(images, prompts).half()

    reward = WeightedSum([Half([1.0, 2048.0]), Half([3.0, 1.0])], [1.0, 1.0])
    values = reward(images(0, 2))
    assert values.dtype == torch.float32
    assert values.tolist() == [4, 2049]  # float16 has no 2049


def test_every_part_is_called_once_with_all_images():
    parts = [Scripted([1.0, 2.0]), Scripted([3.0, 5.0])]
    reward = WeightedSum([*parts, Scripted([7.0, 7.0])], [1, 1, 0])
    assert reward(images(0, 2)).tolist() == [4, 7]
    assert [part.calls for part in parts] == [1, 1]


def test_unusable_values_name_the_part_the_item_and_the_prompt():
    good = Brightness()
    for bad in (math.nan, math.inf):
        reward = WeightedSum([good, Scripted([0.0, bad, 1.0])], [1.0, 1.0])
        with pytest.raises(ValueError, match=rf"^part 1 \(scripted\): .* item 1 \({bad}, .*'b'\)$"):
            reward(images(0, 3), list("abc"))
        with pytest.raises(ValueError, match=rf"^part 1 \(scripted\): .* item 1 \({bad}, .*'y'\)$"):
            reward.score_matrix(images(0, 3), ["y", "z"])
        nested = LowerConfidenceBound([good, reward], 1.0)
        with pytest.raises(ValueError, match=rf"^part 1 \(scripted\): .* item 1 \({bad}\)$"):
            nested(images(0, 3))


def test_a_wrong_shape_names_the_part():
    reward = WeightedSum([Scripted([[0.0], [1.0]])], [1.0])
    with pytest.raises(ValueError, match=r"^scripted: .* shape \(2,\), got \(2, 1\)"):
        reward(images(0, 2))


@pytest.mark.parametrize(
    "make", [lambda r: WeightedSum(r, [1.0] * 2), lambda r: LowerConfidenceBound(r, 1.0)]
)
def test_only_rewards_are_parts(make):
    with pytest.raises(
        TypeError, match=r"reward 1 must be a rewards\.Reward, got function; subclass"
    ):
        make([Brightness(), lambda x, c: x])
    with pytest.raises(TypeError, match="a list of rewards, got Brightness"):
        make(Brightness())
    with pytest.raises(ValueError, match="at least one reward"):
        make([])


def test_a_composition_of_ones_own():
    class Smallest(Composite):
        def __init__(self, parts):
            facts = {"name": "smallest", "title": "Smallest", "formula": "min"}
            super().__init__(parts, joint_spec(parts, typical_range=(0, 1), **facts))

        def combine(self, values, prompts):
            return torch.stack(list(values)).amin(0)

    reward = Smallest([Brightness(), Redness()])
    check_reward(reward, images())
    expected = torch.minimum(Brightness()(images()), Redness()(images()))
    assert torch.equal(reward(images()), expected)


def test_preferences_have_no_meaning():
    with pytest.raises(TypeError, match="was not trained on preferences"):
        compositions()["sum"].prefer(images(), "a cat")


# Facts.


def test_the_facts_follow_from_the_parts():
    file = RewardFile(name="w", source="hf://a/b")

    class Other(Reward):
        spec = spec(
            "other",
            code_license="MIT OR Apache-2.0",
            weights_license="unknown",
            commercial_use=False,
            citation="A, 2020",
            files=(file,),
            preprocessing="bicubic to 224",
            context_length=77,
            parity="1e-6",
        )

        def forward(self, images, prompts):
            return images.flatten(1).amax(1)

    total = WeightedSum([Brightness(), Redness(), Other(), Other()], [0.7, -0.3, -1, 2])
    assert total.spec.name == "0.7*brightness - 0.3*redness - other + 2*other"
    assert total.spec.title == "0.7*Brightness - 0.3*Redness - Other + 2*Other"
    assert total.spec.code_license == "MIT AND (MIT OR Apache-2.0)"
    assert total.spec.weights_license == "Apache-2.0 AND unknown"
    assert total.spec.citation == "A, 2020"
    assert total.spec.files == (file,)
    assert total.spec.context_length == 77
    Longer = type("Longer", (Other,), {"spec": replace(Other.spec, context_length=248)})
    assert WeightedSum([Longer(), Other(), Redness()], [1, 1, 1]).spec.context_length == 77
    assert total.spec.preprocessing == "brightness: none; redness: none; other: bicubic to 224"
    assert total.spec.parity == "other: 1e-6"
    assert total.spec.differentiable
    assert not total.spec.needs_prompt
    # 0.7 [0, 1] - 0.3 [-2, 3] - [0, 1] + 2 [0, 1]
    assert total.spec.typical_range == pytest.approx((-1.9, 3.3))
    assert (total.spec.commercial_use, total.straight_through) == (False, False)

    unknown = WeightedSum([Brightness(), Letters()], [1, 1])
    assert (unknown.spec.commercial_use, unknown.spec.needs_prompt) == (None, True)
    assert WeightedSum([Letters(), Other()], [1, 1]).spec.commercial_use is False
    allowed = WeightedSum([Brightness(), Redness()], [1, 1])
    assert allowed.spec.commercial_use is True
    black_box = WeightedSum([Brightness(), Scripted([1.0])], [1, 1])
    assert (black_box.spec.differentiable, black_box.straight_through) == (False, True)
    nested = WeightedSum([allowed, total, Normalized(allowed, Affine(2))], [2, 1, -1])
    assert (
        nested.spec.name
        == f"2*(brightness + redness) + ({total.spec.name}) - affine(brightness + redness)"
    )
    assert nested.spec.code_license == total.spec.code_license
    assert Brightness.spec.name == "brightness"  # the class keeps its own


def test_the_facts_of_a_bound_and_of_normalized_rewards():
    bound = LowerConfidenceBound([Brightness(), Redness()], 2)
    assert bound.spec.name == "lcb(brightness, redness; kappa=2)"
    # Means of the ends, minus 2 standard deviations of the two ends of [-2, 3].
    low = -1.0 - 2 * np.std([-2, 3], ddof=1)
    assert bound.spec.typical_range == pytest.approx((low, 2.0))
    assert LowerConfidenceBound([Redness()], 0).spec.typical_range == (-2, 3)

    per_prompt = ZScore(0.0, 1.0, {"a": Moments(0, 1.0), "b": (1.0, 0.5)}, source="here", n=9)
    scored = Normalized(Redness(), per_prompt)
    assert scored.spec.name == "zscore(redness)"
    assert scored.spec.needs_prompt
    assert "statistics of here, n = 9" in scored.spec.formula
    assert scored.spec.typical_range == (-6, 4)
    assert Normalized(Redness(), Affine(-2, 1)).spec.typical_range == (-5, 5)
    assert Normalized(Redness(), Rank((5, 6), (0.2, 0.8))).spec.typical_range == (0, 1)
    with pytest.raises(TypeError, match="must be a Normalizer, got function"):
        Normalized(Redness(), lambda x: x)


# Weighted sums.


@given(seeds, st.lists(st.floats(-10, 10), min_size=3, max_size=3).filter(any))
def test_a_weighted_sum_and_its_gradient_are_those_of_the_formula(seed, weights):
    reward = WeightedSum([Brightness(), Redness(1.5), Letters()], weights)
    x = images(seed).requires_grad_()
    mean, n = x.detach().mean((2, 3)), torch.tensor([len(p) for p in PROMPTS]).double()
    a, b, c = weights
    by_hand = (
        a * x.detach().square().mean((1, 2, 3))
        + b * 1.5 * (mean[:, 0] - mean[:, 1])
        + c * n * x.detach()[:, 2, 0, 0]
    )
    values = reward(x, PROMPTS)
    torch.testing.assert_close(values.detach(), by_hand, rtol=1e-12, atol=1e-13)

    (gradient,) = torch.autograd.grad(values.sum(), x)
    expected = a * 2 * x.detach() / x[0].numel()
    expected[:, 0] += b * 1.5 / 24
    expected[:, 1] -= b * 1.5 / 24
    expected[:, 2, 0, 0] += c * n
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-13)


@given(seeds, st.floats(-5, 5), st.floats(0.1, 5))
def test_a_sum_of_sums_is_the_flattened_sum(seed, a, b):
    parts = [Brightness(), Redness(), Letters()]
    inner = WeightedSum(parts[:2], [a, b])
    nested = WeightedSum([inner, parts[2]], [2.0, -1.0])
    flat = WeightedSum(parts, [2 * a, 2 * b, -1.0])
    x = images(seed)
    torch.testing.assert_close(nested(x, PROMPTS), flat(x, PROMPTS), rtol=1e-12, atol=1e-12)


def test_zero_weights_and_rejections():
    rejecting = Scripted([-math.inf, 1.0])
    x = images(0, 2)
    assert WeightedSum([rejecting], [2.0])(x).tolist() == [-math.inf, 2]
    off = WeightedSum([rejecting, Scripted([3.0, 4.0])], [0.0, 1.0])
    assert off(x).tolist() == [3, 4]
    negative = WeightedSum([Brightness(), rejecting], [1.0, -0.5])
    with pytest.raises(
        ValueError, match=r"part 1 \(scripted\) has the negative weight -0.5.*\[0\]"
    ):
        negative(x)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0], ValueError, "one number per reward, 2, got 1"),
        ([1.0, math.nan], ValueError, "weights must be finite, got nan"),
        ([1.0, math.inf], ValueError, "weights must be finite, got inf"),
        ([0.0, -0.0], ValueError, "must not all be 0"),
        ([1.0, "2"], TypeError, "weights must be numbers, got str"),
        ("12", TypeError, "a list of numbers, got str"),
        (1.0, TypeError, "a list of numbers, got float"),
    ],
)
def test_weights_are_checked(weights, error, message):
    with pytest.raises(error, match=message):
        WeightedSum([Brightness(), Redness()], weights)


# Lower confidence bounds.


@given(seeds, st.integers(2, 5), st.floats(0, 4))
def test_a_bound_is_that_of_numpy(seed, n, kappa):
    rows = randn(seed, n, 4)
    reward = LowerConfidenceBound([Scripted(row.tolist()) for row in rows], kappa)
    table = torch.tensor(rows.tolist()).numpy()  # as the parts return them, in float32
    expected = table.mean(0) - kappa * table.std(0, ddof=1)
    np.testing.assert_allclose(reward(images(0, 4)).numpy(), expected, rtol=1e-5, atol=1e-5)


@given(seeds)
def test_a_bound_falls_with_kappa_from_the_mean_on(seed):
    parts = [Brightness(), Redness(), Letters()]
    mean = WeightedSum(parts, [1 / 3] * 3)(images(seed), PROMPTS)
    bounds = [LowerConfidenceBound(parts, k)(images(seed), PROMPTS) for k in (0, 0.5, 1, 3)]
    torch.testing.assert_close(bounds[0], mean, rtol=1e-12, atol=1e-13)
    for weaker, stronger in pairwise(bounds):
        assert bool((stronger < weaker).all())


def test_a_bound_of_agreeing_members_is_their_value_and_so_is_its_gradient():
    x = images().requires_grad_()
    agreeing = LowerConfidenceBound([Brightness(), Brightness(), Brightness()], 3.0)
    values = agreeing(x)
    torch.testing.assert_close(values, Brightness()(x), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert bool(gradient.isfinite().all())
    torch.testing.assert_close(gradient, 2 * x.detach() / x[0].numel(), rtol=1e-12, atol=1e-16)


def test_one_rejection_rejects():
    reward = LowerConfidenceBound([Scripted([-math.inf, 1.0]), Scripted([5.0, 3.0])], 1.0)
    expected = [-math.inf, 2 - np.std([1.0, 3.0], ddof=1)]
    assert reward(images(0, 2)).tolist() == pytest.approx(expected)

    class Half(Brightness):
        def forward(self, images, prompts):
            values = super().forward(images, prompts)
            return torch.where(torch.arange(len(images)) == 1, -math.inf, values)

    x = images(0, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        LowerConfidenceBound([Half(), Redness()], 1.0)(x)[[0, 2]].sum(), x
    )
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("n", "kappa", "error", "message"),
    [
        (1, 0.1, ValueError, "at least two rewards, got 1"),
        (2, -0.1, ValueError, "at least 0 and finite, in standard deviations, got -0.1"),
        (2, math.inf, ValueError, "got inf"),
        (2, math.nan, ValueError, "got nan"),
        (2, "1", TypeError, "kappa must be a number, got str"),
    ],
)
def test_the_arguments_of_a_bound_are_checked(n, kappa, error, message):
    with pytest.raises(error, match=message):
        LowerConfidenceBound([Brightness()] * n, kappa)


# Normalizers.


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
        ([0.0, 5e-324], None, "vary"),  # whose spread is below floating point
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
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
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
        (lambda: ZScore(0.0, 0.0), ValueError, "std must be positive, got 0"),
        (
            lambda: ZScore(0.0, 1.0, {"a": (0.0, -1.0)}),
            ValueError,
            "std for prompt 'a' must be pos",
        ),
        (lambda: ZScore(0.0, 1.0, {"a": (math.nan, 1.0)}), ValueError, "mean for prompt 'a' must"),
        (lambda: ZScore(0.0, 1.0, {3: (0.0, 1.0)}), TypeError, "prompts must be strings, got int"),
        (lambda: Rank((1.0, 1.0), (0.1, 0.2)), ValueError, "values must be ascending"),
        (lambda: Rank((1.0, 2.0), (0.3, 0.2)), ValueError, "ranks must be ascending"),
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
