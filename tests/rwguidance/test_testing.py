"""Conformance checks: they pass what conforms, and say what is wrong with what does not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import rewards
from common import randn
from rwguidance import (
    ConditionalExpectation,
    DenoiserModel,
    ImportanceSampling,
    LearnedShift,
    NoiseModel,
    PlugIn,
    RectifiedSchedule,
    Schedule,
    TargetESS,
    Tilt,
    VelocityModel,
    VPSchedule,
    toy,
)
from rwguidance.bank import Bank
from rwguidance.testing import (
    check_estimator,
    check_model,
    check_reward,
    check_schedule,
)

LAW = toy.GaussianMixture([0.0, 0.5], [[1.0, 0.0], [-1.0, 2.0]], [[[0.5, 0.1], [0.1, 0.4]]])
TILT = Tilt(toy.Linear([1.0, -0.5]), 0.7)
PATH = RectifiedSchedule()


def x_0(dtype=torch.float64):
    return LAW.sample(16, torch.Generator().manual_seed(0)).to(dtype)


# Schedules.


class Rectified(Schedule):
    """A good schedule, to be broken one formula at a time."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def time(self, log_snr):
        return torch.sigmoid(-0.5 * log_snr)


class Backwards(Rectified):
    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - t

    def time(self, log_snr):
        return torch.sigmoid(0.5 * log_snr)


class HalfLogSNR(Rectified):
    def time(self, log_snr):
        return torch.sigmoid(-log_snr)


class Detached(Rectified):
    def sigma(self, t):
        return t.detach() + 0 * t


class Single(Rectified):
    def sigma(self, t):
        return t.float()


class Numbers(Rectified):
    def alpha(self, t):
        return 1 - float(t)


class Negative(Rectified):
    def alpha(self, t):
        return 1 - 1.01 * t


class Flat(Rectified):
    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t.clamp(max=0.5) + 0.1


class Normalized(Rectified):
    def sigma(self, t):
        return t / t.max().clamp_min(0.7)


class InPlace(Rectified):
    def alpha(self, t):
        return t.neg_().add_(1) if not t.requires_grad else 1 - t


def test_schedules_conform(schedule):
    check_schedule(schedule)
    check_schedule(Rectified())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Backwards(), "must run from data"),
        (HalfLogSNR(), "time must invert log_snr"),
        (Detached(), "rate of Detached.sigma .* is 0 by automatic differentiation, but 1 by"),
        (Single(), "Single.sigma must have dtype torch.float64, got torch.float32"),
        (Numbers(), "Numbers.alpha of float64 times of shape .* fails with"),
        (Negative(), "alpha must be finite and at least 0 .* got values from -0.01"),
        (Flat(), "strictly decreasing log-SNR"),
        (Normalized(), "must treat every time by itself"),
        (InPlace(), "must not change its argument t"),
        (nn.Identity(), "expected a Schedule, got Identity"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_schedules_are_caught(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_schedule(broken)


# Models.


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
        (ScalarTime(), r"states \(16, 2\) and times \(16,\) fails with"),
        (Dropout(), "two equal calls must agree; call .eval()"),
        (GlobalNoise().eval(), "must not use the global random state"),
        (Scaled(), "must not change its argument x_t"),
        (OneColumn(), r"the mean predicted by OneColumn must have shape \(16, 2\), got \(16, 1\)"),
        (Inconsistent(), r"must satisfy alpha \* mean \+ sigma \* noise = x_t"),
        (OtherScales(), "scales of a prediction of OtherScales must be schedule.at"),
        (JustTheMean(), "must return a Prediction, got Tensor"),
        (Half(), "mean predicted by Half must be float32 or wider, got torch.float16"),
        (Infinite(), "predicted by Infinite at t = .* must be finite"),
        (nn.Identity(), "expected a Model, got Identity"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_broken_models_are_caught(broken, message):
    state = torch.random.get_rng_state()
    with pytest.raises(AssertionError, match=message):
        check_model(broken, x_0())
    torch.random.set_rng_state(state)


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


# Estimators.


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
        def forward(self, x_t, t, condition):
            return x_t * t[:, None].to(x_t)

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


# Rewards.


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
        (lambda x, c: cubic(x).exp() * torch.inf, "must not return NaN or .inf"),
        (lambda x, c: with_letters(x, c[::-1]), "must not depend on the others"),
        (lambda x, c: with_letters(x, [c.pop()] * 5), "must not change its argument condition"),
        (remembers(), "two equal calls must agree"),
        (in_place, "must not change its argument x"),
        (global_noise, "must not use the global random state"),
        (wrong_gradient, "the gradient of wrong_gradient is wrong: along a random direction"),
        (stops_half, "the gradient of stops_half is wrong"),
        (lambda x, c: cubic(x).detach(), "carries no gradient; is there a detach"),
        (3.0, "a reward must be callable, got float"),
    ],
)
def test_broken_rewards_are_caught(broken, message):
    state = torch.random.get_rng_state()
    with pytest.raises(AssertionError, match=message):
        check_reward(broken, ITEMS.clone(), list(PROMPTS), differentiable=True)
    torch.random.set_rng_state(state)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_model(Good(), x_0()[:1]), r"x_0 must hold at least two samples.*\(1, 2\)"),
        (lambda: check_estimator(Exact(), Good(), X_T[:1]), "x_t must hold at least two samples"),
        (lambda: check_reward(cubic, X_T[:1]), "x must hold at least two samples"),
        (lambda: check_reward(cubic, X_T * 0, differentiable=True), "x must not be constant"),
    ],
)
def test_one_sample_shows_nothing(check, message):
    with pytest.raises(AssertionError, match=message):
        check()


class JustAPrediction(Exact):
    def forward(self, model, x_t, t, condition=None):
        return model(x_t, t)


def test_the_wrong_kind_of_object_is_named():
    with pytest.raises(AssertionError, match="expected a Model, got ABCMeta"):
        check_model(Good, x_0())
    with pytest.raises(AssertionError, match="must return an Estimate, got Prediction"):
        check_estimator(JustAPrediction(), Good(), X_T)


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


class MixesUpLists(Brightness):
    def __call__(self, images, prompts=None):
        return super().__call__(images[::-1] if isinstance(images, list) else images, prompts)


def test_rewards_of_images_must_take_any_image():
    images = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    check_reward(Brightness(), images)
    for broken, message in (
        (EvenOnly(), r"EvenOnly \(odd size\) .* fails with RuntimeError"),
        (Narrow(), r"the result of Narrow \(torch.float16\) must be float32 or wider"),
        (MixesUpLists(), "images of several sizes in one list must score as they do alone"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_reward(broken, images)
