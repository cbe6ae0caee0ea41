"""Renewed states against a mixture whose posterior is drawn from exactly, and a Gaussian path."""

import math
import warnings

import pytest
import torch

from common import assert_within, randn
from rwguidance import (
    DDIM,
    Bank,
    GuidedModel,
    Heun,
    ImportanceSampling,
    RectifiedSchedule,
    Tilt,
    UnreliableEstimate,
    sample,
    toy,
)
from rwguidance.renewal import renew, renoising
from rwguidance.support.randomness import generator_for

F64 = torch.float64
N, SCHEDULE = 30_000, RectifiedSchedule()
LAW = toy.GaussianMixture(
    torch.tensor([0.3, 0.7], dtype=F64).log(),
    torch.tensor([[-1.5], [1.0]], dtype=F64),
    torch.tensor([[[0.4]], [[0.7]]], dtype=F64),
)
TILT = Tilt(toy.Linear([-1.0]), 1.0)
TARGET = LAW.tilted(TILT)


def of_seed(seed):
    return torch.Generator().manual_seed(seed)


def posterior(t):
    """Noising to a time, and a draw of the exact posterior: Bayes' rule of two Gaussians."""

    def propose(x_0, condition, generator):
        noise = lambda: torch.randn(x_0.shape, generator=generator, dtype=F64)
        x_t = (1 - t) * x_0 + t * noise()
        mean, variance = LAW.means.T, LAW.covariances.flatten()[None]
        spread = (1 - t) ** 2 * variance + t**2
        log_p = LAW.log_weights - (x_t - (1 - t) * mean) ** 2 / (2 * spread) - spread.log() / 2
        component = torch.multinomial(log_p.softmax(1), 1, generator=generator)
        center = mean + (1 - t) * variance / spread * (x_t - (1 - t) * mean)
        std = (t**2 * variance / spread).sqrt().expand_as(center)
        return center.gather(1, component) + std.gather(1, component) * noise()

    return propose


