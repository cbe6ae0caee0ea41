"""Random numbers of a sample do not depend on its batch; borrowed generators are given back."""

import itertools
import threading

import pytest
import torch

from backbones.guided_steps import _own_randomness
from rewards.loading import empty_weights
from rwguidance import DDIM, VPSchedule, sample, toy
from rwguidance.support.randomness import forked, generator_for, normal, seeded

FORKS = {
    "forked": forked,
    "seeded": lambda: seeded(3),
    "a guided step": lambda: _own_randomness(torch.ones(1, 2), torch.tensor(0.5)),
    "empty weights": empty_weights,
}


def test_generators_differ_by_seed_and_names_and_repeat():
    names = [(0,), (1,), (0, "a"), (0, "a", 1), (0, "a", 2), (0, "a1"), (0, "a", "1")]
    draws = [float(torch.randn(1, generator=generator_for(*name))) for name in names]
    assert len(set(draws)) == len(names)
    assert draws == [float(torch.randn(1, generator=generator_for(*name))) for name in names]


def test_one_generator_draws_what_torch_draws():
    g = lambda: torch.Generator().manual_seed(3)
    assert torch.equal(normal((2, 3), g()), torch.randn(2, 3, generator=g()))
    assert normal((2, 3), g(), dtype=torch.float64).dtype == torch.float64


def test_a_generator_per_sample_makes_samples_independent_of_their_batch():
    law = toy.GaussianMixture([0.0, 0.0], [[-1.0, 0.0], [1.0, 0.5]], 0.2 * torch.eye(2)[None])
    model = law.model(VPSchedule())

    def run(numbers):
        generators = [generator_for(7, "test", i) for i in numbers]
        x_1 = normal((len(numbers), 2), generators, dtype=torch.float64)
        return sample(model, DDIM(eta=1.0), x_1, torch.linspace(1, 0, 6), generator=generators)

    whole = run([0, 1, 2, 3])
    torch.testing.assert_close(whole[[2]], run([2]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole[[3, 1]], run([3, 1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (3, "^shape must be a shape, got int"),
        ((2, 1.5), "^shape must be an integer"),
        ("ab", "^shape must be an integer"),
    ],
)
def test_what_is_no_shape_is_refused(shape, message):
    for generator in (None, torch.Generator()):
        with pytest.raises(TypeError, match=message):
            normal(shape, generator)


def test_there_may_be_nothing_to_draw_but_not_less():
    for shape, generator in (
        ((0, 2), torch.Generator()), ((2, 0), torch.Generator()), ((2, 0), [torch.Generator()] * 2)
    ):  # fmt: skip
        assert normal(shape, generator).shape == shape
    with pytest.raises(ValueError, match=r"^shape must be at least 0, got -1"):
        normal((-1, 2), torch.Generator())


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="one per sample, 3, got 2"):
        normal((3, 1), [generator_for(0), generator_for(1)])


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORKS, repeat=2)))
def test_threads_that_fork_the_global_generators_give_them_back(first, second):
    """The first one leaves while the second one is within, if that one gets in at all."""

    before = torch.random.get_rng_state()
    with FORKS[first]():
        alone = torch.randn(1), torch.randn(1)
    drawn = []
    inside, inside_too, left = (threading.Event() for _ in range(3))

    def early():
        with FORKS[first]():
            drawn.append(torch.randn(1))
            inside.set()
            inside_too.wait(0.05)
            drawn.append(torch.randn(1))
        left.set()

    def late():
        inside.wait(10)
        with FORKS[second]():
            inside_too.set()
            torch.randn(1)
            left.wait(10)

    threads = [threading.Thread(target=target) for target in (early, late)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(before)  # not to spoil other tests
    assert left.is_set()
    assert inside_too.is_set()
    assert torch.equal(after, before)
    assert torch.equal(torch.cat(drawn), torch.cat(alone))


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(FORKS, repeat=2)))
def test_a_fork_within_a_fork_of_the_same_thread(outer, inner):
    with seeded(5):
        with FORKS[outer]():
            torch.randn(1)
            between = torch.random.get_rng_state()
            with FORKS[inner]():
                torch.randn(1)
            assert torch.equal(torch.random.get_rng_state(), between)
        drawn = torch.randn(3)
    assert torch.equal(drawn, torch.randn(3, generator=torch.Generator().manual_seed(5)))


def test_the_generators_come_back_from_an_exception():
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="stopped"), seeded(3):
        raise RuntimeError("stopped")
    assert torch.equal(torch.random.get_rng_state(), before)
    turns = []

    def another():
        with seeded(4):
            turns.append(1)

    thread = threading.Thread(target=another, daemon=True)
    thread.start()
    thread.join(5)
    assert turns, "the turn was not given back"
