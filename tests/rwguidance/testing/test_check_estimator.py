"""The check of estimators: it passes what conforms, and says what is wrong with the rest."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from common import randn
from rwguidance import (
    Bank,
    ConditionalExpectation,
    ImportanceSampling,
    LearnedShift,
    Model,
    PlugIn,
    RectifiedSchedule,
    TargetESS,
    Tilt,
    toy,
)
from rwguidance.testing import check_estimator

LAW = toy.GaussianMixture([0.0, 0.5], [[1.0, 0.0], [-1.0, 2.0]], [[[0.5, 0.1], [0.1, 0.4]]])
TILT = Tilt(toy.Linear([1.0, -0.5]), 0.7)
PATH = RectifiedSchedule()


class Exact(ConditionalExpectation):
    """The exact estimator, to be broken one line at a time."""

    def forward(self, model, x_t, t, condition=None):
        return toy.Oracle(LAW, TILT)(model, x_t, t, condition)


class Broken(Exact):
    """Replaces one field of the exact estimate."""

    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def forward(self, model, x_t, t, condition=None):
        estimate = super().forward(model, x_t, t)
        changes = {name: change(estimate) for name, change in self.changes.items()}
        return replace(estimate, **changes)


class Twice(Exact):
    def forward(self, model, x_t, t, condition=None):
        model(x_t, t)
        return super().forward(model, x_t, t)


class Never(Exact):
    def forward(self, model, x_t, t, condition=None):
        return super().forward(LAW.model(model.schedule), x_t, t)


class FirstTimeShift(Exact):
    def forward(self, model, x_t, t, condition=None):
        estimate = super().forward(model, x_t, t)
        first = torch.as_tensor(t, dtype=torch.float64).flatten()[0]
        return replace(estimate, shift=LAW.shift(TILT, x_t, first, model.schedule))


class RandomShift(Exact):
    def forward(self, model, x_t, t, condition=None):
        estimate = super().forward(model, x_t, t)
        return replace(estimate, shift=estimate.shift + 0.1 * torch.randn(x_t.shape))


class NeedsGradMode(Exact):
    def forward(self, model, x_t, t, condition=None):
        estimate = super().forward(model, x_t, t)
        return replace(estimate, shift=estimate.shift * torch.is_grad_enabled())


class Overwrites(Exact):
    def forward(self, model, x_t, t, condition=None):
        estimate = super().forward(model, x_t, t)
        x_t += 1
        return estimate


def one(values, number):
    """Values of which the last is another number."""

    values = values.clone()
    values.view(-1)[-1] = number
    return values


class Drifting(Model):
    """A model that never gives quite the same twice."""

    def __init__(self, part):
        super().__init__(PATH)
        self.part, self.calls = part, 0

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        prediction = LAW.model(PATH)(x_t, t)
        drift = 1 + 1e-12 * self.calls
        return replace(prediction, **{self.part: getattr(prediction, self.part) * drift})


X_T = randn(1, 4, 2)


def test_estimators_conform(schedule):
    model = LAW.model(schedule)
    bank = Bank(LAW.sample(200, torch.Generator().manual_seed(1)))
    for estimator in (
        toy.Oracle(LAW, TILT),
        ImportanceSampling(bank, TILT),
        ImportanceSampling(bank, TILT, TargetESS(0.1)),
        PlugIn(TILT),
        PlugIn(TILT, jacobian=False, damping=0.5),
    ):
        check_estimator(estimator, model, X_T)


def test_estimators_conform_with_conditions_and_in_half_precision():
    draws = LAW.sample(200, torch.Generator().manual_seed(1))
    estimator = ImportanceSampling(Bank(draws, ["a", "b"] * 100), TILT)
    prompts = ["b", "a", "a", "b"]
    check_estimator(estimator, LAW.model(PATH), X_T, prompts)
    check_estimator(estimator, LAW.model(PATH), X_T.bfloat16(), prompts)


def test_an_estimator_without_a_value_conforms():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))  # a network that learns keeps a graph

        def forward(self, x_t, t, condition):
            return self.factor * x_t * t[:, None].to(x_t)

    check_estimator(LearnedShift(Network()), LAW.model(PATH), X_T)


def test_more_calls_can_be_allowed():
    check_estimator(Twice(), LAW.model(PATH), X_T, calls=2)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Twice(), "must call the model once per estimate, got 2 calls"),
        (Never(), "must call the model once per estimate, got 0 calls"),
        (FirstTimeShift(), "every sample must be treated at its own time"),
        (NeedsGradMode(), "inference_mode must change no result"),
        (Overwrites(), "must not change its argument x_t"),
        (RandomShift(), "must not use the global random state"),
        (Broken(log_h=lambda e: e.log_h[:, None]), r"log_h of Broken must have shape \(4,\), got "),
        (Broken(log_h=lambda e: e.log_h.half()), "float32 or wider, got torch.float16"),
        (Broken(log_h=lambda e: e.log_h - torch.inf), "log_h of Broken must be finite, or NaN"),
        (
            Broken(log_h=lambda e: one(e.log_h, -torch.inf)),
            r"log_h of Broken must be finite, or NaN .* got values from -inf to -?\d",
        ),
        (Broken(shift=lambda e: one(e.shift, torch.nan)), "must be finite, got 1 NaN of 8 values"),
        (Broken(log_h=lambda e: e.log_h.mean() + 0 * e.log_h), "must not depend on the others"),
        (Broken(shift=lambda e: e.shift * torch.nan), "shift of Broken must be finite, got 8 NaN"),
        (Broken(shift=lambda e: e.shift.sum(1)), r"shift of Broken must have shape \(4, 2\)"),
        (Broken(shift=lambda e: e.shift - e.shift.mean(0)), "must not depend on the others"),
        (Broken(prediction=lambda e: e.prediction.shifted(e.shift)), "without the shift"),
        (Broken(diagnostics=lambda e: {"ess": torch.tensor(3.0)}), "diagnostic 'ess' of Broken "),
        (nn.Identity(), "expected a ConditionalExpectation, got Identity"),
    ],
)
def test_broken_estimators_are_caught(broken, message):
    state = torch.random.get_rng_state()
    with pytest.raises(AssertionError, match=message):
        check_estimator(broken, LAW.model(PATH), X_T.clone())
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("part", ["mean", "noise"])
def test_with_scale_zero_every_bit_of_the_model_is_left(part):
    with pytest.raises(AssertionError, match=r"with scale 0 must leave .* bit for bit"):
        check_estimator(Exact(), Drifting(part), X_T)


def test_one_sample_shows_nothing():
    with pytest.raises(AssertionError, match="x_t must hold at least two samples"):
        check_estimator(Exact(), LAW.model(PATH), X_T[:1])


class JustAPrediction(Exact):
    def forward(self, model, x_t, t, condition=None):
        return model(x_t, t)


def test_the_wrong_kind_of_answer_is_named():
    with pytest.raises(AssertionError, match="must return an Estimate, got Prediction"):
        check_estimator(JustAPrediction(), LAW.model(PATH), X_T)
