"""Pictures guided by curvature, by straight flows and by draws of the posterior."""

import pytest
import torch
from torch import nn

from common import assert_within
from counted_law import CountedBrightness, CountedLaw, counts, said_in
from pixel_law import QUIET, mean_of, run
from rwguidance.generation import Network, PlugInMean, Posterior, SecondOrder, StraightFlow

pytestmark = QUIET


class Near(nn.Module):
    """Minus a multiple of the squared distance of all pixels from one gray."""

    depends_on = ("gray", "factor")

    def __init__(self, gray=0.75, factor=50.0):
        super().__init__()
        self.gray, self.factor = gray, factor

    def forward(self, images, prompts):
        return -self.factor * (images - self.gray).square().sum((1, 2, 3))


def test_the_second_order_has_the_tilted_law_where_the_first_is_too_strong(tmp_path):
    reward, variance = Near(), 0.01
    tight = 1 / (1 + variance * 2 * reward.factor)  # of the tilted variance over that of the law
    mean = mean_of("abcd") + (1 - tight) * (reward.gray - mean_of("abcd"))
    exact = -3 * reward.factor * (tight * variance + (mean - reward.gray) ** 2)
    options = {"images": 64, "batch_size": 64, "steps": 60, "reward": reward}
    found = {}
    for kind in (SecondOrder, PlugInMean):
        made = run(tmp_path / kind.name, kind(1.0, variance), ["abcd"], **options)
        found[kind] = torch.tensor([row.rewards[1] for row in made.rows], dtype=torch.float64)
    error = found[SecondOrder].std() / 8
    assert_within(found[SecondOrder].mean(), exact, error)
    assert found[PlugInMean].mean() > exact + 5 * error


def test_a_reward_without_curvature_is_guided_to_first_order(tmp_path):
    found = [
        [row.gain for row in run(tmp_path / kind.name, kind(10.0, 0.01), ["ab"]).rows]
        for kind in (SecondOrder, PlugInMean)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_straight_flow_is_guided_by_the_noise_over_the_signal(tmp_path):
    class Straight(nn.Module):
        depends_on = ()

        def forward(self, x_t, t, condition):
            shift = (t / (1 - t)) ** 2 * 100 / 3 / 500.0
            return shift.reshape(-1, 1, 1, 1).expand_as(x_t)

    window = (0.0, 0.95)
    expected = run(tmp_path / "a", Network(Straight(), window=window), ["ab"]).rows
    found = run(tmp_path / "b", StraightFlow(500.0, window=window), ["ab"]).rows
    assert [row.gain for row in found] == pytest.approx([row.gain for row in expected], rel=1e-9)
    assert found[0].facts["beta"] == 500.0
    assert run(tmp_path / "c", StraightFlow(5000.0), ["ab"]).rows, "noise alone is left out"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        # The posterior of a narrow law takes many steps, the gradient of a linear reward few.
        ({"draws": 200, "inner_steps": 40, "window": (0.3, 1.0)}, 0.25),
        ({"draws": 4, "inner_steps": 4, "first_order": True, "window": (0.0, 0.99)}, 0.05),
    ],
    ids=["zeroth", "first"],
)
def test_draws_of_the_posterior_give_the_exact_shift(tmp_path, settings, error):
    options = {"prompts": ["abcd"], "images": 2, "batch_size": 2, "steps": 24}
    window = {"window": settings["window"]}  # of the same times, the plug-in estimator is exact
    exact = run(tmp_path / "a", PlugInMean(20.0, 0.01, **window), **options).rows
    found = run(tmp_path / "b", Posterior(beta=20.0, **settings), **options).rows
    for row, other in zip(found, exact, strict=True):
        assert abs(row.gain / other.gain - 1) < error


def test_a_seed_decides_the_draws(tmp_path):
    method = Posterior(draws=2, beta=5.0)
    found = [
        run(tmp_path / f"{i}", method, ["ab"], seed=seed).rows[0].gain
        for i, seed in enumerate((0, 0, 1))
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "method",
    [
        SecondOrder(5.0, iterations=2),
        StraightFlow(5e3),
        Posterior(draws=3, inner_steps=3, beta=5.0),
        Posterior(draws=2, beta=50.0, first_order=True),
    ],
    ids=repr,
)
def test_no_more_is_done_than_was_said(tmp_path, method):
    said, law, reward = [], CountedLaw(), CountedBrightness()
    options = {"images": 2, "batch_size": 1, "steps": 3, "say": said.append}
    run(tmp_path, method, ["ab"], backbone=law, reward=reward, **options)
    for expected, found in zip(said_in(said[0]), counts(law, reward), strict=True):
        assert expected / 4 <= found <= expected


def test_wrong_settings_are_named():
    assert Posterior.from_options() == Posterior(kl=1.0)
    assert StraightFlow(5.0, scale=0.1).at(2.0) == StraightFlow(kl=2.0, scale=0.1)
    for make, message in (
        (lambda: Posterior(), "give beta or kl"),
        (lambda: Posterior(draws=1, kl=1.0), "draws must be at least 2"),
        (lambda: Posterior(inner_steps=1, kl=1.0), "inner_steps must be at least 2"),
        (lambda: Posterior(kl=9.0), r"kl must be less than log\(bank\)"),
        (lambda: SecondOrder(1.0, iterations=0), "iterations must be at least 1"),
        (lambda: StraightFlow(), "give beta or kl"),
        (lambda: StraightFlow(kl=9.0), r"kl must be less than log\(bank\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="first_order must be"):
        Posterior(kl=1.0, first_order=1)
