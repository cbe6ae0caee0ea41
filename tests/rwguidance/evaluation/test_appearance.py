"""How pictures look, in numbers: of noise, colors and constants they are known."""

import pytest
import torch

from common import assert_within, randn
from rwguidance.evaluation.appearance import high_frequencies, saturation


def test_saturation_of_gray_and_of_pure_colors():
    gray = torch.full((3, 8, 8), 0.3)
    red = torch.stack((torch.ones(8, 8), torch.zeros(8, 8), torch.zeros(8, 8)))
    images = torch.stack((gray, red, 0.5 * red, torch.zeros(3, 8, 8), (gray + red) / 2))
    assert saturation(images).tolist() == pytest.approx([0, 1, 1, 0, 1 - 0.15 / 0.65])


def test_noise_has_three_quarters_of_its_power_at_high_frequencies():
    # Of 32 frequencies each way, 15 lie above half the highest one.
    found = high_frequencies(randn(0, 100, 3, 32, 32))
    expected = 1 - (17 * 17 - 1) / (32 * 32 - 1)
    assert_within(found.mean(), expected, found.std() / 10)


def test_smooth_pictures_have_none_and_stripes_have_all():
    ramp = torch.arange(32.0) / 32
    smooth = torch.sin(2 * torch.pi * ramp).expand(3, 32, 32)
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(3, 32, 32)
    found = high_frequencies(torch.stack((smooth, stripes, torch.full((3, 32, 32), 0.7))))
    assert found.tolist() == pytest.approx([0, 1, 0], abs=1e-9)
