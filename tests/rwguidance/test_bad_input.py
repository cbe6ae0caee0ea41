"""Bad input: caught early, by the right exception, with a message that teaches.

Every message names the argument, what was expected and what came. Nothing here may reach the
network: the model of this file fails when it is called.
"""

import math

import pytest
import torch

from common import randn
from rwguidance import (
    DDIM,
    Bank,
    CosineSchedule,
    DenoiserModel,
    DiscreteSchedule,
    GuidedModel,
    Heun,
    ImportanceSampling,
    NoiseModel,
    PlugIn,
    Prediction,
    RectifiedSchedule,
    TargetESS,
    Tempered,
    Tilt,
    VESchedule,
    VPSchedule,
    sample,
    toy,
)

PATH = RectifiedSchedule()
X = randn(0, 3, 2)
FIRST = Tilt(lambda x, condition: x.flatten(1)[:, 0], 1.0)
BANK = Bank(randn(1, 4, 2), ["cat", "cat", "dog", "dog"])
LAW = toy.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])


class Uncalled(DenoiserModel):
    def denoise(self, x_t, t, condition=None):
        raise AssertionError("the model was called")


class Noise(NoiseModel):
    def noise(self, x_t, t, condition=None):
        return x_t


MODEL = Uncalled(PATH)
ESTIMATOR = ImportanceSampling(BANK, FIRST)
PROMPTS = ["cat", "dog", "cat"]


def returning(value):
    return Tilt(lambda x, condition: value, 1.0)


def estimate(x_t=X, t=0.5, condition=PROMPTS, estimator=ESTIMATOR):
    return lambda: estimator(MODEL, x_t, t, condition)


def run(model=MODEL, sampler=DDIM(), x_1=X, times=(1.0, 0.0)):  # noqa: B008
    return lambda: sample(model, sampler, x_1, times)


def guide(t=0.5, **arguments):
    return lambda: GuidedModel(MODEL, ESTIMATOR, **arguments)(X, t, PROMPTS)


def with_nan(x):
    x = x.clone()
    x[1, 0] = torch.nan
    return x


LATE = torch.tensor([0.5, 1.5, 0.2])
NAN_TIMES = torch.tensor([0.5, math.nan, 0.2])
IDENTITY = [[1.0, 0.0], [0.0, 1.0]]

