"""The check of rewards: it passes what conforms, and says what is wrong with what does not."""

import pytest
import torch
from torch import nn

import rewards
from common import randn
from rwguidance import Tilt, toy
from rwguidance.testing import check_reward


def cubic(x, condition=None):
    return (x**3).flatten(1).sum(1)


def with_letters(x, condition):
    return cubic(x) + torch.tensor([len(prompt) for prompt in condition]).to(x)


class Cubic(nn.Module):
    """A good module with a parameter, which keeps its head in float32 or better."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, condition=None):
        return self.weight * cubic(x if x.dtype == torch.float64 else x.float())


def wrong_gradient(x, condition=None):
    return cubic(x.detach()) + 2 * (x - x.detach()).flatten(1).sum(1)


def stops_half(x, condition=None):
    return cubic(x[:, :1]) + cubic(x[:, 1:].detach())


def stops_later(x, condition=None):
    kept = torch.arange(len(x)).reshape(-1, 1, 1) < 2
    return cubic(torch.where(kept, x, x.detach()))


def in_place(x, condition=None):
    return cubic(x.detach().mul_(1.5))


def global_noise(x, condition=None):
    return cubic(x) + 1e-3 * torch.randn(len(x))


def remembers():
    calls = []

    def reward(x, condition=None):
        calls.append(0)
        return cubic(x) + len(calls)

    return reward


ITEMS = randn(2, 5, 2, 3)
PROMPTS = ["a", "abc", "", "ab", "abcd"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rewards_conform(dtype):
    check_reward(Cubic(), ITEMS.to(dtype))
    check_reward(with_letters, ITEMS.double(), PROMPTS, differentiable=True)


@pytest.mark.parametrize(
    "reward",
    [
        toy.Linear([1.0, 2.0]),
        toy.Quadratic([1.0, 0.0], [[2.0, 0.3], [0.3, -1.0]]),
        toy.Bumps([0.0, 1.0], [[0.0, 1.0], [1.0, -1.0]], torch.eye(2).expand(2, 2, 2)),
        Cubic(),
        Tilt(cubic, 0.5),
    ],
)
def test_gradients_of_rewards_conform(reward):
    check_reward(reward, randn(3, 6, 2), differentiable=True)
    check_reward(reward, randn(3, 6, 2, dtype=torch.float32), differentiable=True)


def test_a_black_box_conforms_unless_a_gradient_is_promised():
    step = toy.Step(0.3, 2.0)
    check_reward(step, ITEMS.reshape(-1, 1))
    with pytest.raises(AssertionError, match="carries no gradient"):
        check_reward(step, ITEMS.reshape(-1, 1), differentiable=True)


def test_the_spec_promises_the_gradient():
    class Spec:
        differentiable = True

    class Promises(Cubic):
        spec = Spec()

        def forward(self, x, condition=None):
            return super().forward(x.detach())

    with pytest.raises(AssertionError, match="no gradient reaches x"):
        check_reward(Promises(), ITEMS)
    check_reward(Promises(), ITEMS, differentiable=False)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, c: cubic(x).mean(), r"must have shape \(5,\), got \(\)"),
        (lambda x, c: cubic(x)[:, None], r"must have shape \(5,\), got \(5, 1\)"),
        (lambda x, c: cubic(x).softmax(0), "an item must not depend on the others of its batch"),
        (lambda x, c: cubic(x).sort().values, "must not depend on the others"),
        (lambda x, c: cubic(x).bfloat16(), "float32 or wider, got torch.bfloat16"),
        (lambda x, c: cubic(x).round().long(), "must be floating point, got torch.int64"),
        (lambda x, c: cubic(x).tolist(), "must be a tensor, got list"),
        (lambda x, c: cubic(x) * torch.nan, "must not return NaN or .inf .* got 5 NaN of 5"),
        (lambda x, c: cubic(x).where((x != ITEMS[2]).any(2).any(1), torch.nan), "got 1 NaN of 5"),
        (lambda x, c: cubic(x).exp() * torch.inf, "must not return NaN or .inf"),
        (lambda x, c: with_letters(x, c[::-1]), "must not depend on the others"),
        (lambda x, c: with_letters(x, [c.pop()] * 5), "must not change its argument condition"),
        (
            lambda x, c: with_letters(x, [c.__setitem__(0, "b"), *c][1:]),
            "must not change its argument condition",
        ),
        (remembers(), "two equal calls must agree"),
        (in_place, "must not change its argument x"),
        (global_noise, "must not use the global random state"),
        (wrong_gradient, "gradient of wrong_gradient is wrong: along a random direction item 0"),
        (stops_half, "the gradient of stops_half is wrong"),
        (stops_later, "along a random direction item 2 changes at the rate .*, but 0 by its"),
        (lambda x, c: cubic(x).detach(), "carries no gradient; is there a detach"),
        (3.0, "a reward must be callable, got float"),
    ],
)
def test_broken_rewards_are_caught(broken, message):
    state = torch.random.get_rng_state()
    with pytest.raises(AssertionError, match=message):
        check_reward(broken, ITEMS.clone(), list(PROMPTS), differentiable=True)
    torch.random.set_rng_state(state)


def test_a_graph_is_recorded_for_the_gradient_alone():
    graphs = []

    class Watched(Brightness):
        def __call__(self, images, prompts=None):
            graphs.append(torch.is_grad_enabled())
            return super().__call__(images, prompts)

    check_reward(Watched(), torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0)))
    assert graphs.count(True) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_are_compared_in_double_precision(dtype):
    seen = []

    class Watched(Cubic):
        def forward(self, x, condition=None):
            seen.append((x.dtype, self.weight.dtype))
            return super().forward(x, condition)

    check_reward(Watched(), ITEMS.to(dtype), differentiable=True)
    assert seen[-5:] == [(torch.float64, torch.float64)] * 5  # a gradient, and two differences
    assert seen[-6] == (dtype, torch.float32)


def test_rounding_of_large_rewards_beside_small_ones_is_no_wrong_gradient():
    def reward(x, condition):
        lengths = torch.tensor([len(prompt) for prompt in condition], dtype=torch.float64)
        return x.flatten(1).sum(1).double() + 1e9 * lengths

    check_reward(reward, ITEMS, PROMPTS, differentiable=True)


def test_one_item_shows_nothing():
    with pytest.raises(AssertionError, match="x must hold at least two samples"):
        check_reward(cubic, ITEMS[:1])
    with pytest.raises(AssertionError, match="x must not be constant"):
        check_reward(cubic, ITEMS * 0, differentiable=True)


class Brightness(rewards.Reward):
    """A good reward of images, to be broken one method at a time."""

    spec = rewards.RewardSpec(
        name="brightness",
        title="Brightness",
        differentiable=True,
        needs_prompt=False,
        code_license="MIT",
        weights_license="none",
        formula="mean",
        typical_range=(0.0, 1.0),
        citation="none",
    )

    def forward(self, images, prompts):
        return images.mean((1, 2, 3))


class EvenOnly(Brightness):
    def forward(self, images, prompts):
        return images.unflatten(-1, (-1, 2)).mean((1, 2, 3, 4))


class Narrow(Brightness):
    def preprocess(self, images):
        return images


class SingleOnly(Brightness):
    def __call__(self, images, prompts=None):
        if not isinstance(images, list) and images.dtype == torch.float64:
            raise TypeError("images are too wide")
        return super().__call__(images, prompts)


class Threshold(Brightness):
    """Passes the gradient of bright pixels on."""

    straight_through = True

    def forward(self, images, prompts):
        return images.where(images > 0.5, images.detach()).round().mean((1, 2, 3)) + (
            images.clamp(min=0.5) - images.clamp(min=0.5).detach()
        ).mean((1, 2, 3))


class MixesUpLists(Brightness):
    def __call__(self, images, prompts=None):
        return super().__call__(images[::-1] if isinstance(images, list) else images, prompts)


def test_rewards_of_images_must_take_any_image():
    images = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    check_reward(Brightness(), images)
    check_reward(Threshold(), images)
    for broken, message in (
        (EvenOnly(), r"EvenOnly \(odd size\) .* fails with RuntimeError"),
        (Narrow(), r"the result of Narrow \(torch.float16\) must be float32 or wider"),
        (SingleOnly(), r"SingleOnly \(torch.float64\) .* fails with TypeError"),
        (MixesUpLists(), "images of several sizes in one list must score as they do alone"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_reward(broken, images)


class Recorded(Brightness):
    def __init__(self):
        super().__init__()
        self.seen, self.dtypes = [], []

    def __call__(self, images, prompts=None):
        self.seen.append([tuple(image.shape[1:]) for image in images])
        self.dtypes.append(images[0].dtype)
        return super().__call__(images, prompts)


@pytest.mark.parametrize(("height", "odd"), [(6, 5), (7, 7)])
def test_images_are_shown_in_odd_sizes_mixed_and_in_every_dtype(height, odd):
    generator = torch.Generator().manual_seed(0)
    reward = Recorded()
    check_reward(reward, torch.rand(3, 3, height, 8, generator=generator), differentiable=False)
    assert [(odd, 3)] * 3 in reward.seen
    assert [(height, 8), (odd, 3), (odd, 3)] in reward.seen
    assert reward.dtypes[-3:] == [torch.float16, torch.bfloat16, torch.float64]
