r"""Noise-space sampling against exact laws: of tilted generators, and of every finite n and step.

A linear generator of Gaussian noise has a Gaussian law, whose tilts are closed. In one dimension
quadrature gives the law of any generator and reward, also that of a pick among few candidates, so
that no tolerance has to hide the bias of a finite n. A Metropolis chain is held to three exact
statements: it keeps the tilted law, it is reversible, and how often it accepts.
"""

import itertools
import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss

from common import assert_within, randn
from rwguidance import (
    DDIM,
    Bank,
    CosineSchedule,
    GuidedModel,
    Heun,
    ImportanceSampling,
    RectifiedSchedule,
    Selection,
    Tilt,
    VESchedule,
    best_of_n,
    flow_map,
    pcn,
    sample,
    soft_best_of_n,
    toy,
)
from rwguidance.noise_space.networks import change_of
from rwguidance.support.randomness import generator_for, normal
from rwguidance.weights import ess, log_mean_exp, pareto_k

SCALE = 3.0  # of the noise, like the sigma of a VE path: nothing may assume unit variance
MATRIX = torch.tensor([[0.9, 0.3], [-0.2, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
LAW = toy.Gaussian(MEAN, MATRIX @ MATRIX.T)
TILTS = {
    "linear": Tilt(toy.Linear([1.0, -1.0]), 0.8),
    "quadratic": Tilt(toy.Quadratic([0.5, 0.5], [[1.0, 0.3], [0.3, 2.0]], [0.4, 0.0]), 0.8),
}
METHODS = {"best": best_of_n, "soft": soft_best_of_n}

linear_map = lambda noise, condition: (noise / SCALE) @ MATRIX.to(noise).T + MEAN.to(noise)
identity = lambda noise, condition: noise
unit = lambda tensor: tensor / SCALE


def drawer(d, scale=1.0, dtype=torch.float64):
    return lambda n, generator: scale * normal((n, d), generator, dtype=dtype)


def assert_moments(x, mean, covariance):
    """Mean and covariance of independent rows, at their estimated standard errors."""

    n = len(x)
    assert_within(x.mean(0), mean, x.std(0) / n**0.5)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert_within(products.mean(0), covariance, products.std(0) / n**0.5)


def tilted_start(law, tilt, n, generator):
    """Exact draws of the tilted law, as noise of `linear_map`."""

    x_0 = law.tilted(tilt).sample(n, generator)
    noise = SCALE * torch.linalg.solve(MATRIX, (x_0 - MEAN).T).T
    return Selection(x_0, noise, tilt(x_0), 0, {})


class Recorded:
    """A generator that keeps what it was asked."""

    def __init__(self, generate):
        self.generate = generate
        self.x_0, self.conditions = [], []

    def __call__(self, noise, condition):
        assert not torch.is_grad_enabled()
        x_0 = self.generate(noise, condition)
        self.x_0.append(x_0)
        self.conditions.append(condition)
        return x_0


# The law of one pick among n


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_law_of_a_soft_pick_among_few_is_exact(n, generator):
    bent = lambda noise, condition: noise + torch.sin(2 * noise)
    tilt = Tilt(lambda x, condition: -((x[:, 0] - 1.5) ** 2), 3.0)
    points, weights = (torch.as_tensor(v, dtype=torch.float64) for v in hermegauss(60))
    grid = torch.cartesian_prod(*[points] * n).reshape(-1, n)
    rho = torch.cartesian_prod(*[weights / weights.sum()] * n).reshape(-1, n).prod(1)
    log_w = tilt(bent(grid.reshape(-1, 1), None)).reshape(-1, n)

    outputs = 40_000
    picked = soft_best_of_n(bent, tilt, drawer(1), outputs, n, None, generator, n * outputs)
    for power in (1, 2):
        exact = rho @ (log_w.softmax(1) * grid**power).sum(1)
        values = picked.noise[:, 0] ** power
        assert_within(values.mean(), exact, values.std() / outputs**0.5)


@pytest.mark.parametrize("name", TILTS)
def test_a_soft_pick_among_many_is_a_draw_of_the_tilted_law(name, generator):
    tilt, outputs, n = TILTS[name], 2000, 1000
    picked = soft_best_of_n(
        linear_map, tilt, drawer(2, SCALE), outputs, n, None, generator, 100_000
    )
    exact = LAW.tilted(tilt)
    assert_moments(picked.x_0, exact.mean, exact.covariance)

    z = picked.diagnostics["log_z"].exp()  # unbiased for every n
    assert_within(z.mean(), LAW.log_normalizer(tilt).exp(), z.std() / outputs**0.5)
    assert picked.evaluations == n


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_the_best_of_n_is_an_order_statistic(n, generator):
    outputs = 20_000
    tilt = Tilt(toy.Linear([-2.0]), 0.3)  # prefers small states
    best = best_of_n(identity, tilt, drawer(1), outputs, n, None, generator, outputs)
    x = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    log_density = math.log(n) + (n - 1) * torch.special.log_ndtr(x) - x**2 / 2
    density = log_density.exp() / (2 * math.pi) ** 0.5
    for power in (1, 2):
        exact = torch.trapezoid(density * (-x) ** power, x)
        values = best.x_0[:, 0] ** power
        assert_within(values.mean(), exact, values.std() / outputs**0.5)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 4, 11, 1000])
@pytest.mark.parametrize("method", METHODS)
def test_states_noise_and_weights_belong_together(method, batch_size, generator):
    """One output per target: neither a tiled nor an interleaved order may mix them up."""

    targets = torch.tensor([-20, 0, 20, 40])
    shifted = lambda noise, condition: noise + condition[:, None]
    reward = lambda x, condition: -((x[:, 0] - condition) ** 2) + x[:, 1] - condition
    tilt, recorded = Tilt(reward, 0.5), Recorded(shifted)
    picked = METHODS[method](recorded, tilt, drawer(2), 4, 30, targets, generator, batch_size)

    torch.testing.assert_close(picked.x_0, shifted(picked.noise, targets), rtol=0, atol=0)
    torch.testing.assert_close(picked.log_w, tilt(picked.x_0, targets), rtol=0, atol=0)
    assert max(map(len, recorded.x_0)) <= (batch_size or 4)
    if batch_size == 1000:
        assert len(recorded.x_0) == 1

    x_0, conditions = torch.cat(recorded.x_0), torch.cat(recorded.conditions)
    assert len(x_0) == 4 * 30
    log_w = torch.stack([tilt(x_0, conditions)[conditions == target] for target in targets])
    torch.testing.assert_close(picked.diagnostics["ess"], ess(log_w))
    torch.testing.assert_close(picked.diagnostics["log_z"], log_mean_exp(log_w))
    torch.testing.assert_close(picked.diagnostics["pareto_k"], pareto_k(log_w))
    if method == "best":
        assert torch.equal(picked.log_w, log_w.amax(1))
    else:
        assert not torch.equal(picked.log_w, log_w.amax(1))


@pytest.mark.parametrize("batch_size", [1, 2, 20])
def test_of_equal_candidates_the_first_is_kept(batch_size):
    step = Tilt(toy.Step(0.0, 1.0), 1.0)  # most candidates tie
    generators = [generator_for(1, i) for i in range(2)]
    best = best_of_n(identity, step, drawer(1), 2, 10, None, generators, batch_size)
    for i in range(2):
        g = generator_for(1, i)
        z = [float(torch.randn(1, generator=g, dtype=torch.float64)) for _ in range(10)]
        assert float(best.noise[i]) == next(value for value in z if value >= 0)


# The chain


@pytest.mark.parametrize("name", TILTS)
@pytest.mark.parametrize("rho", [1.0, 0.6, 0.2])
def test_the_chain_keeps_the_tilted_law(name, rho, generator):
    tilt, n, steps = TILTS[name], 40_000, 4
    start = tilted_start(LAW, tilt, n, generator)
    end = pcn(linear_map, tilt, drawer(2, SCALE), start, steps, rho, None, generator)
    exact = LAW.tilted(tilt)
    assert_moments(end.x_0, exact.mean, exact.covariance)
    torch.testing.assert_close(end.x_0, linear_map(end.noise, None), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(end.log_w, tilt(end.x_0), rtol=1e-9, atol=1e-9)
    assert end.evaluations == steps

    # reversible: E[f(z) g(z')] = E[g(z) f(z')]
    before, after = unit(start.noise), unit(end.noise)
    difference = before**2 * after - before * after**2
    assert_within(difference.mean(0), torch.zeros(2), difference.std(0) / n**0.5)


@pytest.mark.parametrize("rho", [1.0, 0.5, 0.05])
def test_the_acceptance_is_exact(rho, generator):
    r"""For a linear tilt of slope b, :math:`\log w(z') - \log w(z) \sim N(-s^2/2, s^2)`, with
    :math:`s^2 = 2 b^2 (1 - \sqrt{1 - \rho^2})`, hence :math:`2 \Phi(-s / 2)`."""

    n, b, beta = 50_000, torch.tensor([1.0, 2.0], dtype=torch.float64), 0.8
    tilt = Tilt(toy.Linear(b), beta)
    x_0 = randn(1, n, 2) + b / beta
    end = pcn(
        identity, tilt, drawer(2), Selection(x_0, x_0, tilt(x_0), 0, {}), 1, rho, None, generator
    )
    s = float((b / beta).norm()) * math.sqrt(2 * (1 - math.sqrt(1 - rho**2)))
    accepted = end.diagnostics["acceptance"]
    assert set(accepted.tolist()) <= {0.0, 1.0}
    exact = math.erfc(s / 2 / 2**0.5)
    assert_within(accepted.mean(), exact, accepted.std() / n**0.5)
    assert torch.equal(accepted == 1, (end.x_0 != x_0).any(1))


@pytest.mark.parametrize("name", TILTS)
def test_the_chain_reaches_the_tilted_law_from_a_fresh_draw(name, generator):
    tilt, outputs = TILTS[name], 10_000
    arguments = (linear_map, tilt, drawer(2, SCALE))
    fresh = soft_best_of_n(*arguments, outputs, 1, generator=generator)
    end = pcn(*arguments, fresh, 60, 0.7, generator=generator)
    exact = LAW.tilted(tilt)
    assert float((fresh.x_0.mean(0) - exact.mean).abs().max()) > 0.3
    assert_moments(end.x_0, exact.mean, exact.covariance)
    assert end.evaluations == 61


def test_the_chain_samples_bent_generators_and_rewards(generator):
    bent = lambda noise, condition: noise + torch.sin(2 * noise)
    tilt = Tilt(lambda x, condition: 2 * torch.cos(3 * x[:, 0]) + x[:, 0].abs(), 0.9)
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = (tilt(bent(z[:, None], None)) - z**2 / 2).softmax(0)
    outputs = 20_000
    start = soft_best_of_n(bent, tilt, drawer(1), outputs, 16, None, generator, outputs)
    end = pcn(bent, tilt, drawer(1), start, 100, 0.8, None, generator)
    for power in (1, 2, 4):
        values = end.noise[:, 0] ** power
        assert_within(values.mean(), density @ z**power, values.std() / outputs**0.5)


def test_the_acceptance_does_not_depend_on_the_dimension(generator):
    rates = {}
    for d in (4, 400):
        tilt = Tilt(toy.Linear([1.5] + [0.0] * (d - 1)), 0.8)
        start = soft_best_of_n(identity, tilt, drawer(d), 1000, 8, generator=generator)
        end = pcn(identity, tilt, drawer(d), start, 20, 0.5, generator=generator)
        rates[d] = end.diagnostics["acceptance"]
    error = math.sqrt(sum(float(rate.var()) / len(rate) for rate in rates.values()))
    assert_within(rates[4].mean(), rates[400].mean(), error)
    assert 0.3 < float(rates[4].mean()) < 0.8


def test_a_chain_goes_on_where_it_stopped():
    tilt, generator = TILTS["linear"], generator_for(3)
    arguments = (linear_map, tilt, drawer(2, SCALE))
    start = soft_best_of_n(*arguments, 5, 4, generator=generator)
    state = generator.get_state()
    whole = pcn(*arguments, start, 6, 0.4, generator=generator)
    generator.set_state(state)
    half = pcn(*arguments, start, 2, 0.4, generator=generator)
    rest = pcn(*arguments, half, 4, 0.4, generator=generator)
    assert torch.equal(rest.noise, whole.noise)
    assert torch.equal(rest.x_0, whole.x_0)
    assert rest.evaluations == whole.evaluations == 10
    share = (2 * half.diagnostics["acceptance"] + 4 * rest.diagnostics["acceptance"]) / 6
    torch.testing.assert_close(share, whole.diagnostics["acceptance"])


def test_a_start_is_weighed_by_the_tilt_at_hand(generator):
    """Starting from the picks of another temperature is legitimate, as annealing does."""

    exact, n = LAW.tilted(TILTS["linear"]), 20_000
    start = tilted_start(LAW, TILTS["linear"], n, generator)
    stale = Selection(start.x_0, start.noise, torch.full((n,), 100.0), 0, {})
    end = pcn(linear_map, TILTS["linear"], drawer(2, SCALE), stale, 1, 0.5, generator=generator)
    assert float(end.diagnostics["acceptance"].mean()) > 0.3
    assert_moments(end.x_0, exact.mean, exact.covariance)


def test_networks_beside_a_generator_see_times_in_double_precision():
    seen = []

    def network(states, times, condition):
        seen.append((times.dtype, times.tolist()))
        return states

    change_of(network, torch.ones(2, 3), 1.0, None)
    assert seen == [(torch.float64, [1.0, 1.0])]


def test_a_free_step_is_exact_in_double_precision():
    free = Tilt(lambda x, condition: 0 * x[:, 0], 1.0)
    start = soft_best_of_n(identity, free, drawer(3), 4, 1, generator=generator_for(0))
    fresh = randn(1, 4, 3)
    end = pcn(identity, free, lambda n, generator: fresh, start, 1, 0.3, generator=generator_for(1))
    expected = math.sqrt(1 - 0.3**2) * start.noise + 0.3 * fresh
    torch.testing.assert_close(end.noise, expected, rtol=1e-14, atol=1e-14)


def test_half_precision_does_not_swallow_small_steps():
    """Far below the spacing of bfloat16, moves must add up: E|z_k - z_0|^2 = 2 (1 - a^k)."""

    n, steps, rho = 4000, 1500, 5e-4
    free = Tilt(lambda x, condition: 0 * x[:, 0], 1.0)
    draw = drawer(1, dtype=torch.bfloat16)
    generator = generator_for(0)
    start = soft_best_of_n(identity, free, draw, n, 1, generator=generator)
    end = pcn(identity, free, draw, start, steps, rho, generator=generator)
    assert end.noise.dtype == end.x_0.dtype == torch.bfloat16
    assert torch.equal(end.noise, end.x_0)
    assert end.log_w.dtype == torch.float32
    assert bool((end.diagnostics["acceptance"] == 1).all())

    moves = (end.noise.double() - start.noise.double()).square()
    exact = 2 * (1 - (1 - rho**2) ** (steps / 2))
    rounding = float((start.noise.double() * 2.0**-8).square().mean()) / 3  # of the last state
    assert rounding < 0.02 * exact
    error = float(moves.std()) / n**0.5 + rounding
    assert_within(moves.mean(), exact, error)


def test_a_generator_with_numbers_of_its_own_is_tilted_exactly(generator):
    """States are kept, not made again: the law of x = z + e, N(0, 1.25), is what is tilted."""

    own = generator_for(5)
    noisy = lambda noise, condition: noise + 0.5 * normal(noise.shape, own, dtype=noise.dtype)
    tilt, outputs = Tilt(toy.Linear([1.0]), 0.8), 10_000
    picked = soft_best_of_n(noisy, tilt, drawer(1), outputs, 64, None, generator, 8 * outputs)
    end = pcn(noisy, tilt, drawer(1), picked, 20, 0.8, generator=generator)
    mean, covariance = torch.tensor([1.25 / 0.8]), torch.tensor([[1.25]])
    assert_moments(end.x_0, mean.double(), covariance.double())


# Generators from models


@pytest.mark.parametrize("sampler", [DDIM(), Heun()], ids=["ddim", "heun"])
def test_the_flow_of_a_toy_law_is_tilted(sampler, generator):
    law = toy.GaussianMixture([0.0, 0.7], [[-1.0], [1.5]], [[[0.2]], [[0.4]]])
    tilt = Tilt(toy.Linear([-1.0]), 2.0)
    generate = flow_map(law.model(RectifiedSchedule()), sampler, torch.linspace(1, 0, 13))
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    x = generate(z[:, None], None)
    density = (tilt(x) - z**2 / 2).softmax(0)  # of the discrete flow, exactly

    outputs = 5000
    start = soft_best_of_n(generate, tilt, drawer(1), outputs, 4, None, generator, outputs)
    end = pcn(generate, tilt, drawer(1), start, 20, 0.8, generator=generator)
    for power in (1, 2):
        values = end.x_0[:, 0] ** power
        assert_within(values.mean(), density @ x[:, 0] ** power, values.std() / outputs**0.5)


def test_the_tilt_of_a_fine_flow_is_that_of_the_law():
    law = toy.GaussianMixture([0.0, 0.7], [[-1.0], [1.5]], [[[0.2]], [[0.4]]])
    tilt = Tilt(toy.Linear([-1.0]), 2.0)
    generate = flow_map(law.model(RectifiedSchedule()), Heun(), torch.linspace(1, 0, 65))
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    x = generate(z[:, None], None)
    density = (tilt(x) - z**2 / 2).softmax(0)
    exact = law.tilted(tilt)
    assert abs(float(density @ x[:, 0] - exact.log_weights.exp() @ exact.means[:, 0])) < 5e-4


def test_one_step_of_a_denoiser_leaves_nothing_to_select(generator):
    """Where alpha = 0, one step gives the mean for every noise, and guided the tilted mean."""

    law = toy.GaussianMixture([0.0, 0.0], [[-2.0, 0.0], [2.0, 0.0]], 0.1 * torch.eye(2)[None])
    tilt, model = Tilt(toy.Linear([1.0, 0.0]), 2.0), law.model(CosineSchedule())
    generate = flow_map(model, DDIM(eta=1.0), (1, 0))
    best = best_of_n(generate, tilt, drawer(2), 8, 32, generator=generator)
    torch.testing.assert_close(best.x_0, torch.zeros(8, 2, dtype=torch.float64))
    guided = sample(GuidedModel(model, toy.Oracle(law, tilt)), DDIM(), best.noise, (1, 0))
    tilted = law.tilted(tilt)
    mean = tilted.log_weights.exp() @ tilted.means
    torch.testing.assert_close(guided, mean.expand(8, 2))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")
def test_a_flow_map_starts_from_noise_that_knows_nothing(gradient):
    """A guided model tells: its kernel is flat at the first time, and at no other."""

    law, tilt = toy.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]]), Tilt(toy.Linear([1.0, 2.0]), 1)
    guided = GuidedModel(
        law.model(RectifiedSchedule()),
        ImportanceSampling(Bank(law.sample(40, generator_for(0))), tilt),
    )
    z, times = torch.randn(6, 2, generator=generator_for(1), dtype=torch.float64), [0.8, 0.4, 0.0]
    with torch.enable_grad():
        made = flow_map(guided, DDIM(), times, gradient)(z, None).detach()
    torch.testing.assert_close(made, sample(guided.starting(0.8), DDIM(), z, times))
    assert float((made - sample(guided, DDIM(), z, times)).abs().max()) > 0.1


