r"""Chains that choose the size of their steps: how often they accept, their law, and their end."""

import math

import pytest
import torch

from common import assert_within
from rwguidance import Selection, Tilt, soft_best_of_n, toy
from rwguidance.noise_space import adapted_pcn, draw_bank
from rwguidance.noise_space.adapted import _have_mixed
from rwguidance.support.randomness import generator_for, normal

identity = lambda noise, condition: noise
bent = lambda noise, condition: noise + torch.sin(2 * noise)
BENT = Tilt(lambda x, condition: 2 * torch.cos(3 * x[:, 0]) + x[:, 0].abs(), 0.9)
drawer = lambda d: lambda n, generator: normal((n, d), generator, dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 10, 100])
@pytest.mark.parametrize("target", [0.25, 0.5])
def test_chains_accept_as_often_as_was_asked(d, target, generator):
    beta, chains = (0.002 if d == 1 else 0.1), 200  # so narrow that fresh draws are rejected
    tilt = Tilt(lambda x, condition: -(x - 0.5).square().sum(1), beta)
    precision = 1 + 2 / beta  # of the tilted law
    x_0 = 1 / beta / precision + drawer(d)(chains, generator) / precision**0.5
    start = Selection(x_0, x_0, tilt(x_0), 4, {})
    end = adapted_pcn(identity, tilt, drawer(d), start, 400, 100, target, None, None, generator)
    found = end.diagnostics["acceptance"]
    assert_within(found.mean(), target, found.std() / chains**0.5 + 0.002)
    assert end.evaluations == 4 + 500
    assert bool((end.diagnostics["rho"] < 0.9).all())


def test_large_steps_are_taken_where_all_are_accepted(generator):
    flat = Tilt(lambda x, condition: 0 * x[:, 0], 1.0)
    start = soft_best_of_n(identity, flat, drawer(2), 5, 1, None, generator)
    end = adapted_pcn(identity, flat, drawer(2), start, 60, 3, 0.3, None, None, generator)
    assert bool((end.diagnostics["rho"] > 0.99).all())
    assert bool((end.diagnostics["acceptance"] == 1).all())


def test_the_law_after_the_burn_in_is_exact(generator):
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = (BENT(bent(z[:, None], None)) - z**2 / 2).softmax(0)
    chains = 4000
    start = soft_best_of_n(bent, BENT, drawer(1), chains, 16, None, generator, chains)
    end = adapted_pcn(bent, BENT, drawer(1), start, 40, 300, 0.3, None, None, generator)
    for power in (1, 2, 4):
        values = end.noise[:, 0] ** power
        assert_within(values.mean(), density @ z**power, values.std() / chains**0.5)
    torch.testing.assert_close(end.x_0, bent(end.noise, None))
    torch.testing.assert_close(end.log_w, BENT(end.x_0))


def two_modes(height):
    """Narrow modes at -1.5 and 1.5, the right one with a log-weight that is larger by `height`."""

    def reward(x, condition):
        side = torch.where(x[:, 0] > 0, height, 0.0)
        return side - 2 * (x[:, 0].abs() - 1.5).square()

    return Tilt(reward, 1.0)


@pytest.mark.parametrize("height", [1.5, -1.0])
def test_chains_do_not_stop_before_they_have_mixed(height, generator):
    """They start in equal shares and change modes once in some ten steps."""

    tilt, chains = two_modes(height), 300
    side = torch.where(torch.arange(chains) % 2 == 0, 1.5, -1.5).double()[:, None]
    start = Selection(side, side, tilt(side), 0, {})
    end = adapted_pcn(identity, tilt, drawer(1), start, 40, 4096, 0.5, 8.0, None, generator)
    exact = 1 / (1 + math.exp(-height))
    right = (end.noise[:, 0] > 0).double()
    assert_within(right.mean(), exact, right.std() / chains**0.5)
    assert 40 + 32 <= end.evaluations < 40 + 4096
    effective = end.diagnostics["effective"]
    assert (effective.shape, effective.dtype) == ((chains,), torch.float64)
    assert float(effective[0]) >= 8


def test_chains_in_modes_of_their_own_never_stop(generator):
    apart = Tilt(lambda x, condition: torch.where(x[:, 0] > 0, 2.0, 0.0) - 1e4 * (
        (x[:, 0].abs() - 2).square()
    ), 1.0)  # fmt: skip
    side = torch.where(torch.arange(16) % 2 == 0, 2.0, -2.0).double()[:, None]
    start = Selection(side, side, apart(side), 0, {})
    end = adapted_pcn(identity, apart, drawer(1), start, 30, 256, 0.3, 4.0, None, generator)
    assert end.evaluations == 30 + 256
    assert float(end.diagnostics["effective"][0]) < 4


def test_a_drift_and_a_difference_of_chains_are_seen(generator):
    noise = torch.randn(64, 20, generator=generator, dtype=torch.float64)
    drift = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None]
    own = torch.linspace(-1, 1, 20, dtype=torch.float64)
    assert _have_mixed(noise, 20.0)
    assert not _have_mixed(noise + 6 * drift, 2.0)
    assert not _have_mixed(noise + 2 * own, 20.0)


