"""Pixels as the references make them, bit for bit, with gradients."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rewards.images import from_pil, group_by_size, reduced
from rewards.preprocessing import center_crop, check_mode, letterbox, normalize, resize, squash

sides = st.integers(1, 150)
pixel_seeds = st.integers(0, 1000)
MODES = ("reference", "fast")


def noise(height, width, seed=0):
    """Uniform noise, which hits every rounding."""

    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), numpy.uint8)


def by_pil(levels, height, width):
    """Columns first, then rows: the order of PIL before version 13, and later for most images."""

    image = Image.fromarray(levels).resize((width, levels.shape[0]), Image.Resampling.BICUBIC)
    return numpy.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def both_ways(resized, images):
    """What `resized` makes of images, by PIL and by the matrices that have a gradient: the same."""

    made = resized(images)
    assert torch.equal(resized(images.clone().requires_grad_()), made)
    return made


def levels_of(images):
    return (255 * images[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()


@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=pixel_seeds)
def test_reference_pixels_are_those_of_pil(height, width, new_height, new_width, seed):
    levels = noise(height, width, seed)
    images = from_pil(Image.fromarray(levels))[None]
    resized = both_ways(lambda x: resize(x, (new_height, new_width), "reference"), images)
    assert numpy.array_equal(levels_of(resized), by_pil(levels, new_height, new_width))
    # float32 holds k / 255 as division gives it, which is what references compute next.
    assert torch.equal(resized, (255 * resized).round() / 255)


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (427, 640), (1333, 800), (97, 2000)])
@pytest.mark.parametrize("size", [224, 384])
def test_reference_pixels_of_large_images_are_those_of_pil(height, width, size):
    levels = noise(height, width)
    images = from_pil(Image.fromarray(levels))[None]
    resized = both_ways(lambda x: squash(x, size, "reference"), images)
    assert numpy.array_equal(levels_of(resized), by_pil(levels, size, size))


@given(height=sides, width=sides, size=st.integers(1, 64), mode=st.sampled_from(MODES))
def test_levels_are_resized_as_the_images_that_they_are(height, width, size, mode):
    pictures = [Image.fromarray(noise(height, width, seed)) for seed in (0, 1)]
    (levels,) = group_by_size(pictures, levels=True).tensors
    (images,) = group_by_size(pictures).tensors
    assert levels.dtype == torch.uint8
    assert torch.equal(levels.float() / 255, images)
    for x in (levels, levels.contiguous()):
        assert torch.equal(center_crop(x, size, mode, True), center_crop(images, size, mode, True))


@given(height=sides, width=sides, size=st.integers(1, 64), half_up=st.booleans())
def test_cropping_before_resizing_changes_no_pixel(height, width, size, half_up):
    """Only what the crop keeps is computed; the reference computes all and crops."""

    images = from_pil(Image.fromarray(noise(height, width)))[None]
    short = min(height, width)
    new = [int(size * side / short) for side in (height, width)]
    whole = resize(images, (new[0], new[1]), "reference")
    top, left = (round((side - size) / 2) if half_up else (side - size) // 2 for side in new)
    cropped = both_ways(lambda x: center_crop(x, size, "reference", half_up), images)
    assert torch.equal(cropped, whole[..., top : top + size, left : left + size])


def test_the_two_crops_part_at_odd_margins():
    """A margin of 111 starts at 55 in transformers and at 56 in torchvision."""

    images = torch.zeros(1, 3, 224, 335)
    images[..., 55] = 1.0
    for half_up, kept in ((False, 1.0), (True, 0.0)):
        assert float(center_crop(images, 224, "reference", half_up)[0, 0, 0, 0]) == kept


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_a_line_needs_no_memory_for_what_is_cropped(mode, monkeypatch):
    """A 1 x 3000 image would become 224 x 672,000 before the crop, and PIL crops last."""

    monkeypatch.delattr(Image.Image, "resize")
    for shape in ((1, 3, 1, 3000), (1, 3, 3000, 1)):
        line = torch.rand(shape, generator=torch.Generator())
        assert center_crop(line, 224, mode, False).shape == (1, 3, 224, 224)


@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=pixel_seeds)
def test_fast_pixels_are_the_same_map_without_rounding(height, width, new_height, new_width, seed):
    # PyTorch 2.15 mixes up rows and channels of images that are one pixel wide.
    width, new_width = max(width, 2), max(new_width, 2)
    images = from_pil(Image.fromarray(noise(height, width, seed)))[None].double()
    resized = resize(images, (new_height, new_width), "fast")
    independent = F.interpolate(images, (new_height, new_width), mode="bicubic", antialias=True)
    torch.testing.assert_close(resized, independent, rtol=0, atol=1e-5)


def test_the_reference_gradient_is_that_of_the_linear_map():
    x = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(
        2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    gradients = []
    for mode in ("reference", "fast"):
        leaf = x.clone().requires_grad_()
        y = center_crop(leaf, 32, mode, half_up=True)
        gradients.append(torch.autograd.grad((weight * y).sum(), leaf)[0])
    torch.testing.assert_close(*gradients)


def test_eight_bit_rounding_is_that_of_saving_the_image():
    x = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(x, (9, 9), "reference"), (255 * x).round() / 255)
    assert torch.equal(resize(x, (9, 9), "fast"), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pixels_are_at_least_float32(dtype):
    x = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = dtype if dtype == torch.float64 else torch.float32
    for mode in ("reference", "fast"):
        plain = center_crop(x, 16, mode, half_up=False)
        assert plain.dtype == wide
        assert torch.equal(plain, center_crop(x.to(wide), 16, mode, half_up=False))
        leaf = x.clone().requires_grad_()
        made = center_crop(leaf, 16, mode, half_up=False)
        made.sum().backward()
        assert (made.dtype, leaf.grad.dtype) == (wide, dtype)
    assert letterbox(x, 16).dtype == wide


@given(height=sides, width=sides, size=st.integers(1, 64))
def test_a_letterbox_keeps_the_image_and_adds_black(height, width, size):
    images = 1 - 0.5 * from_pil(Image.fromarray(noise(height, width)))[None]
    boxed = letterbox(images, size)
    assert boxed.shape == (1, 3, size, size)
    scale = size / max(height, width)
    h, w = max(1, round(scale * height)), max(1, round(scale * width))
    top, left = (size - h) // 2, (size - w) // 2
    inner = boxed[..., top : top + h, left : left + w]
    assert float(boxed.abs().sum()) == pytest.approx(float(inner.abs().sum()))
    if scale == 1:
        assert torch.equal(inner, images)


@pytest.mark.parametrize(("height", "width"), [(640, 3), (3000, 2), (500, 1), (5, 1), (224, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_letterbox_of_a_thin_image_is_that_of_the_image_on_its_side(height, width, layout):
    images = from_pil(Image.fromarray(noise(height, width)))[None].contiguous(memory_format=layout)
    on_its_side = letterbox(images.mT.contiguous(), 224).mT
    torch.testing.assert_close(letterbox(images, 224), on_its_side, rtol=0, atol=2e-5)


def test_a_letterbox_is_not_clamped():
    edge = torch.zeros(1, 3, 40, 40)
    edge[..., 20:] = 1.0
    boxed = letterbox(edge, 16)
    assert boxed.min() < -0.01
    assert boxed.max() > 1.01


def test_normalizing_undoes_mean_and_deviation():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    y = normalize(x, mean, std)
    for i in range(3):
        torch.testing.assert_close(y[:, i] * std[i] + mean[i], x[:, i])


def test_modes_have_names():
    with pytest.raises(ValueError, match="preprocessing must be 'reference' or 'fast', got 'pil'"):
        check_mode("pil")


# What comes in.


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_eight_bit_modes_become_rgb(mode):
    image = Image.fromarray(noise(6, 5)).convert(mode)
    x = from_pil(image)
    assert x.shape == (3, 6, 5)
    assert x.dtype == torch.float32
    expected = numpy.asarray(image.convert("RGB"))
    assert numpy.array_equal(levels_of(x[None]), expected)


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"8-bit modes .*, got '{mode}'; scale it to 8 bits"):
        from_pil(Image.new(mode, (3, 3)))


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"must have pixels, got size \(0, 3\)"):
        from_pil(Image.new("RGB", (0, 3)))


def test_images_of_one_size_are_stacked_and_come_back_in_order():
    images = [torch.full((3, 1 + i % 2, 2), i / 10) for i in range(5)]
    groups = group_by_size(images)
    assert [tuple(t.shape) for t in groups.tensors] == [(3, 3, 1, 2), (2, 3, 2, 2)]
    values = groups.reduce(lambda x, _: x.flatten(1).mean(1))
    torch.testing.assert_close(values, torch.arange(5) / 10)
    joined = groups.map(lambda x: x[..., :1, :])
    assert len(joined.tensors) == 1
    torch.testing.assert_close(joined.reduce(lambda x, _: x.flatten(1).mean(1)), values)
    assert len(groups) == len(joined) == 5


@pytest.mark.parametrize("parts", [1, 3])  # of which each is small enough to be made at once
@pytest.mark.parametrize("made", [lambda x: x.flatten(1), lambda x: x.flatten(2).mT])
def test_only_what_has_the_same_shape_is_stacked(made, parts, monkeypatch):
    monkeypatch.setattr("rewards.images._AT_ONCE", 40 // parts)
    images = [torch.full((3, 2 + i % 2, 4), i / 10) for i in range(5)]
    groups = reduced(images, None, made)
    assert sorted(map(len, groups.tensors)) == [2, 3]
    values = groups.reduce(lambda x, _: x.flatten(1).mean(1))
    torch.testing.assert_close(values, torch.arange(5) / 10)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images must hold at least one image, got an empty list"),
        ("cat.png", TypeError, r"or a list of tensors .* and pathlib\.Path, got str"),
        (None, TypeError, "got NoneType"),
        ([torch.zeros(3, 4, 4), "cat.png"], TypeError, r"images\[1\] must be .*, got str"),
        ([torch.zeros(1, 4, 4)], ValueError, r"images\[0\] must have shape \(3, H, W\), got \(1,"),
        ([torch.zeros(1, 3, 4, 4)], ValueError, r"shape \(3, H, W\), got \(1, 3, 4, 4\)"),
        (
            [torch.full((3, 4, 4), 200.0)],
            ValueError,
            r"images\[0\] must lie in .*, got .*200",
        ),
        ([torch.zeros(3, 4, 4, dtype=torch.uint8)], TypeError, "got torch.uint8; divide 8-bit"),
        (torch.zeros(0, 3, 4, 4), ValueError, r"shape \(B, 3, H, W\), got \(0, 3, 4, 4\)"),
        (torch.zeros(2, 4, 4, 4), ValueError, r"shape \(B, 3, H, W\), got \(2, 4, 4, 4\)"),
        (torch.full((1, 3, 2, 2), torch.inf), ValueError, r"in \[0, 1\], got values from inf"),
    ],
)
def test_what_is_wrong_with_images_is_said(images, error, message):
    with pytest.raises(error, match=message):
        group_by_size(images)


def test_nan_is_noted_and_does_not_hide_a_wrong_range():
    images = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    images[2, 0, 0, 0] = torch.nan
    assert group_by_size(images).broken == (2,)
    assert group_by_size(list(images)).broken == (2,)
    images[2, 0, 0, 1] = 7.0
    with pytest.raises(ValueError, match="got values from 0 to 7"):
        group_by_size(images)


def test_images_must_be_where_the_reward_is():
    with pytest.raises(ValueError, match="images must be on the reward's device, meta, but is on "):
        group_by_size(torch.zeros(1, 3, 2, 2), torch.device("meta"))
