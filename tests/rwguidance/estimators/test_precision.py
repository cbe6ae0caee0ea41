"""Precision: estimates in the dtype of states and bank, and never less than single precision."""

import itertools

import pytest
import torch

from common import randn
from rwguidance import (
    Bank,
    DenoiserModel,
    ImportanceSampling,
    LeaveOneOut,
    PlugIn,
    RectifiedSchedule,
    TargetESS,
    Tilt,
    toy,
)
from rwguidance.estimators import (
    FMPS,
    FlowMap,
    InnerFlow,
    PosteriorDraws,
    PosteriorSampling,
    Renoising,
    SecondOrderPlugIn,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = [F16, BF16, F32, F64]

LAW = toy.GaussianMixture([0.1, -0.4], [[0.0, 1.0], [1.0, -0.5]], [[[1.0, 0.2], [0.2, 0.7]]] * 2)
MODEL = LAW.model(RectifiedSchedule())
DRAWS = LAW.sample(200, torch.Generator().manual_seed(0))
X = randn(3, 5, 2)
LOG_IMPORTANCE = 0.3 * randn(4, 200)


class Reward(torch.nn.Module):
    """A reward of its own dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x, condition):
        return (x[:, 0] - 0.3 * x[:, 1].square()).to(self.dtype)


def bank_of(dtype, reward, importance):
    # Draws that every dtype holds exactly, so that only the arithmetic differs.
    draws = DRAWS.to(BF16)
    rewards = Tilt(reward, 1.0).score(draws.double())
    log_importance = LOG_IMPORTANCE if importance else None
    return Bank(draws.to(dtype), rewards=rewards.double(), log_importance=log_importance)


KERNELS = {"exact": None, "ess": TargetESS(0.3), "leave one out": LeaveOneOut()}


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("states", "bank"), list(itertools.product(DTYPES, DTYPES)))
def test_importance_sampling(states, bank, kernel, importance):
    def estimate(states, bank):
        reward = Reward(F64)
        tilt = Tilt(reward, 0.7)
        estimator = ImportanceSampling(
            bank_of(bank, reward, importance), tilt, KERNELS[kernel], pareto_k=True
        )
        return estimator(MODEL, X.to(BF16).to(states), 0.5)

    found, exact = estimate(states, bank), estimate(F64, F64)
    wide = max(F32, states, bank, key=lambda dtype: torch.finfo(dtype).bits)
    assert found.shift.dtype == found.prediction.mean.dtype
    assert found.log_h.dtype == wide
    for name, value in found.diagnostics.items():
        if value.is_floating_point() and name != "shift_norm":
            assert value.dtype == wide, name
    # States are exact in every dtype here; what is known of the draws is in theirs, or float32.
    error = 1e-12 if states == bank == F64 else 1e-5
    torch.testing.assert_close(found.shift.double(), exact.shift, rtol=error, atol=error)
    torch.testing.assert_close(found.log_h.double(), exact.log_h, rtol=error, atol=error)


ESTIMATORS = {
    "plug-in": lambda tilt: PlugIn(tilt),
    "FMPS": lambda tilt: FMPS(tilt),
    "second order": lambda tilt: SecondOrderPlugIn(tilt),
    "posterior": lambda tilt: PosteriorSampling(tilt, InnerFlow(4), 8),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("reward", [F32, F64])
@pytest.mark.parametrize("states", [F32, F64])
def test_estimators_by_the_model(name, states, reward):
    estimator = ESTIMATORS[name](Tilt(Reward(reward), 0.7))
    found = estimator(MODEL, X.to(BF16).to(states), 0.5)
    exact = ESTIMATORS[name](Tilt(Reward(F64), 0.7))(MODEL, X.to(BF16).double(), 0.5)
    assert found.shift.dtype == found.prediction.mean.dtype == states
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if F32 in (states, reward) else {}
    torch.testing.assert_close(found.shift.double(), exact.shift, **tolerance)
    torch.testing.assert_close(found.log_h.double(), exact.log_h, **tolerance)
    assert not found.shift.requires_grad
    assert not found.log_h.requires_grad


class Narrow(DenoiserModel):
    """The law's means, for states of one dtype alone, as a network of half precision has them."""

    def __init__(self, dtype):
        super().__init__(RectifiedSchedule())
        self.dtype, self.calls = dtype, 0

    def denoise(self, x_t, t, condition=None):
        assert x_t.dtype == self.dtype
        self.calls += 1
        return LAW.denoise(x_t.double(), t, self.schedule).to(self.dtype)


LINE = [1.0, 0.3, 0.1, 0.0]
DRAWN = {
    "renoising": Renoising(LINE),
    "inner flow": InnerFlow(3),
    "flow map": FlowMap(LINE, renoise=1.5, nodes=2),
}
SAMPLED = {
    f"{name}, {order}": lambda tilt, draws=draws, order=order: PosteriorSampling(
        tilt, draws, 3, order == "first order"
    )
    for name, draws in DRAWN.items()
    for order in ("by weights", "first order")
}


@pytest.mark.parametrize("make", (ESTIMATORS | SAMPLED).values(), ids=ESTIMATORS | SAMPLED)
@pytest.mark.parametrize("states", DTYPES)
def test_a_model_sees_states_in_the_dtype_of_the_run(make, states):
    model = Narrow(states)
    for some in (model, model.starting(0.5)):  # of the path, and of the start of a run
        found = make(Tilt(Reward(F32), 0.7))(some, X.to(states), 0.5)
        assert found.shift.dtype == found.prediction.mean.dtype
        assert found.shift.dtype == torch.promote_types(states, F32)
    assert model.calls >= 2


class Wide(PosteriorDraws):
    """Draws in double precision, whatever the states are."""

    depends_on = ()

    def draw(self, model, x_t, t, condition, generator):
        return model(x_t, t).mean.double() + randn(6, *x_t.shape), torch.zeros(len(x_t))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("states", [BF16, F32])
def test_draws_may_be_wider_than_states(states, controlled, first_order):
    bank = bank_of(F32, Reward(F64), False) if controlled else None
    estimator = PosteriorSampling(Tilt(Reward(F64), 0.7), Wide(), 8, first_order, bank)
    x = X.to(BF16)
    found, exact = estimator(MODEL, x.to(states), 0.5), estimator(MODEL, x.double(), 0.5)
    assert found.shift.dtype == found.prediction.mean.dtype == F32
    tolerance = 1e-5 if states == F32 or not first_order else 2e-2  # gradients are as the states
    torch.testing.assert_close(found.shift.double(), exact.shift, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.log_h.double(), exact.log_h, rtol=1e-5, atol=1e-5)


class Learned(DenoiserModel):
    """The law's own means times a number that is trained."""

    def __init__(self):
        super().__init__(RectifiedSchedule())
        self.factor = torch.nn.Parameter(torch.ones((), dtype=F64))

    def denoise(self, x_t, t, condition=None):
        return self.factor * LAW.denoise(x_t, t, self.schedule)


FIRST_ORDER = {"first order": lambda tilt: PosteriorSampling(tilt, InnerFlow(4), 8, True)}


@pytest.mark.parametrize("make", (ESTIMATORS | FIRST_ORDER).values(), ids=ESTIMATORS | FIRST_ORDER)
def test_no_graph_is_kept_of_a_model_or_a_reward_that_learns(make):
    level = torch.zeros((), dtype=F64, requires_grad=True)
    estimator = make(Tilt(lambda x, condition: level + Reward(F64)(x, condition), 0.7))
    found = estimator(Learned(), X, 0.5)
    values = [found.log_h, found.shift, found.prediction.mean, found.prediction.noise]
    assert not any(value.requires_grad for value in (*values, *found.diagnostics.values()))
