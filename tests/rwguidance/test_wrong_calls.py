"""Wrong calls of the public API: one clear error, which names the argument, or the right value.

A right call of every public class and function is written by hand. The wrong ones are generated
from the signatures and annotations: each argument in turn gets values of another type, range, shape
or dtype. Within a second, each of them either raises TypeError or ValueError with a message that
names the argument, or returns what the right call returns (an integer for a float, say, is none the
worse). A sample of them is tried by default, all of them with the slow tests.
"""

import collections.abc
import inspect
import math
import os
import re
import time
import types
import typing
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from torch import nn

import backbones
import rewards
import rwguidance as rw
from common import needs_testbed, randn
from rwguidance import (
    diagnostics,
    losses,
    networks,
    regularizers,
    temperature,
    toy,
    training,
    weights,
)
from rwguidance.evaluation import embeddings, prompts

STEP = 37
"""One of so many wrong calls is tried by default."""

PATH = rw.RectifiedSchedule()
X = randn(0, 3, 2)
W = randn(1, 3)
KEYS = ["a", "b", "a"]
BANK = rw.Bank(randn(2, 40, 2), ["a", "b"] * 20)
FIRST = rw.Tilt(lambda x, condition: x.flatten(1)[:, 0], 1.0)
LINEAR = rw.Tilt(toy.Linear([1.0, 0.5]), 1.0)
LAW = toy.Gaussian([0.0, 0.5], [[1.0, 0.2], [0.2, 1.0]])
LINE = toy.Gaussian([0.0], [[1.0]])
POINTS = toy.Empirical(randn(3, 5, 2))
MODEL = LAW.model(PATH)
SCALES = PATH.at(0.5, X)
IDENTITY = [[1.0, 0.0], [0.0, 1.0]]


class Denoiser(rw.DenoiserModel):
    def denoise(self, x_t, t, condition=None):
        return x_t * (1 - t[:, None]).to(x_t.dtype)


class Network(nn.Module):
    """A network for log h, with one parameter; `shift` makes it one for the shift."""

    def __init__(self, shift=False):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.shift = shift

    def forward(self, x_t, t, condition=None):
        return self.gain * (x_t if self.shift else x_t.square().sum(1))


def seeded():
    return torch.Generator().manual_seed(0)


