"""Costs of alignment: ratios of made-up rows, and counts against closed forms."""

import pytest
import torch

from benchmarks.alignment import full_size, ratios
from benchmarks.alignment.counting import Spent, spent
from rwguidance.support.randomness import seeded

LAW = [1.0, 1.2, 0.8, 1.0]
NOISE = [0.1, -0.1, 0.05, -0.05]
GROUPS = {"net": "ours", "tuned": "fine-tuner", "draws": "existing"}


def row(method, gold, energy=0.0, training=0.0, picture=1.0, seed=0, budget=1):
    return {
        "method": method,
        "trial": {},
        "budget": budget,
        "seed": seed,
        "emoji-gold": [5.0 + gold + one for one in NOISE],
        "energy": [0.5 + energy + one / 10 for one in NOISE],
        "training": {"operations": training},
        "picture": {"operations": picture},
    }


def base(seed=0):
    return {**row("base", 0.0, seed=seed), "emoji-gold": [5.0] * 4, "energy": [0.5] * 4}


def curves(*rows):
    return ratios.curves([base(), *rows], LAW, GROUPS.__getitem__)


def found(*rows):
    return ratios.cost_ratios(curves(*rows), curves(*rows))


def test_the_ratio_is_of_training_and_ten_thousand_pictures():
    told = found(row("net", 1.5, training=2e4), row("tuned", 1.5, training=5e4))
    assert told["cost_ratio"] == pytest.approx((2e4 + 1e4) / (5e4 + 1e4))
    assert told["cost_ratio_at_law"] == told["cost_ratio"]
    details = told["cost_ratio details"]
    assert details["interval"] == [told["cost_ratio"]] * 2
    assert details["share without"] == 0.0


def test_the_cheapest_that_reaches_counts_and_not_the_cheapest():
    rows = [
        row("net", 1.0, training=8e4, budget=2),
        row("net", 0.2, training=0.0),
        row("tuned", 1.0, training=3e4),
        row("draws", 1.0, picture=1e-3),
    ]
    assert found(*rows)["cost_ratio"] == pytest.approx(9e4 / 4e4)


def test_there_is_no_ratio_where_no_fine_tuner_reaches_the_gold():
    told = found(row("net", 1.0), row("tuned", 0.2))
    assert told["cost_ratio"] is None
    assert told["cost_ratio details"]["interval"] is None
    assert told["cost_ratio details"]["share without"] == 1.0


def test_there_is_no_ratio_at_the_law_where_fine_tuners_leave_it():
    told = found(row("net", 1.0), row("tuned", 1.0, energy=0.3))
    assert told["cost_ratio"] == pytest.approx(1.0)
    assert told["cost_ratio_at_law"] is None


def test_what_development_prompts_chose_must_hold_on_reported_ones():
    good, bad = row("net", 1.0), row("net", 0.2)
    tuned = row("tuned", 1.0, training=1e4)
    told = ratios.cost_ratios(curves(good, tuned), curves(bad, tuned))
    assert told["cost_ratio"] is None
    assert told["cost_ratio details"]["holds on reported prompts"] == {
        "ours": False,
        "fine-tuner": True,
    }
    assert told["cost_ratio details"]["ratio of these"] is None


def test_gold_is_reached_within_two_standard_errors_of_the_paired_difference():
    law = torch.tensor(LAW) - 1
    error = float((torch.tensor(NOISE) - law).std() / 2)  # of four prompts
    (near,) = curves(row("net", 1.0 - 1.9 * error))
    (far,) = curves(row("net", 1.0 - 2.1 * error))
    assert near.reaches(False)
    assert not far.reaches(False)


def test_seeds_are_averaged_against_the_base_of_the_same_seed():
    rows = [base(), base(1), row("net", 0.0), row("net", 2.0, seed=1)]
    rows[1]["emoji-gold"] = [6.0] * 4
    (one,) = ratios.curves(rows, LAW, GROUPS.__getitem__)
    expected = [0.5 + n - t for n, t in zip(NOISE, LAW, strict=True)]
    assert one.gold == pytest.approx(expected)


def test_the_trials_with_most_gold_and_nearest_to_the_law_are_reported():
    rows = [
        {**row("net", 1.0, energy=0.3), "trial": {"rate": 1}},
        {**row("net", 0.5, energy=0.1), "trial": {"rate": 2}},
        {**row("net", 0.4, energy=0.2), "trial": {"rate": 3}},
    ]
    assert ratios.chosen(rows) == [{"rate": 1}, {"rate": 2}]
    assert ratios.chosen(rows[:1]) == [{"rate": 1}]
    assert ratios.chosen([]) == [{}]


