"""Shared fixtures, strategies and the one way to compare with a standard error."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from rwguidance import (
    CosineSchedule,
    DiscreteSchedule,
    RectifiedSchedule,
    VESchedule,
    VPSchedule,
)

# The tensors here are small: more threads only wait for each other, badly so on a busy machine.
torch.set_num_threads(1)

# Derandomized: the same examples every run, so that a red test is red for everybody.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=30, print_blob=True
)
hypothesis.settings.load_profile("default")

SCHEDULES = {
    "vp": VPSchedule(),
    "cosine": CosineSchedule(),
    "ve": VESchedule(0.01, 50.0),
    "rectified": RectifiedSchedule(),
    "discrete": DiscreteSchedule(torch.linspace(0.99991, 0.0683**2, 100, dtype=torch.float64)),
}


@pytest.fixture(params=list(SCHEDULES))
def schedule(request):
    return SCHEDULES[request.param]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def global_state_is_untouched():
    before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed())
    state = torch.random.get_rng_state()
    yield
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed()) == before
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"


schedules = st.sampled_from(list(SCHEDULES.values()))
inner_times = st.floats(0.02, 0.98)
seeds = st.integers(0, 2**31)


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_within(estimate, truth, standard_error, z=5.0):
    """Every entry lies within z standard errors: 6e-7 per comparison for z = 5."""

    estimate, truth, error = (
        torch.as_tensor(v, dtype=torch.float64) for v in (estimate, truth, standard_error)
    )
    assert bool(((error > 0) & error.isfinite()).all()), "a standard error is not usable"
    worst = float(((estimate - truth).abs() / error).max())
    assert math.isfinite(worst), "the estimate or the truth is not finite"
    assert worst <= z, f"off by {worst:.1f} standard errors"
