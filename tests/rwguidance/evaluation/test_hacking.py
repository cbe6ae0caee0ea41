"""Verdicts on methods whose laws are known: what follows, exploits, disagrees, or cannot be told.

Pictures are normal. The proxy is a + b and gold is a - b / 2, so that under the tilted law gold
gains a quarter of what the proxy does, and half of it is lost where only b is raised.
"""

import math
import re
from dataclasses import replace

import pytest
import torch

from common import assert_within
from rwguidance.evaluation.figures import rows_of
from rwguidance.evaluation.hacking import Companion, _appearance, believed, verdict_on, verdicts
from rwguidance.evaluation.measured import Measured
from rwguidance.evaluation.results import BASE, Cell
from rwguidance.evaluation.slopes import gain_excess, slope, slope_excess, target_slope
from synthetic_results import synthetic

NATS = 0.5
A, B = torch.eye(4, dtype=torch.float64)[:2]
STEP = math.sqrt(2 * NATS)
"""How far the tilted law is from the model, along (A + B) / sqrt(2)."""


def rewards_of(x):
    a, b = x[..., 0], x[..., 1]
    known = {"proxy": 5 + a + b, "gold": 20 + a - b / 2, "chroma": 10 * b}
    return {**known, "contrary": -a - b, "opposed": -a, "averse": -b, "kindred": b}


def noisy(direction, seed=7):
    """A method that moves along a direction, and adds noise of its own."""

    generator = torch.Generator().manual_seed(seed)
    noise = lambda x: 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return lambda x, nats: x + math.sqrt(2 * nats) * direction + noise(x)


METHODS = {
    "exact": noisy((A + B) / math.sqrt(2)),
    "far": noisy(math.sqrt(2) * (A + B)),
    "honest": noisy(A),
    "greedy": noisy(1.2 * B),
    "mixed": noisy(0.5 * A + 0.8 * B),
    "idle": noisy(0 * A),
    "backward": noisy(-A - B),
    "near": noisy(A + B),
}


def results_of(methods=METHODS, held_out=("gold",), **options):
    """Synthetic results, their rewards replaced by those above."""

    options = {"prompts": 40, "images": 2, "draws": 300, "strengths": (NATS,)} | options
    found = synthetic(shifts=methods, **options)
    scored = lambda one: replace(one, rewards=rewards_of(one.embeddings["itself"]))
    return replace(
        found,
        aligned="proxy",
        rewards=("proxy", *held_out),
        embeddings=(),
        cells={cell: scored(pictures) for cell, pictures in found.cells.items()},
        draws=[None if one is None else scored(one) for one in found.draws],
    )


@pytest.fixture(scope="module")
def results():
    return results_of()


@pytest.fixture(scope="module")
def found(results):
    return {one.cell.method: one for one in verdicts(results, rows_of(results))}


def test_slopes_are_those_of_the_laws(results):
    assert_slope = lambda found, expected: assert_within(found.value, expected, found.error)
    assert_slope(target_slope(results, NATS, "gold"), 0.25)
    for method, expected in {"exact": 0.25, "honest": 1.0, "greedy": -0.5}.items():
        cell = Cell(method, NATS)
        assert_slope(slope(results, cell, "gold"), expected)
        assert_slope(slope_excess(results, cell, NATS, "gold"), expected - 0.25)
    # Chroma gains 10 / sqrt(2) of each unit under the tilted law, and 12 where only b is raised.
    excess = gain_excess(results, Cell("greedy", NATS), NATS, "chroma")
    assert_slope(excess, STEP * (12 - 10 / math.sqrt(2)))


def test_prompts_that_lack_a_reward_are_left_out_of_slopes(results):
    cell = Cell("exact", NATS)
    pictures = results.cells[cell]
    gold = pictures.rewards["gold"].clone()
    gold[0] = math.nan
    holed = replace(pictures, rewards={**pictures.rewards, "gold": gold})
    found = replace(results, cells={**results.cells, cell: holed})
    first = lambda one: replace(one, rewards={k: x[1:] for k, x in one.rewards.items()})
    cells = {BASE: first(results.base), cell: first(pictures)}
    rest = replace(results, prompts=results.prompts[1:], cells=cells, draws=results.draws[1:])
    assert slope(found, cell, "gold") == slope(rest, cell, "gold")
    excess = lambda results: slope_excess(results, cell, NATS, "gold")
    assert excess(found) == excess(rest)


