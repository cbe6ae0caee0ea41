"""The tilted law of normal draws is known: means, errors, effective draws, and what it lacks."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from common import assert_within
from rwguidance.evaluation.targets import FEW, Draws, curve, tilted
from synthetic_results import SLOPE, rewards_of, shift_of, synthetic


def test_means_and_their_errors_are_those_of_the_tilted_law():
    results = synthetic(prompts=100, images=1, draws=400, strengths=(0.125, 0.5))
    for nats, target in results.targets.items():
        for name, slope in (("aligned", SLOPE), ("follows", 0.5), ("falls", -1.0)):
            z = (target.means[name] - slope * shift_of(nats)) / target.errors[name]
            error = 1 / math.sqrt(len(z))
            assert_within(z.std(), 1.0, 2 * error)
            # a bias of order 1 / N in each mean, from weights and beta of the same draws
            assert abs(float(z.mean())) < 6 * error
        assert float(target.beta.mean()) == pytest.approx(SLOPE / shift_of(nats), rel=0.02)
        expected = 400 * math.exp(-2 * nats)
        assert float(target.ess.mean()) == pytest.approx(expected, rel=0.1)


def test_few_effective_draws_are_marked():
    targets = synthetic(prompts=5, draws=400, strengths=(0.25, 2.0)).targets
    assert targets[0.25].effective > FEW > targets[2.0].effective
    assert (targets[0.25].few, targets[2.0].few) == (False, True)
    some = lambda *ess: replace(targets[0.25], ess=torch.tensor(ess, dtype=torch.float64))
    assert some(FEW - 1, math.nan, FEW, 90 * FEW).effective == FEW  # the median of those known
    assert not some(FEW).few
    assert some(FEW - 1e-6).few
    assert some(math.nan).few


def test_a_curve_passes_through_the_targets():
    results = synthetic(prompts=3, strengths=(0.25, 1.0))
    found = curve(results.draws, "aligned", [0.0, 0.25, 1.0])
    base = torch.stack([one.rewards["aligned"].mean() for one in results.draws])
    expected = [base, *(results.targets[nats].means["aligned"] for nats in (0.25, 1.0))]
    torch.testing.assert_close(found, torch.stack(expected, 1))


def test_a_constant_of_the_reward_moves_means_by_itself_and_nothing_else():
    results, offset = synthetic(prompts=3, strengths=(0.5,)), 2.0**26  # float32 counts in eights
    moved = replace(results, draws=[moved_by(one, offset) for one in results.draws])
    one, other = results.targets[0.5], moved.targets[0.5]
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    close(other.means["aligned"] - offset, one.means["aligned"])
    close(other.errors["aligned"], one.errors["aligned"])
    close(other.beta, one.beta)
    assert one.beta.dtype == one.ess.dtype == torch.float64
    close(moved.draw_means("aligned") - offset, results.draw_means("aligned"))
    grid = [0.0, 0.25]
    close(curve(moved.draws, "aligned", grid) - offset, curve(results.draws, "aligned", grid))


def moved_by(one, offset):
    return Draws({k: v + offset for k, v in one.rewards.items()}, one.embeddings, one.strengths)


def test_prompts_without_a_target_are_left_blank():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    good, failed, constant = (rewards_of(x) for _ in range(3))
    failed["aligned"] = failed["aligned"].clone().index_fill(0, torch.tensor([3]), math.nan)
    constant["aligned"] = torch.zeros(50, dtype=torch.float64)
    others = rewards_of(x) | {"follows": failed["aligned"]}
    draws = [Draws(values, {}, (1.0,)) for values in (good, failed, constant, others)]
    target = tilted([*draws, None, Draws(good, {}, (0.5,))], "aligned", 1.0)
    assert target.beta.isnan().tolist() == [False, True, True, False, True, True]
    assert [log_w is None for log_w in target.log_weights] == target.ess.isnan().tolist()
    assert math.isnan(target.means["follows"][3])
    assert tilted([], "aligned", 1.0).few
    assert curve([None, draws[2]], "aligned", [0.0, 1.0]).isnan().tolist() == [
        [True, True],
        [False, True],
    ]


def test_draws_of_no_weight_may_have_no_reward():
    rewards = torch.tensor([0.0, 1.0, 2.0, -math.inf], dtype=torch.float64)
    target = tilted([Draws({"aligned": rewards}, {}, (0.5,))], "aligned", 0.5)
    assert bool(target.means["aligned"].isfinite().all())