CASES = {
    # times
    "a network timestep": (guide(999.0), ValueError, r"t must lie in \[0, 1\] .* got 999.0; netw"),
    "a negative time": (estimate(t=-0.1), ValueError, r"t must lie in \[0, 1\] .* got -0.1"),
    "one late time of many": (guide(LATE), ValueError, r"t must lie in \[0, 1\].*\[0.5, 1.5, 0.2"),
    "a NaN time": (guide(NAN_TIMES), ValueError, r"t must lie in \[0, 1\] .* nan"),
    "two times for three": (guide(torch.ones(2)), ValueError, r"\(\) or \(3,\), got"),
    "a matrix of times": (guide(torch.ones(3, 1)), ValueError, r"t must have shape .*got \(3, 1\)"),
    # sampling
    "rising times": (run(times=(0.0, 1.0)), ValueError, r"decrease strictly, .*got \[0.0, 1.0\]"),
    "repeated times": (run(times=(1.0, 0.5, 0.5)), ValueError, "decrease strictly, from noise"),
    "one time": (run(times=(1.0,)), ValueError, r"times must hold at least two times, got .*\(1,"),
    "a time beyond 1": (run(times=(1.2, 0.0)), ValueError, r"times must lie in \[0, 1\].*\[1.2, 0"),
    "NaN among the times": (run(times=(1.0, math.nan)), ValueError, r"times must lie .* nan\]"),
    "integer states": (run(x_1=X.long()), TypeError, "x_1 must be a floating-point .*torch.int64"),
    "one state": (run(x_1=X[0]), ValueError, r"x_1 must be .*of shape \(B, \*event\).*\(2,\)"),
    "a list of states": (run(x_1=X.tolist()), TypeError, "x_1 must be a floating-point .*got list"),
    "a bare network": (run(torch.nn.Identity()), TypeError, "model must be a Model, got Identity"),
    "a sampler class": (
        run(sampler=DDIM),
        TypeError,
        r"sampler must be a Sampler such as DDIM\(\)",
    ),
    "eta of 2": (lambda: DDIM(2.0), ValueError, r"eta must lie in \[0, 1\], got 2.0"),
    "eta of NaN": (lambda: DDIM(math.nan), ValueError, r"eta must lie in \[0, 1\], got nan"),
    "noise prediction without signal": (
        run(Noise(CosineSchedule()), Heun()),
        ValueError,
        "noise prediction holds no information about x_0 where alpha_t = 0 .*start at a smaller",
    ),
    # guidance
    "a reversed window": (guide(window=(0.8, 0.2)), ValueError, r"low <= high .*got \(0.8, 0.2\)"),
    "a window beyond 1": (guide(window=(0.0, 1.5)), ValueError, r"window must .* got \(0.0, 1.5\)"),
    "a window of timesteps": (guide(window=(0, 999)), ValueError, r"window must .* got \(0, 999\)"),
    "half a window": (guide(window=0.5), TypeError, r"window must be two times .*got 0.5"),
    "an infinite scale": (guide(scale=math.inf), ValueError, "scale must be finite, got inf"),
    "a scale in words": (guide(scale="strong"), TypeError, "scale must be a number, got str"),
    "a scale that diverges": (
        guide(0.0, scale=lambda t: 1 / t),
        ValueError,
        r"scale must be finite, got inf at t = 0.0",
    ),
    "a scale of another shape": (
        guide(torch.full((3,), 0.5), scale=lambda t: t[:, None]),
        ValueError,
        r"scale must return one number per time, shape \(3,\), got \(3, 1\)",
    ),
    "a base that is no model": (
        lambda: GuidedModel(torch.nn.Identity(), ESTIMATOR),
        TypeError,
        "base must be a Model, got Identity",
    ),
    "a tilt for an estimator": (
        lambda: GuidedModel(MODEL, FIRST),
        TypeError,
        "estimator must be a ConditionalExpectation, got Tilt",
    ),
    # tilts
    "beta of 0": (lambda: Tilt(sum, 0.0), ValueError, "beta must be positive and finite, got 0.0"),
    "a negative beta": (lambda: Tilt(sum, -1.0), ValueError, "beta must be positive .* got -1.0"),
    "a NaN beta": (lambda: Tilt(sum, math.nan), ValueError, "beta must be positive .* got nan"),
    "an infinite beta": (lambda: Tilt(sum, math.inf), ValueError, "beta must be .* got inf"),
    "beta in words": (lambda: Tilt(sum, "0.5"), TypeError, "beta must be a number, got str"),
    "a beta too many": (lambda: Tilt(sum, [1.0, 2.0]), ValueError, "one temperature .*1, got 2"),
    "no reward": (lambda: Tilt([], []), ValueError, "beta must hold one temperature per reward, 0"),
    "a reward that is a number": (lambda: Tilt(3.0, 1.0), TypeError, "must be callable, got float"),
    "a class of rewards": (lambda: Tilt(toy.Linear, 1.0), TypeError, "got the class Linear"),
    "a class to find beta for": (
        lambda: Tilt.for_kl(toy.Linear, BANK, 1.0),
        TypeError,
        "reward must be one callable, got the class Linear",
    ),
    "decode in words": (lambda: Tilt(sum, 1.0, "vae"), TypeError, "decode must be .* got str"),
    "a mean reward": (lambda: returning(X.mean())(X), ValueError, r"one value per item.*got \(\)"),
    "a column of rewards": (
        lambda: returning(X)(X),
        ValueError,
        r"shape \(3,\), got \(3, 2\); red",
    ),
    "integer rewards": (
        lambda: returning(X[:, 0].long())(X),
        TypeError,
        "got Tensor of torch.int64",
    ),
    "a list of rewards": (lambda: returning([0.0] * 3)(X), TypeError, "floating-point .* got list"),
    "a NaN reward": (
        lambda: returning(with_nan(X)[:, 0])(X, PROMPTS),
        ValueError,
        r"must not be NaN or \+inf, got item 1 \(nan, condition 'dog'\)",
    ),
    "rewards of two for one": (
        lambda: FIRST.weigh(X),
        ValueError,
        r"rewards must have shape \(N,\), got \(3, 2\)",
    ),
    "no beta for such a KL": (
        lambda: Tilt.for_kl(FIRST.rewards[0], BANK, 50.0),
        ValueError,
        r"nats must lie in the range that this bank reaches, \(0, 0.693147\), got 50.0",
    ),
    # banks
    "an empty bank": (lambda: Bank(X[:0]), ValueError, r"x_0 must .* N >= 1 .*got shape \(0, 2\)"),
    "a flat bank": (lambda: Bank(X[0]), ValueError, r"shape \(B, \*event\) .* got shape \(2,\)"),
    "8-bit draws": (lambda: Bank(X.byte()), TypeError, "x_0 must be .*got Tensor of torch.uint8"),
    "a list of draws": (lambda: Bank(X.tolist()), TypeError, "x_0 must be .*got list"),
    "NaN draws": (lambda: Bank(with_nan(X)), ValueError, r"x_0 must be finite, .* in item 1$"),
    "too few conditions": (lambda: Bank(X, ["cat"]), ValueError, "condition must .*, 3, got 1"),
    "one prompt for all": (lambda: Bank(X, "cat"), TypeError, r"got str; write \[prompt\] \* n"),
    "conditions that are lists": (
        lambda: Bank(X, [[1], [2], [3]]),
        TypeError,
        "condition must hold hashable items, got list",
    ),
    "embeddings for conditions": (
        lambda: Bank(X, X),
        TypeError,
        r"condition as a tensor must be 1-D with integer labels, got torch.float64 with .*\(3, 2\)",
    ),
    "too few rewards": (lambda: Bank(X, rewards=X[:2, 0]), ValueError, r"\(3,\), got \(2,\)"),
    "a NaN reward in a bank": (
        lambda: Bank(X, PROMPTS, with_nan(X)[:, 0]),
        ValueError,
        r"item 1 \(nan, condition 'dog'\)",
    ),
    "batches of nothing": (
        lambda: BANK.scored(FIRST, batch_size=0),
        ValueError,
        "batch_size must be at least 1, got 0",
    ),
    # estimators
    "an unknown condition": (
        estimate(condition=["cat", "fox", "dog"]),
        ValueError,
        "the bank holds no draws for condition 'fox'; it holds 'cat', 'dog'",
    ),
    "a missing condition": (
        estimate(condition=None),
        ValueError,
        "condition is required, since the bank holds several: 'cat', 'dog'",
    ),
    "a string for a condition": (
        estimate(condition="cat"),
        TypeError,
        r"condition must hold one hashable item per sample.*got str; write \[prompt\] \* n",
    ),
    "too many conditions": (
        estimate(condition=["cat"] * 4),
        ValueError,
        "condition must hold one item per sample, 3, got 4",
    ),
    "states of another shape": (
        estimate(randn(0, 3, 5)),
        ValueError,
        r"x_t must hold states of shape \(2,\), as the bank does, got \(5,\)",
    ),
    "states on another device": (
        estimate(estimator=ImportanceSampling(BANK, FIRST).to("meta")),
        ValueError,
        r"x_t is on cpu, but the bank is on meta; move the estimator with .to\(device\)",
    ),
    "draws for a bank": (
        lambda: ImportanceSampling(X, FIRST),
        TypeError,
        "bank must be a Bank, got Tensor",
    ),
    "a function for a tilt": (
        lambda: ImportanceSampling(BANK, sum),
        TypeError,
        "tilt must be a Tilt, got builtin_function_or_method",
    ),
    "a number for a kernel": (
        lambda: ImportanceSampling(BANK, FIRST, 0.5),
        TypeError,
        "kernel must be a Kernel or None, got float",
    ),
    "a condition without weight": (
        lambda: ImportanceSampling(
            Bank(X, PROMPTS, torch.tensor([0.0, -math.inf, 1.0]).double()), FIRST
        ),
        ValueError,
        r"every draw of condition 'dog' has zero weight \(reward -inf\)",
    ),
    "a factor of 0": (lambda: Tempered(0.0), ValueError, r"factor must lie in \(0, 1\], got 0.0"),
    "a fraction of 1": (lambda: TargetESS(1.0), ValueError, r"fraction must lie in \(0, 1\), got"),
    "negative damping": (
        lambda: PlugIn(FIRST, damping=-1.0),
        ValueError,
        "damping must be at least 0, got -1.0",
    ),
    "a prior without variance": (
        lambda: PlugIn(FIRST, prior_variance=0.0),
        ValueError,
        "prior_variance must be positive and finite, got 0.0",
    ),
    "a black box plugged in": (
        lambda: PlugIn(Tilt(lambda x, c: x.detach()[:, 0], 1.0))(LAW.model(PATH), X, 0.5),
        ValueError,
        "the log-weight must be differentiable .*; use ImportanceSampling or LearnedShift",
    ),
    "a gradient without signal": (
        lambda: PlugIn(FIRST)(LAW.model(PATH), X, 1.0),
        ValueError,
        r"does not determine the shift where alpha_t = 0 .*use PlugIn\(..., jacobian=False\)",
    ),
    # schedules, models, predictions
    "a VP path of no rate": (
        lambda: VPSchedule(0.0),
        ValueError,
        "beta_min must be positive .*got 0",
    ),
    "a VE path downwards": (
        lambda: VESchedule(2.0, 1.0),
        ValueError,
        "sigma_max must be .*above 2.0, got 1",
    ),
    "a rising table": (
        lambda: DiscreteSchedule([0.9, 0.1, 0.2, 0.3]),
        ValueError,
        "must decrease strictly .* got 0.2 after 0.1 in entry 2; of betas it is",
    ),
    "an empty table": (lambda: DiscreteSchedule([]), ValueError, r"shape \(K,\) with K >= 1, got "),
    "a schedule in words": (lambda: Uncalled("vp"), TypeError, "schedule must be a Sch.* got str"),
    "noise of another shape": (
        lambda: PATH.perturb(X, 0.5, X[:1]),
        ValueError,
        r"noise must have the shape of x_0, \(3, 2\), got \(1, 2\)",
    ),
    "a mean of another shape": (
        lambda: Prediction.from_mean(X[:1], X, PATH.at(0.5, X)),
        ValueError,
        r"mean must have the shape of the state, \(3, 2\), got \(1, 2\)",
    ),
    "a shift of another shape": (
        lambda: Prediction(X, X, PATH.at(0.5, X)).shifted(X[:, 0]),
        ValueError,
        r"shift must have the shape of the state, \(3, 2\), got \(3,\)",
    ),
    # toys
    "a covariance that is not square": (
        lambda: toy.Gaussian([0.0, 0.0], [[1.0, 0.0]]),
        ValueError,
        r"covariances must have shape \(1, 2, 2\) .*got \(1, 1, 2\)",
    ),
    "an indefinite covariance": (
        lambda: toy.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]),
        ValueError,
        "covariances must be symmetric and positive definite",
    ),
    "weights and means that differ": (
        lambda: toy.GaussianMixture([0.0], [[0.0], [1.0]], [[[1.0]]]),
        ValueError,
        r"log_weights and means must have shapes \(K,\) and \(K, D\) .*, got \(1,\) and \(2, 1\)",
    ),
    "points without an axis": (
        lambda: toy.Empirical(X[:, 0]),
        ValueError,
        r"points must be .* of shape \(B, \*event\) .*got shape \(3,\)",
    ),
    "a negative bandwidth": (lambda: toy.Empirical(X, -1.0), ValueError, "bandwidth must .*got -1"),
    "a matrix for a slope": (lambda: toy.Linear(IDENTITY), ValueError, "b must have 1 axes, got "),
    "a precision that is skew": (
        lambda: toy.Quadratic([0.0, 0.0], [[1.0, 1.0], [0.0, 1.0]]),
        ValueError,
        "precision must be symmetric",
    ),
    "a tilt that does not exist": (
        lambda: LAW.tilted(Tilt(toy.Quadratic([0.0, 0.0], [[-2.0, 0.0], [0.0, 1.0]]), 1.0)),
        ValueError,
        "the tilted law does not exist: its weight grows faster than the law decays",
    ),
    "a tilt without closed form": (
        lambda: LAW.tilted(FIRST),
        toy.NoClosedForm,
        "function has no closed form with this law; it has for Linear, Quadratic",
    ),
    "a reward of another dimension": (
        lambda: LAW.tilted(Tilt(toy.Linear([1.0]), 1.0)),
        ValueError,
        "the reward is for states of size 1, got 2",
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_bad_input_is_refused_with_a_reason(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Heun()])
def test_a_bad_condition_is_refused_before_the_first_step(sampler):
    guided = GuidedModel(MODEL, ESTIMATOR)
    for condition, error in ((None, ValueError), (["fox"] * 3, ValueError), ("cat", TypeError)):
        with pytest.raises(error, match="condition"):
            sample(guided, sampler, X, (1.0, 0.0), condition)
