"""What every reward does that says nothing else, and pictures as PIL images."""

import numpy
import pytest
import torch

from plain_rewards import Brightness, Redness
from rewards.fitting import as_bank
from rewards.images import to_pil


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
    + [(dtype, dtype) for dtype in (torch.float32, torch.float64)],
)
def test_pictures_are_seen_in_float32_or_wider(dtype, wide):
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = Brightness().preprocess(images)
    assert seen.dtype == wide
    assert torch.equal(seen, images.to(wide))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_pictures_are_rounded_to_the_nearest_level(dtype):
    images = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = (255 * images.double()).permute(0, 2, 3, 1).numpy()
    for picture, level in zip(to_pil(images), exact, strict=True):
        assert (picture.mode, picture.size) == ("RGB", (50, 40))
        assert numpy.abs(numpy.asarray(picture) - level).max() <= 0.5 + 1e-4


def test_levels_are_kept():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    (picture,) = to_pil(levels / 255)
    assert numpy.array_equal(numpy.asarray(picture)[..., 0], levels[0, 0].numpy())


class Preferred(Brightness):
    """Brightness as if it were trained on preferences."""

    def logits(self, images, prompts):
        return 3 * self.forward(images, prompts)


def test_preferences_have_the_gradient_of_a_softmax():
    images = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    leaf = images.clone().requires_grad_()
    shares = Preferred().prefer(leaf, "a cat")
    expected = (3 * images.flatten(1).square().mean(1)).softmax(0)
    torch.testing.assert_close(shares.detach(), expected)
    shares[0].backward()
    # d p_0 / d l_i = p_0 (1[i = 0] - p_i), and d l_i / d x = 3 * 2 x / 60.
    slopes = expected[0] * (torch.eye(3, dtype=torch.float64)[0] - expected)
    torch.testing.assert_close(leaf.grad, slopes[:, None, None, None] * images / 10)


def test_what_is_fitted_and_what_is_shown_carries_no_gradient():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert len(to_pil(images)) == 2
    values = Redness()(images)
    assert values.requires_grad
    bank = as_bank(values)
    assert not bank.requires_grad
    assert torch.equal(bank, values.detach().double())


def test_a_picture_with_nan_spoils_no_other_and_no_gradient():
    images = torch.full((2, 3, 4, 5), 0.5)
    images[1, 0, 0, 0] = torch.nan
    values = Brightness()(images.requires_grad_())
    assert values.isnan().tolist() == [False, True]
    assert values[0] == 0.25
