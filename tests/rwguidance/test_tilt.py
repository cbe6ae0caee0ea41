"""Tilt: rewards to log-weights."""

import math

import pytest
import torch
from torch import nn

from common import randn
from rwguidance import Tilt

X = randn(0, 5, 3)


def first(x, condition=None):
    return x.flatten(1)[:, 0]


def second(x, condition=None):
    return x.flatten(1)[:, 1].square()


def test_the_log_weight_is_the_reward_over_beta():
    torch.testing.assert_close(Tilt(first, 0.25)(X), 4 * X[:, 0], rtol=1e-15, atol=0)


def test_several_rewards_with_their_own_betas_add():
    tilt = Tilt([first, second], [0.5, 3.0])
    expected = X[:, 0] / 0.5 + X[:, 1] ** 2 / 3
    torch.testing.assert_close(tilt(X), expected, rtol=1e-14, atol=1e-15)
    scores = tilt.score(X)
    assert torch.equal(scores, torch.stack((first(X), second(X)), dim=1))
    torch.testing.assert_close(tilt.weigh(scores), expected, rtol=1e-14, atol=1e-15)


def test_several_rewards_add_their_gradients():
    x = randn(0, 3, 2).requires_grad_()
    tilt = Tilt([lambda x, c: x.square().sum(1), lambda x, c: x[:, 0]], [0.5, 0.25])
    (gradient,) = torch.autograd.grad(tilt(x).sum(), x)
    torch.testing.assert_close(gradient, 4 * x + torch.tensor([4.0, 0.0], dtype=x.dtype))


@pytest.mark.parametrize(
    ("tilt", "shapes", "expected"),
    [
        (Tilt(first, 0.5), [(4, 1), (4, 2)], r"\(N,\)"),
        (Tilt([first, second], [0.5, 2.0]), [(4,), (4, 1), (4, 3), (4, 2, 1)], r"\(N, 2\)"),
    ],
)
def test_rewards_of_another_shape_are_not_weighed(tilt, shapes, expected):
    for shape in shapes:
        with pytest.raises(ValueError, match=f"rewards must have shape {expected}, got"):
            tilt.weigh(torch.zeros(shape))


def test_states_are_decoded_once_for_all_rewards():
    calls = []

    def decode(x):
        calls.append(x)
        return 2 * x

    tilt = Tilt([first, second, first], [1.0, 1.0, 1.0], decode)
    expected = 4 * X[:, 0] + 4 * X[:, 1] ** 2
    torch.testing.assert_close(tilt(X), expected, rtol=1e-14, atol=1e-14)
    assert len(calls) == 1


def test_the_condition_reaches_every_reward():
    letters = lambda x, condition: torch.tensor([len(c) for c in condition], dtype=torch.float64)
    words = ["a", "abc", "", "ab", "abcd"]
    assert Tilt([letters, letters], [1.0, 0.5])(X, words).tolist() == [3, 9, 0, 6, 12]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_log_weights_are_float32_or_wider(dtype):
    log_w = Tilt(first, 3.0)(X.to(dtype))
    assert log_w.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = X.to(dtype)[:, 0].to(log_w.dtype) / 3  # divided after widening
    assert torch.equal(log_w, expected)


def test_a_zero_weight_is_legitimate():
    reward = lambda x, condition: torch.where(x[:, 0] > 0, x[:, 0], -math.inf)
    log_w = Tilt([reward, first], [0.5, 1.0])(X)
    assert torch.equal(log_w == -math.inf, X[:, 0] <= 0)
    assert bool((X[:, 0] <= 0).any())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_unusable_reward_is_named_with_its_item_and_prompt(bad):
    def reward(x, condition):
        return torch.tensor([0.0, bad, -math.inf, bad, 1.0])

    with pytest.raises(ValueError, match=rf"item 1 \({bad}\), item 3 \({bad}\)$"):
        Tilt(reward, 1.0)(X)
    with pytest.raises(ValueError, match=rf"item 1 \({bad}, condition 'b'\), item 3 .*'d'\)$"):
        Tilt(reward, 1.0)(X, list("abcde"))
    with pytest.raises(ValueError, match=rf"item 1 \({bad}\)"):  # not hidden by its condition
        Tilt(reward, 1.0)(X, {"embeddings": X})
    many = lambda x, condition: torch.full((len(x),), bad)
    with pytest.raises(ValueError, match=r"item 4 \(.*\) and 2 more$"):
        Tilt(many, 1.0)(randn(0, 7, 3))


def test_a_tilt_moves_its_modules():
    reward, decode = nn.Bilinear(3, 3, 1, device="meta"), nn.Identity()
    tilt = Tilt([reward, first], [1.0, 1.0], decode)
    assert set(tilt.modules()) >= {reward, decode}
    assert tilt.to(torch.float64).get_submodule("reward_0").weight.dtype == torch.float64


class OfOne(torch.nn.Module):
    def forward(self, x):
        return x[:, 0]


class Method:
    def score(self, x):
        return x[:, 0]

    def __call__(self, x, condition):
        return x[:, 0]


@pytest.mark.parametrize("reward", [lambda x: x[:, 0], OfOne(), Method().score])
def test_a_reward_of_one_argument_says_what_to_write(reward):
    with pytest.raises(TypeError, match=r"\(x, condition\), .*lambda x, condition: reward\(x\)"):
        Tilt(reward, 1.0)
    wrapped = lambda x, condition: reward(x)
    assert Tilt(wrapped, 2.0)(torch.tensor([[3.0]])).tolist() == [1.5]


@pytest.mark.parametrize(
    "reward",
    [
        lambda x, condition=None: x[:, 0],
        lambda *arguments: arguments[0][:, 0],
        lambda images, prompts, scale=2: images[:, 0],
        Method(),
        torch.dot,  # what is written in C does not tell
        torch.nn.Bilinear(1, 1, 1),
    ],
)
def test_a_reward_of_two_arguments_passes(reward):
    Tilt(reward, 1.0)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda x: x[:, 0].numpy(), "ndarray"),
        (lambda x: x[:, 0].tolist(), "list"),
        (lambda x: x[:, 0].long(), "torch.int64"),
        (lambda x: x[:, 0] > 0, "torch.bool"),
    ],
)
def test_a_reward_of_other_numbers_says_what_to_write(returned, got):
    x, reward = torch.tensor([[3.0], [1.0]]), lambda x, condition: returned(x)
    with pytest.raises(TypeError, match=f"floating-point tensor, got .*{got}.*; wrap it") as caught:
        Tilt(reward, 1.0)(x)
    code = str(caught.value).partition("wrap it: ")[2]
    advised = eval(code, {"torch": torch, "reward": reward})  # what it says does work
    assert Tilt(advised, 2.0)(x).tolist() == [float(value) / 2 for value in returned(x)]