def draw(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def identity(noise, condition):
    return noise


SELECTION = rw.best_of_n(identity, FIRST, draw, 3, 2, generator=seeded())
STATE = dict(x_t=X, t=0.5)
ESTIMATE = dict(model=MODEL, x_t=X, t=0.5, condition=KEYS)
SELECT = dict(generate=identity, tilt=FIRST, draw=draw, outputs=3, condition=KEYS, batch_size=2)
ONE_STEP = dict(
    generate=lambda noise, condition: noise,
    tilt=LINEAR,
    draw=lambda n, generator: X[:n],
    condition=None,
    batch_size=2,
)
OBJECTIVE = dict(model=MODEL, bank=BANK, tilt=FIRST, batch_size=8, times=training.uniform_times)
LOSS = dict(log_h=W, log_w=W.flip(0))
RESIDUAL = dict(shift=X, mean=X + 1, x_0=X - 1, log_w=W)


def objective(network, generator):
    return {"loss": network(draw(4, generator), torch.ones(4)).square().mean()}


LOOK = rw.LookAhead(LINEAR)

RIGHT = {
    # schedules, models, predictions
    rw.VPSchedule: dict(beta_min=0.1, beta_max=20.0),
    rw.VESchedule: dict(sigma_min=0.01, sigma_max=50.0),
    rw.DiscreteSchedule: dict(alphas_cumprod=[0.9, 0.5, 0.1]),
    PATH.at: dict(t=0.5, like=X),
    PATH.perturb: dict(x_0=X, t=0.5, noise=X.flip(0)),
    Denoiser: dict(schedule=PATH),
    Denoiser(PATH).__call__: STATE,
    MODEL.__call__: STATE,
    rw.Prediction.from_mean: dict(mean=X, x_t=X + 1, scales=SCALES),
    rw.Prediction.from_noise: dict(noise=X, x_t=X + 1, scales=SCALES),
    rw.Prediction.from_score: dict(score=X, x_t=X + 1, scales=SCALES),
    rw.Prediction.from_velocity: dict(velocity=X, x_t=X + 1, scales=SCALES),
    rw.Prediction(X, X, SCALES).shifted: dict(shift=X),
    # tilts and banks
    rw.Tilt: dict(reward=toy.Linear([1.0, 0.5]), beta=0.5, decode=None),
    FIRST.score: dict(x_0=X),
    FIRST.weigh: dict(rewards=W),
    rw.Tilt.for_kl: dict(reward=toy.Linear([1.0, 0.5]), bank=BANK, nats=0.5, decode=None),
    rw.Tilt.for_ess: dict(reward=toy.Linear([1.0, 0.5]), bank=BANK, fraction=0.5, decode=None),
    rw.Tilt.for_reward: dict(reward=toy.Linear([1.0, 0.5]), bank=BANK, level=0.5, decode=None),
    temperature.beta_for_kl: dict(rewards=[W], nats=0.1),
    temperature.beta_for_ess: dict(rewards=[W], fraction=0.8),
    temperature.beta_for_reward: dict(rewards=[W], level=float(W.mean()) + 0.1),
    rw.Bank: dict(x_0=X, condition=KEYS, rewards=W, origin=None),
    BANK.scored: dict(tilt=FIRST, batch_size=8, progress=False),
    BANK.to: dict(device="cpu", dtype=torch.float32),
    # estimators and guidance
    rw.ImportanceSampling: dict(bank=BANK, tilt=FIRST, kernel=None),
    rw.Tempered: dict(factor=0.5),
    rw.TargetESS: dict(fraction=0.5),
    rw.PlugIn: dict(tilt=LINEAR, jacobian=True, damping=None, prior_variance=1.0),
    rw.LookAhead: dict(tilt=LINEAR),
    rw.LearnedExpectation: dict(network=Network()),
    rw.LearnedShift: dict(network=Network(True)),
    toy.Oracle: dict(law=LAW, tilt=LINEAR),
    rw.ImportanceSampling(BANK, FIRST).__call__: ESTIMATE,
    rw.PlugIn(LINEAR).__call__: ESTIMATE,
    rw.LookAhead(LINEAR).__call__: ESTIMATE,
    rw.LearnedExpectation(Network()).__call__: ESTIMATE,
    rw.LearnedShift(Network(True)).__call__: ESTIMATE,
    toy.Oracle(LAW, LINEAR).__call__: ESTIMATE,
    rw.GuidedModel: dict(
        base=MODEL, estimator=toy.Oracle(LAW, LINEAR), scale=1.0, window=(0.0, 1.0)
    ),
    rw.GuidedModel(MODEL, toy.Oracle(LAW, LINEAR)).__call__: STATE,
    # sampling
    rw.DDIM: dict(eta=0.5),
    rw.sample: dict(
        model=MODEL,
        sampler=rw.DDIM(),
        x_1=X,
        times=[1.0, 0.5, 0.0],
        condition=KEYS,
        generator=None,
        progress=False,
        trace=None,
        gradient=False,
    ),
    rw.TwistedSMC: dict(
        tilt=LINEAR,
        twist=LOOK,
        scale=0.5,
        window=(0.0, 1.0),
        threshold=0.5,
        resample=weights.residual,
        potential=None,
        stop=None,
    ),
    rw.TwistedSMC(LINEAR, LOOK).sample: dict(
        model=MODEL,
        sampler=rw.DDIM(eta=1.0),
        x_1=X,
        times=[1.0, 0.5, 0.0],
        condition=KEYS,
        generator=seeded,
        particles=None,
        batch_size=None,
    ),
    rw.flow_map: dict(model=MODEL, sampler=rw.DDIM(), times=[1.0, 0.0]),
    rw.best_of_n: dict(**SELECT, n=2, generator=seeded),
    rw.soft_best_of_n: dict(**SELECT, n=2, generator=seeded),
    rw.pcn: dict(
        generate=identity,
        tilt=FIRST,
        draw=draw,
        start=SELECTION,
        steps=1,
        rho=0.5,
        generator=seeded,
        batch_size=2,
    ),
    weights.gumbel: dict(shape=(3, 2), generator=seeded),
    weights.log_uniform: dict(shape=(3, 2), generator=seeded),
    weights.ess: dict(log_w=W, dim=-1),
    weights.log_mean_exp: dict(log_w=W, dim=-1),
    weights.residual: dict(log_w=W, n=3, generator=seeded),
    weights.systematic: dict(log_w=W, n=3, generator=seeded),
    weights.pareto_k: dict(log_w=randn(0, 40)),
    diagnostics.sliced_wasserstein: dict(x=X, y=X + 1, projections=8, generator=seeded),
    # losses, training, networks
    losses.exp_mse: LOSS,
    losses.poisson: LOSS,
    losses.itakura_saito: LOSS,
    losses.weighted_bce: LOSS,
    losses.log_mse: LOSS,
    losses.contrastive: dict(log_h=X, log_w=X.flip(0)),
    losses.marginal_residual: RESIDUAL,
    losses.centered_residual: dict(**RESIDUAL, log_h=W),
    regularizers.consistency: dict(guided=rw.Prediction(X, X, SCALES), noise=X + 1, log_w=W),
    regularizers.cycle: dict(log_h=W, log_ratio=W + 1, log_w=W),
    regularizers.gradient_penalty: dict(gradient=X, sigma=SCALES.sigma),
    training.ExpectationObjective: dict(
        **OBJECTIVE, eta=0.0, preferred=None, penalty=0.0, group_size=1
    ),
    training.EstimatedShiftObjective: dict(**OBJECTIVE, tilted=0.5, effective=2.0),
    training.StrengthsObjective: dict(objectives={1.0: objective}),
    training.OutputObjective: dict(**ONE_STEP, variance=1.0),
    training.GradientObjective: dict(**ONE_STEP, std=1.0, variance=1.0, pictures=4, seed=0),
    training.NoiseObjective: dict(**ONE_STEP, std=1.0, prior=None),
    training.ShiftObjective: OBJECTIVE,
    training.train: dict(
        network=Network(),
        objective=objective,
        steps=1,
        learning_rate=1e-3,
        seed=0,
        max_norm=None,
        checkpoint=None,
        save_every=1,
        progress=False,
    ),
    training.tilted_gain: dict(bank=BANK, tilt=FIRST),
    training.guided_gain: dict(
        model=MODEL,
        estimator=rw.PlugIn(LINEAR),
        tilt=LINEAR,
        sampler=rw.DDIM(),
        times=[0.9, 0.5, 0.0],
        noise=X,
        condition=None,
    ),
    training.calibrate: dict(gain=lambda scale: torch.full((3,), scale), target=1.5),
    training.uniform_times: dict(n=3, generator=seeded),
    networks.ExpectationMLP: dict(event=(2,), labels=None, width=8, depth=2, seed=0),
    networks.ShiftMLP: dict(event=(2,), schedule=PATH, labels=None, width=8, depth=2, seed=0),
    networks.GuidanceNetwork: dict(
        channels=2,
        schedule=PATH,
        output="shift",
        text=None,
        tokens=None,
        strength=False,
        widths=(8, 8),
        depth=1,
        scales=None,
        seed=0,
    ),
    networks.AtStrength: dict(
        network=networks.GuidanceNetwork(2, PATH, strength=True, widths=(8, 8), depth=1),
        strength=1.0,
    ),
    networks.LatentExpectation: dict(
        channels=2, schedule=PATH, text=None, widths=(8, 8), depth=1, seed=0
    ),
    networks.LatentShift: dict(
        channels=2, schedule=PATH, text=None, widths=(8, 8), depth=1, seed=0
    ),
    # toys
    toy.Gaussian: dict(mean=[0.0, 0.5], covariance=IDENTITY),
    toy.GaussianMixture: dict(log_weights=[0.0], means=[[0.0, 1.0]], covariances=[IDENTITY]),
    toy.Empirical: dict(points=X, bandwidth=0.1, log_weights=None),
    toy.Linear: dict(b=[1.0, 0.5], c=0.5),
    toy.Quadratic: dict(center=[0.0, 0.5], precision=IDENTITY, b=None),
    toy.Bumps: dict(log_heights=[0.0], centers=[[0.0, 1.0]], precisions=[IDENTITY]),
    toy.Step: dict(threshold=0.5, height=1.0),
    toy.StepTilted: dict(base=LINE, tilt=rw.Tilt(toy.Step(0.0, 1.0), 1.0)),
    toy.quadrature: dict(law=LINE, tilt=FIRST, x_t=X[:, :1], t=0.5, schedule=PATH, nodes=5),
    LAW.sample: dict(n=3, generator=seeded),
    POINTS.sample: dict(n=3, generator=seeded),
    LAW.model: dict(schedule=PATH),
    LAW.log_prob: dict(x=X),
    LAW.denoise: dict(x_t=X, t=0.5, schedule=PATH),
    POINTS.denoise: dict(x_t=X, t=0.5, schedule=PATH),
    LAW.tilted_moments: dict(tilt=LINEAR, x_t=X, t=0.5, schedule=PATH),
    POINTS.tilted_moments: dict(tilt=FIRST, x_t=X, t=0.5, schedule=PATH),
    LAW.tilted: dict(tilt=LINEAR),
    # rewards that need no weights
    rewards.JPEG: dict(incompressible=False, quality=95),
    rewards.Affine: dict(scale=1.0, shift=0.5, source="", n=None),
    rewards.ZScore: dict(mean=0.5, std=2.0, prompts={}, pool_unseen=False, source="", n=None),
    rewards.Rank: dict(values=(0.0, 1.0), ranks=(0.2, 0.8), source="", n=None),
    rewards.Affine(1.0).__call__: dict(values=W),
    rewards.WeightedSum: dict(rewards=[rewards.JPEG()], weights=[1.0]),
    rewards.LowerConfidenceBound: dict(rewards=[rewards.JPEG(), rewards.JPEG()], kappa=1.0),
    rewards.Normalized: dict(reward=rewards.JPEG(), normalizer=rewards.Affine(1.0, 0.5)),
    rewards.RemoteReward: dict(url="http://localhost:1", timeout=1.0, retries=1),
    # what has a name
    rewards.load: dict(name="jpeg", path=None, device="cpu", dtype=torch.float32),
    rewards.registry.spec: dict(name="jpeg"),
    rewards.register: dict(name="jpeg"),
    rewards.available: dict(commercial=None, differentiable=None, license=None),
    backbones.load: dict(name="emoji-flow", path=None, device="cpu", dtype=torch.float32),
    backbones.register: dict(name="emoji-flow"),
    networks.load: dict(source="emoji-turbo-guide", device="cpu"),
    networks.published: dict(name="emoji-turbo-guide"),
    prompts.load: dict(name="emoji-demo"),
    embeddings.load: dict(name="emoji-judge", path=None, device="cpu", dtype=torch.float32),
}

NEGATIVE = {"c", "threshold", "height", "level", "scale", "shift", "seed", "dim", "weights"}
"""Numbers that may be negative."""

ZERO = {*NEGATIVE, "tilted", "damping", "eta", "penalty", "bandwidth", "kappa", "group_size"}
"""Numbers that may be zero, or are refused for another reason."""

FINITE = {"x_1", "points", "y", "rewards"}
"""Tensors whose every value is looked at; so are the states of estimators."""

SAID = {"x_t": "states", "x": "states", "dim": "dim|[Dd]imension"}
"""Other names of an argument, in messages of functions that many of them share."""

ALSO_RIGHT = {
    (training.GradientObjective, "condition", "too few"),
    (training.OutputObjective, "condition", "too few"),
    (training.NoiseObjective, "condition", "too few"),
    (training.calibrate, "target", "a number"),
}
"""What is right, too, and another thing: conditions to draw from are as many as one likes."""

OPAQUE = {
    "one string": "cat",
    "NaN": [math.nan] * 3,
    "a set": {"a", "b", "c"},
    "too few": ["a"],
    "no keys": [[1], [2], [3]],
}


def members(annotation):
    """The types of a union, or the one type."""

    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def wrong_values(name, annotation, right, watched=False):
    """Values that this argument should refuse, or take for the right one, by what they are."""

    if name == "condition":
        return OPAQUE
    kinds = members(annotation)
    plain = {kind for kind in kinds if isinstance(kind, type)}
    origins = {typing.get_origin(kind) for kind in kinds}
    values = {"None": None, "an object": object(), "a string": "x y"}
    if {str, os.PathLike} & plain or os.PathLike in origins:
        values.pop("a string")
        values["a number"] = 3.5
    if types.NoneType in plain:
        values.pop("None")
    if bool in plain:
        return {**values, "1": 1, "a tensor": torch.tensor(True)}
    if "Generator" in str(annotation) and callable not in origins and name != "draw":
        return {**values, "a seed": 0, "seeds": [0, 1, 2]}
    if collections.abc.Callable in origins and name not in ("reward", "scale"):
        return {**values, "a number": 3, "a tensor": W}
    if name == "times":
        bad = {"one": [1.0], "rising": [0.0, 1.0], "NaN": [1.0, math.nan], "words": ["a", "b"]}
        return {**values, "a number": 1.0, **bad}
    if name == "t":
        late = {"late": 2.0, "early": -0.1, "NaN": math.nan, "a timestep": 999}
        return {**values, **late, "True": True, "too many": torch.full((7,), 0.5)}
    if float in plain and torch.Tensor not in plain:
        return {**values, **wrong_numbers(name, right)}
    if int in plain:
        return {**values, **wrong_integers(name)}
    if torch.Tensor in plain and not origins & {collections.abc.Sequence}:
        return {**values, **wrong_tensors(name, right, watched)}
    if torch.Tensor in plain or collections.abc.Sequence in origins or tuple in origins:
        return {**values, "True": True, "words": ["a", "b"], "a dict": {}, "one NaN": [math.nan]}
    return {**values, "a number": 3, "its class": type(right), "a tensor": W}


def wrong_numbers(name, right):
    values = {"True": True, "NaN": math.nan, "inf": math.inf, "complex": 1j, "a vector": W}
    if isinstance(right, float):
        values |= {
            "of NumPy": np.float64(right),
            "a tensor": torch.tensor(right, dtype=torch.float64),
        }
    if name not in NEGATIVE:
        values["negative"] = -1.0
    if name not in ZERO:
        values["zero"] = 0.0
    return values


def wrong_integers(name):
    values = {"True": True, "NaN": math.nan, "a fraction": 2.5, "a vector": W.long()}
    if name not in NEGATIVE:
        values["negative"] = -1
    if name not in ZERO:
        values["zero"] = 0
    return values


def wrong_tensors(name, right, watched):
    values = {"a number": 3.0, "a list": [[1.0]], "True": True}
    if not isinstance(right, torch.Tensor):
        return values
    values["integers"] = right.long()
    values["sparse"] = right.to_sparse()
    values["on meta"] = right.to("meta")
    if right.ndim > 1 and name not in ("sigma", "log_h", "log_w"):
        values["of nothing"] = right[:, :0]
    if name in FINITE or watched:
        values["NaN"] = torch.full_like(right, math.nan)
    return values


def name_of(function):
    module = inspect.getmodule(function).__name__.removeprefix("rwguidance.")
    return f"{module}.{function.__qualname__}"


def parameters_of(function):
    """The annotations of the arguments of a right call."""

    target = function.__init__ if isinstance(function, type) else function
    module = inspect.getmodule(function)
    hints = typing.get_type_hints(target, {**vars(torch), **vars(typing), **vars(module)})
    return {name: hints.get(name, typing.Any) for name in RIGHT[function]}


def generated():
    cases = []
    for function, arguments in RIGHT.items():
        for name, annotation in parameters_of(function).items():
            right = arguments[name]
            watched = name == "x_t" and arguments is ESTIMATE
            for label, value in wrong_values(name, annotation, right, watched).items():
                if (function, name, label) not in ALSO_RIGHT:
                    cases.append((function, name, label, value))
    return cases


def call(function, arguments):
    """Calls with a fresh generator, and says what came of it and how long it took."""

    fresh = {k: v() if v is seeded else v for k, v in arguments.items()}
    start = time.perf_counter()
    try:
        result = function(**fresh)
    except Exception as error:
        result = error
    return result, time.perf_counter() - start


def same(a, b):
    """Whether two results are the same; objects are, if they say the same of themselves."""

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), 0, 0, equal_nan=True)
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a) and "__repr__" not in vars(type(a)):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float | int | str):
        return a == b
    return callable(a) or repr(a) == repr(b)


