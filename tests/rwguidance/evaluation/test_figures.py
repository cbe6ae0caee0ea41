"""Figures of results whose laws are normal: shares, distances, divergences are known."""

import itertools
import math
import types
from dataclasses import replace

import pytest
import torch

from common import assert_within, randn
from rwguidance.evaluation import figures
from rwguidance.evaluation.figures import TILTED, rows_of
from rwguidance.evaluation.results import BASE, Cell, Pictures
from rwguidance.metrics import kernels
from synthetic_results import SLOPE, shift_of, synthetic


def by_cell(results):
    return {(row["method"], row["nats"]): row for row in rows_of(results)}


def within(row, name, truth, z=5.0):
    assert_within(row[name], truth, row[f"{name} error"], z)


@pytest.fixture(scope="module")
def results():
    return synthetic(prompts=50, images=4, draws=300, strengths=(0.25, 1.0))


@pytest.fixture(scope="module")
def few():
    return synthetic(prompts=5, images=2, draws=40, strengths=(0.5,))


@pytest.fixture(scope="module")
def rows(results):
    return by_cell(results)


@pytest.mark.parametrize("nats", [0.25, 1.0])
def test_the_exact_method_reaches_the_target_and_the_other_goes_twice_as_far(rows, nats):
    exact, far, tilted = (rows[name, nats] for name in ("exact", "overshoots", TILTED))
    within(exact, "share", 1.0)
    within(far, "share", 2.0)
    assert far["share"] - 5 * far["share error"] > 1
    assert exact["share error"] < 0.1
    within(exact, "nats spent", nats)
    within(tilted, "aligned gain", SLOPE * shift_of(nats))


def test_twice_the_shift_is_four_times_the_divergence(rows):
    row = rows["overshoots", 0.25]
    within(row, "nats spent", 1.0)
    assert row["nats spent error"] < 0.1
    # beyond the end of the curve nothing is known
    assert rows["overshoots", 1.0]["nats spent"] == 4.0
    assert math.isnan(rows["overshoots", 1.0]["nats spent error"])


def test_energy_distances_tell_the_tilted_law_from_others(rows):
    exact, far = rows["exact", 1.0], rows["overshoots", 1.0]
    within(exact, "itself energy", 0.0)
    for row, name in ((exact, "itself base energy"), (far, "itself energy")):
        assert row[name] > 5 * row[f"{name} error"] > 0
    assert far["itself base energy"] == exact["itself base energy"]


@pytest.mark.parametrize("images", [1, 2])
def test_pairs_of_the_tilted_law_are_computed_once_for_all_methods(images, monkeypatch):
    tilted, seen = [], []
    build, mean = figures._tilted_sample, kernels._mean_over_pairs
    monkeypatch.setattr(
        figures, "_tilted_sample", lambda *a: tilted.append(build(*a)) or tilted[-1]
    )
    monkeypatch.setattr(
        kernels, "_mean_over_pairs", lambda a, b, k: seen.append((a, b, k)) or mean(a, b, k)
    )
    shifts = {f"by {i}": lambda x, nats, i=i: x + i for i in range(5)}
    rows_of(synthetic(prompts=3, images=images, draws=30, strengths=(0.25, 0.5), shifts=shifts))
    parts = 1 if images == 1 else 3  # prompts are compared together, or each by itself
    own = [
        a for a, b, k in seen if a is b and len(a.shares) >= 30 and k is kernels.negative_distance
    ]
    assert len(own) == 2 * parts
    between = [a for a, b, _ in seen if a is not b]
    assert len(between) == 2 * 6 * parts


def test_gains_are_those_of_pairs(rows):
    exact, base = rows["exact", 1.0], rows["base", None]
    shift = shift_of(1.0)
    for name, slope in (("aligned", SLOPE), ("follows", 0.5), ("falls", -1.0)):
        # From the same noise, the gain has no spread.
        assert exact[f"{name} gain"] == pytest.approx(slope * shift, rel=1e-9)
        assert exact[f"{name} gain low"] == pytest.approx(slope * shift, rel=1e-9)
        assert exact[f"{name} wins"] == (1.0 if slope > 0 else 0.0)
        assert exact[f"{name} p"] < 1e-6
        within(base, name, 0.0)
    assert not [name for name in base if "gain" in name or "wins" in name]


