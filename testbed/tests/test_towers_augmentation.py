"""Augmentation: what varies, by how much, and what stays."""

import math

import pytest
import torch
from squares import scene

from common import assert_within
from rwguidance_testbed.data import Drawing
from rwguidance_testbed.towers import augmentation
from rwguidance_testbed.towers.augmentation import (
    add_outlines,
    blur,
    cutout,
    deform,
    jitter_brightness,
    jitter_colors,
    jitter_hue,
)


def square(count, left=(0.9, 0.3, 0.0), right=(0.2, 0.5, 0.6)):
    """Two halves, the last row half transparent."""

    pixels = torch.zeros(count, 4, 40, 40)
    pixels[:, :3, 10:30, 10:20] = torch.tensor(left)[:, None, None]
    pixels[:, :3, 10:30, 20:30] = torch.tensor(right)[:, None, None]
    pixels[:, 3, 10:30, 10:30] = 1.0
    pixels[:, :, 30] = 0.5 * pixels[:, :, 29]
    return pixels


class TestJitterColors:
    def test_drawings_stay_drawings(self, generator):
        found = jitter_colors(square(500), generator)
        color, alpha = found[:, :3], found[:, 3:]
        assert (color >= 0).all()
        assert (color <= alpha).all()
        assert (alpha <= 1).all()
        assert torch.allclose(color[:, :, 30], 0.5 * color[:, :, 29], atol=1e-6)
        assert (color[:, :, :10] == 0).all()

    def test_one_in_ten_is_gray_and_colors_vary_about_what_they_were(self, generator):
        color = (0.5, 0.4, 0.3)
        found = jitter_colors(square(4000, color, color), generator)[:, :3, 20, 15]
        red = (found[:, 0] - found[:, 2]) / 0.2
        assert_within((red.abs() < 1e-5).float().mean(), 0.1, math.sqrt(0.09 / 4000))
        assert_within(red.mean(), 0.9, red.std() / math.sqrt(4000))
        assert 1.9 < float(red.max()) < 2.1  # saturation up to 1.5, contrast up to 1.4

    def test_light_and_contrast_vary_about_what_they_were(self, generator):
        pixels = square(4000, 3 * (0.3,), 3 * (0.5,))
        found = jitter_colors(pixels, generator)[:, 0, 20]
        light, contrast = (found[:, 15] + found[:, 25]) / 0.8, (found[:, 25] - found[:, 15]) / 0.2
        for values, low, high in ((light, 0.8, 1.2), (contrast, 0.6, 1.4)):
            error = (high - low) / math.sqrt(12 * 4000)
            assert_within(values.mean(), 1.0, error)
            assert low - 1e-5 < float(values.min()) < low + 0.01
            assert high - 0.01 < float(values.max()) < high + 1e-5


class TestAddOutlines:
    def test_one_in_five_has_a_black_outline(self, generator):
        pixels = square(4000)
        found = add_outlines(pixels, generator)
        wider = found[:, 3, 8, 20] == 1
        assert_within(wider.float().mean(), 0.2, math.sqrt(0.16 / 4000))
        assert (found[wider][:, :3, 8:10] == 0).all()
        assert (found[:, 3, 7] == 0).all()
        assert torch.equal(found[~wider], pixels[~wider])
        assert torch.equal(found[:, :3], pixels[:, :3])


class TestBlur:
    def test_it_spreads_a_point_over_at_most_five_pixels(self, generator):
        point = torch.zeros(2000, 1, 15, 15)
        point[:, :, 7, 7] = 1
        found = blur(point, generator)
        assert_within(found.sum((1, 2, 3)), torch.ones(2000), 1e-6)
        assert (found[:, :, 5:10, 5:10].sum((1, 2, 3)) - 1).abs().max() < 1e-5
        center = found[:, 0, 7, 7]
        assert float(center.max()) > 0.97
        assert 0.11 < float(center.min()) < 0.115
        wide = (found[:, 0, 5, 5] > 0).float().mean()
        assert_within(wide, 1 / 3, math.sqrt(2 / 9 / 2000))
        # Until the mean over 3 x 3 pixels is reached, the center falls linearly to 1 / 9.
        assert_within((center > 5 / 9).float().mean(), 1 / 3, math.sqrt(2 / 9 / 2000))


