"""The helpers of the tests: what rounds alike is accepted, and a wrong term is not."""

import pytest
import torch

from common import assert_rounds_to, randn
from misaligned import OFFSETS, moved


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 10, 10_000])
def test_sums_in_another_order_round_to_each_other(n, dtype):
    x = randn(0, 20, n).to(dtype)
    partial = x.cumsum(1)
    size = float(partial.abs().max())
    assert_rounds_to(x.sum(1), partial[:, -1], terms=n, scale=size)
    assert_rounds_to(x.flip(1).cumsum(1)[:, -1], partial[:, -1], terms=n, scale=size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_no_rounding_explains_is_noticed(dtype):
    x = randn(0, 20, 100).to(dtype)
    size = float(x.cumsum(1).abs().max())
    expected = x.sum(1)
    for wrong in (x[:, 1:].sum(1), expected * (1 + 1e3 * torch.finfo(dtype).eps)):
        with pytest.raises(AssertionError):
            assert_rounds_to(wrong, expected, terms=100, scale=size)
    with pytest.raises(AssertionError):
        assert_rounds_to(expected.half(), expected, terms=100)


def test_infinities_and_nans_must_be_in_the_same_places():
    x = torch.tensor([1.0, -torch.inf, torch.nan])
    assert_rounds_to(x, x.clone(), terms=1)
    with pytest.raises(AssertionError):
        assert_rounds_to(x, x.nan_to_num(), terms=1)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_moved_tensor_is_the_same_elsewhere(offset, dtype):
    x = randn(0, 3, 5).to(dtype)
    found = moved(x, offset)
    assert torch.equal(found, x)
    assert found.data_ptr() % 64 == offset
    assert found.untyped_storage().nbytes() == x.untyped_storage().nbytes()
