"""The forecast: counts that a run confirms, and minutes from its first batch."""

import math

import pytest

from pixel_law import QUIET, Brightness, Law, run
from rwguidance.generation import SMC, BestOfN, Importance, PlugInMean, Pool, Resample
from rwguidance.generation.work import Forecast, Work

pytestmark = QUIET


class Counted(Law):
    depends_on = Law.depends_on
    incidental = (*Law.incidental, "decoded")
    decoded = 0

    def decode(self, latents):
        self.decoded += len(latents)
        return super().decode(latents)


METHODS = [
    Importance(bank=7, beta=5.0),
    Pool(bank=7, beta=5.0, pictures=4),
    Resample(bank=7, beta=5.0, pictures=4),
    Pool(bank=7, beta=5.0, pictures=4, renew=2),
    Resample(bank=7, beta=5.0, pictures=4, renew=1),
    SMC(particles=5, beta=5.0, pictures=4),
    SMC(particles=5, kl=0.5, bank=7, pictures=2),
    SMC(particles=5, beta=5.0, pictures=4, renew=1),
    BestOfN(4),
    PlugInMean(5.0),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_counts_are_those_of_the_run(tmp_path, method):
    said, law, reward = [], Counted(), Brightness()
    options = {"prompts": ["ab", "cd", "ef"], "images": 5, "batch_size": 2, "steps": 3}
    run(tmp_path, method, backbone=law, reward=reward, say=said.append, **options)
    base = Work.of_samples(5, 3, 2)
    work = (base + method.work(5, 3, 2)) * 3
    assert said[0] == (f"to make 15 pairs: at most {work}; what the cache holds is taken from it")
    back = 2 * 15 * 3 if isinstance(method, PlugInMean) else 0  # passes back through looks
    assert (law.calls, law.decoded, reward._seen) == (
        work.calls, work.decoded - back, work.scored - back,
    )  # fmt: skip
    assert len(said) == 2
    assert said[1].endswith("minutes, by the first batch")


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
    forecast.timed(images=3, sampling=2.0, judging=4.0)  # 0.2 s a call, 4/3 s a picture
    forecast.timed(images=3, sampling=9.0, judging=9.0)
    assert said[1:] == [f"about {(600 * 0.2 + 90 * 4 / 3) / 60:.2g} minutes, by the first batch"]
    assert math.isclose((600 * 0.2 + 90 * 4 / 3) / 60, 4.0)
