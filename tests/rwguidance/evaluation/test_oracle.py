"""An evaluation of a law in closed form: what exact methods, wrong ones and the base are told."""

import pytest

from common import assert_within
from evaluations import STEPS, Moved, run, shift_of
from pixel_law import Law, mean_of, spread
from rwguidance.evaluation.figures import TILTED, rows_of
from rwguidance.generation import BestOfN

pytestmark = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore::rwguidance.support.fingerprint.NotKept"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

NATS = 0.75


class Unkept(Law):
    """A law that does not say what it depends on, so that its draws stay in memory."""


WORDS = [f"{'a' * i}{letter}" for i in range(1, 9) for letter in "bcd"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    methods = {
        "exact": Moved(1.0),
        "resampled": BestOfN(16, kl=1.0),
        "base again": Moved(0.0),
        "backwards": Moved(-1.0),
        "twice": Moved(2.0),
    }
    results = run(
        tmp_path_factory.mktemp("oracle"), backbone=Unkept(), prompts=WORDS, methods=methods,
        strengths=(NATS,), images=6, seeds=(0,), target_draws=200, batch_size=64, shown=0,
    )  # fmt: skip
    return results, {row["method"]: row for row in rows_of(results)}


def within(row, name, truth, z=5.0):
    assert_within(row[name], truth, row[f"{name} error"], z)


def test_shares_are_those_of_the_laws(found):
    _, rows = found
    for name, factor in (("exact", 1.0), ("backwards", -1.0), ("twice", 2.0)):
        within(rows[name], "share", factor)
        assert rows[name]["share error"] < 0.1
    # Resampling exactly from the weights of 16 samples errs by their number.
    within(rows["resampled"], "share", 1.0, z=4.0)
    assert rows["base again"]["share"] == 0.0


def test_energy_distances_are_those_of_the_laws(found):
    _, rows = found
    within(rows["exact"], "pixels energy", 0.0)
    within(rows["resampled"], "pixels energy", 0.0)
    for name in ("base again", "backwards", "twice"):
        assert rows[name]["pixels energy"] > 5 * rows[name]["pixels energy error"] > 0
    assert rows["base again"]["pixels energy"] == rows["exact"]["pixels base energy"]
    assert rows["exact"]["pixels nearer"] > 5 * rows["exact"]["pixels nearer error"]


def test_the_target_is_the_tilted_law(found):
    results, rows = found
    target = results.targets[NATS]
    assert not target.few
    truth = [100 * (mean_of(prompt) + shift_of(NATS)) for prompt in WORDS]
    z = (target.means["reward"] - target.means["reward"].new_tensor(truth)) / target.errors[
        "reward"
    ]
    assert float(z.abs().max()) < 6
    within(rows[TILTED], "reward gain", 100 * shift_of(NATS))
    within(rows[TILTED], "red gain", shift_of(NATS))
    beta = 100 * spread(STEPS) / (6 * NATS) ** 0.5
    assert float(target.beta.mean()) == pytest.approx(beta, rel=0.05)


def test_the_least_divergence_is_that_of_the_laws(found):
    _, rows = found
    within(rows["exact"], "nats spent", NATS)
    assert rows["backwards"]["nats spent"] == 0.0
    assert rows["twice"]["nats spent"] == pytest.approx(4 * NATS, rel=0.2)