def test_one_reward_that_lags_is_enough_for_the_word():
    found = results_of({"mixed": METHODS["mixed"]}, ("gold", "kindred"), prompts=20, images=8)
    (verdict,) = verdicts(found, rows_of(found))
    assert verdict.word == "lags"
    assert [one.excess.below(0) for one in verdict.held_out] == [True, False]


def test_one_of_the_rewards_that_fall_is_enough_to_exploit_the_aligned_one():
    found = results_of({"sly": noisy(0.3 * A + 1.2 * B)}, ("gold", "opposed"), prompts=10, images=8)
    (verdict,) = verdicts(found, rows_of(found))
    assert [one.gain.below(0) for one in verdict.held_out] == [True, True]
    assert [one.excess.below(0) for one in verdict.held_out] == [True, False]
    assert verdict.word == "exploits"


def test_one_falling_reward_without_a_target_leaves_the_fault_open():
    found = results_of({"exact": METHODS["exact"]}, ("averse", "opposed"), prompts=10)
    unknown = lambda one: {
        **one.rewards,
        "opposed": torch.full_like(one.rewards["proxy"], math.nan),
    }
    draws = [replace(one, rewards=unknown(one)) for one in found.draws]
    found = replace(found, draws=draws)
    (verdict,) = verdicts(found, rows_of(found))
    assert [one.excess.known for one in verdict.held_out] == [True, False]
    assert "without a target nothing tells" in verdict.sentence


def test_the_error_of_an_excess_is_its_spread():
    cell, z = Cell("exact", NATS), []
    for seed in range(60):
        few = {"exact": noisy((A + B) / math.sqrt(2), seed)}
        found = results_of(few, prompts=12, draws=150, seed=seed)
        excess = slope_excess(found, cell, NATS, "gold")
        z.append(excess.value / excess.error)
    z = torch.tensor(z, dtype=torch.float64)
    assert_within(z.mean(), 0.0, 1 / math.sqrt(len(z)))
    # Student's distribution of 11 degrees of freedom has a variance of 11 / 9.
    assert 0.8 < float(z.std()) < 1.4


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ("exact", "follows"),
        ("far", "overshoots"),
        ("near", "overshoots"),
        ("honest", "follows"),
        ("greedy", "exploits"),
        ("mixed", "lags"),
        ("idle", "unmoved"),
        ("backward", "unmoved"),
    ],
)
def test_a_word_for_each_law(found, method, word):
    assert found[method].word == word


def test_sentences_say_what_the_words_mean(found):
    says = lambda method, *parts: all(part in found[method].sentence for part in parts)
    assert says("greedy", "greedy at 0.5 nats", "while gold falls (-0.5", "it exploits the reward")
    assert says("far", "beyond its target (share 2.", "and brings not clearly less gold with it")
    assert says("near", "beyond its target (share 1.")
    assert says("mixed", "but brings less with it than the tilted law: 0.1", " gold, not 0.2")
    assert says("exact", "as far as its target, within the error (share")
    assert says("idle", "does not clearly move proxy")
    assert says("backward", "lowers proxy (-1.")
    assert says("greedy", "Its pictures have more chroma (5.", "than those of the tilted law.")
    assert says("honest", "less chroma (-6.")
    for method in ("exact", "idle"):
        assert "Its pictures" not in found[method].sentence