def test_a_flow_map_samples_and_refuses_randomness():
    law = toy.GaussianMixture([0.0, 0.0], [[-1.0], [1.0]], 0.2 * torch.eye(1)[None])
    model, z = law.model(RectifiedSchedule()), randn(0, 5, 1)
    times = torch.linspace(1, 0, 5)
    assert torch.equal(flow_map(model, Heun(), times)(z, None), sample(model, Heun(), z, times))
    assert len(flow_map(model, DDIM(1.0), (1, 0))(z, None)) == 5  # the last step draws nothing
    with pytest.raises(ValueError, match="must be deterministic"):
        flow_map(model, DDIM(1.0), times)(z, None)
    keeps_noise = law.model(VESchedule(0.01, 50.0))  # so that its last step draws, too
    with pytest.raises(ValueError, match="must be deterministic"):
        flow_map(keeps_noise, DDIM(1.0), (1, 0))(50 * z, None)


def test_states_may_have_another_shape_than_noise(generator):
    render = lambda noise, condition: noise[:, :1, None].expand(-1, 3, 4)
    tilt = Tilt(lambda x, condition: x.mean((1, 2)), 0.5)
    best = best_of_n(render, tilt, drawer(2), 3, 5, generator=generator)
    end = pcn(render, tilt, drawer(2), best, 3, 0.5, generator=generator)
    assert end.x_0.shape == (3, 3, 4)
    assert end.noise.shape == (3, 2)
    assert torch.equal(end.x_0, render(end.noise, None))


