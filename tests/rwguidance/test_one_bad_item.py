"""One bad item among good ones is noticed as if all were bad, and one good item is no reason.

A check that asks for any where all is meant passes whatever is bad throughout.
"""

import math
import re
from dataclasses import replace

import pytest
import torch

import rewards
from common import randn
from rewards.composite import LowerConfidenceBound, WeightedSum
from rewards.constraints import constrained_tilt
from rewards.fitting import fit_moments
from rewards.images import group_by_size
from rwguidance import (
    DDIM,
    Bank,
    DiscreteSchedule,
    GuidedModel,
    ImportanceSampling,
    PlugIn,
    Prediction,
    RectifiedSchedule,
    Tilt,
    TwistedSMC,
    VPSchedule,
    networks,
    sample,
    temperature,
    toy,
)
from rwguidance.models import DenoiserModel
from rwguidance.support import checks
from rwguidance.testing import check_estimator, check_model, check_reward, check_schedule

PATH = RectifiedSchedule()
X = randn(0, 3, 2)
NAN = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [3.0, 4.0]], dtype=torch.float64)
ZERO = torch.tensor([0.5, -math.inf, 0.2, 0.9], dtype=torch.float64)
EYE = [[1.0, 0.0], [0.0, 1.0]]
LAW = toy.Gaussian([0.0, 0.5], [[1.0, 0.2], [0.2, 1.0]])
MIXTURE = toy.GaussianMixture([0.0, 0.0], [[0.0, 1.0], [1.0, 0.0]], [EYE, [[9.0, 0], [0, 9.0]]])
LINEAR = Tilt(toy.Linear([1.0, 0.5]), 1.0)
FIRST = Tilt(lambda x, condition: x[:, 0], 1.0)


def at(times, path=PATH):
    return Prediction(X, X, path.at(torch.tensor(times, dtype=torch.float64), X))


class Spoiled(DenoiserModel):
    """One number of what it predicts is NaN."""

    def denoise(self, x_t, t, condition=None):
        return x_t + NAN[: len(x_t)] * 0


class SpoiledShift(toy.Oracle):
    def forward(self, model, x_t, t, condition=None):
        estimate = super().forward(model, x_t, t, condition)
        shift = estimate.shift.clone()
        shift[0, 0] = math.nan
        return replace(estimate, shift=shift)


class Endless(toy.Oracle):
    def forward(self, model, x_t, t, condition=None):
        estimate = super().forward(model, x_t, t, condition)
        log_h = estimate.log_h.clone()
        log_h[0] = math.inf
        return replace(estimate, log_h=log_h)


class Dented(RectifiedSchedule):
    """More noise at a larger time but once."""

    def sigma(self, t):
        return torch.where((t - 0.5).abs() < 0.01, 0.4 * t, t)


def spoiled_reward(x, condition):
    return torch.where(torch.arange(len(x)) == 0, math.nan, x[:, 0])


def trained(labels, asked):
    network = networks.ExpectationMLP((2,), labels=labels, width=8, depth=2)
    return network(X.float(), torch.full((3,), 0.5, dtype=torch.float64), asked)


def composed(kind, *arguments):
    reward = kind([rewards.JPEG(), rewards.JPEG()], *arguments)
    return reward.combine([torch.tensor([1.0, -math.inf, 2.0])] * 2, None)


