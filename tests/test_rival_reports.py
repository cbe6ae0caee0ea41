"""Rules of rivals on pictures, and the tables of their comparison."""

import math

import pytest

from benchmarks.rivals import report
from benchmarks.rivals.pictures import DPS, FK, SVDD, Ascent, Damped, LiDAR, ReNO, Universal
from benchmarks.rivals.testbed import TRIALS
from pixel_law import QUIET, run
from rwguidance.generation import PlugInMean

pytestmark = QUIET


@pytest.mark.parametrize(
    "method",
    [
        DPS(beta=5.0, rate=0.02),
        Universal(beta=5.0),
        Ascent(beta=5.0, rate=0.1),
        SVDD(beta=5.0, n=4),
        FK(beta=5.0, per_picture=4),
        FK(beta=5.0, per_picture=4, potential="max", every=3),
        ReNO(beta=5.0, iterations=3),
        LiDAR(beta=5.0, bank=64, strength=2.0),
        Damped(beta=5.0, prior_variance=0.01),
    ],
    ids=repr,
)
def test_a_rule_raises_the_reward_of_pictures(tmp_path, method):
    made = run(tmp_path, method, ["abcd"], images=16, batch_size=16)
    assert sum(row.gain for row in made.rows) / 16 > 0.5
    assert made.rows[0].facts["beta"] == 5.0


def test_settings_reach_the_rules(tmp_path):
    gains = {}
    for name, method in {
        "universal": Universal(beta=20.0),
        "more": Universal(beta=20.0, weight=2.0),
        "plug-in": PlugInMean(20.0, 0.01),
        "damped": Damped(beta=20.0, prior_variance=0.01, damping=1e3),
    }.items():
        (row,) = run(tmp_path / name, method, ["ab"], images=1).rows
        gains[name] = row.gain
    # The law is Gaussian and the reward linear: the first state, which is noise, moves nothing.
    assert gains["universal"] == pytest.approx(gains["plug-in"], rel=0.05)
    assert gains["more"] == pytest.approx(2 * gains["universal"], rel=1e-6)
    assert 0 < gains["damped"] < 0.9 * gains["plug-in"]


def row(law, method, seed, distance):
    found = {"distance": distance, "share": 1.0, "diversity": 1.0, "network": 64, "reward": 2}
    if distance is None:
        found = {"failed": "no gradient"}
    return {"family": "planes", "law": law, "method": method, "calls": 64, "seed": seed, **found}


def test_the_table_of_toys_averages_over_laws_and_says_what_is_missing():
    rows = [
        *(row("S-curve", "pool", seed, 1.0 + seed) for seed in (0, 1)),
        *(row("moons", "pool", seed, 4.0) for seed in (0, 1)),
        row("eight Gaussians", "pool", 0, None),
        row("moons", "DPS", 0, None),
    ]
    lines = report.toy_table(rows).splitlines()
    (pool,) = [line for line in lines if line.startswith("| **pool** |")]
    cells = [cell.strip() for cell in pool.split("|")[1:-1]]
    assert cells[:4] == ["**pool**", "64", "none", "2.75 ± 0.25 (2 of 3)"]
    assert cells[-2:] == ["64", "2"]
    (dps,) = [line for line in lines if line.startswith("| DPS |")]
    assert "nan" not in dps
    mean, error = report._statistics(rows[:1], "distance")
    assert mean == 1.0
    assert math.isnan(error)


def test_the_table_of_pictures_has_methods_in_order_and_their_errors():
    found = {"calls with draws": 12.0, "decoded": 3.0, "scored": 3.0, "share": 0.5}
    rows = [
        {"method": name, "settings": "pictures.py:X", "share error": 0.25, **found}
        for name in (*reversed(TRIALS), "base", "tilted law")
    ]
    lines = report.picture_table(rows).splitlines()[2:]
    assert len(lines) == len(TRIALS) + 1
    assert lines[0].startswith("| best of n | `X` | 0.50 ± 0.25 |")
    assert lines[-1].startswith("| base |")


def test_methods_have_three_trials_each():
    assert {len(set(trials)) for trials in TRIALS.values()} == {3}