# Randomness


def run(outputs, batch_size=None, method="soft"):
    """A pick and a chain from it, of the given outputs, each with generators of its own."""

    tilt = Tilt(lambda x, condition: -((x[:, 0] - condition) ** 2) + x[:, 1], 0.5)
    condition = torch.tensor(outputs)
    generators = [generator_for(7, i) for i in outputs]
    arguments = (linear_map, tilt, drawer(2, SCALE))
    start = METHODS[method](*arguments, len(outputs), 9, condition, generators, batch_size)
    end = pcn(*arguments, start, 5, 0.6, condition, generators, batch_size)
    return start, end


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("outputs", "batch_size"),
    [
        ([0, 1, 2, 3, 4], 1),
        ([0, 1, 2, 3, 4], 2),
        ([0, 1, 2, 3, 4], 13),
        ([0, 1, 2, 3, 4], 45),  # all candidates at once
        ([3], 4),
        ([4, 1, 2], 2),
    ],
)
def test_an_output_depends_on_its_own_generator_only(method, outputs, batch_size):
    wholes = run([0, 1, 2, 3, 4], method=method)
    for part, whole in zip(run(outputs, batch_size, method), wholes, strict=True):
        for name in ("x_0", "noise", "log_w"):
            torch.testing.assert_close(
                getattr(part, name), getattr(whole, name)[outputs], rtol=1e-12, atol=1e-12
            )
        for name, values in part.diagnostics.items():
            expected = whole.diagnostics[name][outputs]
            torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_outputs_differ():
    start, end = run([2, 2, 2])
    assert torch.equal(start.x_0[0], start.x_0[1])  # same seed, same condition
    start, end = run([0, 1, 2, 3, 4])
    for picked in (start.noise, end.noise):
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(picked, 2))


