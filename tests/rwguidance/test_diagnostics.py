"""The sliced Wasserstein distance against its closed forms."""

import math

import pytest
import torch

from common import assert_within, randn
from rwguidance.diagnostics import sliced_wasserstein


def distance(x, y, projections=256):
    return sliced_wasserstein(x, y, projections, torch.Generator().manual_seed(0))


def test_a_translation_costs_its_projected_length():
    x, move = randn(0, 500, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    theta = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = (move @ (theta / theta.norm(dim=0))) ** 2
    assert abs(distance(x, x + move, 4000) - squares.mean().sqrt()) < 1e-12
    # over all directions the mean square is |move|^2 / 3
    assert_within(squares.mean(), move.square().sum() / 3, squares.std() / math.sqrt(4000))


def test_a_dilation_costs_the_spread_of_the_quantiles():
    x = randn(1, 400, 1)
    assert math.isclose(distance(x, 3 * x), 2 * x.square().mean().sqrt(), rel_tol=1e-12)


def test_it_is_symmetric_and_zero_for_equal_sets():
    x, y = randn(0, 100, 2, 2), randn(1, 100, 2, 2) + 1
    assert distance(x, x[torch.arange(99, -1, -1)]) < 1e-12  # rows in other places of a product
    assert math.isclose(distance(x, y), distance(y, x), rel_tol=1e-12)


def test_sets_of_different_sizes_meet_at_the_same_quantiles():
    x = randn(0, 1000, 1)
    assert distance(x, x.repeat(3, 1)) < 1e-12
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    assert distance(x, y) == pytest.approx(math.sqrt(4 / 2))  # of two quantiles


@pytest.mark.parametrize(("x", "y"), [(randn(0, 3, 2), randn(0, 3, 3)), (randn(0, 0, 2),) * 2])
def test_sets_that_cannot_be_compared_are_refused(x, y):
    with pytest.raises(ValueError, match="x and y must be non-empty sets of states of one shape"):
        distance(x, y)
