"""Figures of a network from unseen banks, against the exact shift of a Gaussian law."""

import math
from dataclasses import replace

import pytest
import torch

from common import randn
from rwguidance import Bank, RectifiedSchedule, Tilt, VESchedule, toy
from rwguidance.networks import GuidanceNetwork
from rwguidance.support.randomness import generator_for
from rwguidance.trainer import agreement, figures
from rwguidance.trainer.figures import Thumbnail, levels_of, weights_explained
from rwguidance.trainer.held_out import HeldOut
from rwguidance.trainer.unseen import _chance, _part, _quarters

SCHEDULE = RectifiedSchedule()
LAW = toy.Gaussian([0.0, 0.0, 0.0], torch.eye(3))
TILT = Tilt(toy.Linear([0.6, -0.4, 0.5]), 1.0)


def bank(draws=160, n=12):
    x_0 = LAW.sample(draws * n, torch.Generator().manual_seed(0))
    prompts = [f"prompt {i}" for i in range(n) for _ in range(draws)]
    return Bank(x_0, prompts, TILT.score(x_0))


def exact(model, x_t, t, condition):
    if float(t[0]) == 1.0:  # noise knows nothing: the shift is that of the mean
        return torch.tensor([0.6, -0.4, 0.5], dtype=torch.float64).expand(len(x_t), 3)
    return LAW.shift(TILT, x_t, t, SCHEDULE)


def found(output, levels=(1.0, 0.8, 0.6), draws=160, n=12):
    encode = lambda prompts: prompts
    return agreement(output, SCHEDULE, bank(draws, n), TILT, levels, 1.0, encode)


def test_the_exact_shift_agrees_up_to_errors():
    for level in found(exact):
        assert abs(level.cosine.value - 1) < 5 * level.cosine.error + 0.01
        assert abs(level.length.value - 1) < 5 * level.length.error + 0.01
        assert abs(level.explained.value - 1) < 5 * level.explained.error + 0.02
        assert level.cosine.error < 0.1
        assert level.raw < level.cosine.value  # which has the noise of the banks
        assert level.ceiling < level.raw
        assert level.effective > 5
        assert level.chance == 0.01


@pytest.mark.parametrize(("draws", "n"), [(160, 12), (80, 24)])
def test_half_a_bank_is_the_ceiling_of_what_agrees_with_both(draws, n):
    # Halves that have |s|^2 in common, of |s|^2 / c each, have |s|^2 (1 + 1 / c) / 2 as their mean.
    for level in found(exact, draws=draws, n=n):
        expected = math.sqrt(2 * level.ceiling / (1 + level.ceiling)) * level.cosine.value
        assert level.raw == pytest.approx(expected, rel=0.02)


def test_noise_and_shortness_of_small_banks_are_taken_out():
    for level in found(exact, draws=40, n=60):
        assert level.ceiling < 0.8  # noise there is
        assert abs(level.cosine.value - 1) < 5 * level.cosine.error
        assert level.raw < 0.95
        assert level.effective < 10
        assert abs(level.length.value - 1) < 0.12  # and .2 without the quarters


def test_length_and_cosine_are_told_apart():
    once, twice = found(exact)[1], found(lambda *a: 2 * exact(*a))[1]
    assert twice.length.value == pytest.approx(2 * once.length.value)
    assert twice.cosine.value == pytest.approx(once.cosine.value)
    # |s|^2 - |2 s - s|^2 = 0
    assert abs(twice.explained.value) < 5 * twice.explained.error + 0.05
    back = found(lambda *a: -exact(*a))[1]
    assert back.cosine.value == pytest.approx(-once.cosine.value)
    assert back.explained.value < -2
    assert back.chance == 1.0


def test_states_count_alike_whichever_their_prompt():
    x_0 = LAW.sample(70, torch.Generator().manual_seed(0))
    known = Bank(x_0, ["few"] * 10 + ["many"] * 60, TILT.score(x_0))  # of 2 states and of 8

    def length(few, many):
        factors = {"few": few, "many": many}

        def output(model, x_t, t, condition):
            scale = torch.tensor([factors[prompt] for prompt in condition], dtype=torch.float64)
            return scale[:, None] * exact(model, x_t, t, condition)

        levels = agreement(output, SCHEDULE, known, TILT, (1.0,), 1.0, list)
        return levels[0].length.value

    assert length(0.0, 2.0) == pytest.approx(length(1.0, 1.0) * math.sqrt(8 * 4 / 10))


