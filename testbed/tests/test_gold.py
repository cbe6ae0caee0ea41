"""The gold utility of the test bed and the preferences that are drawn by it."""

import io
import math

import numpy
import pytest
import torch
import torch.nn.functional as F

from common import assert_within
from rwguidance_testbed import gold
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.towers import Pairs


class Brightness(Towers):
    """Matches bright pictures with "bright"."""

    log_scale = torch.zeros(())

    def __init__(self):
        super().__init__(None)

    def embed_pictures(self, pictures):
        light = pictures.mean((1, 2, 3))
        return torch.stack((light, 1 - light), dim=1)

    def embed_captions(self, captions):
        return torch.tensor([[1.0, 0.0] if text == "bright" else [0.0, 1.0] for text in captions])

    def write(self, folder):
        raise NotImplementedError


def decoded(raw):
    from PIL import Image

    return torch.from_numpy(numpy.array(Image.open(io.BytesIO(raw)))).permute(2, 0, 1)


@pytest.fixture
def pictures(generator):
    return torch.rand(6, 3, 64, 64, generator=generator)


class TestTerms:
    def test_the_utility_is_their_weighted_sum(self, pictures):
        utility = gold.Gold(Brightness())
        prompts = ["bright", "dark"] * 3
        light = pictures.mean((1, 2, 3))
        match = torch.where(torch.arange(6) % 2 == 0, light, 1 - light)
        match = match / (light.square() + (1 - light).square()).sqrt()
        expected = 5 * match + 12 * gold.sharpness(pictures) + 8 * gold.contrast(pictures)
        expected += 4 * gold.colorfulness(pictures)
        assert torch.allclose(utility(pictures, prompts), expected, atol=1e-5)
        assert set(utility.terms(pictures, prompts)) == set(gold.WEIGHTS)

    def test_it_is_of_the_picture_that_is_saved(self, pictures):
        utility = gold.Gold(Brightness())
        wide = 3 * pictures - 1
        prompts = ["bright"] * 6
        assert torch.equal(utility(wide, prompts), utility(wide.clamp(0, 1), prompts))
        with pytest.raises(ValueError, match="prompts must be one for each of 6 pictures, got 1"):
            utility(wide, ["bright"])

    def test_colorfulness_by_hand(self):
        picture = torch.zeros(1, 3, 2, 2)
        picture[0, 0, 0] = 1.0  # red above, black below
        # red - green: mean 1/2, deviation 1/2; yellow - blue: mean 1/4, deviation 1/4.
        expected = math.sqrt(1 / 4 + 1 / 16) * (1 + 0.3)
        assert float(gold.colorfulness(picture)) == pytest.approx(expected)
        gray = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert float(gold.colorfulness(gray.expand(1, 3, 8, 8))) == pytest.approx(0, abs=1e-6)

    def test_contrast_by_hand(self):
        picture = torch.zeros(2, 3, 4, 4)
        picture[0, :, :2] = 1.0
        picture[1, 1, :, :2] = 1.0
        assert gold.contrast(picture).tolist() == pytest.approx([0.5, 0.587 / 2])

    def test_sharpness_falls_with_blur_and_ignores_light(self, pictures):
        blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1)
        twice = F.avg_pool2d(blurred, 3, stride=1, padding=1)
        values = [gold.sharpness(x) for x in (pictures, blurred, twice)]
        assert bool((values[0] > values[1]).all())
        assert bool((values[1] > values[2]).all())
        assert bool((values[0] < 1).all())
        assert torch.allclose(gold.sharpness(pictures / 2 + 0.3), values[0], atol=1e-4)
        assert torch.allclose(gold.sharpness(1 - pictures), values[0], atol=1e-4)
        assert gold.sharpness(torch.full((2, 3, 64, 64), 0.3)).tolist() == [0.0, 0.0]

    def test_sharpness_by_hand(self):
        picture = torch.zeros(1, 3, 64, 64)
        picture[..., 32, 32] = 1.0
        # The bright pixel differs from its mean by 8/9, its eight neighbors by 1/9.
        fine = 16 / 9
        small = torch.zeros(64, 64, dtype=torch.float64)
        small[31:34, 31:34] = 1 / 9
        wide = torch.zeros_like(small)
        for i in range(-2, 3):
            for j in range(-2, 3):
                wide += small.roll((i, j), (0, 1)) / 25
        coarse = float((small - wide).abs().sum())
        assert float(gold.sharpness(picture)) == pytest.approx(fine / (fine + coarse), rel=1e-4)


