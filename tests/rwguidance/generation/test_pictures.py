"""Pictures and sheets of them."""

import numpy
import pytest
import torch
from PIL import Image, ImageFont

from pixel_law import QUIET, Law, run
from rwguidance.generation.pictures import Cell, _fit, _to_pil, save_picture, save_sheet

pytestmark = QUIET


@pytest.mark.parametrize("size", [(512, 256), (256, 512), (40, 640), (1, 1000)])
def test_sheets_leave_no_empty_space_beside_or_below_pictures(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "one.png")
    groups = [[Cell(tmp_path / "one.png", "base 12.34")] * 2] * 2
    save_sheet([("a cat", groups)] * 3, tmp_path / "sheet.png", "title")
    sheet = Image.open(tmp_path / "sheet.png")
    width, height = (max(1, round(256 * length / max(size))) for length in size)
    assert sheet.width <= 4 * max(width, 112) + 64
    assert sheet.height <= 3 * height + 4 * 72
    red = (numpy.asarray(sheet) == (255, 0, 0)).all(-1).sum()
    assert red == 12 * width * height


def test_a_sheet_has_room_for_its_largest_picture_row_and_caption(tmp_path):
    def cell(name, size, color, caption):
        Image.new("RGB", size, color).save(tmp_path / f"{name}.png")
        return Cell(tmp_path / f"{name}.png", caption)

    high = cell("high", (40, 640), (200, 0, 0), "one line")  # is shown with 16 x 256 pixels
    wide = cell("wide", (256, 128), (0, 200, 0), "three\nof\nthem")
    tiny = cell("tiny", (3, 5), (0, 0, 200), "one line")  # with 75 x 125
    for rows in ([[[high], [wide]], [[tiny]]], [[[tiny]], [[wide], [high]]]):
        save_sheet([("a cat", row) for row in rows], tmp_path / "sheet.png", "title")
        with Image.open(tmp_path / "sheet.png") as image:
            sheet = numpy.asarray(image)
        assert sheet.shape == (20 + 2 * 16 + 2 * (256 + 4 * 20 + 16), 16 + 2 * (256 + 16), 3)
        sizes = [
            int((sheet == color).all(-1).sum()) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))
        ]
        assert sizes == [16 * 256, 256 * 128, 75 * 125]
    save_sheet([("a cat", [[tiny]])], tmp_path / "sheet.png", "title")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 360


