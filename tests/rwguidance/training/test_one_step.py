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
    seen = []
    alone = lambda x_0, *_: seen.append(x_0.detach()) or x_0.square().sum(1)
    found = NoiseObjective(generate, LINEAR, draw, batch_size=7, prior=alone)(Affine(), rng())
    torch.testing.assert_close(found["prior"].detach(), seen[0].square().sum() / 7)
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


def test_changes_keep_the_dtype_of_what_they_change():
    seen = []
    kept = lambda noise, condition: seen.append(noise.dtype) or noise
    noise = draw(3, rng()).bfloat16()
    wide = lambda make: make(kept, Widening())(noise, None)
    assert wide(noise_map).dtype == wide(output_map).dtype == torch.bfloat16
    assert seen == [torch.bfloat16] * 2


class Widening(nn.Module):
    """A change that is wider than the states, as networks with float32 weights make it."""

    def forward(self, x, t, condition=None):
        return x.float() / 3


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


class Widened(nn.Module):
    """A decoder that makes many numbers of two, and counts the states of its calls."""

    depends_on = ()

    def __init__(self, width=500, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(2, width, generator=generator, dtype=torch.float64).to(dtype)
        self.seen = []

    def forward(self, x_0):
        self.seen.append(len(x_0))
        return (x_0 @ self.weight).sin().exp()


def scored(images, condition):
    factor = 1.0 if condition is None else torch.tensor(condition).to(images)[:, None]
    return (factor * images.tanh()).mean(1)


class TestDecodingAFewAtATime:
    """Decoder and reward see a few states of a batch, there and back."""

    def gradient(self, kind, decode_batch, condition=None, dtype=torch.float64, n=7):
        decode = Widened(dtype=dtype)
        tilt = Tilt(scored, 0.3, decode=decode)
        network = Affine().to(dtype)
        with torch.no_grad():
            network.a.copy_(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
        objective = kind(
            lambda noise, condition: MEAN.to(noise) + FACTOR * noise,
            tilt,
            lambda n, generator: draw(n, generator).to(dtype),
            condition,
            batch_size=n,
            decode_batch=decode_batch,
        )
        terms = objective(network, rng(4))
        sum(terms.values()).backward()
        return terms, network, decode.seen

    @pytest.mark.parametrize("kind", [OutputObjective, NoiseObjective])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize(("size", "expected"), [(1, [1] * 7), (3, [3, 3, 1]), (9, [7])])
    def test_loss_and_gradient_are_the_same(self, kind, dtype, size, expected):
        for condition in (None, [1.0, -2.0, 3.0]):
            whole, network, seen = self.gradient(kind, None, condition, dtype)
            assert seen == [7]
            parts, other, seen = self.gradient(kind, size, condition, dtype)
            assert seen == expected
            close = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
            for name, value in whole.items():
                torch.testing.assert_close(parts[name], value, **close)
            for p, q in zip(network.parameters(), other.parameters(), strict=True):
                assert q.grad.abs().max() > 1e-3
                torch.testing.assert_close(q.grad, p.grad, **close)

    def test_the_memory_is_that_of_a_few(self):
        def peak(n, decode_batch):
            class Held:
                now = most = 0

                def __init__(self, value):
                    self.value, self.size = value, value.numel()
                    Held.now += self.size
                    Held.most = max(Held.most, Held.now)

                def __del__(self):
                    Held.now -= self.size

            with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.value):
                self.gradient(OutputObjective, decode_batch, n=n)
            return Held.most

        assert peak(32, None) > 3.5 * peak(8, None)
        assert peak(32, 2) < 1.5 * peak(8, 2)

    def test_a_reward_without_a_gradient_is_refused(self):
        tilt = Tilt(lambda x, condition: x.detach().sum(1), 1.0)
        objective = OutputObjective(generate, tilt, draw, decode_batch=2)
        with pytest.raises(ValueError, match="tilt must be differentiable"):
            objective(Affine(), rng())

    def test_less_than_one_is_refused(self):
        with pytest.raises(ValueError, match="decode_batch must be"):
            OutputObjective(generate, LINEAR, draw, decode_batch=0)