def mean_is_zero(values):
    assert_within(values.mean(), 0.0, values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("t", [0.4, 0.8])
@pytest.mark.parametrize("moves", [1, 3])
def test_the_tilted_law_is_left_as_it_is(t, moves):
    x = TARGET.sample(N, of_seed(0))
    made = renew(x, TILT, posterior(t), moves, generator=of_seed(1))
    exact = (TARGET.log_weights.exp()[:, None] * TARGET.means).sum()
    mean_is_zero(made.x_0 - exact)
    for f in (torch.square, lambda x: (x > 0).double(), torch.cos):
        mean_is_zero(f(made.x_0) - f(x))
    torch.testing.assert_close(made.log_w, TILT(made.x_0))
    assert 0.2 < made.acceptance.mean() < 0.95
    moved = (made.x_0 != x).squeeze(1)
    assert torch.equal(moved, made.acceptance > 0)


def test_the_chain_is_reversible():
    x = TARGET.sample(N, of_seed(0))
    y = renew(x, TILT, posterior(0.5), generator=of_seed(1)).x_0
    f, g = lambda x: (x > 0).double(), torch.square
    mean_is_zero(f(x) * g(y) - g(x) * f(y))
    mean_is_zero((x < -1).double() * (y > 1).double() - (x > 1).double() * (y < -1).double())


def test_from_another_law_it_goes_to_the_tilted_one():
    x = LAW.sample(10_000, of_seed(0))
    made = renew(x, TILT, posterior(0.8), moves=20, generator=of_seed(1))
    exact = (TARGET.log_weights.exp()[:, None] * TARGET.means).sum()
    assert abs(float(x.mean() - exact)) > 0.5
    mean_is_zero(made.x_0 - exact)


@pytest.mark.parametrize("sampler", [DDIM(eta=1), Heun()])
def test_renoising_has_the_covariances_of_the_path(sampler):
    """Between a state and its proposal, on a Gaussian: a posterior's, or of the flow's map."""

    c, t = 0.6, 0.5
    model = toy.Gaussian([0.0], [[c]]).model(SCHEDULE)
    x = math.sqrt(c) * randn(0, N, 1)
    times = torch.linspace(t, 0, 65, dtype=F64)
    y = renoising(model, sampler, times)(x, None, of_seed(1))
    marginal = (1 - t) ** 2 * c + t**2
    random = isinstance(sampler, DDIM)
    exact = (1 - t) ** 2 * c**2 / marginal if random else (1 - t) * c * math.sqrt(c / marginal)
    for values, truth in ((x * y, exact), (y * y, c)):
        steps = 0.02 if random else 1e-3  # the error of 64 steps
        assert_within(values.mean(), truth, values.std() / math.sqrt(N) + steps / 5)


@pytest.mark.parametrize(("size", "expected"), [(None, [7]), (3, [3, 3, 1])])
def test_without_a_batch_size_all_states_move_at_once(size, expected):
    seen = []

    def propose(x, condition, generator):
        seen.append(len(x))
        return x

    renew(LAW.sample(7, of_seed(0)), TILT, propose, moves=1, generator=of_seed(1), batch_size=size)
    assert seen == expected


def test_runs_from_states_have_no_start():
    """A guided model tells: its kernel is flat where a run begins from noise."""

    bank = Bank(LAW.sample(50, of_seed(2)))
    guided = GuidedModel(LAW.model(SCHEDULE), ImportanceSampling(bank, TILT))
    x, times = LAW.sample(5, of_seed(0)), [0.5, 0.2, 0.0]
    x_t = SCHEDULE.perturb(x, times[0], randn(1, 5, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableEstimate)
        made = renoising(guided.starting(0.5), DDIM(), times)(x, None, of_seed(1))
        torch.testing.assert_close(made, sample(guided, DDIM(), x_t, times))
        assert (made - sample(guided.starting(0.5), DDIM(), x_t, times)).abs().max() > 0.01


def test_resampled_states_come_nearer_to_the_tilted_law():
    """Of many small banks, whose weights stop short of it: every move mends some of that."""

    exact = float((TARGET.log_weights.exp()[:, None] * TARGET.means).sum())
    bank = LAW.sample(2000 * 8, of_seed(0)).reshape(2000, 8)
    picks = (
        TILT(bank.reshape(-1, 1))
        .reshape(2000, 8)
        .softmax(1)
        .multinomial(8, True, generator=of_seed(1))
    )
    x = bank.gather(1, picks).reshape(-1, 1)
    errors = [float(x.mean()) - exact]
    for moves in (1, 4, 16):
        made = renew(x, TILT, posterior(0.8), moves, generator=of_seed(2)).x_0
        errors.append(float(made.mean()) - exact)
        assert len(made.unique()) > len(x.unique())
    assert errors[0] > 0.2
    assert errors[0] > errors[1] + 0.02 > errors[2] + 0.04
    se = float(made.reshape(2000, 8).mean(1).std()) / math.sqrt(2000)
    assert_within(errors[3], 0.0, se)


def test_a_state_of_zero_weight_takes_what_has_one():
    tilt = Tilt(lambda x, condition: torch.where(x[:, 0] > 0, 0.0, -math.inf).double(), 1.0)
    x = torch.tensor([[-1.0], [-1.0], [1.0]], dtype=F64)
    propose = lambda x, condition, generator: torch.tensor([[2.0], [-2.0], [-2.0]], dtype=F64)
    made = renew(x, tilt, propose, generator=of_seed(0))
    assert made.x_0.flatten().tolist() == [2.0, -1.0, 1.0]
    assert made.log_w.tolist() == [0.0, -math.inf, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_keep_their_dtype_whatever_that_of_proposals(dtype):
    tilt = Tilt(lambda x, condition: x.flatten(), 1e-3)
    x, new = torch.tensor([[0.5], [1.5]], dtype=dtype), torch.tensor([[1.0], [1.0]]).double()
    made = renew(x, tilt, lambda *given: new, generator=of_seed(0))
    assert made.x_0.dtype == dtype
    assert made.x_0.flatten().tolist() == [1.0, 1.5]
    assert made.log_w.dtype == torch.float32


def test_with_a_source_per_state_a_state_depends_on_itself_alone():
    model = LAW.model(SCHEDULE)
    propose = renoising(model, DDIM(eta=1), [0.6, 0.3, 0.0])
    x, labels = TARGET.sample(7, of_seed(0)), [f"p{i}" for i in range(7)]
    sources = lambda rows: [generator_for(0, "renew", i) for i in rows]
    whole = renew(x, TILT, propose, 3, labels, sources(range(7)))
    parts = renew(x, TILT, propose, 3, labels, sources(range(7)), batch_size=2)
    alone = renew(x[4:], TILT, propose, 3, labels[4:], sources(range(4, 7)))
    torch.testing.assert_close(parts.x_0, whole.x_0)
    torch.testing.assert_close(alone.x_0, whole.x_0[4:])


def test_conditions_follow_their_states():
    seen = []
    reward = lambda x, condition: seen.append(condition) or x[:, 0]
    propose = lambda x, condition, generator: seen.append(condition) or x
    renew(randn(0, 3, 1), Tilt(reward, 1.0), propose, 1, ["a", "b", "c"], of_seed(0), 2)
    assert seen == [["a", "b"], ["c"], ["a", "b"], ["a", "b"], ["c"], ["c"]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_0": randn(0, 3)}, ValueError, "x_0 must"),
        ({"tilt": 1.0}, TypeError, "tilt must be a Tilt"),
        ({"propose": 1}, TypeError, "propose must be callable"),
        ({"moves": 0}, ValueError, "moves must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"propose": lambda x, c, g: x[:2]}, TypeError, "propose must return states"),
    ],
)
def test_wrong_calls_are_named(change, error, message):
    given = {"x_0": randn(0, 3, 1), "tilt": TILT, "propose": lambda x, c, g: x}
    with pytest.raises(error, match=message):
        renew(**given | change)


def test_wrong_calls_of_proposals_are_named():
    model = LAW.model(SCHEDULE)
    for arguments in ((LAW, DDIM(), [0.5, 0]), (model, None, [0.5, 0])):
        with pytest.raises(TypeError, match="must be a"):
            renoising(*arguments)
    with pytest.raises(ValueError, match="times must"):
        renoising(model, DDIM(), [0.5])


def test_no_graph_is_kept_of_a_reward_that_learns():
    level = torch.zeros((), requires_grad=True, dtype=F64)
    tilt = Tilt(lambda x, condition: level - x[:, 0], 1.0)
    renewed = renew(LAW.sample(4, of_seed(0)), tilt, posterior(0.5), generator=of_seed(1))
    assert not renewed.x_0.requires_grad
    assert not renewed.log_w.requires_grad
