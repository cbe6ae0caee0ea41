"""The effective dimension of normal samples."""

import math

import pytest
import torch

from common import assert_within
from rwguidance_testbed.effective_dimension import effective_dimension


@pytest.mark.parametrize(("count", "scales"), [(40, [1.0] * 8), (200, [3.0, 1.0, 1.0, 0.5])])
def test_the_effective_dimension(generator, count, scales):
    scale = torch.tensor(scales, dtype=torch.float64)
    found = [
        effective_dimension(
            5 + scale * torch.randn(count, len(scale), generator=generator, dtype=scale.dtype)
        )
        for _ in range(200)
    ]
    truth = scale.square().sum() ** 2 / (scale**4).sum()
    found = torch.tensor(found, dtype=torch.float64)
    # A ratio of unbiased estimates is biased by a little, relatively by about 1 / count.
    assert_within(found.mean(), truth, found.std() / math.sqrt(200) + 0.01 * truth)
