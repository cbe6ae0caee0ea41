"""Schedules: inverse, rates, ends, monotony."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import SCHEDULES, assert_rounds_to, inner_times, schedules
from problems import EPS, rand
from rwguidance import DiscreteSchedule, Schedule

LIKE = torch.zeros(1, 1, dtype=torch.float64)


@given(schedules, st.floats(1e-4, 1 - 1e-4))
def test_time_inverts_log_snr(schedule, t):
    t = torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-11)


@given(schedules, inner_times, inner_times)
def test_log_snr_decreases(schedule, t, s):
    t, s = sorted((t, s))
    if s - t > 1e-9:
        low, high = schedule.log_snr(torch.tensor([t, s], dtype=torch.float64))
        assert low > high


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noised_states_have_the_dtype_of_the_clean_ones(dtype):
    x_0, noise = rand(0, 3, 4).to(dtype), rand(1, 3, 4)  # the noise is finer
    found = SCHEDULES["rectified"].perturb(x_0, 0.25, noise)
    assert found.dtype == dtype
    close = torch.testing.assert_close
    close(found.double(), 0.75 * x_0.double() + 0.25 * noise, rtol=torch.finfo(dtype).eps, atol=0)


@given(schedules, inner_times)
def test_rates_are_finite_differences(schedule, t):
    step = 1e-6
    if isinstance(schedule, DiscreteSchedule):  # piecewise: stay inside one piece
        t = (int(t * 100) + 0.5) / 100
    scales = schedule.at(t, LIKE)
    t = torch.tensor(t, dtype=torch.float64)
    for value, rate in (
        (schedule.alpha, scales.alpha_rate),
        (schedule.sigma, scales.sigma_rate),
    ):
        difference = (value(t + step) - value(t - step)) / (2 * step)
        torch.testing.assert_close(rate.squeeze(), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "cosine", "discrete"])
def test_variance_preserving(name):
    t = torch.linspace(0, 1, 257, dtype=torch.float64)
    total = SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["vp", "cosine", "rectified", "discrete"])
def test_the_data_end_is_exact(name):
    scales = SCHEDULES[name].at(0.0, LIKE)
    assert scales.alpha.item() == 1
    assert scales.sigma.item() == 0


@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_the_noise_end_is_exact(name):
    scales = SCHEDULES[name].at(1.0, LIKE)
    assert scales.alpha.item() == 0
    assert scales.sigma.item() == 1


def test_the_table_is_visited_exactly():
    table = torch.linspace(0.999, 0.0, 1000, dtype=torch.float64)
    schedule = DiscreteSchedule(table)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.alpha(t) ** 2, table, rtol=0, atol=2e-15)
    assert schedule.at(1.0, LIKE).alpha.item() == 0


def scaled_linear(k):
    """The table of Stable Diffusion, or one of its kind with k entries."""

    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, k, dtype=torch.float64) ** 2).cumprod(0)


TABLES = {
    "one": torch.tensor([0.3]),
    "pure noise": torch.tensor([0.0]),
    "two": torch.tensor([0.9, 0.01]),
    "SDXL": scaled_linear(1000),
    "SDXL in float32": scaled_linear(1000).float(),
    "four of SDXL": scaled_linear(1000)[249::250],
    "DDPM": (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0),
    "zero at the end": torch.linspace(0.9999, 0.0, 50, dtype=torch.float64),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_the_time_of_a_table_is_found_from_end_to_end(table):
    schedule = DiscreteSchedule(table)
    t = torch.cat((torch.logspace(-12, -2, 101), torch.linspace(0.01, 1 - 1e-9, 1001))).double()
    # alpha^2 near 1 is rounded to EPS, which is EPS over the slope there in t
    atol = 4 * EPS * (1 + 1 / (len(table) * (1 - table[0].item())))
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=atol)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t[7])), t[7], rtol=0, atol=atol)
    assert schedule.time(torch.tensor(torch.inf).double()) == 0
    if table[-1] == 0:
        assert schedule.time(torch.tensor(-torch.inf).double()) == 1


@pytest.mark.parametrize("k", [1, 2, 7, 1000])
def test_the_timestep_is_the_index_of_the_nearest_entry(k):
    schedule = DiscreteSchedule(scaled_linear(k))
    grid = torch.arange(1, k + 1, dtype=torch.float64) / k
    assert torch.equal(schedule.timestep(grid), torch.arange(k))
    assert torch.equal(schedule.timestep(grid.float()), torch.arange(k))

    between = rand(k, 200)
    index = schedule.timestep(between)
    assert index.dtype == torch.int64
    assert torch.equal(index, (between[:, None] - grid).abs().argmin(1))
    half = 0.5 / k
    either_side = torch.cat((grid[1:] - half - 1e-9, grid[1:] - half + 1e-9))
    assert torch.equal(
        schedule.timestep(either_side), torch.cat((torch.arange(k - 1), torch.arange(1, k)))
    )

    ends = torch.tensor([0.0, 1e-12, 1 - 1e-12, 1.0], dtype=torch.float64)
    assert schedule.timestep(ends).tolist() == [0, 0, k - 1, k - 1]
    for t in (0.0, 0.37, 1.0):
        one = schedule.timestep(t)
        assert one.shape == ()
        assert one == schedule.timestep(torch.tensor(t)) == schedule.timestep(torch.tensor([t]))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        schedule.timestep(999.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scales_are_float32_or_wider_and_broadcast(schedule, dtype):
    like = torch.zeros(3, 2, 5, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scalar, batch = schedule.at(0.5, like), schedule.at(torch.full((3,), 0.5), like)
    assert scalar.alpha.shape == (1, 1, 1)
    assert batch.sigma_rate.shape == (3, 1, 1)
    assert scalar.alpha.dtype == batch.sigma.dtype == wide
    assert_rounds_to(scalar.alpha.expand_as(batch.alpha), batch.alpha, terms=16)


def test_no_states_have_no_scales(schedule):
    scales = schedule.at(torch.tensor(0.5).expand(0), torch.zeros(0, 2))
    assert scales.alpha.shape == scales.sigma.shape == (0, 1)


def test_a_schedule_is_three_formulas():
    class Sine(Schedule):
        def alpha(self, t):
            return torch.cos(t)

        def sigma(self, t):
            return torch.sin(t)

        def time(self, log_snr):
            return torch.atan(torch.exp(-0.5 * log_snr))

    scales = Sine().at(0.3, LIKE)
    torch.testing.assert_close(scales.alpha_rate, -scales.sigma, rtol=1e-15, atol=0)
    with torch.inference_mode():
        assert_rounds_to(Sine().at(0.3, LIKE).sigma_rate, scales.sigma_rate, terms=2)
