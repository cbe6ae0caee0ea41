"""Networks beside one-step models, against optima that are known in closed form."""

import pytest
import torch
from torch import nn

from common import SCHEDULES, assert_within, randn
from rwguidance import DDIM, Tilt, metrics, toy
from rwguidance.networks import ShiftMLP
from rwguidance.noise_space import draw_bank, flow_map, noise_map, output_map
from rwguidance.regularizers import flow_prior
from rwguidance.training import NoiseObjective, OutputObjective, train
from training_problems import rng

# A generator x = mean + factor z of two dimensions, whose law is N(mean, factor^2 I).
MEAN, FACTOR = torch.tensor([0.5, -1.0]).double(), 0.7
LAW = toy.Gaussian(MEAN, FACTOR**2 * torch.eye(2).double())
LINEAR = Tilt(toy.Linear([1.0, -0.5]), 0.8)
ROUND = Tilt(toy.Quadratic([1.5, 0.5], 1.2 * torch.eye(2)), 0.9)
VARIANCE = FACTOR**2


def generate(noise, condition):
    return MEAN + FACTOR * noise


def draw(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


class Affine(nn.Module):
    """A change a z + b, which holds the optimum of affine problems."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
        self.double()
        self.calls = []

    def forward(self, x, t, condition=None):
        self.calls.append((t, condition))
        return x @ self.a + self.b


def fitted(kind, tilt, **options):
    network = Affine()
    objective = kind(generate, tilt, draw, batch_size=64, **options)
    train(network, objective, 600, learning_rate=0.05)
    noise = draw(20_000, rng(7))
    make = output_map if kind is OutputObjective else noise_map
    with torch.no_grad():
        return network, make(generate, network)(noise, None)


KINDS = [(OutputObjective, {"variance": VARIANCE}), (NoiseObjective, {})]
names = lambda value: getattr(value, "__name__", "")


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=names)
def test_a_linear_reward_makes_the_tilted_law(kind, options):
    network, x_0 = fitted(kind, LINEAR, **options)
    tilted = LAW.tilted(LINEAR)
    own = LAW.sample(20_000, rng(8)).double()
    assert (x_0.mean(0) - tilted.mean).abs().max() < 0.03
    assert (x_0.T.cov() - tilted.covariance).abs().max() < 0.03
    target = tilted.sample(1000, rng(9)).double()
    reached = metrics.energy_distance(x_0[:1000], target)
    untouched = metrics.energy_distance(own[:1000], target)
    assert reached.value < 5 * reached.error
    assert untouched.value > 10 * reached.error
    time = 0.0 if kind is OutputObjective else 1.0
    assert torch.equal(network.calls[0][0], torch.full((64,), time, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=names)
def test_a_quadratic_reward_has_the_mean_and_less_than_the_variance(kind, options):
    _, x_0 = fitted(kind, ROUND, **options)
    tilted = LAW.tilted(ROUND)
    assert (x_0.mean(0) - tilted.mean).abs().max() < 0.03
    # The proximal map contracts by as much as the tilt divides the variance, so by its square.
    shrunk = tilted.covariance / VARIANCE
    expected = VARIANCE * shrunk @ shrunk
    assert (x_0.T.cov() - expected).abs().max() < 0.03
    assert (x_0.T.cov().diagonal() < 0.8 * tilted.covariance.diagonal()).all()


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=names)
def test_the_terms_are_those_of_the_formula(kind, options):
    network = Affine()
    network.b.data += torch.tensor([0.3, -0.2])
    network.a.data += 0.1
    objective = kind(generate, ROUND, draw, batch_size=5, **options)
    noise, _ = objective.drawn(rng(3))
    terms = objective(network, rng(3))
    x_0 = generate(noise, None)
    if kind is OutputObjective:
        change = network(x_0, None)
        end, size = x_0 + change, change.square().sum(1) / (2 * VARIANCE)
    else:
        change = network(noise, None)
        end, size = generate(noise + change, None), change.square().sum(1) / 2
    reward, penalty = terms.values()
    torch.testing.assert_close(reward, -ROUND(end).mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(penalty, size.mean(), rtol=1e-12, atol=1e-12)


def test_output_networks_do_not_go_back_through_the_generator():
    seen = []

    def recorded(noise, condition):
        seen.append(torch.is_grad_enabled())
        return generate(noise, condition)

    OutputObjective(recorded, LINEAR, draw)(Affine(), rng())
    NoiseObjective(recorded, LINEAR, draw)(Affine(), rng())
    assert seen == [False, True]


def test_the_divergence_is_in_units_of_the_noise():
    wide = lambda n, generator: 3 * draw(n, generator)
    network = Affine()
    network.b.data += 1
    near, far = (
        NoiseObjective(generate, LINEAR, wide, std=std)(network, rng())["divergence"]
        for std in (1.0, 3.0)
    )
    torch.testing.assert_close(near, 9 * far)


def test_conditions_are_drawn_alike_and_reach_all_parts():
    condition, seen = ["left", "right", "up"], []

    def moved(noise, condition):
        seen.append(condition)
        return noise

    reward = lambda x, condition: x[:, 0] * (1 + 0 * len(condition))
    network = Affine()
    objective = OutputObjective(moved, Tilt(reward, 1.0), draw, condition, batch_size=3000)
    objective(network, rng())
    assert network.calls[0][1] == seen[0]
    shares = torch.tensor([seen[0].count(key) / 3000 for key in condition])
    assert_within(shares, torch.full((3,), 1 / 3), (2 / 9 / 3000) ** 0.5)


def test_a_flow_prior_takes_the_place_of_the_divergence():
    model = LAW.model(SCHEDULES["rectified"])
    t = 0.1 + 0.8 * torch.rand(64, generator=rng(1), dtype=torch.float64)

    def prior(x_0, condition, generator):
        return flow_prior(model, x_0, t, torch.randn(x_0.shape, generator=generator).to(x_0))

    plain = NoiseObjective(generate, LINEAR, draw, batch_size=64)
    terms = NoiseObjective(generate, LINEAR, draw, batch_size=64, prior=prior)(Affine(), rng())
    assert set(terms) == {"reward", "prior"}
    torch.testing.assert_close(terms["reward"], plain(Affine(), rng())["reward"])
    network = Affine()
    sum(
        NoiseObjective(generate, LINEAR, draw, prior=lambda x, c, g: prior_at(model, x))(
            network, rng()
        ).values()
    ).backward()
    assert network.b.grad.abs().max() > 0


def prior_at(model, x_0):
    return flow_prior(model, x_0, 0.5, randn(4, *x_0.shape))


def test_a_one_step_model_is_changed_by_a_network_of_the_library():
    schedule = SCHEDULES["cosine"]
    model = LAW.model(schedule)
    network = ShiftMLP((2,), schedule, width=8, depth=2).double()
    make = flow_map(model, DDIM(), [0.99, 0.0], gradient=True)
    objective = NoiseObjective(make, LINEAR, draw, batch_size=8)
    assert train(network, objective, 3).isfinite().all()
    bank = draw_bank(noise_map(make, network), draw, ["any"], 4, rng())
    assert bank.x_0.shape == (4, 2)


def test_what_does_not_fit_is_named():
    class Flat(nn.Module):
        def forward(self, x, t, condition=None):
            return x[:, :1]

    for kind in (OutputObjective, NoiseObjective):
        with pytest.raises(ValueError, match=r"shape of the state, \(16, 2\), got \(16, 1\)"):
            kind(generate, LINEAR, draw)(Flat(), rng())
        blind = Tilt(lambda x, condition: x.detach()[:, 0], 1.0)
        with pytest.raises(ValueError, match="no gradient reaches the network"):
            kind(generate, blind, draw)(Affine(), rng())
        with pytest.raises(ValueError, match="condition must hold one item at least"):
            kind(generate, LINEAR, draw, [])
    with pytest.raises(ValueError, match="variance"):
        OutputObjective(generate, LINEAR, draw, variance=0)
    with pytest.raises(ValueError, match="std"):
        NoiseObjective(generate, LINEAR, draw, std=-1)
    with pytest.raises(TypeError, match="network"):
        output_map(generate, None)