def test_a_drift_is_that_between_the_quarters_at_the_end(generator):
    noise = 0.3 * torch.randn(8, 20, generator=generator, dtype=torch.float64)
    steps = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, -1.0], dtype=torch.float64)
    assert not _have_mixed(noise + steps[:, None], 2.0)
    still = torch.tensor([9.0, 9.0, 9.0, 9.0, 3.0, -3.0, 2.0, -2.0], dtype=torch.float64)
    assert _have_mixed(noise + still[:, None], 2.0)


def test_chains_stop_early_where_they_mix_fast(generator):
    tilt = Tilt(toy.Linear([0.5]), 1.0)
    start = soft_best_of_n(identity, tilt, drawer(1), 200, 8, None, generator)
    end = adapted_pcn(identity, tilt, drawer(1), start, 20, 4096, 0.3, 10.0, None, generator)
    assert end.evaluations <= 8 + 20 + 256


@pytest.mark.parametrize("constant", [0.0, 2.0**30])
def test_diagnostics_are_those_of_the_steps_after_the_burn_in(constant):
    moved = Tilt(lambda x, condition: BENT(x) + constant, 1.0)
    generators = lambda: [generator_for(7, i) for i in range(4)]
    start = soft_best_of_n(bent, moved, drawer(2), 4, 2, None, generators())
    run = lambda steps: adapted_pcn(
        bent, moved, drawer(2), start, 6, steps, 0.3, None, None, generators()
    )
    ends = [run(steps) for steps in range(1, 8)]  # the same chains, stopped ever later
    noise, log_w = (
        torch.stack([getattr(end, name) for end in ends]) for name in ("noise", "log_w")
    )
    last = ends[-1].diagnostics
    assert {values.dtype for values in last.values()} == {torch.float64}
    half = log_w[3:]
    ratio = (half.var() / half.mean(0).var()).expand(4)
    torch.testing.assert_close(last["effective"], ratio, rtol=1e-9, atol=0)
    accepted = (noise[1:] != noise[:-1]).any(2).sum(0) + ends[0].diagnostics["acceptance"]
    torch.testing.assert_close(last["acceptance"], accepted / 7, rtol=1e-12, atol=0)


def test_noise_keeps_its_dtype_and_belongs_to_the_states():
    draw = lambda n, generator: drawer(2)(n, generator).bfloat16()
    start = soft_best_of_n(bent, BENT, draw, 4, 2, None, generator_for(1))
    end = adapted_pcn(bent, BENT, draw, start, 6, 3, 0.3, None, None, generator_for(2))
    assert end.noise.dtype == end.x_0.dtype == torch.bfloat16
    assert torch.equal(end.x_0, bent(end.noise, None))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_output_depends_on_its_own_generator_only(batch_size):
    def run(outputs, size):
        generators = [generator_for(7, i) for i in outputs]
        start = soft_best_of_n(bent, BENT, drawer(2), len(outputs), 2, None, generators, size)
        return adapted_pcn(bent, BENT, drawer(2), start, 6, 5, 0.3, None, None, generators, size)

    whole, part = run([0, 1, 2, 3, 4], None), run([4, 1], batch_size)
    torch.testing.assert_close(part.noise, whole.noise[[4, 1]], rtol=1e-12, atol=1e-12)
    rho = "rho"
    torch.testing.assert_close(part.diagnostics[rho], whole.diagnostics[rho][[4, 1]])


@pytest.mark.parametrize(("batch_size", "made"), [(None, [3, 3]), (1, [1] * 6), (4, [4, 2])])
def test_a_bank_is_drawn_in_batches(batch_size, made):
    seen = []
    generate = lambda noise, condition: seen.append(condition) or noise
    bank = draw_bank(generate, drawer(1), ["a", "b"], 3, generator_for(0), batch_size)
    assert list(map(len, seen)) == made
    assert [item for part in seen for item in part] == list(bank.condition) == ["a"] * 3 + ["b"] * 3


def test_a_bank_of_a_generator_chooses_beta(generator):
    prompts = ["a", "b"]
    shifted = lambda noise, condition: (
        noise + torch.tensor([[float(ord(c) - ord("a"))] for c in condition], dtype=torch.float64)
    )
    bank = draw_bank(shifted, drawer(1), prompts, 4000, generator, 1000)
    assert len(bank.x_0) == 8000
    means = [float(bank.x_0[rows].mean()) for rows in bank.rows.values()]
    assert means == pytest.approx([0.0, 1.0], abs=5 / 4000**0.5)
    tilt = Tilt.for_kl(toy.Linear([1.0]), bank, 0.5)  # a shift by 1, for the variance 1
    assert tilt.betas[0] == pytest.approx(1.0, rel=0.06)


def test_wrong_input_is_refused(generator):
    start = soft_best_of_n(identity, BENT, drawer(1), 3, 1, None, generator)
    good = dict(generate=identity, tilt=BENT, draw=drawer(1), start=start, burn_in=2, steps=1)
    for name, value, match in [
        ("burn_in", 1, "burn_in must be at least 2"),
        ("steps", 0, "steps must be at least 1"),
        ("acceptance", 1.0, "acceptance must"),
        ("effective", 1.0, "effective must"),
        ("effective", 9.0, "at least 8 chains to compare, got 3"),
    ]:
        with pytest.raises(ValueError, match=match):
            adapted_pcn(**{**good, name: value})