def test_states_where_runs_start_are_noise_of_that_size():
    schedule, seen = VESchedule(0.01, 50.0), []
    output = lambda model, x_t, t, condition: seen.append((float(t[0]), x_t)) or x_t
    for start in (1.0, 0.7):
        agreement(output, schedule, bank(), TILT, (start,), start, list)
        t, x_t = seen[-1]
        assert t == start
        sigma = float(schedule.sigma(torch.tensor(start, dtype=torch.float64)))
        assert float(x_t.std()) == pytest.approx(sigma, rel=0.1)  # which is 50 and 3.9


def test_what_knows_nothing_of_the_reward_agrees_by_chance():
    aside = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64)  # at a right angle to the slope
    for level in found(lambda model, x_t, t, condition: aside.expand(len(x_t), 3)):
        assert abs(level.cosine.value) < 5 * level.cosine.error
        assert level.chance > 0.02
    nothing = found(lambda model, x_t, t, condition: torch.zeros_like(x_t), levels=(1.0,))[0]
    assert math.isnan(nothing.cosine.value)
    assert nothing.length.value == 0
    assert nothing.explained.value == 0
    assert math.isnan(nothing.chance)


def test_chance_is_small_too_where_shifts_of_states_differ_and_their_mean_is_none():
    x_0 = bank().x_0
    rewards = -x_0.square().sum(1)
    known, tilt = Bank(x_0, bank().condition, rewards), Tilt(lambda x, condition: rewards, 1.0)
    output = lambda model, x_t, t, condition: -x_t
    (level,) = agreement(output, SCHEDULE, known, tilt, (0.6,), 1.0, lambda prompts: prompts)
    assert level.chance == 0.01


@pytest.mark.parametrize("flat", [True, False])
def test_chance_is_the_share_of_shuffles_whose_shift_is_as_near(flat):
    x_0 = LAW.sample(60, torch.Generator().manual_seed(0))
    known = Bank(x_0, ["few"] * 11 + ["many"] * 49, TILT.score(x_0))  # of 2 states and of 8
    parts = tuple(_part(known, part) for part in range(3))
    own, x_t = randn(1, 10, 3), randn(2, 10, 3)
    t = torch.linspace(0.8, 0.4, 10, dtype=torch.float64)
    found = _chance(own, x_t, SCHEDULE.at(t, like=x_t), flat, parts, TILT, 3, 40)

    generator = generator_for(3, "shuffles")
    shifts = []
    for prompt, rows in parts[0].rows.items():
        x = torch.cat([half.x_0[half.rows[prompt]] for half in parts[1:]])
        orders = [
            torch.arange(len(x)),
            *(torch.randperm(len(x), generator=generator) for _ in range(40)),
        ]
        for i in range(rows.start, rows.stop):
            near = -0.5 * ((x_t[i] - (1 - t[i]) * x) / t[i]).square().sum(1)
            near = torch.zeros(len(x), dtype=torch.float64) if flat else near
            log_w = x @ torch.tensor([0.6, -0.4, 0.5], dtype=torch.float64)
            tilted = [(near + log_w[order]).softmax(0) @ x for order in orders]
            shifts.append(torch.stack(tilted) - near.softmax(0) @ x)
    shift = torch.stack(shifts, 1)  # of orders and states
    cosines = (shift * own).sum((1, 2)) / shift.square().sum((1, 2)).sqrt()
    assert found == float((cosines >= cosines[0]).double().mean())
    assert 0.1 < found < 0.9


def test_outputs_are_held_against_the_shift_of_the_mean():
    seen = []

    def output(model, x, t, condition):
        seen.append((x, t))
        return torch.tensor([0.6, -0.4, 0.5], dtype=torch.float64).expand(len(x), 3)

    (level,) = found(output, levels=(math.nan,))
    assert abs(level.length.value - 1) < 5 * level.length.error + 0.01
    ((x, t),) = seen
    draws = bank().x_0
    assert bool((t == 0).all())
    assert all(bool((draws == row).all(1).any()) for row in x)  # clean states, as they are