class TestPreferences:
    def test_they_are_drawn_by_bradley_and_terry(self, generator):
        utilities = torch.tensor([[1.5, 0.5]]).expand(4000, 2)
        for temperature in (0.5, 2.0):
            found = gold.prefer(utilities, temperature, generator)
            odds = 1 / (1 + math.exp(-1 / temperature))
            assert_within(found.mean(), odds, math.sqrt(odds * (1 - odds) / 4000))
            assert set(found.tolist()) == {0.0, 1.0}
            assert found.dtype == utilities.dtype

    def test_clean_ones_follow_the_utility(self):
        utilities = torch.tensor([[1.0, 0.0], [0.0, 0.1], [2.0, 2.0]])
        assert gold.prefer(utilities).tolist() == [1.0, 0.0, 0.5]
        with pytest.raises(ValueError, match="temperature must be positive, got 0"):
            gold.prefer(utilities, 0.0)

    @pytest.mark.parametrize("agreement", [0.6, 0.8, 0.95])
    def test_the_temperature_says_how_often_noise_changes_a_preference(self, generator, agreement):
        utilities = 3 * torch.randn(5000, 2, generator=generator)
        temperature = gold.temperature_for(utilities, agreement)
        noisy = gold.prefer(utilities, temperature, generator)
        same = (noisy == gold.prefer(utilities)).double().mean()
        assert_within(same, agreement, math.sqrt(agreement * (1 - agreement) / 5000))
        twice = gold.temperature_for(2 * utilities, agreement)
        assert twice == pytest.approx(2 * temperature, rel=1e-6)
        one = gold.temperature_for(torch.tensor([[0.5, 2.0]]), agreement)
        assert one == pytest.approx(1.5 / math.log(agreement / (1 - agreement)), rel=1e-12)

    def test_an_agreement_that_cannot_be_is_refused(self):
        utilities = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
        with pytest.raises(ValueError, match=r"agreement must be at most 0\.667"):
            gold.temperature_for(utilities, 0.8)
        for agreement in (0.5, 1.0):
            with pytest.raises(ValueError, match=rf"between 0\.5 and 1, got {agreement}"):
                gold.temperature_for(utilities, agreement)

    def test_pairs_are_read_as_they_were_written(self, tmp_path, generator):
        pictures = torch.randint(256, (4, 3, 64, 64), generator=generator).byte()
        pictures[3] = pictures[0]
        index = torch.tensor([[0, 1], [2, 1], [0, 3]])
        labels, utilities = torch.tensor([1.0, 0.0, 0.5]), torch.rand(3, 2, generator=generator)
        captions = ["red apple", "sun", "key"]
        path = tmp_path / "new" / "pairs.parquet"
        gold.write_pairs(path, pictures, index, captions, labels, utilities)
        pairs = Pairs(path)
        assert torch.equal(pairs.labels, labels)
        assert pairs.captions == captions
        from pyarrow import parquet

        table = parquet.read_table(path).to_pydict()
        for side in (0, 1):
            found = [decoded(raw) for raw in table[f"jpg_{side}"]]
            assert torch.equal(torch.stack(found), pictures[index[:, side]])
            assert table[f"utility_{side}"] == utilities[:, side].tolist()
        assert table["are_different"] == [True, True, False]
        assert table["image_0_uid"][2] == table["image_1_uid"][2] != table["image_0_uid"][1]
        assert table["image_1_uid"][0] == table["image_1_uid"][1]
        assert {len(name) for name in table["image_0_uid"]} == {16}
