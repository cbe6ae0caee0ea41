"""The demo's own pieces: its rewards and its exact conditional model."""

import pytest
import torch
from conftest import SCHEDULES, randn

from rwguidance import toy
from rwguidance.demo.digits import PROMPTS, Digits, lightness, thickness
from rwguidance.demo.mixture import problem
from rwguidance.testing import check_model, check_reward


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_the_rewards_count_ink_and_measure_paper():
    picture = torch.full((1, 8, 8), -1.0)
    picture[0, 2, 1:4] = 1.0
    assert thickness(picture).item() == 3
    assert lightness(picture).item() == pytest.approx(100 * 61 / 64)
    check_reward(lightness, randn(0, 5, 8, 8), differentiable=True)
    check_reward(thickness, randn(0, 5, 8, 8), differentiable=False)


@pytest.mark.parametrize("name", ["vp", "rectified"])
def test_the_conditional_model_conforms(digits, name, generator):
    model = digits.model(SCHEDULES[name])
    prompts = ["zero", "nine", "zero", "one"]
    x_0 = torch.cat([digits.laws[p].sample(1, generator) for p in prompts])
    check_model(model, x_0, condition=prompts)


def test_each_prompt_has_its_own_law(digits):
    schedule = SCHEDULES["rectified"]
    x_t = randn(1, 3, 8, 8)
    prompts = ["two", "seven", "two"]
    prediction = digits.model(schedule)(x_t, 0.6, prompts)
    for i, prompt in enumerate(prompts):
        alone = digits.laws[prompt].denoise(x_t[i : i + 1], 0.6, schedule)
        torch.testing.assert_close(prediction.mean[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_a_bank_holds_draws_of_every_prompt(digits, generator):
    bank = digits.sample(5, generator)
    assert tuple(bank.rows) == PROMPTS
    assert bank.x_0.dtype == torch.float32
    points = digits.laws["six"].points
    nearest = torch.cdist(bank.x_0[bank.rows["six"]].double().flatten(1), points.flatten(1)).amin(1)
    assert bool((nearest < 0.05 * 64**0.5 * 1.5).all()), "draws lie a bandwidth from a picture"


def test_the_mixture_has_a_closed_target():
    law, tilt = problem()
    assert isinstance(law.tilted(tilt), toy.GaussianMixture)
