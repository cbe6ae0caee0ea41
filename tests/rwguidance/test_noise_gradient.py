r"""Steps along the gradient in noise space, and the Metropolis test that makes them exact.

Where the log-weight is linear in the noise, a step of size 1 is exact. Elsewhere a step is an
approximation whose size is chosen, and the chain is held to statements that are exact: its
acceptance is that of densities which the test writes itself, and it keeps the tilted law.
"""

import math

import pytest
import torch
from torch.distributions import Normal

from common import assert_within, randn
from rwguidance import DDIM, Heun, RectifiedSchedule, Selection, Tilt, flow_map, sample, toy
from rwguidance.noise_space import (
    GainOutOfReach,
    noise_gradient,
    pcnl,
    size_for_gain,
    soft_best_of_n,
)
from rwguidance.noise_space.kernels import CrankNicolson, Langevin, State, step
from rwguidance.noise_space.tasks import Task
from rwguidance.support.randomness import generator_for, normal

SCALE = 3.0  # of the noise: nothing may assume unit variance
SLOPE = torch.tensor([1.0, -2.0], dtype=torch.float64)
LINEAR = Tilt(toy.Linear(SLOPE), 2.0)
BENT = Tilt(lambda x, condition: 2 * torch.cos(3 * x[:, 0]) + x[:, 0].abs(), 0.9)

unit = lambda noise, condition: noise / SCALE
bent = lambda noise, condition: noise / SCALE + torch.sin(2 * noise / SCALE)
drawer = lambda d, dtype=torch.float64, scale=SCALE: (
    lambda n, generator: scale * normal((n, d), generator, dtype=dtype)
)


def log_target(z):
    """Log-density of the tilted noise of `bent`, up to a constant, with shape (N,)."""

    return BENT(bent(z, None)) - (z[:, 0] / SCALE) ** 2 / 2


