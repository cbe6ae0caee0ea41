"""Random numbers of a sample do not depend on its batch."""

import pytest
import torch

from rwguidance import DDIM, VPSchedule, sample, toy
from rwguidance.support.randomness import generator_for, normal


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


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="one per sample, 3, got 2"):
        normal((3, 1), [generator_for(0), generator_for(1)])
