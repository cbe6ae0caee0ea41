"""Rewards made of rewards, of rewards that can be computed by hand."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import randn, seeds
from plain_rewards import PROMPTS, Brightness, Letters, Redness, Scripted, images
from rewards.composite import Composite, LowerConfidenceBound, Normalized, WeightedSum
from rewards.joint_spec import joint_spec
from rewards.normalizers import Affine, Moments, Rank, ZScore
from rwguidance import Tilt
from rwguidance.testing import check_reward


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


def test_a_rejection_in_a_matrix_names_the_image():
    class OfOnePair(Scripted):
        def score_matrix(self, images, prompts):
            return torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -math.inf]])

    x = images(0, 3)
    with pytest.raises(ValueError, match=r"it is for items \[2\]"):
        WeightedSum([Brightness(), OfOnePair(())], [1.0, -0.5]).score_matrix(x, ["a", "b"])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0], ValueError, "one number per reward, 2, got 1"),
        ([1.0, math.nan], ValueError, "weights.1. must be finite, got nan"),
        ([1.0, math.inf], ValueError, "weights.1. must be finite, got inf"),
        ([0.0, -0.0], ValueError, "must not all be 0"),
        ([1.0, "2"], TypeError, "weights.1. must be a number, got str"),
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
        (2, -0.1, ValueError, "kappa must .*0.*, got -0.1"),
        (2, math.inf, ValueError, "got inf"),
        (2, math.nan, ValueError, "got nan"),
        (2, "1", TypeError, "kappa must be a number, got str"),
    ],
)
def test_the_arguments_of_a_bound_are_checked(n, kappa, error, message):
    with pytest.raises(error, match=message):
        LowerConfidenceBound([Brightness()] * n, kappa)