def test_operations_are_those_of_the_closed_form():
    n, c_in, c_out, side = 2, 3, 5, 8
    x = torch.randn(n, c_in, side, side, generator=torch.Generator().manual_seed(0))
    with seeded(0):
        conv, linear = torch.nn.Conv2d(c_in, c_out, 3, padding=1), torch.nn.Linear(7, 11)
    forward = 2 * n * side**2 * c_out * c_in * 9
    assert spent(lambda: conv(x)).operations == forward
    # Back: once for the weights; the picture asks for no gradient.
    assert spent(lambda: conv(x).sum().backward()).operations == 2 * forward
    rows = torch.ones(4, 7, requires_grad=True)
    assert spent(lambda: linear(rows).sum().backward()).operations == 3 * 2 * 4 * 7 * 11


def test_memory_is_what_is_held_at_once():
    one = 1000 * 4

    def freed():
        for _ in range(5):
            torch.zeros(1000)

    kept = spent(lambda: [torch.zeros(1000) for _ in range(5)])
    assert kept.memory == 5 * one
    assert one <= spent(freed).memory <= 2 * one
    held = torch.zeros(1000)
    assert spent(lambda: held.view(10, 100)).memory == 0


def test_recipes_at_full_size_add_up_what_was_counted():
    parts = {
        what: {"operations": 2.0**i, "memory": 3.0**i} for i, what in enumerate(full_size.works())
    }
    of = lambda what: parts[what]["operations"]
    found = full_size.priced("SD3.5 Large Turbo", parts)  # four steps
    back, denoiser = of("tiny decoder and reward, back"), of("denoiser")
    assert found["LoRA, tiny decoder"]["operations"] == 3 * denoiser + of("LoRA, back") + back
    more = found["LoRA proximal, tiny decoder"]["operations"]
    assert more - found["LoRA, tiny decoder"]["operations"] == 4 * denoiser
    own = found["output network, tiny decoder"]["operations"]
    assert own == 4 * denoiser + of("network, back") + back
    kept = found["output network, stored pictures, tiny decoder"]["operations"]
    assert own - kept == 4 * denoiser
    drawn = found["draw with its reward, full decoder"]["operations"]
    assert drawn == 4 * denoiser + of("full decoder") + of("reward")


def test_what_is_moved_to_full_size_needs_as_many_pictures_there():
    recipes = {
        "output network, tiny decoder": 2.0,
        "LoRA proximal, tiny decoder": 3.0,
        "draw with its reward, tiny decoder": 0.0,
        "image, tiny decoder": 1.0,
    }
    recipes |= {what.replace("tiny", "full"): cost for what, cost in recipes.items()}
    recipes["network beside an image"] = 0.5
    full = {"M": {"recipes": {what: {"operations": cost} for what, cost in recipes.items()}}}
    own = {"method": "output network", "budget": 30}
    other = {"method": "LoRA proximal", "budget": 10}
    found = full_size.transferred(own, other, full, 100)["M, tiny decoder"]
    assert found["ratio of trainings"] == pytest.approx(60 / 30)
    assert found["ratio"] == pytest.approx((60 + 100 + 50) / (30 + 100))
    assert full_size.transferred(None, other, full, 100) == {}


def test_a_change_of_low_rank_costs_what_its_factors_cost():
    with seeded(0):
        layers = torch.nn.Linear(64, 32), torch.nn.Conv2d(16, 24, 3, stride=2, padding=1)
    for layer, x in zip(layers, (torch.ones(5, 64), torch.ones(2, 16, 8, 8)), strict=True):
        with seeded(0):
            changed = full_size.Adapted(layer)
        count = lambda module, x=x: spent(lambda: module(x)).operations
        more = count(changed) - count(layer)
        rank, size = full_size.RANK, {5: 64 + 32, 2: 16 * 9 + 24}[len(x)]
        outputs = {5: 5, 2: 2 * 4 * 4}[len(x)]
        assert more == 2 * outputs * rank * size
        assert changed(x).shape == layer(x).shape


def test_costs_add_up_and_memory_is_the_largest():
    whole = Spent(10.0, 1.0, 100.0) * 3 + Spent(5.0, 0.5, 200.0)
    assert whole == Spent(35.0, 3.5, 200.0)
