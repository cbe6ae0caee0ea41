"""Shared fixtures, strategies, and the ways to compare: with a standard error, and to rounding."""

import importlib.util
import math
import os

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import misaligned
from rwguidance import (
    CosineSchedule,
    DiscreteSchedule,
    RectifiedSchedule,
    VESchedule,
    VPSchedule,
)

# The tensors here are small: more threads only wait for each other, badly so on a busy machine.
THREADS = int(os.environ.get("RWGUIDANCE_TEST_THREADS", "1"))
torch.set_num_threads(THREADS)
if os.environ.get("RWGUIDANCE_TEST_MISALIGNED"):
    misaligned.install()

# Derandomized: the same examples every run, so that a red test is red for everybody.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=30, print_blob=True
)
hypothesis.settings.load_profile("default")

needs_testbed = pytest.mark.skipif(
    importlib.util.find_spec("rwguidance_testbed") is None, reason="the test bed is not installed"
)

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
    torch.set_num_threads(THREADS)  # which commands set for the rest of their process
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


def assert_rounds_to(actual, expected, terms, scale=None):
    r"""Asserts that two tensors differ by no more than the rounding of equal formulas explains.

    The same formula rounds otherwise on another processor, with another number of threads, in
    another batch, with and without gradients, or at another address in memory. What does not is
    listed in docs/decisions/bits.md and compared with `torch.equal`; this is for everything else.

    Each of the n roundings behind an entry errs by up to :math:`s \epsilon / 2`, up or down, so
    that together they err by up to :math:`\lambda \sqrt n s \epsilon / 2` but with probability
    :math:`2 \exp(-\lambda^2 / 2)` (Higham and Mary, A new approach to probabilistic rounding
    error analysis, 2019). Two entries and :math:`\lambda = 8` make :math:`8 \sqrt n s \epsilon`.

    Arguments:
        actual: One tensor.
        expected: The other one, of the same shape and dtype.
        terms: n, the number of roundings behind one entry: the lengths of the sums that it goes
            through, added up.
        scale: s, the largest number that is rounded on the way; None is the largest of `expected`.
    """

    if scale is None:
        scale = float(expected.detach().nan_to_num(0, 0, 0).abs().max())
    atol = 8 * math.sqrt(terms) * scale * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, equal_nan=True)
