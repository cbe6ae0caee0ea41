"""Scenes: what is rendered of them, what captions say, and scenes of one caption."""

import math
import re

import pytest
import torch

from common import assert_within
from rwguidance_testbed.data import SIZE, Drawing, Drawings, sources
from rwguidance_testbed.scenes import (
    COLORS,
    Scene,
    render,
    sample_pictures,
    sample_scenes,
    scenes_with_caption,
)


def plain(pixels=None):
    """One opaque square of one color, or what is given."""

    if pixels is None:
        pixels = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
        pixels[0], pixels[3] = 255, 255
    return Drawings([Drawing("square", "noto", "x", "y", (), "generator")], pixels[None])


def scene(**changes):
    values = {"drawing": 0, "background": (0.0, 0.0, 1.0), "scale": 0.5, "angle": 0.0}
    values |= {"place": (0.0, 0.0), "hue": 0.0, "caption": "square"}
    return Scene(**(values | changes))


class TestScenes:
    def test_a_square_in_the_middle(self):
        picture = render(plain(), [scene()])[0]
        assert picture.shape == (3, 64, 64)
        expected = torch.zeros(3, 64, 64)
        expected[2] = 1
        expected[0, 16:48, 16:48], expected[2, 16:48, 16:48] = 1, 0
        assert (picture - expected).abs().max() <= 0.5  # one pixel at the border is mixed
        assert (picture - expected)[:, 17:47, 17:47].abs().max() < 1e-6
        assert float((picture - expected).abs().mean()) < 0.02

    @pytest.mark.parametrize("place", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.5, -0.5)])
    def test_the_place_is_right_and_down(self, place):
        red = render(plain(), [scene(place=place, scale=0.5)])[0, 0]
        rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        center = ((red * columns).sum() / red.sum(), (red * rows).sum() / red.sum())
        assert torch.allclose(torch.stack(center), 31.5 + 16 * torch.tensor(place), atol=0.3)

    def test_scale_is_the_share_of_the_side(self):
        for scale in (0.5, 0.75, 0.97):
            red = render(plain(), [scene(scale=scale)])[0, 0]
            assert float(red.sum()) == pytest.approx((64 * scale) ** 2, rel=0.03)

    def test_the_angle_is_clockwise(self):
        pixels = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
        pixels[:, : SIZE // 4], pixels[3] = 255, 255  # white at the top
        picture = render(plain(pixels), [scene(angle=90.0, scale=0.9)])[0, 0]
        assert float(picture[32, 58]) > 0.99
        assert float(picture[32, 6]) < 0.01

    def test_the_background_shows_where_nothing_is_drawn(self):
        half = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
        half[0], half[3] = 128, 128
        picture = render(plain(half), [scene(background=(0.2, 0.4, 0.6))])[0]
        assert torch.allclose(picture[:, 0, 0], torch.tensor([0.2, 0.4, 0.6]))
        share = 128 / 255
        expected = torch.tensor([share, 0.0, 0.0]) + (1 - share) * torch.tensor([0.2, 0.4, 0.6])
        assert torch.allclose(picture[:, 32, 32], expected, atol=1e-5)

    def test_hue_turns_red_to_green_and_leaves_gray(self):
        assert render(plain(), [scene(hue=120.0)])[0, :, 32, 32].tolist() == pytest.approx(
            [0, 1, 0], abs=1e-5
        )
        gray = torch.full((4, SIZE, SIZE), 255, dtype=torch.uint8)
        gray[:3] = 100
        middle = render(plain(gray), [scene(hue=-40.0)])[0, :, 32, 32]
        assert torch.allclose(middle, torch.full((3,), 100 / 255), atol=1e-5)

    def test_captions_tell_the_truth(self, emoji_drawings, generator):
        styles = {row["words"]: row["name"] for row in sources()["styles"]}
        for item in sample_scenes(emoji_drawings, 2000, generator):
            entry = emoji_drawings.entries[item.drawing]
            caption = re.fullmatch(
                r"(?:an? )?(?:(small|large) )?(.+?)(?: on an? (\w+) background)?"
                r"(?:, ([\w ]+) style)?(?:, (.+))?",
                item.caption,
            )
            size, name, color, style, tag = caption.groups()
            assert name in (entry.name, "fruit")
            low, high = {None: (0.7, 0.95), "small": (0.5, 0.65), "large": (0.88, 0.97)}[size]
            assert low <= item.scale <= high
            if color:
                assert item.background == tuple(c / 255 for c in COLORS[color])
            assert style is None or styles[style] == entry.style
            assert tag is None or tag in entry.tags
            assert abs(item.angle) <= 12
            assert abs(item.hue) <= 15
            assert max(map(abs, item.place)) <= 1
            assert "a apple" not in item.caption
            assert "a orange" not in item.caption

    def test_how_often_captions_name_what(self, emoji_drawings, generator):
        count = 4000
        captions = [item.caption for item in sample_scenes(emoji_drawings, count, generator)]
        shares = {"background": 0.4, " style": 0.4, "small ": 0.1, "large ": 0.1, "fruit": 0.06}
        for word, share in shares.items():
            found = sum(word in caption for caption in captions) / count
            assert_within(found, share, math.sqrt(share * (1 - share) / count))

    def test_what_is_open_varies(self, emoji_drawings, generator):
        items = sample_scenes(emoji_drawings, 2000, generator)
        for values in (
            [item.angle / 12 for item in items],
            [item.hue / 15 for item in items],
            [item.place[0] for item in items],
            [item.place[1] for item in items],
        ):
            sorted_ = torch.tensor(values, dtype=torch.float64).sort().values
            uniform = (2 * torch.arange(2000, dtype=torch.float64) + 1) / 2000 - 1
            assert float((sorted_ - uniform).abs().max()) < 2 * 1.95 / math.sqrt(2000) * 1.5
        assert len({item.drawing for item in items}) == len(emoji_drawings)

    def test_the_generator_decides(self, emoji_drawings):
        draw = lambda function: function(emoji_drawings, 5, torch.Generator().manual_seed(3))
        items = draw(sample_scenes)
        assert draw(sample_scenes) == items
        pictures, captions = draw(sample_pictures)
        assert captions == [item.caption for item in items]
        assert torch.equal(pictures, render(emoji_drawings, items))


class TestScenesWithCaption:
    def test_scenes_of_one_caption(self, emoji_drawings, generator):
        found = scenes_with_caption(emoji_drawings, "sun on a red background", 40, generator)
        bare = {item.caption.removeprefix("a ") for item in found}
        assert bare == {"sun on a red background"}
        assert {item.background for item in found} == {tuple(c / 255 for c in COLORS["red"])}
        used = {item.drawing for item in found}
        assert used == {i for i, entry in enumerate(emoji_drawings.entries) if entry.name == "sun"}

    def test_a_kind_is_drawn_in_many_ways(self, emoji_drawings, generator):
        found = scenes_with_caption(emoji_drawings, "a fruit", 40, generator)
        assert len({emoji_drawings.entries[item.drawing].name for item in found}) > 4

    @pytest.mark.parametrize("seed", range(4))
    def test_a_rare_caption_is_found_though_one_scene_is_wanted(self, emoji_drawings, seed):
        # Once in about 2,300 scenes of this drawing.
        entry = next(entry for entry in emoji_drawings.entries if entry.name == "sun")
        style = {row["name"]: row["words"] for row in sources()["styles"]}[entry.style]
        one = emoji_drawings.where(names=["sun"])
        caption = f"a small sun on a pink background, {style} style"
        found = scenes_with_caption(one, caption, 1, torch.Generator().manual_seed(seed))
        assert found[0].caption == caption or f"a {found[0].caption}" == caption

    @pytest.mark.parametrize("caption", ["xylophone", "sun and key"])
    def test_what_no_scene_has_is_said(self, emoji_drawings, generator, caption):
        with pytest.raises(ValueError, match="no scene of these drawings has the caption"):
            scenes_with_caption(emoji_drawings, caption, 1, generator)
