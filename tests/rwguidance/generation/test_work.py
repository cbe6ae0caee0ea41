"""The forecast: counts that a run confirms, and minutes from its first batch."""

import math
import time

import pytest
import torch

from counted_law import CountedBrightness, CountedLaw, counts, said_in
from pixel_law import QUIET, run
from rwguidance.generation import (
    SMC,
    BestOfN,
    ChangeNetwork,
    Importance,
    NoiseGradient,
    NoiseNetwork,
    OutputNetwork,
    PlugInMean,
    Pool,
    Resample,
    SecondOrder,
    StraightFlow,
)
from rwguidance.generation.noise import NoiseChain
from rwguidance.generation.work import Forecast, Streams, Work, work_on_draws

pytestmark = QUIET


class Still(torch.nn.Module):
    """A network that changes nothing."""

    depends_on = ()

    def forward(self, x, t, condition):
        return 0 * x


METHODS = [
    Importance(bank=7, kl=0.5),
    Pool(bank=7, beta=5.0, pictures=4),
    Pool(bank=7, beta=5.0, pictures=4, renew=2),
    Resample(bank=7, kl=0.5, pictures=4),
    Resample(bank=7, kl=0.5, pictures=4, renew=1),
    SMC(particles=5, beta=5.0, pictures=4),
    SMC(particles=5, kl=0.5, bank=7, pictures=2),
    SMC(particles=5, beta=5.0, pictures=4, renew=1),
    BestOfN(4),
    BestOfN(4, kl=0.5, draws=7),
    PlugInMean(5.0),
    PlugInMean(kl=0.5, bank=7),
    NoiseChain(kl=0.5, bank=7),
    NoiseGradient(kl=0.5, bank=7, size=0.5, moves=2),
    OutputNetwork(Still()),
    NoiseNetwork(Still()),
    ChangeNetwork(Still()),
]


@pytest.mark.parametrize(("images", "batch_size"), [(1, 8), (1, 2), (5, 2), (5, 3)])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_counts_are_those_of_the_run(tmp_path, method, images, batch_size):
    said, law, reward = [], CountedLaw(), CountedBrightness()
    options = {"prompts": ["ab", "cd"], "images": images, "batch_size": batch_size, "steps": 3}
    run(tmp_path, method, backbone=law, reward=reward, say=said.append, **options)
    assert said[0].startswith(f"to make {2 * images} pairs: ")
    assert said[0].endswith(" scored; what the cache holds is taken from it")
    probe = 2 if isinstance(method, NoiseGradient) else 0  # is there a gradient?
    calls, decoded, scored = counts(law, reward)
    assert said_in(said[0]) == (calls, decoded - probe // 2, scored - probe // 2)
    assert len(said) == 2
    assert said[1].endswith("minutes, by the first batch")


@pytest.mark.parametrize("images", [1, 5])
def test_the_search_for_a_size_takes_about_what_was_said(tmp_path, images):
    said, law, reward = [], CountedLaw(), CountedBrightness()
    method = NoiseGradient(kl=0.5, bank=7, pilots=4, moves=2)
    options = {"prompts": ["ab"], "images": images, "batch_size": 2, "steps": 3}
    run(tmp_path, method, backbone=law, reward=reward, say=said.append, **options)
    for expected, found in zip(said_in(said[0]), counts(law, reward), strict=True):
        assert abs(expected / found - 1) < 0.2, "one try more or less of seven"


def test_a_look_goes_back_once_and_twice_more_for_each_iteration_of_the_curvature():
    plain, straight = (kind(5.0).work(4, 3, 2) for kind in (PlugInMean, StraightFlow))
    assert straight == plain == Work(2 * 3, 4, 4 + 3 * 12, 4 + 3 * 12)
    curved = SecondOrder(5.0, iterations=2).work(4, 3, 2)
    assert curved == plain + Work(decoded=12 * 2 * 4, scored=12 * 2 * 4)


def test_gradients_go_through_no_more_calls_than_there_are_and_moves_begin_with_one():
    work = lambda **options: NoiseGradient(5.0, **options).work(4, 3, 2)
    assert work(size=0.5, through=9) == work(size=0.5, through=3) == work(size=0.5)
    assert work(size=0.5, through=2).calls < work(size=0.5).calls
    assert work() == work(moves=1) != work(moves=2)


def test_draws_are_made_once_where_they_are_kept():
    asked = [Streams("bank", 1, 7), Streams("bank", 1, 12), Streams("bank", 1, 7)]
    # Batches of five: two for seven draws, and two more for twelve, as the second was not full.
    assert work_on_draws(asked, 3, 5) == Work(4 * 3, 14, 14, 14)
    assert work_on_draws(asked, 3, 5, scored=False) == Work(4 * 3, 14, 19, 19)
    assert work_on_draws(asked, 3, 5, drawn=False, scored=False) == Work(5 * 3, 19, 19, 19)
    assert work_on_draws([*asked[1:], Streams("bank", 1, 9)], 3, 5) == Work(3 * 3, 12, 12, 12)
    for kept in ({"scored": False}, {"drawn": False}, {}):
        assert work_on_draws(asked[:1], 1, 1, **kept) == Work(7, 7, 7, 7)
    candidates = [Streams("candidates", 4, 2), Streams("candidates", 4, 3), Streams("bank", 1, 0)]
    assert work_on_draws(candidates, 1, 3) == Work(3 + 4, 8 + 12, 8 + 12, 8 + 12)


def test_what_is_there_is_no_work(tmp_path):
    said = []
    run(tmp_path, BestOfN(2), ["ab", "cd"], images=4, batch_size=2)
    run(tmp_path, BestOfN(2), ["ab", "cd"], images=4, batch_size=2, say=said.append)
    assert said == []
    next(tmp_path.glob("ab*/0001-base.png")).unlink()
    run(tmp_path, BestOfN(2), ["ab", "cd"], images=4, batch_size=2, say=said.append)
    assert said[0].startswith("to make 2 pairs: "), "one of a batch makes its batch anew"


def test_minutes_are_those_of_the_calls_and_of_the_pictures():
    said = []
    forecast = Forecast(1, Work(calls=600, drawn=1, decoded=30, scored=90), 10, said.append)
    forecast.timed(images=3, sampling=2.0, scoring=4.0)  # 0.2 s a call, 4/3 s a picture
    forecast.timed(images=3, sampling=9.0, scoring=9.0)
    assert said[1:] == [f"about {(600 * 0.2 + 90 * 4 / 3) / 60:.2g} minutes, by the first batch"]
    assert math.isclose((600 * 0.2 + 90 * 4 / 3) / 60, 4.0)
    few = Forecast("1", Work(calls=600, drawn=1, decoded=30, scored=90), 10, said.append, judged=6)
    few.timed(images=3, sampling=2.0, scoring=4.0, judging=60.0)  # 20 s more for six pictures
    assert said[-1] == "about 6 minutes, by the first batch"


def test_the_first_batch_of_pairs_is_timed_part_by_part(tmp_path, monkeypatch):
    found = []
    timed = lambda self, images, sampling, scoring: found.append((images, sampling, scoring))
    monkeypatch.setattr("rwguidance.generation.work.Forecast.timed", timed)
    start = time.perf_counter()
    run(tmp_path, BestOfN(2), ["ab"], images=3, batch_size=2, steps=2)
    took = time.perf_counter() - start
    assert [images for images, *_ in found] == [2, 1]
    assert min(min(seconds) for _, *seconds in found) > 0
    assert sum(sum(seconds) for _, *seconds in found) < took
