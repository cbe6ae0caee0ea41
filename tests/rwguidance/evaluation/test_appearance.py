"""Measures of appearance against pictures whose spectrum, ends and colors are known."""

import math

import pytest
import torch

from common import assert_within
from rwguidance.evaluation.appearance import APPEARANCE, chroma, clipped, high_frequency
from rwguidance.testing import check_reward


def wave(across, down, height=64, width=64):
    """A gray cosine that reflection continues, with so many half waves along each axis."""

    half_waves = lambda k, n: (math.pi * k * (torch.arange(n).double() + 0.5) / n).cos()
    values = half_waves(across, width) * half_waves(down, height)[:, None]
    return (0.5 + 0.4 * values).expand(1, 3, -1, -1)


def flat(*color):
    return torch.tensor(color, dtype=torch.float64)[:, None, None].expand(1, 3, 8, 8)


@pytest.mark.parametrize("name", APPEARANCE)
def test_they_give_one_number_per_picture(name, generator):
    measure = lambda images, _: APPEARANCE[name](images)
    images = torch.rand(3, 3, 17, 16, generator=generator)
    check_reward(measure, images)
    found = APPEARANCE[name](images)
    assert found.dtype == torch.float64
    assert torch.equal(found, APPEARANCE[name](images.double()))  # single precision is widened


@pytest.mark.parametrize(
    ("across", "down", "share"), [(31, 0, 0), (33, 0, 1), (0, 31, 0), (0, 33, 1), (63, 1, 1)]
)
def test_a_wave_is_above_a_quarter_of_a_cycle_per_pixel_or_below(across, down, share):
    # Half waves on 64 pixels: 32 are 0.25 cycles per pixel.
    assert float(high_frequency(wave(across, down))) == pytest.approx(share, abs=1e-9)


def test_frequencies_are_those_of_pixels_whatever_the_shape():
    assert float(high_frequency(wave(31, 0, height=20))) < 1e-9
    assert float(high_frequency(wave(0, 12, height=20))) == pytest.approx(1)


def test_frequencies_add_up_like_vectors():
    assert float(high_frequency(wave(22, 22))) < 1e-9  # 31.1 half waves
    assert float(high_frequency(wave(23, 23))) == pytest.approx(1)  # 32.5
    mixed = (wave(8, 0) + wave(40, 0)) / 2
    assert float(high_frequency(mixed)) == pytest.approx(0.5)


def test_white_noise_spreads_over_all_frequencies(generator):
    noise = torch.rand(200, 1, 32, 32, generator=generator, dtype=torch.float64)
    share = high_frequency(noise.expand(-1, 3, -1, -1))
    # The disk of the low frequencies, on a grid of half waves whose zero is taken out.
    k = torch.arange(32) / 64
    low = (torch.hypot(k[:, None], k) <= 0.25).sum() - 1
    expected = 1 - float(low) / (32 * 32 - 1)
    assert expected == pytest.approx(1 - math.pi / 16, abs=0.03)
    assert_within(share.mean(), expected, share.std() / math.sqrt(len(share)))


def test_constant_pictures_have_no_frequencies():
    for dtype in (torch.float32, torch.float64):
        assert float(high_frequency(torch.full((1, 3, 33, 47), 0.3, dtype=dtype))) == 0


def test_values_at_the_ends_are_those_of_eight_bits():
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 1.0])
    assert float(clipped(values.reshape(1, 1, 2, 3).expand(-1, 3, -1, -1))) == pytest.approx(4 / 6)
    nearly = torch.full((1, 3, 1, 1), (0.5 + 1e-9) / 255, dtype=torch.float64)
    assert float(clipped(nearly)) == 0  # in single precision it would round to the end


@pytest.mark.parametrize(
    ("color", "expected"),
    # CIELAB of the corners of sRGB, white D65, as color calculators print them.
    [
        ((0.5, 0.5, 0.5), 0.0),
        ((1, 1, 1), 0.0),
        ((0.001, 0.001, 0.001), 0.0),
        ((1, 0, 0), 104.55),
        ((0, 1, 0), 119.78),
        ((0, 0, 1), 133.81),
        ((1, 1, 0), 96.91),
        ((128 / 255, 0, 0), 61.30),
    ],
)
def test_the_chroma_of_known_colors(color, expected):
    assert float(chroma(flat(*color))) == pytest.approx(expected, abs=0.02)


def test_chroma_is_a_mean_over_pixels():
    both = torch.cat([flat(1, 0, 0), flat(0.5, 0.5, 0.5)], dim=3)
    assert float(chroma(both)) == pytest.approx(104.55 / 2, abs=0.02)