def test_win_rates_are_of_pairs_and_their_test_is_of_the_ranks_of_prompts():
    """Each picture is held against that of the same noise, and prompts are the units."""

    results = synthetic(
        prompts=12, images=4, draws=40, strengths=(0.5,),
        shifts={"noisy": lambda x, nats: x + 0.3 + 0.8 * randn(3, *x.shape)},
    )  # fmt: skip
    row = by_cell(results)["noisy", 0.5]
    after = results.cells[Cell("noisy", 0.5)].rewards["falls"]
    difference = after - results.base.rewards["falls"]
    won = (difference > 0).double().mean(1)
    assert row["falls wins"] == pytest.approx(float(won.mean()))
    assert 0.1 < row["falls wins"] < 0.45
    assert row["falls wins error"] == pytest.approx(float(won.std()) / math.sqrt(12))
    # All signs of the twelve ranks are equally likely where there is no effect.
    ranks = difference.mean(1).abs().argsort().argsort() + 1
    found = int(ranks[difference.mean(1) < 0].sum())
    signs = torch.tensor(list(itertools.product((0, 1), repeat=12)))
    sums = signs @ torch.arange(1, 13)
    beyond = torch.maximum(sums, 78 - sums) >= max(found, 78 - found)
    assert row["falls p"] == pytest.approx(float(beyond.double().mean()))


def test_diversity_is_that_of_the_law(rows):
    expected = 2 * math.gamma(2.5) / math.gamma(2.0)  # of two normal vectors of four entries
    for key in (("base", None), ("exact", 1.0), (TILTED, 0.25)):
        within(rows[key], "itself diversity", expected)


def test_costs_are_those_of_a_picture(rows):
    row = rows["exact", 1.0]
    names = ("calls", "decoded", "scored", "draws", "seconds", "memory")
    assert [row[name] for name in names] == [4.0, 1.0, 1.0, 0.0, 0.5, 2.0**20]


def test_draws_cost_what_base_pictures_cost(few):
    cell = Cell("exact", 0.5)
    costs = few.cells[cell].costs
    memory = torch.tensor([1.0, 2.0, 5.0, math.nan, 3.0])
    costs = costs | {"draws": costs["draws"] + 8, "memory": memory}
    drawn = replace(few.cells[cell], costs=costs)
    row = by_cell(replace(few, cells={BASE: few.base, cell: drawn}))["exact", 0.5]
    # eight draws of four calls and half a second each, for two pictures
    assert (row["draws"], row["calls with draws"], row["seconds with draws"]) == (8, 20.0, 2.5)
    assert row["memory"] == 5.0  # the most that any prompt took


def test_one_picture_of_each_prompt_is_compared_over_all_prompts():
    rows = by_cell(synthetic(prompts=150, images=1, draws=100, strengths=(0.5,)))
    exact, far = rows["exact", 0.5], rows["overshoots", 0.5]
    within(exact, "itself energy", 0.0)
    for row, name in ((exact, "itself base energy"), (far, "itself energy")):
        assert row[name] > 5 * row[f"{name} error"] > 0
    assert "itself diversity" not in exact


@pytest.mark.parametrize("hole", [0, (0, 1), (0, 1, 2)])
def test_what_is_missing_is_left_out_and_counted(few, hole):
    cell = Cell("exact", 0.5)
    some = few.cells[cell]
    holed = {name: values.clone() for name, values in some.rewards.items()}
    holed["aligned"][0] = math.nan
    holed["follows"][:] = math.nan
    embeddings = {"itself": some.embeddings["itself"].clone()}
    embeddings["itself"][hole] = math.nan
    pictures = Pictures(holed, embeddings, some.costs, some.facts)
    row = by_cell(replace(few, cells={BASE: few.base, cell: pictures}))["exact", 0.5]
    assert row["failed"] == 2
    within(row, "share", 1.0)
    within(row, "itself energy", 0.0)
    within(row, "nats spent", 0.5)
    assert math.isnan(row["follows gain"])
    # One picture of a prompt has no distance to another.
    assert ("itself diversity" in row) == (hole == 0)


def test_a_cell_may_lack_an_embedding_that_the_base_has(few):
    cell = Cell("exact", 0.5)
    bare = replace(few.cells[cell], embeddings={})
    row = by_cell(replace(few, cells={BASE: few.base, cell: bare}))["exact", 0.5]
    assert not [name for name in row if name.startswith("itself")]
    within(row, "share", 1.0)


def test_an_embedding_that_fails_on_the_draws_of_a_prompt_leaves_out_that_prompt(few):
    bare = replace(few.draws[1], embeddings={})
    found = by_cell(replace(few, draws=[few.draws[0], bare, *few.draws[2:]]))
    expected = by_cell(without(few, 1))
    for name in ("energy", "base energy", "nearer"):
        for part in (f"itself {name}", f"itself {name} error"):
            assert found["exact", 0.5][part] == pytest.approx(expected["exact", 0.5][part])
    assert found["exact", 0.5]["share"] == by_cell(few)["exact", 0.5]["share"]
    assert "itself diversity" in by_cell(few)[TILTED, 0.5]
    assert "itself diversity" not in found[TILTED, 0.5]


