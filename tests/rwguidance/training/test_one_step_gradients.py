"""One network for changes of noise and output, regressed on gradients, against closed forms."""

import pytest
import torch
from torch import nn

from common import assert_within
from rwguidance import Tilt, toy
from rwguidance.noise_space import change_map
from rwguidance.training import GradientObjective, train
from training_problems import rng

# A generator x = mean + factor z of two dimensions, whose law is N(mean, factor^2 I).
MEAN, FACTOR = torch.tensor([0.5, -1.0]).double(), 0.7
SLOPE, BETA, STD, VARIANCE = torch.tensor([1.0, -0.5]).double(), 0.8, 1.5, 0.3
LINEAR = Tilt(toy.Linear(SLOPE), BETA)
ROUND = Tilt(toy.Quadratic([1.5, 0.5], 1.2 * torch.eye(2)), 0.9)


def generate(noise, condition):
    return MEAN + FACTOR * noise


def draw(n, generator):
    return STD * torch.randn(n, 2, generator=generator, dtype=torch.float64)


class Affine(nn.Module):
    """A change a z + b of its own for noise and for outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2, 2, 2)), nn.Parameter(torch.zeros(2, 2))
        self.double()
        self.conditions = []

    def forward(self, x, t, condition=None):
        assert t.dtype == torch.float64
        assert len(set(t.tolist())) == 1
        self.conditions.append(condition)
        side = int(t[0])
        return x @ self.a[side] + self.b[side]


def objective_of(tilt=LINEAR, **options):
    settings = {"std": STD, "variance": VARIANCE, "pictures": 50, "batch_size": 16, **options}
    return GradientObjective(generate, tilt, draw, **settings)


def test_changes_are_the_gradients_in_noise_and_output():
    network = Affine()
    losses = train(network, objective_of(), 500, learning_rate=0.05)
    slope = SLOPE / BETA
    torch.testing.assert_close(network.b[0].detach(), VARIANCE * slope, rtol=0, atol=1e-3)
    torch.testing.assert_close(network.b[1].detach(), STD**2 * FACTOR * slope, rtol=0, atol=1e-3)
    assert network.a.abs().max() < 1e-3
    assert float(losses[0]) == pytest.approx(2)  # nothing is changed yet, on either side
    made = change_map(generate, network)(draw(20_000, rng(4)), None).detach()
    expected = MEAN + FACTOR * STD**2 * FACTOR * slope + VARIANCE * slope
    assert_within(made.mean(0), expected, torch.tensor(FACTOR * STD / 20_000**0.5).expand(2))


def test_gradients_are_those_where_the_pictures_are():
    network = Affine()
    train(network, objective_of(ROUND), 800, learning_rate=0.05)
    curvature, center = 1.2 / 0.9, torch.tensor([1.5, 0.5]).double()
    eye = torch.eye(2).double()
    expected = -VARIANCE * curvature * eye, -(STD**2) * FACTOR**2 * curvature * eye
    torch.testing.assert_close(network.a.detach(), torch.stack(expected), rtol=0, atol=1e-2)
    at_zero = torch.stack((VARIANCE * center, STD**2 * FACTOR * (center - MEAN))) * curvature
    torch.testing.assert_close(network.b.detach(), at_zero, rtol=0, atol=1e-2)


def test_every_picture_is_made_and_scored_once():
    made, scored = [], []

    def counted(noise, condition):
        made.extend(condition)
        return generate(noise, condition)

    def reward(x, condition):
        scored.extend(condition)
        return x @ SLOPE

    options = {"std": STD, "pictures": 10, "batch_size": 4}
    objective = GradientObjective(counted, Tilt(reward, BETA), draw, ["a", "b", "c"], **options)
    network = Affine()
    train(network, objective, 20)
    assert made == scored == [*"abcabcabca"]
    asked = [key for some in network.conditions for key in some]
    assert set(asked) == set("abc")
    assert len(asked) == 2 * 4 * 20
    again = GradientObjective(counted, Tilt(reward, BETA), draw, ["a", "b", "c"], **options)
    other = GradientObjective(counted, Tilt(reward, BETA), draw, ["a"], **options, seed=1)
    states = [one.sides["noise"].states for one in (objective, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_what_does_not_fit_is_named():
    detached = lambda noise, condition: generate(noise.detach(), condition).requires_grad_()
    with pytest.raises(ValueError, match="generate must carry gradients"):
        GradientObjective(detached, LINEAR, draw)(Affine(), rng())
    flat = Tilt(lambda x, condition: 0 * x.sum(1), 1.0)
    with pytest.raises(ValueError, match="tilt must have a gradient in the noise"):
        objective_of(flat)(Affine(), rng())
    for name in ("std", "variance", "pictures"):
        with pytest.raises(ValueError, match=name):
            objective_of(**{name: 0})
    with pytest.raises(TypeError, match="network"):
        change_map(generate, None)
