"""The facts about rewards made of rewards."""

from dataclasses import replace

import numpy as np
import pytest

from plain_rewards import Brightness, Letters, Redness, Scripted, spec
from rewards import Reward, RewardFile
from rewards.composite import LowerConfidenceBound, Normalized, WeightedSum
from rewards.normalizers import Affine, Moments, Rank, ZScore

FILE = RewardFile(name="w", source="hf://a/b")


class Other(Reward):
    """A reward whose facts are all unlike those of the rewards beside it."""

    spec = spec(
        "other",
        code_license="MIT OR Apache-2.0",
        weights_license="unknown",
        commercial_use=False,
        citation="A, 2020",
        files=(FILE,),
        preprocessing="bicubic to 224",
        context_length=77,
        parity="1e-6",
    )

    def forward(self, images, prompts):
        return images.flatten(1).amax(1)


def test_the_facts_follow_from_the_parts():
    total = WeightedSum([Brightness(), Redness(), Other(), Other()], [0.7, -0.3, -1, 2])
    assert total.spec.name == "0.7*brightness - 0.3*redness - other + 2*other"
    assert total.spec.title == "0.7*Brightness - 0.3*Redness - Other + 2*Other"
    assert total.spec.code_license == "MIT AND (MIT OR Apache-2.0)"
    assert total.spec.weights_license == "Apache-2.0 AND unknown"
    assert total.spec.citation == "A, 2020"
    assert total.spec.files == (FILE,)
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


def test_weights_of_0_are_stated_without_a_sign():
    total = WeightedSum([Brightness(), Redness(), Other()], [0, 1, 0])
    assert total.spec.name == "0*brightness + redness + 0*other"


def test_a_typical_range_has_a_length():
    with pytest.raises(ValueError, match=r"must be \(low, high\) with low < high, got \(1, 1\)"):
        replace(Brightness.spec, typical_range=(1, 1))


def test_permissions_and_names_of_compositions_follow_from_the_parts():
    unknown = WeightedSum([Brightness(), Letters()], [1, 1])
    assert (unknown.spec.commercial_use, unknown.spec.needs_prompt) == (None, True)
    assert WeightedSum([Letters(), Other()], [1, 1]).spec.commercial_use is False
    allowed = WeightedSum([Brightness(), Redness()], [1, 1])
    assert allowed.spec.commercial_use is True
    black_box = WeightedSum([Brightness(), Scripted([1.0])], [1, 1])
    assert (black_box.spec.differentiable, black_box.straight_through) == (False, True)
    total = WeightedSum([Redness(), Other()], [1, 2])
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
