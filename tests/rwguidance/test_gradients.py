"""Gradients: those of formulas are those of finite differences, those of estimates are none.

What trains a network or moves a state differentiates these functions, in every argument that is a
tensor. A detach() too many changes no value, only a gradient.
"""

from functools import partial

import pytest
import torch

from common import SCHEDULES, randn
from rwguidance import (
    Bank,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
    Prediction,
    RectifiedSchedule,
    Tempered,
    Tilt,
    losses,
    regularizers,
    toy,
    weights,
)
from rwguidance.estimators import FMPS, FlowMap, PosteriorSampling, SecondOrderPlugIn
from rwguidance.estimators.base import gradients_of, shift_norm

PATH = RectifiedSchedule()
T = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
SCALES = PATH.at(T, randn(0, 3, 2))
EYE = [[1.0, 0.2], [0.2, 0.7]]
MIXTURE = toy.GaussianMixture([0.1, -0.4], [[0.0, 1.0], [1.0, -0.5]], [EYE, EYE])
REWARDS = {
    "linear": toy.Linear([1.0, -0.5], c=0.2),
    "quadratic": toy.Quadratic([0.3, -0.2], EYE, b=[0.5, 0.1]),
    "bumps": toy.Bumps([0.5, 1.0], [[0.0, 1.0], [1.0, 0.0]], [EYE, EYE]),
}
# Bumps are closed for beta = 1 only.
TILTS = {name: Tilt(REWARDS[name], 1.0 if name == "bumps" else 0.7) for name in REWARDS}
BANK = Bank(randn(1, 12, 2))

A, B, C, D = (randn(10 + i, 3, 2) for i in range(4))
W, V, U = (randn(20 + i, 3) for i in range(3))
LONG = randn(30, 2, 60)


def guided(mean, noise):
    return Prediction(mean, noise, SCALES)


FORMULAS = {
    "exp_mse": (losses.exp_mse, (W, V)),
    "poisson": (losses.poisson, (W, V)),
    "itakura_saito": (losses.itakura_saito, (W, V)),
    "weighted_bce": (losses.weighted_bce, (W, V)),
    "log_mse": (losses.log_mse, (W, V)),
    "contrastive": (losses.contrastive, (A, B)),
    "marginal_residual": (losses.marginal_residual, (A, B, C, W)),
    "centered_residual": (lambda *x: losses.centered_residual(*x, V), (A, B, C, W)),
    "consistency": (
        lambda mean, noise, x, w: regularizers.consistency(guided(mean, noise), x, w),
        (A, B, C, W),
    ),
    "cycle": (lambda log_h, w: regularizers.cycle(log_h, U, w), (W, V)),
    "gradient_penalty": (lambda x: regularizers.gradient_penalty(x, SCALES.sigma), (A,)),
    "flow_prior": (
        lambda x, noise: regularizers.flow_prior(MIXTURE.model(PATH), x, T, noise),
        (A, B),
    ),
    "log_mean_exp": (weights.log_mean_exp, (LONG,)),
    "ess": (weights.ess, (LONG,)),
    "pareto_k": (weights.pareto_k, (LONG,)),
    "norm of a shift": (shift_norm, (A,)),
    "weigh": (TILTS["linear"].weigh, (W,)),
    "shifted": (lambda a, b, c: guided(a, b).shifted(c).noise, (A, B, C)),
    "score": (lambda a, b: guided(a, b).score, (A, B)),
    "velocity": (lambda a, b: guided(a, b).velocity, (A, B)),
    "perturb": (lambda a, b: PATH.perturb(a, T, b), (A, B)),
}

LAWS = {
    "gaussian": toy.Gaussian([0.0, 0.5], EYE),
    "mixture": MIXTURE,
    "points": toy.Empirical(randn(2, 5, 2)),
    "wide points": toy.Empirical(randn(2, 5, 2), 0.3),
}