def test_pictures_without_a_whole_embedding_have_no_diversity(few):
    cell = Cell("exact", 0.5)
    some = few.cells[cell]
    holed = some.embeddings["itself"].clone()
    holed[..., 2] = math.nan
    pictures = replace(some, embeddings={"itself": holed})
    row = by_cell(replace(few, cells={BASE: few.base, cell: pictures}))["exact", 0.5]
    assert not [name for name in row if name.startswith("itself")]


def test_there_may_be_no_target_and_no_embedding(few):
    bare = replace(few, draws=[None] * 5, embeddings=(), cells=dict(list(few.cells.items())[:2]))
    rows = by_cell(bare)
    row = rows["exact", 0.5]
    assert math.isnan(row["share"])
    assert row["few"]
    assert "nats spent" not in row
    assert row["aligned gain"] > 0
    assert rows_of(replace(few, prompts=[])) == []


def test_who_loses_reward_has_spent_nothing_that_is_known():
    worse = synthetic(
        prompts=4, draws=50, strengths=(0.25,), shifts={"back": lambda x, nats: x - 1}
    )
    assert by_cell(worse)["back", 0.25]["nats spent"] == 0.0


def test_the_curve_of_the_target_ends_where_its_draws_do():
    """Thirty draws cannot stand for four nats, up to which the curve would be."""

    shifts = {
        "exact": lambda x, nats: x + shift_of(nats) * torch.eye(4, dtype=x.dtype)[0],
        "far": lambda x, nats: x + 10,
    }
    rows = by_cell(synthetic(prompts=6, draws=30, strengths=(1.0,), shifts=shifts))
    assert 0.2 < rows["exact", 1.0]["nats spent"] < 3
    assert rows["exact", 1.0]["nats spent error"] > 0
    assert rows["far", 1.0]["nats spent"] in (1.0, 1.5, 2.0, 3.0)  # the last that all reach
    assert math.isnan(rows["far", 1.0]["nats spent error"])


@pytest.mark.parametrize(
    ("nats", "end"),
    [(0.001, 1 / 16), (0.03, 1 / 16), (1 / 32, 1 / 8), (0.3, 1.0), (0.4, 1.5), (5.0, 8.0)],
)
def test_the_curve_of_the_target_goes_to_four_times_the_strengths(nats, end, monkeypatch):
    asked = []
    line = lambda draws, name, grid: asked.append(grid) or torch.tensor([grid] * 2).double()
    monkeypatch.setattr(figures, "curve", line)
    results = types.SimpleNamespace(
        strengths=(nats / 2, nats), draws=None, aligned="aligned",
        gains=lambda cell, name: torch.tensor([90.0, 91.0], dtype=torch.float64),
    )  # fmt: skip
    found = figures._Path(results).spent(Cell("far", nats))
    assert found["nats spent"] == asked[0][-1] == end
    assert asked[0][:3] == [0.0, 1 / 64, 1 / 16]
    assert asked[0] == sorted(asked[0])
    assert math.isnan(found["nats spent error"])


def test_the_curve_of_the_target_ends_where_the_draws_of_one_prompt_do():
    results = synthetic(3, 1, 200, (1.0,), shifts={"far": lambda x, nats: x + 10})
    assert by_cell(results)["far", 1.0]["nats spent"] == 4.0
    one = results.draws[0]
    rewards = {name: values[:10] for name, values in one.rewards.items()}
    short = replace(one, rewards=rewards, embeddings={"itself": one.embeddings["itself"][:10]})
    found = by_cell(replace(results, draws=[short, *results.draws[1:]]))["far", 1.0]
    assert found["nats spent"] == 2.0


def test_the_error_of_the_nats_spent_is_that_of_prompts_left_out_in_turn():
    results = synthetic(prompts=5, images=2, draws=60, strengths=(0.5,))
    row = by_cell(results)["exact", 0.5]
    values = [by_cell(without(results, i))["exact", 0.5]["nats spent"] for i in range(5)]
    spread = sum((value - sum(values) / 5) ** 2 for value in values)
    assert row["nats spent error"] == pytest.approx(math.sqrt(4 / 5 * spread))


def without(results, i):
    """The results without a prompt."""

    kept = [k for k in range(len(results.prompts)) if k != i]
    some = lambda values: {name: value[kept] for name, value in values.items()}
    cells = {
        cell: Pictures(some(one.rewards), some(one.embeddings), some(one.costs), [{}] * len(kept))
        for cell, one in results.cells.items()
    }
    prompts, draws = ([part[k] for k in kept] for part in (results.prompts, results.draws))
    return replace(results, prompts=prompts, draws=draws, cells=cells)