def bent_start(n, generator):
    """Draws of the tilted law by its quadrature, finer than any error of the tests."""

    grid = torch.linspace(-9 * SCALE, 9 * SCALE, 200_001, dtype=torch.float64)[:, None]
    cumulative = log_target(grid).softmax(0).cumsum(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    noise = grid[torch.searchsorted(cumulative, uniform).clamp(max=len(grid) - 1)]
    return Selection(bent(noise, None), noise, BENT(bent(noise, None)), 0, {})


# Steps


def test_a_step_of_size_one_is_exact_where_the_log_weight_is_linear(generator):
    n, shift = 20_000, SLOPE / 2.0
    end = noise_gradient(
        unit, LINEAR, drawer(2), n, 1.0, 1, None, generator, std=SCALE, keep_norm=False
    )
    assert_within(end.x_0.mean(0), shift, end.x_0.std(0) / n**0.5)
    squares = (end.x_0 - shift).square()
    assert_within(squares.mean(0), torch.ones(2), squares.std(0) / n**0.5)
    torch.testing.assert_close(end.x_0, unit(end.noise, None))
    torch.testing.assert_close(end.log_w, LINEAR(end.x_0))
    slope = end.diagnostics["squared_slope"]
    torch.testing.assert_close(slope, torch.full((n,), float(shift.square().sum())).double())
    assert end.evaluations == 2


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_go_up_and_keep_the_norm(steps):
    run = lambda **change: noise_gradient(
        unit, LINEAR, drawer(2), 50, 0.2, steps, None, generator_for(1), std=SCALE, **change
    )
    kept, free = run(), run(keep_norm=False)
    z = drawer(2)(50, generator_for(1))
    torch.testing.assert_close(kept.noise.norm(dim=1), z.norm(dim=1))
    torch.testing.assert_close(free.noise, z + steps * 0.2 * SCALE * SLOPE / 2.0)
    assert bool((kept.log_w > LINEAR(unit(z, None))).all())
    assert kept.evaluations == steps + 1


def test_a_proxy_gives_the_gradients_and_nothing_else():
    flat = lambda noise, condition: 0.5 * noise / SCALE
    run = lambda **change: noise_gradient(
        unit, LINEAR, drawer(2), 9, 0.4, 1, None, generator_for(1), std=SCALE, **change
    )
    proxied, double = run(proxy=flat), run()
    assert not torch.allclose(proxied.noise, double.noise)
    torch.testing.assert_close(proxied.x_0, unit(proxied.noise, None))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_output_depends_on_its_own_generator_only(batch_size):
    tilt = Tilt(lambda x, condition: x[:, 0] * condition, 0.5)

    def run(outputs, size):
        generators = [generator_for(7, i) for i in outputs]
        condition = torch.tensor(outputs)
        start = noise_gradient(
            bent, tilt, drawer(2), len(outputs), 0.3, 2, condition, generators, size, SCALE
        )
        return start, pcnl(bent, tilt, drawer(2), start, 3, 0.5, condition, generators, size, SCALE)

    for whole, part in zip(run([0, 1, 2, 3, 4], None), run([4, 1], batch_size), strict=True):
        torch.testing.assert_close(part.noise, whole.noise[[4, 1]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_keeps_gradients_of_single(dtype):
    seen = []

    def generate(noise, condition):
        seen.append(noise.dtype)
        return noise / SCALE

    end = noise_gradient(
        generate, LINEAR, drawer(2, dtype), 8, 0.5, 2, None, generator_for(0), std=SCALE
    )
    assert set(seen) == {end.noise.dtype, end.x_0.dtype} == {dtype}
    assert end.diagnostics["squared_slope"].dtype == torch.float32
    expected = SLOPE.square().sum() / 4
    error = end.diagnostics["squared_slope"].double() / expected - 1
    assert float(error.abs().max()) < 4 * torch.finfo(dtype).eps
    chain = pcnl(generate, LINEAR, drawer(2, dtype), end, 3, 0.5, None, generator_for(1), std=SCALE)
    assert chain.noise.dtype == dtype


# The size


def test_the_size_of_a_linear_tilt_is_that_of_the_gain():
    noise = drawer(2)(16, generator_for(3))
    squared = float(SLOPE.square().sum()) / 4
    find = lambda gain, steps: size_for_gain(
        unit, LINEAR, noise, gain, steps, std=SCALE, keep_norm=False
    )
    assert abs(find(squared, 1) - 1) < 0.03  # the tilted law's gain is Var(log w)
    assert abs(find(0.5 * squared, 2) - 0.25) < 0.01


@pytest.mark.parametrize("gain", [0.05, 0.6])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_pilots_gain_what_was_asked(gain, steps):
    noise = drawer(40)(30, generator_for(3))
    tilt = Tilt(lambda x, condition: x.sin().sum(1) / 4, 1.0)
    change = dict(std=SCALE, batch_size=7)
    size = size_for_gain(bent, tilt, noise, gain, steps, **change)
    again = lambda n, generator: noise
    for factor, sign in ((1.0, 0), (0.9, -1), (1.1, 1)):
        end = noise_gradient(bent, tilt, again, 30, factor * size, steps, std=SCALE)
        found = float((end.log_w - tilt(bent(noise, None))).mean())
        assert abs(found / gain - 1) < 0.05 if sign == 0 else sign * (found - gain) > 0


def test_a_constant_of_the_log_weight_is_no_gain():
    noise = drawer(2)(16, generator_for(3))
    far = Tilt(lambda x, condition: LINEAR(x) + 2.0**30, 1.0)
    sizes = [size_for_gain(unit, tilt, noise, 0.2, std=SCALE) for tilt in (LINEAR, far)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-9)


def test_a_gain_out_of_reach_is_refused():
    noise = drawer(2)(16, generator_for(3))
    match = r"1 steps reach, at most .* nats .* got 100; take more"
    with pytest.raises(GainOutOfReach, match=match) as found:
        size_for_gain(unit, LINEAR, noise, 100.0, std=SCALE)
    # all noise along the slope is the most; the first size, by the gradient, gains nearly as much
    again = lambda n, generator: noise
    end = noise_gradient(unit, LINEAR, again, 16, found.value.size, std=SCALE)
    before = LINEAR(unit(noise, None))
    torch.testing.assert_close(float((end.log_w - before).mean()), found.value.gain)
    most = float((noise.norm(dim=1) * SLOPE.norm() / 2 / SCALE - before).mean())
    assert 0.9 * most < found.value.gain < most
    assert found.value.size == pytest.approx(100 / (float(SLOPE.square().sum()) / 4))
    with pytest.raises(GainOutOfReach) as found:  # at first the gain still grows with the size
        size_for_gain(unit, LINEAR, noise, 1.2 * most, std=SCALE)
    reached = float(str(found.value).split("at most ")[1].split(" nats")[0])
    assert reached == pytest.approx(most, rel=0.01)
    flat = Tilt(lambda x, condition: 0 * x.sum(1), 1.0)
    with pytest.raises(GainOutOfReach, match="at most 0 nats on these pilots, got 2;"):
        size_for_gain(unit, flat, noise, 2.0)
    with pytest.raises(ValueError, match="gain must be"):
        size_for_gain(unit, LINEAR, noise, 0.0)


# The chain


@pytest.mark.parametrize("rho", [0.2, 0.7, 1.0])
def test_the_metropolis_ratio_is_that_of_the_densities(rho):
    """Detailed balance, point by point, with densities that the test writes itself."""

    keep = torch.full((50,), math.sqrt(1 - rho**2), dtype=torch.float64)

    def at(z):
        z = z.clone().requires_grad_()
        log_w = BENT(bent(z, None))
        (gradient,) = torch.autograd.grad(log_w.sum(), z)
        return State(z.detach(), bent(z, None).detach(), log_w.detach(), gradient)

    def log_proposal(here, there):
        mean = keep[:, None] * here.z + (1 - keep)[:, None] * SCALE**2 * here.gradient
        return Normal(mean, rho * SCALE).log_prob(there.z)[:, 0]

    old, new = at(SCALE * randn(1, 50, 1)), at(SCALE * randn(2, 50, 1))
    exact = log_target(new.z) + log_proposal(new, old) - log_target(old.z) - log_proposal(old, new)
    torch.testing.assert_close(Langevin(SCALE).log_ratio(old, new, keep), exact)


@pytest.mark.parametrize("kernel", [CrankNicolson(), Langevin(SCALE)])
def test_chains_stay_in_single_precision_whatever_the_sizes(kernel, generator):
    task = Task(bent, BENT, drawer(1, torch.float32), 9, None, generator, None)
    rows, rho = list(range(9)), torch.full((9,), 0.4, dtype=torch.float64)
    state = kernel.at(task, task.noise(rows), rows, torch.float32)
    state, _, log_ratio = step(kernel, task, rows, state, rho, torch.float32)
    parts = (state.z, state.x_0, state.log_w, state.gradient, log_ratio)
    assert {part.dtype for part in parts} == {torch.float32}


@pytest.mark.parametrize("rho", [0.3, 1.0])
def test_the_chain_keeps_the_tilted_law(rho, generator):
    n, steps = 60_000, 3
    start = bent_start(n, generator)
    end = pcnl(bent, BENT, drawer(1), start, steps, rho, None, generator, std=SCALE)
    grid = torch.linspace(-9 * SCALE, 9 * SCALE, 20_001, dtype=torch.float64)[:, None]
    density = log_target(grid).softmax(0)
    for power in (1, 2, 4):
        values = (end.noise[:, 0] / SCALE) ** power
        exact = density @ (grid[:, 0] / SCALE) ** power
        assert_within(values.mean(), exact, values.std() / n**0.5)
    before, after = start.noise / SCALE, end.noise / SCALE  # reversible
    difference = before**2 * after - before * after**2
    assert_within(difference.mean(0), torch.zeros(1), difference.std(0) / n**0.5)
    acceptance = float(end.diagnostics["acceptance"].mean())
    assert 0.02 < acceptance < 0.99
    assert end.evaluations == steps


@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_every_proposal_is_accepted_where_the_log_weight_is_linear(rho, generator):
    start = soft_best_of_n(unit, LINEAR, drawer(2), 2000, 1, None, generator)
    end = pcnl(unit, LINEAR, drawer(2), start, 3, rho, None, generator, std=SCALE)
    assert bool((end.diagnostics["acceptance"] == 1).all())
    if rho == 1.0:  # a fresh draw of the tilted law
        assert_within(end.x_0.mean(0), SLOPE / 2, end.x_0.std(0) / 2000**0.5)


def test_states_of_zero_weight_are_never_entered(generator):
    tilt = Tilt(lambda x, condition: torch.where(x[:, 0] > 0.5, x[:, 0].sqrt(), -math.inf), 1.0)
    start = soft_best_of_n(unit, tilt, drawer(1), 500, 64, None, generator, 5000)
    end = pcnl(unit, tilt, drawer(1), start, 10, 0.8, None, generator, std=SCALE)
    assert bool((end.x_0 > 0.5).all())


# Gradients of the sampler


@pytest.mark.parametrize("sampler", [DDIM(), Heun()], ids=["ddim", "heun"])
def test_recomputed_gradients_are_those_of_the_whole_graph(sampler):
    law = toy.GaussianMixture([0.0, 0.7], [[-1.0], [1.5]], [[[0.2]], [[0.4]]])
    model, times = law.model(RectifiedSchedule()), torch.linspace(1, 0, 6)
    z, again = randn(0, 5, 1).requires_grad_(), randn(0, 5, 1).requires_grad_()
    whole = sample(model, sampler, z, times, gradient=True)
    parts = flow_map(model, sampler, times, gradient=True)(again, None)
    torch.testing.assert_close(parts, whole)
    whole.sin().sum().backward()
    parts.sin().sum().backward()
    torch.testing.assert_close(again.grad, z.grad)
    assert float(z.grad.abs().min()) > 0
    with torch.no_grad():
        assert not flow_map(model, sampler, times, gradient=True)(z, None).requires_grad


def test_wrong_input_is_refused(generator):
    run = lambda **change: noise_gradient(
        **{
            **dict(generate=unit, tilt=LINEAR, draw=drawer(2), outputs=3, size=0.5),
            "generator": generator,
            **change,
        }
    )
    for name, value in dict(size=0.0, steps=0, std=-1.0).items():
        with pytest.raises(ValueError, match=name):
            run(**{name: value})
    with pytest.raises(ValueError, match=r"tilt must be differentiable.*pcn or soft_best_of_n"):
        run(tilt=Tilt(lambda x, condition: x[:, 0].detach().round(), 1.0))
    law = toy.Gaussian([0.0, 0.0], torch.eye(2))
    frozen = flow_map(law.model(RectifiedSchedule()), DDIM(), (1, 0))
    with pytest.raises(ValueError, match=r"generate must carry gradients.*gradient=True"):
        run(generate=frozen)
    with pytest.raises(FloatingPointError, match=r"gradient .* outputs 0, 1, 2 in torch.float64"):
        run(tilt=Tilt(lambda x, condition: (0 * x[:, 0]).sqrt(), 1.0))

    class BlackBox:
        spec = type("Spec", (), {"differentiable": False})

        def __call__(self, x, condition):
            raise AssertionError("not before the check")

    start = Selection(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3), 0, {})
    with pytest.raises(ValueError, match="BlackBox has no gradient"):
        run(tilt=Tilt(BlackBox(), 1.0))
    with pytest.raises(ValueError, match="BlackBox has no gradient"):
        pcnl(unit, Tilt(BlackBox(), 1.0), drawer(2), start, 1, 0.5)