def differentiable(function, *inputs):
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    found = function(*inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    # gradcheck leaves out what carries no gradient
    return all(y.requires_grad for y in outputs) and torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_of_formulas(name):
    function, inputs = FORMULAS[name]
    assert differentiable(function, *inputs)


@pytest.mark.parametrize("name", REWARDS)
def test_gradients_of_rewards(name):
    assert differentiable(REWARDS[name], A)
    assert differentiable(TILTS[name], A)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_of_schedules(schedule):
    path, t = SCHEDULES[schedule], torch.tensor([0.21, 0.47, 0.73], dtype=torch.float64)
    for function in (path.sigma, path.log_snr):
        assert differentiable(function, t)
    if schedule != "ve":  # whose alpha is 1
        assert differentiable(path.alpha, t)


@pytest.mark.parametrize("name", LAWS)
def test_gradients_of_laws(name):
    law = LAWS[name]
    assert differentiable(lambda x: law.denoise(x, T, PATH), A)
    if name != "points":
        assert differentiable(law.log_prob, A)
    for tilt in TILTS.values():
        moments = partial(law.tilted_moments, tilt, t=T, schedule=PATH)
        assert differentiable(lambda x, moments=moments: moments(x_t=x), A)


def test_gradients_of_steps_and_of_quadrature():
    line = toy.Gaussian([0.1], [[0.8]])
    step = Tilt(toy.Step(0.2, 1.5), 1.0)
    log_prob = toy.StepTilted(line, step).log_prob
    assert differentiable(log_prob, A[:, :1])
    assert differentiable(lambda x: line.tilted_moments(step, x, T, PATH), A[:, :1])
    smooth = Tilt(lambda x, condition: x[:, 0].sin(), 0.5)
    mixture = toy.GaussianMixture([0.1, -0.4], [[0.0], [1.0]], [[[0.8]], [[0.3]]])
    for law in (line, mixture):
        moments = partial(toy.quadrature, law, smooth, t=T, schedule=PATH, nodes=8)
        assert differentiable(lambda x, moments=moments: moments(x_t=x), A[:, :1])


@pytest.mark.parametrize("kernel", [None, Tempered(0.5)], ids=repr)
def test_gradients_of_importance_sampling(kernel):
    estimator = ImportanceSampling(BANK, TILTS["linear"], kernel)
    model = MIXTURE.model(PATH)

    def estimate(x):
        found = estimator(model, x, T)
        return found.log_h, found.shift, found.prediction.mean

    assert differentiable(estimate, A)


def test_gradients_of_importance_sampling_where_weights_underflow():
    """At the first state no draw has both a kernel and a weight that floating point holds."""

    far = lambda x, condition: ((x - A[0]).norm(dim=1) > 1).double()
    t, tilt = torch.tensor([0.02, 0.5, 0.8], dtype=torch.float64), Tilt(far, 1 / 2000)
    estimator, model = ImportanceSampling(BANK, tilt), MIXTURE.model(PATH)
    scales, points = PATH.at(t, A), BANK.x_0.double()
    gap = (A[:, None] - scales.alpha[:, None] * points) / scales.sigma[:, None]
    log_kernel = -0.5 * gap.square().sum(2)
    exact = (log_kernel + tilt(points)).logsumexp(1) - log_kernel.logsumexp(1)
    torch.testing.assert_close(estimator(model, A, t).log_h, exact)
    assert differentiable(lambda x: estimator(model, x, t).log_h, A)
    assert differentiable(lambda x: estimator(model, x, t).shift, A)


class Network(torch.nn.Module):
    def __init__(self, shift=False):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.shift = shift

    def forward(self, x_t, t, condition=None):
        return self.gain * (x_t if self.shift else x_t.square().sum(1))


BY_INPUT_GRADIENT = {
    "plug-in": PlugIn(TILTS["quadratic"]),
    "fmps": FMPS(TILTS["quadratic"]),
    "second order": SecondOrderPlugIn(TILTS["quadratic"]),
    "posterior draws": PosteriorSampling(
        TILTS["quadratic"], FlowMap([1.0, 0.1, 0.0], renoise=1.0), 2, first_order=True
    ),
    "learned": LearnedExpectation(Network()),
}


@pytest.mark.parametrize("name", BY_INPUT_GRADIENT)
def test_estimates_by_an_input_gradient_hold_no_graph(name):
    found = BY_INPUT_GRADIENT[name](MIXTURE.model(PATH), A, T)
    values = [found.log_h, found.shift, *found.diagnostics.values()]
    values += [found.prediction.mean, found.prediction.noise]
    assert not any(value.requires_grad for value in values)


def test_scales_and_shapes_of_tails_hold_no_graph():
    t = T.clone().requires_grad_()
    scales = PATH.at(t, A)
    values = [scales.alpha, scales.sigma, scales.alpha_rate, scales.sigma_rate]
    estimator = ImportanceSampling(Bank(randn(1, 60, 2)), TILTS["linear"], pareto_k=True)
    found = estimator(MIXTURE.model(PATH), A.clone().requires_grad_(), T)
    assert not any(value.requires_grad for value in (*values, found.diagnostics["pareto_k"]))
    assert found.diagnostics["ess"].requires_grad


def test_input_gradients_end_at_the_states():
    x = A.clone().requires_grad_()
    given = 2 * x
    with torch.no_grad(), gradients_of(given) as states:
        states.square().sum().backward()
    torch.testing.assert_close(states.grad, 4 * A)
    assert x.grad is None


def test_a_learned_shift_trains_its_network():
    estimator = LearnedShift(Network(True))
    found = estimator(MIXTURE.model(PATH), A, T)
    assert found.shift.requires_grad