# Zero weights and wrong input


def test_zero_weights_are_never_chosen(generator):
    tilt = Tilt(lambda x, condition: torch.where(x[:, 0] > 0.5, 0.0, -math.inf), 1.0)
    arguments = (identity, tilt, drawer(1))
    outputs = 4000
    for method in METHODS.values():
        picked = method(*arguments, outputs, 64, None, generator, 4 * outputs)
        assert bool((picked.x_0 > 0.5).all())
    end = pcn(*arguments, picked, 10, 0.9, generator=generator)
    assert bool((end.x_0 > 0.5).all())
    z = torch.linspace(0.5, 12, 20_001, dtype=torch.float64)  # the truncated law
    density = (-(z**2) / 2).exp()
    exact = torch.trapezoid(z * density, z) / torch.trapezoid(density, z)
    assert_within(end.x_0.mean(), exact, end.x_0.std() / outputs**0.5)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_outputs_without_weight_are_named(batch_size, generator):
    def reward(x, condition):
        good = torch.tensor([prompt != "a hopeless prompt" for prompt in condition])
        return torch.where(good, x[:, 0], -math.inf)

    prompts = ["cat", "dog", "bird", "a hopeless prompt"]
    arguments = (identity, Tilt(reward, 1.0), drawer(1))
    for method in METHODS.values():
        with pytest.raises(ValueError, match=r"5 candidates .* outputs 3 .*'a hopeless prompt'"):
            method(*arguments, 4, 5, prompts, generator, batch_size)
    start = best_of_n(identity, TILTS["linear"], drawer(2), 4, 1, generator=generator)
    with pytest.raises(ValueError, match=r"the start of .* outputs 3 .*'a hopeless prompt'"):
        pcn(*arguments, start, 1, 0.5, prompts, generator, batch_size)

    opaque = {"embedding": torch.zeros(2, 3)}  # nothing that could be named
    never = Tilt(lambda x, condition: x[:, 0] - math.inf, 1.0)
    with pytest.raises(ValueError, match=r"outputs 0, 1$"):
        best_of_n(identity, never, drawer(1), 2, 3, opaque, generator)


