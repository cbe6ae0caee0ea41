"""The check of models: it passes what conforms, and says what is wrong with what does not."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from common import randn
from rwguidance import (
    DenoiserModel,
    NoiseModel,
    RectifiedSchedule,
    VelocityModel,
    VPSchedule,
    toy,
)
from rwguidance.testing import check_model, requirements
from rwguidance.testing.batches import mixed_times
from rwguidance.testing.requirements import require_same, untouched

LAW = toy.GaussianMixture([0.0, 0.5], [[1.0, 0.0], [-1.0, 2.0]], [[[0.5, 0.1], [0.1, 0.4]]])
PATH = RectifiedSchedule()


def x_0(dtype=torch.float64):
    return LAW.sample(16, torch.Generator().manual_seed(0)).to(dtype)


class Good(DenoiserModel):
    """The exact denoiser of a mixture, to be broken one line at a time."""

    def __init__(self, schedule=PATH):
        super().__init__(schedule)
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def denoise(self, x_t, t, condition=None):
        return LAW.denoise(x_t, t, self.schedule)


class FlippedClock(Good):
    def denoise(self, x_t, t, condition=None):
        return LAW.denoise(x_t, 1 - t, self.schedule)


class FlippedVelocity(VelocityModel):
    def velocity(self, x_t, t, condition=None):
        return -LAW.model(self.schedule)(x_t, t).velocity


class Timesteps(NoiseModel):
    """Feeds the network a time of 1e-3 t, as if t went to 1000."""

    def noise(self, x_t, t, condition=None):
        return LAW.model(self.schedule)(x_t, 1e-3 * torch.as_tensor(t, dtype=torch.float64)).noise


class BatchMean(Good):
    def denoise(self, x_t, t, condition=None):
        return super().denoise(x_t, t) + 0.1 * x_t.mean(0)


class FirstTime(Good):
    def denoise(self, x_t, t, condition=None):
        return super().denoise(x_t, torch.as_tensor(t, dtype=torch.float64).flatten()[0])


class ScalarTime(Good):
    def denoise(self, x_t, t, condition=None):
        return super().denoise(x_t, float(t))


class Dropout(Good):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def denoise(self, x_t, t, condition=None):
        mask = torch.rand(x_t.shape, generator=self.generator) < 0.9
        return super().denoise(x_t, t) * mask


class GlobalNoise(Good):
    def denoise(self, x_t, t, condition=None):
        state = torch.random.get_rng_state()
        torch.randn(2)
        moved = torch.random.get_rng_state()
        torch.random.set_rng_state(state if self.training else moved)
        return super().denoise(x_t, t)


class Scaled(Good):
    def denoise(self, x_t, t, condition=None):
        return super().denoise(x_t.mul_(1.0).add_(1.0), t)


class OneColumn(Good):
    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t)
        return replace(prediction, mean=prediction.mean[:, :1])


class Inconsistent(Good):
    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t)
        return replace(prediction, noise=prediction.noise * 1.001)


class OneInconsistent(Good):
    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t)
        prediction.noise[-1, 0] += 1e-6
        return prediction


class OtherScales(Good):
    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t)
        return replace(prediction, scales=VPSchedule().at(t, x_t))


class JustTheMean(Good):
    def forward(self, x_t, t, condition=None):
        return super().forward(x_t, t).mean


class Half(Good):
    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t)
        return replace(prediction, mean=prediction.mean.half())


class Infinite(Good):
    def denoise(self, x_t, t, condition=None):
        return super().denoise(x_t, t) / (1 - torch.as_tensor(t).reshape(-1, 1)).round()


class OneNaN(Good):
    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t)
        prediction.mean[-1, 0] = torch.nan
        return prediction


class LostInNoise(Good):
    def denoise(self, x_t, t, condition=None):
        return super().denoise(x_t, t) + 3 * (torch.as_tensor(t).reshape(-1, 1) > 0.8)


class Centered(DenoiserModel):
    """Denoiser of N(label, I), by its condition."""

    def denoise(self, x_t, t, condition=None):
        scales = self.schedule.at(t, like=x_t)
        center = torch.as_tensor(getattr(condition, "labels", condition)).reshape(-1, 1).to(x_t)
        gain = scales.alpha / (scales.alpha**2 + scales.sigma**2)
        return center + gain * (x_t - scales.alpha * center)


class FirstCondition(Centered):
    def denoise(self, x_t, t, condition=None):
        return super().denoise(x_t, t, [condition[0]] * len(x_t))


class Sorting(Centered):
    def denoise(self, x_t, t, condition=None):
        condition.sort()
        return super().denoise(x_t, t, condition)


LABELS = [3, 0, 2, 1]
LABELED = torch.tensor(LABELS)[:, None] + randn(0, 4, 2)


def test_models_conform(schedule):
    check_model(LAW.model(schedule), x_0())
    check_model(LAW.model(schedule), (3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_conform_in_every_precision(dtype):
    check_model(Good(), x_0(dtype))


@pytest.mark.parametrize("labels", [LABELS, tuple(LABELS), torch.tensor(LABELS)])
def test_conditional_models_conform(labels):
    check_model(Centered(PATH), LABELED, labels)


def test_a_condition_of_a_foreign_type_needs_a_selector():
    class Labels:
        def __init__(self, labels):
            self.labels = labels

    with pytest.raises(TypeError, match="take a list of indices, got Labels"):
        check_model(Centered(PATH), LABELED, Labels(LABELS))
    select = lambda condition, index: Labels([condition.labels[i] for i in index])
    check_model(Centered(PATH), LABELED, Labels(LABELS), select=select)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (FlippedClock(), "does not denoise at t = 0.1"),
        (FlippedVelocity(PATH), "does not denoise"),
        (Timesteps(PATH), "does not denoise at t = 0.[59]"),
        (BatchMean(), "a sample must not depend on the others of its batch; mean differs"),
        (FirstTime(), "every sample must be treated at its own time"),
        (ScalarTime(), r"states \(16, 2\) and times a number fails with"),
        (Dropout(), "two equal calls must agree; call .eval()"),
        (GlobalNoise().eval(), "must not use the global random state"),
        (Scaled(), "must not change its argument x_t"),
        (OneColumn(), r"the mean predicted by OneColumn must have shape \(16, 2\), got \(16, 1\)"),
        (Inconsistent(), r"must satisfy alpha \* mean \+ sigma \* noise = x_t"),
        (OneInconsistent(), r"= x_t, but at t = 0\.1 it is off by 1e-07; build it with"),
        (OtherScales(), "scales of a prediction of OtherScales must be schedule.at"),
        (JustTheMean(), "must return a Prediction, got Tensor"),
        (Half(), "mean predicted by Half must be float32 or wider, got torch.float16"),
        (Infinite(), "predicted by Infinite at t = .* must be finite"),
        (OneNaN(), "mean predicted by OneNaN at t = 0.1 must be finite, got 1 NaN of 32 values"),
        (LostInNoise(), "does not denoise at t = 0.9"),
        (nn.Identity(), "expected a Model, got Identity"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_models_are_caught(broken, message):
    state = torch.random.get_rng_state()
    with pytest.raises(AssertionError, match=message):
        check_model(broken, x_0())
    torch.random.set_rng_state(state)


def test_the_error_of_a_model_is_told_next_to_that_of_a_linear_guess():
    class Nothing(Good):
        def denoise(self, x_t, t, condition=None):
            return torch.zeros_like(x_t)

    power = float(x_0().square().mean())
    linear = power * 0.01 / (0.01 + 0.81 * power)
    message = f"of its mean is {power:.4g}, while a linear guess reaches {linear:.4g}. Is the sign"
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_model(Nothing(), x_0())


@pytest.mark.parametrize(
    ("broken", "labels", "message"),
    [
        (FirstCondition(PATH), LABELS, "must not depend on the others"),
        (Good(), LABELS, "must depend on its condition"),
        (Centered(PATH), [1, 1, 1, 1], "give conditions that differ"),
        (Sorting(PATH), list(LABELS), "must not change its argument condition"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_conditioning_is_caught(broken, labels, message):
    with pytest.raises(AssertionError, match=message):
        check_model(broken, (4, 2) if isinstance(broken, Good) else LABELED, labels)


def test_one_sample_shows_nothing():
    with pytest.raises(AssertionError, match=r"x_0 must hold at least two samples.*\(1, 2\)"):
        check_model(Good(), x_0()[:1])


def test_the_wrong_kind_of_object_is_named():
    with pytest.raises(AssertionError, match="expected a Model, got ABCMeta"):
        check_model(Good, x_0())


class Layer(DenoiserModel):
    """A network that is not trained, which takes states in its own precision alone."""

    def __init__(self):
        super().__init__(PATH)
        self.weight = nn.Parameter(torch.eye(2))

    def denoise(self, x_t, t, condition=None):
        return x_t @ self.weight


def test_a_network_that_is_not_trained_is_asked_in_its_own_precision():
    check_model(Layer(), (3, 2))


def test_the_largest_difference_is_stated_beside_what_may_be():
    a, b = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([1.0, -2.5, 0.25])
    message = r"apart; x differs by 0\.5, expected at most 0\.2$"
    with pytest.raises(AssertionError, match=message):
        require_same({"x": a}, {"x": b}, 0.1, "apart")
    require_same({"x": a}, {"x": b}, 0.25, "apart")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_entry_of_an_argument_that_is_changed_is_noticed(place):
    for argument in (["a", "b", "c"], torch.arange(3)):
        noticed = pytest.raises(AssertionError, match=r"^f must not change its argument it$")
        with noticed, untouched("f", other=[], it=argument):
            argument[place] = "d" if isinstance(argument, list) else 9
    prompts = ["a"]
    with noticed, untouched("f", it=prompts):
        prompts.append("b")


@pytest.mark.parametrize("changed", [0, 1])
def test_a_generator_of_any_device_counts_as_global_state(monkeypatch, changed):
    states = [torch.zeros(2), torch.zeros(2)]
    monkeypatch.setattr(requirements, "_random_state", lambda: [one.clone() for one in states])
    with untouched("f"):
        pass
    noticed = pytest.raises(AssertionError, match=r"^f must not use the global random state")
    with noticed, untouched("f"):
        states[changed][1] = 1


def test_what_agrees_may_be_in_two_dtypes():
    a = torch.tensor([1.0, -2.0])
    for one, other in ((a, a.double()), (a.double(), a), (a, a.half())):
        require_same({"x": one}, {"x": other}, 0.0, "apart")
        with pytest.raises(AssertionError, match=r"x differs by 0\.5, expected at most 0\.2$"):
            require_same({"x": one}, {"x": other + 0.5}, 0.1, "apart")


def test_what_both_lack_is_no_difference():
    a = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    require_same({"x": a}, {"x": a.clone()}, 0.0, "apart")
    for place, other, error in ((3, 1.5, "0.5"), (3, torch.nan, "inf"), (0, 1.0, "inf")):
        b = a.clone()
        b[place] = other
        with pytest.raises(AssertionError, match=rf"x differs by {error}, expected at most 0\.1$"):
            require_same({"x": a}, {"x": b}, 0.1, "apart")


def test_times_of_a_batch_are_whole_in_double_precision():
    assert mixed_times([0.1, 0.7], 3).tolist() == [0.1, 0.7, 0.1]
