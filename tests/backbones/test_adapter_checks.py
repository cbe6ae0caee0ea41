"""What is checked before a pipeline runs."""

import pytest

from backbones.checks import check_size


@pytest.mark.parametrize("pixels", [8, 16, 1024])
def test_sizes_are_multiples_from_the_first_on(pixels):
    assert check_size("height", pixels, 8) == pixels


@pytest.mark.parametrize("pixels", [-8, 0, 4, 7, 9, 1020])
def test_other_sizes_are_refused(pixels):
    with pytest.raises(ValueError, match=rf"height must be a multiple of 8 pixels, got {pixels}$"):
        check_size("height", pixels, 8)