@pytest.mark.parametrize(("size", "factor"), [(32, 4), (43, 2), (100, 1), (200, 1)])
def test_small_pictures_are_shown_larger_in_whole_pixels(tmp_path, size, factor):
    Image.new("RGB", (size, size // 2), "red").save(tmp_path / "one.png")
    save_sheet([("a cat", [[Cell(tmp_path / "one.png", "base")]])], tmp_path / "sheet.png", "title")
    red = (numpy.asarray(Image.open(tmp_path / "sheet.png")) == (255, 0, 0)).all(-1)
    assert red.sum() == size * factor * (size // 2 * factor)


def test_pictures_that_are_shown_larger_stay_sharp_and_smaller_ones_are_averaged(tmp_path):
    stripes = numpy.zeros((1024, 1024, 3), dtype=numpy.uint8)
    stripes[:, ::2] = (255, 0, 0)
    for size, shown in [(32, 128), (1024, 256)]:
        Image.fromarray(stripes[:size, :size]).save(tmp_path / "one.png")
        cell = Cell(tmp_path / "one.png", "")
        save_sheet([("", [[cell]])], tmp_path / "sheet.png", "")
        sheet = numpy.asarray(Image.open(tmp_path / "sheet.png"))
        thumb = sheet[56 : 56 + shown, 16 : 16 + shown]
        if shown > size:
            assert numpy.array_equal(thumb, stripes[:size, :size].repeat(4, 0).repeat(4, 1))
        else:  # but for the border
            assert numpy.abs(thumb[..., 0].astype(float) - 127.5)[:, 2:-2].max() < 2


def test_rows_have_room_for_the_tallest_picture(tmp_path):
    rows = []
    for i, (size, color) in enumerate([((128, 128), "red"), ((64, 256), "blue")]):
        Image.new("RGB", size, color).save(tmp_path / f"{i}.png")
        rows.append(("a cat", [[Cell(tmp_path / f"{i}.png", "base")]]))
    save_sheet([*rows, *rows], tmp_path / "sheet.png", "title")
    sheet = numpy.asarray(Image.open(tmp_path / "sheet.png"))
    count = lambda color: (sheet == color).all(-1).sum()
    assert count((255, 0, 0)) == 2 * 128 * 128  # nothing is over anything else, or cut
    assert count((0, 0, 255)) == 2 * 64 * 256


def test_pictures_of_a_group_stand_closer_than_groups_and_above_their_captions(tmp_path):
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    cells = []
    for i, color in enumerate(colors):
        Image.new("RGB", (128, 128), color).save(tmp_path / f"{i}.png")
        cells.append(Cell(tmp_path / f"{i}.png", "base\nbase"))
    save_sheet([("a cat", [cells[:2], cells[2:]])], tmp_path / "sheet.png", "title")
    sheet = numpy.asarray(Image.open(tmp_path / "sheet.png"))
    corners = []
    for color in colors:
        down, right = (sheet == color).all(-1).nonzero()
        corners.append((int(down.min()), int(right.min())))
        assert len(down) == 128 * 128
    # Margins of 16 pixels, as between groups, and 3 within one; title and heading take 20 each.
    assert corners == [(56, 16), (56, 16 + 131), (56, 16 + 131 + 128 + 16)]
    ink = (sheet[:, 16:144] < 255).any((1, 2)).nonzero()[0]
    bottom = 56 + 128
    height = ImageFont.load_default(13).getbbox("base")[1]
    for line in range(2):
        first = ink[ink >= bottom + 20 * line].min()
        assert first == bottom + 20 * line + 2 + height


def test_a_long_prompt_is_cut_in_a_sheet_without_measuring_it_whole():
    class Pen:
        measured = 0

        def textlength(self, text, font):
            self.measured += len(text)
            return 6 * len(text)

    pen = Pen()
    text = _fit(pen, "long prompt " * 2000, None, 300)
    assert text == ("long prompt " * 2000)[:47] + "..."
    assert pen.measured < 100_000
    assert _fit(pen, "a\n b", None, 300) == "a b"


def test_a_picture_outside_its_range_fails_instead_of_wrapping_around(tmp_path):
    class Bright(Law):
        depends_on = Law.depends_on

        def decode(self, latents):
            return latents + 1

    made = run(tmp_path, prompts=["ab"], backbone=Bright())
    assert "pictures must lie in [0, 1], got values from 1." in made.failed["ab"]


@pytest.mark.parametrize(("value", "low", "high"), [(1.25, "0.5", "1.25"), (-0.5, "-0.5", "0.5")])
def test_one_value_outside_the_range_is_enough(value, low, high):
    image = torch.full((3, 2, 2), 0.5)
    image[2, 1, 0] = value
    with pytest.raises(ValueError, match=f"got values from {low} to {high}$"):
        _to_pil(image)


def test_a_pixel_has_the_nearest_of_256_levels():
    # 0.49 of a level from each, where half precision takes the next one.
    values = (torch.arange(256, dtype=torch.float64) + 0.49).clamp(max=255) / 255
    for dtype in (torch.float64, torch.float32):
        picture = _to_pil(values.to(dtype).expand(3, 1, 256))
        assert numpy.asarray(picture)[0, :, 1].tolist() == list(range(256))


def test_facts_are_in_the_file_as_they_are_written(tmp_path):
    save_picture(torch.zeros(3, 2, 2), tmp_path / "a.png", {"prompt": "日本語"})
    assert "日本語".encode() in (tmp_path / "a.png").read_bytes()