def marks_of(function):
    named = any(str(value).startswith("emoji-") for value in RIGHT[function].values())
    return [needs_testbed] if named else []


def right():
    for function in RIGHT:
        yield pytest.param(function, marks=marks_of(function), id=name_of(function))


def marked():
    for i, case in enumerate(generated()):
        function, name, label, _ = case
        marks = marks_of(function) + ([] if i % STEP == 0 else [pytest.mark.slow])
        yield pytest.param(*case, marks=marks, id=f"{name_of(function)}-{name}-{label}")


@pytest.mark.parametrize("function", list(right()))
def test_the_right_call_is_right(function):
    result, _ = call(function, RIGHT[function])
    assert not isinstance(result, Exception), repr(result)
    assert same(result, call(function, RIGHT[function])[0])


def test_there_are_many_wrong_calls():
    assert len(generated()) >= 500


@pytest.mark.parametrize(("function", "name", "label", "value"), list(marked()))
def test_a_wrong_call_is_one_clear_error_or_right(function, name, label, value):
    call(function, RIGHT[function])  # imports what the first call imports
    result, seconds = call(function, {**RIGHT[function], name: value})
    if isinstance(result, Exception):
        assert isinstance(result, TypeError | ValueError), repr(result)
        said = rf"\b({re.escape(name)}|{SAID.get(name, name)})\b"
        assert re.search(said, str(result)), f"{name} is not named: {result!r}"
        assert seconds < 1
    else:
        assert same(result, call(function, RIGHT[function])[0]), f"passes, as {result!r}"