class TestHue:
    def test_it_is_turned_for_one_in_five_whose_name_has_no_color(self):
        pizza = Drawing("pizza", "noto", "x", "food-prepared", (), "judge")
        apple = Drawing("red apple", "noto", "x", "food-fruit", (), "judge")
        at = lambda entry, u: jitter_hue(scene("x", hue=7.0), entry, u)
        assert at(pizza, 0.21) == at(apple, 0.05) == 7.0
        assert at(pizza, 0.0) == pytest.approx(-83.0)
        assert at(pizza, 0.1) == pytest.approx(7.0)
        assert at(pizza, 0.2) == pytest.approx(97.0)


class TestDeform:
    def test_shapes_vary_and_areas_do_not(self, generator):
        row = torch.linspace(-1, 1, 64)
        disk = (row[:, None].square() + row.square() < 0.3).float()
        pictures = disk.expand(500, 3, 64, 64)
        found = deform(pictures, generator).mean(1)
        weight = found / found.sum((1, 2), keepdim=True)
        wide, high = ((weight.sum(d) * row.square()).sum(1) for d in (1, 2))
        log_ratio = (wide / high).log()
        assert_within(log_ratio.mean(), 0.0, log_ratio.std() / math.sqrt(500))
        assert 0.3 < float(log_ratio.std()) < 0.8
        area = found.sum((1, 2)) / found.amax((1, 2)) / disk.sum()
        assert_within(area.mean(), 1.0, 0.01)
        assert float(found.min()) == 0.0

    def test_lines_are_bent(self, generator, monkeypatch):
        pictures = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)

        def curvature():
            found = deform(pictures, generator)[:, 0, 16:48, 16:48]
            return found.diff(n=2, dim=1).abs().sum(1).amax(1)

        bent = curvature()
        monkeypatch.setattr(augmentation, "_BEND", 0.0)
        assert float(bent.median()) > 10 * float(curvature().median())

    def test_a_picture_stays_one(self, generator):
        pictures = torch.rand(50, 3, 64, 64, generator=generator)
        found = deform(pictures, generator)
        assert found.shape == pictures.shape
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


class TestJitterBrightness:
    def test_light_varies_about_what_it_was(self, generator):
        pictures = torch.full((2000, 3, 8, 8), 0.4)
        ratio = jitter_brightness(pictures, generator) / 0.4
        ratio = ratio.flatten(1)
        assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5)
        assert_within(ratio[:, 0].mean(), 1.0, 0.15 / math.sqrt(3 * 2000))
        assert 0.145 < float((ratio - 1).abs().max()) < 0.151

    def test_a_picture_stays_one(self, generator):
        pictures = torch.rand(50, 3, 8, 8, generator=generator)
        found = jitter_brightness(pictures, generator)
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


class TestCutout:
    def test_holes_are_squares_of_the_mean_color(self, generator):
        pictures = torch.rand(3000, 3, 64, 64, generator=generator)
        found = cutout(pictures, generator)
        hole = (found != pictures).all(1)
        mean = pictures.mean((2, 3), keepdim=True).expand_as(pictures)
        assert torch.equal(found, torch.where(hole[:, None], mean, pictures))
        rows, columns = hole.any(2), hole.any(1)
        assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
        assert int(rows.sum(1).max()) in (18, 19, 20)
        # A side of s covers on average s (1 - s / 4) of [0, 1], for it is cut at the border.
        share = rows.float().mean(1)
        assert_within(share.mean(), 0.15 - 0.03 / 4, share.std() / math.sqrt(3000))
        first = rows.float().argmax(1)[rows.any(1)].float()
        assert float(first.std()) > 15