REFUSED = {
    "states": (lambda: checks.states("x", NAN, finite=True), "NaN or inf in item 1$"),
    "a time": (lambda: checks.times("t", [0.1, 1.5, 0.2]), r"t must lie in \[0, 1\]"),
    "a generator": (lambda: checks.generator("g", [torch.Generator(), 0]), "g must be a torch.G"),
    "the times of a run": (
        lambda: sample(LAW.model(PATH), DDIM(), X, [1.0, 1.5, 0.0]),
        r"times must lie in \[0, 1\]",
    ),
    "a time that rises": (
        lambda: sample(LAW.model(PATH), DDIM(), X, [1.0, 0.3, 0.5, 0.0]),
        "times must decrease strictly",
    ),
    "a prediction": (
        lambda: sample(Spoiled(PATH), DDIM(), X, [1.0, 0.5, 0.0]),
        "the prediction of Spoiled must be finite, got NaN or inf in item 1 at",
    ),
    "a score without noise": (lambda: at([0.5, 0.0, 0.5]).score, "score is not determined"),
    "a signal": (
        lambda: Prediction.from_noise(X, X, at([0.5, 1.0, 0.5]).scales),
        "holds no information about x_0",
    ),
    "a rate": (lambda: at([0.5, 0.0, 0.5], VPSchedule()).velocity, "velocity is not determined"),
    "an input gradient": (
        lambda: PlugIn(LINEAR)(LAW.model(PATH), X, torch.tensor([0.5, 1.0, 0.5])),
        "does not determine the shift where alpha_t = 0",
    ),
    "an entry of a table": (
        lambda: DiscreteSchedule([0.9, 0.5, 0.6, 0.1]),
        "decrease strictly .* got 0.6 after 0.5 in entry 2",
    ),
    "a covariance": (
        lambda: toy.GaussianMixture([0, 0], [[0, 1], [1, 0]], [EYE, [[1, 0], [0, -1]]]),
        "symmetric and positive definite",
    ),
    "a component": (
        lambda: MIXTURE.tilted(Tilt(toy.Quadratic([0.0, 0.0], [[-0.5, 0], [0, -0.5]]), 1.0)),
        "the tilted law does not exist",
    ),
    "a parameter": (lambda: toy.Linear([1.0, math.nan]), "b must be finite"),
    "rewards of a condition": (
        lambda: temperature.beta_for_kl([ZERO, torch.full((4,), -math.inf)], 0.1),
        "a finite reward for every condition",
    ),
    "a reward": (lambda: Tilt(spoiled_reward, 1.0)(X), r"item 0 \(nan"),
    "a log-weight": (
        lambda: Tilt(
            lambda x, c: x[:, 0] * 0 + torch.tensor([1.0, 1e300, 1.0], dtype=torch.float64), 1e-20
        )(X),
        r"overflow .* for items \[1\]",
    ),
    "a condition of a bank": (
        lambda: ImportanceSampling(
            Bank(
                randn(1, 4, 2), ["a", "a", "b", "b"], torch.tensor([0.0, 1, -math.inf, -math.inf])
            ),
            FIRST,
        ),
        "every draw of condition 'b' has zero weight",
    ),
    "an importance": (
        lambda: Bank(randn(1, 4, 2), log_importance=ZERO),
        "log_importance must be finite, got NaN or inf in item 1",
    ),
    "a particle": (
        lambda: TwistedSMC(LINEAR, Endless(LAW, LINEAR)).sample(
            LAW.model(PATH), DDIM(eta=1.0), X, [1.0, 0.5, 0.0], generator=torch.Generator()
        ),
        "Endless gives NaN or .inf in 1 of 3 particles",
    ),
    "a strength": (
        lambda: networks.GuidanceNetwork(2, PATH, strength=True, widths=(8,), depth=1)(
            randn(1, 3, 2, 4, 4), torch.full((3,), 0.5), None, torch.tensor([1.0, -1.0, 2.0])
        ),
        "strength must be positive",
    ),
    "a label": (lambda: trained(("a", "b"), ["a", "c", "b"]), r"labels .*got \['c'\]"),
    "a width": (
        lambda: networks.LatentShift(2, PATH, widths=(8, 9)),
        "widths must be at least one multiple",
    ),
    "moments of equal rewards": (
        lambda: fit_moments(torch.full((4,), 0.3, dtype=torch.float64)),
        "vary|equal",
    ),
    "a rejected image": (
        lambda: composed(WeightedSum, [1.0, -1.0]),
        r"must not be -inf, a zero weight, but it is for items \[1\]",
    ),
    "a level of rejected draws": (
        lambda: constrained_tilt(
            [lambda x, c: x[:, 0]] * 2,
            [0.1, 0.1],
            Bank(randn(1, 4, 2), rewards=torch.stack((ZERO, ZERO.nan_to_num(neginf=0.0)), 1)),
        ),
        "1 draws have a reward of -inf",
    ),
    "ranks": (lambda: rewards.Rank((0.0, 2.0, 1.0), (0.1, 0.5, 0.8)), "values must be ascending"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_bad_item_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError, FloatingPointError)) as caught:
        call()
    assert re.search(message, str(caught.value)), caught.value


BREAKS = {
    "an infinite log h": (
        lambda: check_estimator(Endless(LAW, LINEAR), LAW.model(PATH), X),
        "log_h of Endless must be finite",
    ),
    "a NaN in a shift": (
        lambda: check_estimator(SpoiledShift(LAW, LINEAR), LAW.model(PATH), X),
        "the shift of SpoiledShift must be finite, got 1 NaN",
    ),
    "a NaN in a prediction": (lambda: check_model(Spoiled(PATH), X), "must be finite, got 1 NaN"),
    "a NaN of a reward": (
        lambda: check_reward(spoiled_reward, X, differentiable=False),
        "must not return NaN or .inf",
    ),
    "a dent in a schedule": (lambda: check_schedule(Dented()), "log-SNR"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_one_bad_item_breaks_a_contract(name):
    call, message = BREAKS[name]
    with pytest.raises(AssertionError, match=message):
        call()


def test_items_are_named_by_any_bad_number():
    assert checks.bad_items(NAN) == "item 1"


def test_one_rejected_image_is_no_reason_to_reject_others():
    bound = composed(LowerConfidenceBound, 0.5)
    assert bound.tolist() == [1.0, -math.inf, 2.0]
    assert fit_moments(torch.tensor([0.3, 0.3, 0.5], dtype=torch.float64)).mean > 0.3


def test_one_picture_with_nan_is_named():
    x = torch.full((3, 3, 4, 4), 0.5)
    x[1, 0, 0, 0] = math.nan
    assert group_by_size(x).broken == (1,)


def test_draws_without_weight_are_no_reason_to_refuse_a_bank():
    estimator = ImportanceSampling(Bank(randn(1, 4, 2), rewards=ZERO), FIRST)
    assert bool(estimator(LAW.model(PATH), X, torch.tensor(0.5)).shift.isfinite().all())
    assert temperature.beta_for_kl([ZERO], 0.5) > 0


def test_draws_out_of_order_are_sorted_with_their_rewards():
    x = randn(1, 4, 2)
    bank = Bank(x, ["a", "b", "b", "a"], x[:, 0])
    assert torch.equal(bank.x_0[:, 0], bank.rewards)
    assert torch.equal(bank.x_0[bank.rows["a"]], x[[0, 3]])


def test_a_last_step_of_one_sample_is_a_step_of_the_others():
    model = GuidedModel(LAW.model(PATH), toy.Oracle(LAW, LINEAR))
    s, t = torch.tensor([0.0, 0.2, 0.4]), torch.tensor([0.5, 0.5, 0.5])
    sampler = DDIM(eta=1.0)
    whole, _ = sampler.step(model, X, t, s, generator=[torch.Generator() for _ in X])
    for i in range(3):
        part, _ = sampler.step(model, X[[i]], t[[i]], s[[i]], generator=[torch.Generator()])
        torch.testing.assert_close(whole[[i]], part)