@pytest.mark.parametrize(("draws", "states"), [(10, 2), (15, 3), (60, 8)])
def test_states_halves_and_quarters_share_no_draw(draws, states):
    x_0 = torch.arange(2.0 * draws)[:, None]
    known = Bank(x_0, ["a"] * draws + ["b"] * draws, x_0[:, 0])
    numbers = lambda bank: bank.x_0.flatten().tolist()
    parts = [_part(known, part) for part in range(3)]
    every = [number for part in parts for number in numbers(part)]
    assert len(set(every)) == len(every)
    assert [len(parts[0]), len(parts[1]) + len(parts[2])] == [
        2 * states, 2 * (draws - max(2, draws // 4))
    ]  # fmt: skip
    one, two = _quarters(parts[1])
    assert sorted(numbers(one) + numbers(two)) == numbers(parts[1])
    assert abs(len(one) - len(two)) <= 2


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="at least 10 draws of each prompt, got 9"):
        found(exact, draws=9)
    known = Bank(torch.zeros(21, 3), ["many"] * 12 + ["few"] * 9, torch.zeros(21))
    with pytest.raises(ValueError, match="at least 10 draws of each prompt, got 9"):
        agreement(exact, SCHEDULE, known, TILT, [1.0], 1.0, list)


def network_of(**options):
    return GuidanceNetwork(3, SCHEDULE, widths=(8,), depth=1, **options)


def test_log_h_is_looked_at_where_it_knows_the_shift():
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    assert levels_of(network_of(), times) == [1.0, 0.75, 0.5, 0.25]
    assert levels_of(network_of(output="log_h"), times) == [0.75, 0.5, 0.25]
    eight = torch.linspace(1, 0, 9, dtype=torch.float64)
    assert levels_of(network_of(), eight) == eight[:-1].tolist()
    many = torch.linspace(1, 0, 21, dtype=torch.float64)
    assert levels_of(network_of(), many) == [1.0, 0.9, 0.7, 0.5, 0.3, 0.1]
    assert all(map(math.isnan, levels_of(network_of(output="change"), times)))
    for first in (0.95, 0.9):  # which is looked at once, as are all below it
        late = torch.linspace(first, 0, 12, dtype=torch.float64)
        known = [0.9] * (first > 0.9) + [0.7, 0.5, 0.3, 0.1]
        assert levels_of(network_of(), late) == [first, *known]


def test_agreements_are_asked_for_of_runs_from_their_first_time(monkeypatch):
    asked = []
    monkeypatch.setattr(figures, "agreement", lambda *given: asked.append(given) or ["levels"])
    times = torch.tensor([0.9, 0.4, 0.0], dtype=torch.float64)
    x_0 = torch.arange(40.0)[:, None]
    known = Bank(x_0, ["few"] * 9 + ["many"] * 31, x_0[:, 0])
    held_out = HeldOut(known, {0.5: "weak", 1.0: "strong"}, times, list, seed=5)
    network = network_of()
    assert figures.agreements(network, held_out, 7) == {0.5: ["levels"], 1.0: ["levels"]}
    assert [given[3] for given in asked] == ["weak", "strong"]
    for _, schedule, some, _, *about in asked:
        assert schedule is network.schedule
        assert list(some.rows) == ["many"]
        assert about == [[0.9, 0.4], 0.9, list, 5, 7]
    figures.agreements(network, held_out)
    assert asked[-1][-1] == 99
    assert figures.agreements(network, replace(held_out, bank=Bank(x_0[:9]))) == {}


def test_thumbnails_are_means_of_blocks():
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    found = Thumbnail()(images)
    means = images.reshape(2, 3, 8, 2, 8, 3).mean((3, 5))
    torch.testing.assert_close(found, means.reshape(2, 192))


def test_a_constant_explains_nothing_of_the_weights_and_log_h_what_can_be():
    times = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    plain = bank(400)
    pictures = Bank(plain.x_0[:, :, None, None], plain.condition, plain.rewards)
    network = network_of(output="log_h")
    encode = lambda prompts: prompts
    held_out = HeldOut(pictures, {1.0: TILT}, times, encode)
    assert weights_explained(network, held_out)[1.0][0.4] == pytest.approx(0.0, abs=1e-9)

    log_z = 0.5 * (0.36 + 0.16 + 0.25)

    def log_h(x_t, t, condition, strength=None):
        return LAW.log_h(TILT, x_t.flatten(1), t, SCHEDULE) - log_z

    network.forward = log_h
    value = weights_explained(network, held_out)[1.0][0.4]
    # E[h^2] over E[w^2], of lognormal h and w of mean one
    share = 0.36 / (0.36 + 0.16)  # of the variance of log w that x_t tells
    expected = (math.exp(share * 2 * log_z) - 1) / (math.exp(2 * log_z) - 1)
    assert value == pytest.approx(expected, abs=0.08)