def test_wrong_input_is_refused(generator):
    tilt = TILTS["linear"]
    good = dict(generate=identity, tilt=tilt, draw=drawer(2), outputs=3, n=2, generator=generator)

    def refuse(error, match, **change):
        for method in METHODS.values():
            with pytest.raises(error, match=match):
                method(**{**good, **change})

    refuse(ValueError, "n must be at least 1, got 0", n=0)
    refuse(ValueError, "outputs must be at least 1, got 0", outputs=0)
    refuse(ValueError, "batch_size must be at least 1, got 0", batch_size=0)
    refuse(TypeError, "tilt must be a Tilt, got function", tilt=lambda x: x)
    refuse(
        ValueError, "generator must hold one item per output, 3, got 2", generator=[generator] * 2
    )
    refuse(TypeError, "generator must be a torch.Generator.*got list", generator=[None] * 3)
    refuse(ValueError, "condition must hold one item per output, 3, got 4", condition=list("abcd"))
    refuse(TypeError, "got str", condition="abc")
    wrong = "draw must return noise of floating point with shape"
    refuse(TypeError, wrong, draw=lambda n, generator: torch.zeros(n, 2, dtype=torch.long))
    refuse(TypeError, wrong, draw=lambda n, generator: torch.zeros(1, 2))
    refuse(TypeError, wrong, draw=lambda n, generator: torch.zeros(n))
    refuse(TypeError, "generate must return states", generate=lambda noise, y: noise[:1])
    refuse(TypeError, "generate must return states.* got str", generate=lambda noise, y: "cat")

    start = best_of_n(**good)
    chain = lambda **change: pcn(
        **{
            **dict(generate=identity, tilt=tilt, draw=drawer(2), start=start, steps=1, rho=0.5),
            "generator": generator,
            **change,
        }
    )
    for rho in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"rho must lie in .0, 1., got {rho}"):
            chain(rho=rho)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        chain(steps=0)
    with pytest.raises(TypeError, match="start must be a Selection, got Tensor"):
        chain(start=start.x_0)
    with pytest.raises(ValueError, match="generator must hold one item per output, 3, got 1"):
        chain(generator=[generator])


def test_rewards_that_record_gradients_leave_none(generator):
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    tilt = Tilt(lambda x, condition: x @ weight, 1.0)
    arguments = (lambda noise, condition: noise * weight, tilt, drawer(2))
    start = soft_best_of_n(*arguments, 3, 4, generator=generator)
    end = pcn(*arguments, start, 2, 0.5, generator=generator)
    for result in (start, end):
        assert not any(v.requires_grad for v in (result.x_0, result.noise, result.log_w))
