"""What is checked before a pipeline runs."""

import pytest

from backbones.checks import check_sequence_length, check_size


@pytest.mark.parametrize("pixels", [8, 16, 1024])
def test_sizes_are_multiples_from_the_first_on(pixels):
    assert check_size("height", pixels, 8) == pixels


@pytest.mark.parametrize("pixels", [-8, 0, 4, 7, 9, 1020])
def test_other_sizes_are_refused(pixels):
    with pytest.raises(ValueError, match=rf"height must be a multiple of 8 pixels, got {pixels}$"):
        check_size("height", pixels, 8)


@pytest.mark.parametrize("length", [1, 77, 512])
def test_prompts_have_up_to_512_tokens(length):
    assert check_sequence_length(length, 256, "SomePipeline") == length


@pytest.mark.parametrize("length", [-1, 0, 513])
def test_prompts_of_other_lengths_are_refused(length):
    with pytest.raises(ValueError, match=rf"must lie in \[1, 512\], got {length}$"):
        check_sequence_length(length, 256, "SomePipeline")