def test_a_reward_that_falls_under_the_tilted_law_is_not_the_fault_of_a_method():
    found = results_of({"exact": METHODS["exact"]}, held_out=("contrary",))
    (verdict,) = verdicts(found, rows_of(found))
    assert verdict.word == "disagrees"
    assert "while contrary falls (-1." in verdict.sentence
    assert verdict.sentence.endswith("the rewards disagree, under the tilted law as well.")
    found = results_of({"exact": METHODS["exact"]}, ("contrary", "opposed", "averse"), prompts=20)
    (verdict,) = verdicts(found, rows_of(found))
    names = re.findall(r"(while|,|and) (\w+) falls \(", verdict.sentence)
    assert names == [("while", "contrary"), (",", "opposed"), ("and", "averse")]


def test_without_a_target_nobody_is_at_fault(results):
    bare = replace(results, draws=[None] * len(results.prompts))
    found = {one.cell.method: one for one in verdicts(bare, rows_of(bare))}
    assert found["greedy"].word == "disagrees"
    assert "greedy at 0.5 nats raises proxy by 1." in found["greedy"].sentence
    assert "without a target nothing tells" in found["greedy"].sentence
    assert "than those of the model." in found["greedy"].sentence
    assert found["mixed"].word == "follows"


def test_looks_are_held_against_the_tilted_law_if_one_of_its_looks_is_known():
    unknown = Measured(math.nan, math.nan)

    def said(word, *excesses):
        looks = [
            Companion(name, Measured(2.0, 0.1), unknown, unknown, unknown, excess)
            for name, excess in zip(("chroma", "clipped"), excesses, strict=True)
        ]
        return _appearance(word, looks)

    known = Measured(-3.0, 0.1)
    lacks = " Its pictures have less chroma (-3.00 ± 0.10) than those of the tilted law."
    assert said("follows", known, unknown) == said("follows", known, Measured(0.1, 0.1)) == lacks
    assert said("follows", unknown, Measured(0.1, 0.1)) == ""
    more = "more chroma (2.00 ± 0.10), more clipping (2.00 ± 0.10)"
    model = f" Its pictures have {more} than those of the model."
    assert said("follows", unknown, unknown) == said("unmoved", known, known) == model


def test_a_method_without_a_strength_is_held_against_the_law_of_the_nearest_gain():
    found = results_of({"greedy": METHODS["greedy"]}, strengths=(0.1, NATS))
    pictures = found.cells[Cell("greedy", NATS)]
    cell = Cell("best of 4")
    both = replace(found, cells={BASE: found.base, cell: pictures})
    verdict = verdict_on(both, rows_of(both), cell)
    assert (verdict.nats, verdict.word) == (NATS, "exploits")
    assert verdict.sentence.startswith("best of 4 raises proxy by 1.")


def test_methods_are_judged_where_the_target_can_be_believed():
    few = {"exact": METHODS["exact"]}
    found = results_of(few, prompts=6, draws=200, strengths=(0.25, 0.5, 2.0))
    rows = rows_of(found)
    assert [found.targets[nats].few for nats in found.strengths] == [False, False, True]
    assert believed(found) == 0.5
    assert [one.cell.nats for one in verdicts(found, rows)] == [0.5]
    doubtful = verdict_on(found, rows, Cell("exact", 2.0))
    assert "Its target rests on few draws" in doubtful.sentence
    assert believed(replace(found, strengths=(2.0,))) == 2.0
    assert believed(replace(found, strengths=())) is None


def test_one_prompt_has_no_errors_and_nothing_is_clear():
    found = results_of(prompts=1)
    assert {one.word for one in verdicts(found, rows_of(found))} == {"unmoved"}


def test_numbers_are_written_to_two_digits_of_their_error():
    written = lambda value, error: str(Measured(value, error))
    assert written(1.23456, 0.0446) == "1.235 ± 0.045"
    assert written(-1234.5, 25.0) == "-1234 ± 25"
    assert written(0.5, math.nan) == "0.5"
    assert written(2 / 3, 1e-18) == "0.667"
    assert written(math.nan, math.nan) == "-"
    assert Measured(1.0, 0.2).above(0.5)
    assert not Measured(1.0, 0.2).above(0.7)
    assert not Measured(1.0, math.nan).above(0)
    assert Measured(1.0, 0.2).below(1.5)
    assert not Measured(1.0, 0.2).below(1.3)
