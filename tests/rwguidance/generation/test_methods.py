"""Methods: exact laws, the settings that they check, and what they say about a pair."""

import json
import math
import types

import numpy
import pytest
import torch
from torch import nn

from common import assert_within
from pixel_law import QUIET, Brightness, Law, mean_of, run, spread
from rwguidance import Bank, RectifiedSchedule, Tilt
from rwguidance.generation import (
    SMC,
    BestOfN,
    Importance,
    Network,
    NoiseChain,
    NoiseGradient,
    PlugInMean,
    Pool,
    Posterior,
    Resample,
    SecondOrder,
)
from rwguidance.networks import LatentExpectation, LatentShift
from rwguidance.support.fingerprint import fingerprint

pytestmark = QUIET


@pytest.mark.parametrize("name", ["importance", "plug-in", "network"])
def test_aligned_pictures_have_the_tilted_law(tmp_path, name):
    # r = 100 mean(x), pixels N(m, 0.01 I): the tilted mean is m + 0.01 * 100 / 3 / beta.
    beta = 10.0
    shift = 0.01 * 100 / 3 / beta

    class Exact(nn.Module):
        depends_on = ()

        def forward(self, x_t, t, condition):
            sigma, alpha = t, 1 - t
            variance = 0.01 * sigma**2 / (sigma**2 + 0.01 * alpha**2)
            return (variance * 100 / 3 / beta).reshape(-1, 1, 1, 1).expand_as(x_t)

    method = {
        "importance": Importance(bank=4000, beta=beta),
        "plug-in": PlugInMean(beta, prior_variance=0.01),
        "network": Network(Exact()),
    }[name]
    made = run(tmp_path, method, ["abcd"], images=64, batch_size=4000, seed=1, steps=100)
    gains = torch.tensor([row.gain for row in made.rows], dtype=torch.float64) / 100
    if name == "importance":
        # 3 % from the bank, and the draws are narrower than the law by 4 % in 100 steps
        assert abs(float(gains.mean()) / shift - 1) < 0.12
        assert made.rows[0].facts["tilted mean"] == pytest.approx(
            100 * (mean_of("abcd") + shift), rel=5e-3
        )
    else:
        assert gains.tolist() == pytest.approx([shift] * 64, rel=2e-2)


def test_kl_decides_beta_for_each_prompt(tmp_path):
    method = Importance(bank=500, kl=0.7)
    rows = run(tmp_path, method, batch_size=500, prompts=["ab", "abcdef"]).rows
    # KL of shifting a normal law of standard deviation s in the reward by s^2 / beta
    s = 100 * spread() / math.sqrt(3)
    for row in rows:
        assert row.facts["beta"] == pytest.approx(s / math.sqrt(2 * 0.7), rel=0.15)
    assert rows[0].facts["beta"] != rows[1].facts["beta"]


@pytest.mark.parametrize("method", [PlugInMean(1.0, bank=500), BestOfN(2, 1.0, draws=500)])
def test_a_strength_decides_beta_from_the_draws_of_importance_sampling(tmp_path, method):
    expected = run(tmp_path / "a", Importance(bank=500, kl=0.7), batch_size=500).rows
    found = run(tmp_path / "b", method.at(0.7), batch_size=500).rows
    betas = [row.facts["beta"] for row in found]
    assert betas == pytest.approx([row.facts["beta"] for row in expected], rel=1e-9)
    assert betas[0] != betas[1]


def test_the_plug_in_takes_the_variance_of_the_draws_of_a_prompt(tmp_path):
    found = run(tmp_path / "a", PlugInMean(kl=0.7, bank=500), batch_size=500).rows
    variance = found[0].facts["prior variance"]
    # The variance of 1500 numbers errs by sqrt(2 / 1500).
    expected = spread() ** 2
    assert_within(torch.tensor(variance), expected, expected * math.sqrt(2 / 1500))
    told = run(
        tmp_path / "b", PlugInMean(kl=0.7, bank=500, prior_variance=variance), batch_size=500
    )
    assert told.rows[0].gain == pytest.approx(found[0].gain, rel=1e-9)
    (unknown,) = run(tmp_path / "c", PlugInMean(10.0), ["ab"]).rows[:1]
    assert unknown.facts["prior variance"] == 1.0


def test_the_variance_of_draws_that_differ_little_is_that_of_their_differences(tmp_path):
    # Near 0.55 half precision has steps of 5e-4, which hide these.
    method = PlugInMean(kl=0.7, bank=500)
    rows = run(tmp_path, method, ["ab"], Law(2e-4), batch_size=500).rows
    exact = spread(std=2e-4) ** 2
    variance = torch.tensor(rows[0].facts["prior variance"])
    assert_within(variance, exact, exact * math.sqrt(2 / 1500))


def test_methods_at_a_strength_keep_their_other_settings():
    assert Importance(bank=9, beta=5.0, ess=0.1).at(2.0) == Importance(bank=9, kl=2.0, ess=0.1)
    assert PlugInMean(5.0, 0.1, scale=2.0).at(2.0) == PlugInMean(None, 0.1, 2.0, scale=2.0)
    assert BestOfN(4, kl=1.0, draws=9).at(2.0) == BestOfN(4, kl=2.0, draws=9)
    assert BestOfN(4).at(2.0) is Network(nn.Identity()).at(2.0) is None
    assert PlugInMean.from_options(bank=9) == PlugInMean(kl=1.0, bank=9)
    for method, name in ((Importance(8, 1.0), "bank"), (BestOfN(4, 1.0, draws=8), "draws")):
        with pytest.raises(ValueError, match=rf"kl must be less than log\({name}\) = 2.08"):
            method.at(3.0)


def test_a_flattened_kernel_keeps_its_share(tmp_path):
    method = Importance(bank=64, beta=5.0, ess=0.9)
    (row,) = run(tmp_path, method, ["ab"]).rows
    plain = run(tmp_path / "plain", Importance(bank=64, beta=5.0), ["ab"]).rows[0]
    flat, exact = (one.facts["effective draws"] for one in (row, plain))
    assert flat[0] == pytest.approx(exact[0], rel=1e-12)
    assert flat[-1] > exact[-1]


def test_an_estimator_serves_all_batches_of_its_prompt(tmp_path):
    made = []

    class Counted(Importance):
        def estimator(self, run, prompt):
            made.append(prompt)
            return super().estimator(run, prompt)

    run(tmp_path, Counted(bank=8, beta=5.0), images=5, batch_size=2)
    assert made == ["ab", "abcdef"]


def test_scale_and_window_reach_the_guided_model(tmp_path):
    base = run(tmp_path / "a", Importance(bank=32, beta=5.0, scale=0.0), ["ab"]).rows[0]
    assert base.gain == 0
    some = run(tmp_path / "b", Importance(bank=32, beta=5.0, window=(0.95, 1.0)), ["ab"]).rows[0]
    assert len(some.facts["effective draws"]) == 1


def test_best_of_n_is_the_best_and_never_worse_than_the_base(tmp_path):
    reward = Brightness()
    made = run(tmp_path, BestOfN(8), ["abcd"], images=50, batch_size=64, reward=reward)
    gains = [row.gain for row in made.rows]
    assert min(gains) >= -1e-6
    chosen = [row.facts["chosen"] for row in made.rows]
    assert [gain < 1e-6 for gain in gains] == [i == 0 for i in chosen]
    assert len(set(chosen)) > 4
    # the expected largest of 8 normal numbers is 1.4236 standard deviations
    best = torch.tensor([row.rewards[1] for row in made.rows], dtype=torch.float64) / 100
    s = spread() / math.sqrt(3)
    assert_within(best.mean(), mean_of("abcd") + 1.4236 * s, 0.62 * s / math.sqrt(50))


def test_a_draw_by_weight_has_the_tilted_law(tmp_path):
    s = 100 * spread() / math.sqrt(3)
    beta = s  # the tilted mean is s / beta = 1 standard deviation higher, at 1/2 nat
    made = run(tmp_path, BestOfN(16, beta), ["abcd"], images=200, batch_size=512)
    rewards = torch.tensor([row.rewards[1] for row in made.rows], dtype=torch.float64)
    # the bias is of order 1 / n; the standard deviation of the tilted law is that of the law
    assert_within(rewards.mean(), 100 * mean_of("abcd") + s, s * (1 / math.sqrt(200) + 1 / 16 / 5))
    assert_within(rewards.std(), s, s * (1 / math.sqrt(2 * 199) + 1 / 16 / 5))
    assert len({row.facts["chosen"] for row in made.rows}) == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Importance(), "give beta or kl, one of them, got None and None"),
        (lambda: Importance(beta=1.0, kl=1.0), "one of them"),
        (lambda: Importance(beta=-1.0), "beta must be positive"),
        (lambda: Importance(bank=1, beta=1.0), "bank must be at least 2"),
        (lambda: Importance(bank=8, kl=3.0), r"less than log\(bank\) = 2.08"),
        (lambda: Importance(beta=1.0, ess=1.5), r"ess must lie in \(0, 1\)"),
        (lambda: Importance(beta=1.0, ess=0.5, leave_one_out=True), "ess or leave_one_out"),
        (lambda: PlugInMean(0.0), "beta must be positive"),
        (lambda: PlugInMean(1.0, prior_variance=math.nan), "prior_variance must be positive"),
        (lambda: Importance(beta=1.0, window=(0.9, 0.1)), "window must be times"),
        (lambda: PlugInMean(1.0, scale=math.inf), "scale must be finite"),
        (lambda: Network(nn.Identity(), window=(0.0, 1.1)), "window must be times"),
        (lambda: PlugInMean(), "give beta or kl, one of them, got None and None"),
        (lambda: BestOfN(1), "n must be at least 2"),
        (lambda: BestOfN(4, 1.0, 1.0), "give beta or kl, not both, got 1.0 and 1.0"),
        (lambda: BestOfN(4, beta=0.0), "beta must be positive"),
    ],
)
def test_methods_check_their_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Importance(bank=4.5, kl=1.0), "bank must be an integer, got float 4.5"),
        (lambda: Importance(kl="1"), "kl must be a number, got str '1'"),
        (lambda: Importance(beta=True), "beta must be a number, got bool True"),
        (lambda: Importance(kl=1.0, ess="0.1"), "ess must be a number"),
        (lambda: Importance(kl=1.0, scale=None), "scale must be a number, got None"),
        (lambda: PlugInMean("1"), "beta must be a number"),
        (lambda: BestOfN(4.0), "n must be an integer, got float 4.0"),
        (lambda: Network("x"), "network must be a guidance network, an nn.Module, got str 'x'"),
        (lambda: Network(nn.Identity(), log_h=1), "log_h must be True or False"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_numbers_of_other_libraries_become_those_that_json_can_hold():
    method = Importance(bank=numpy.int64(8), beta=numpy.float32(0.5), scale=torch.tensor(2))
    assert json.loads(json.dumps(method.settings())) == {
        "bank": 8, "beta": 0.5, "kl": None, "ess": None, "leave_one_out": False,
        "scale": 2.0, "window": [0.0, 1.0],
    }  # fmt: skip


@pytest.mark.parametrize("kind", [LatentExpectation, LatentShift])
def test_a_network_for_latents_says_what_it_gives(kind):
    network = kind(16, RectifiedSchedule(), widths=(8, 8))
    assert Network(network).gives_log_h is (kind is LatentExpectation)
    assert Network(network).settings()["log_h"] is (kind is LatentExpectation)
    assert Network(nn.Identity()).settings()["log_h"] is False
    assert Network(nn.Identity(), log_h=True).settings()["log_h"] is True
    assert Network(network).settings()["network"] == fingerprint(network)


def test_settings_are_json(tmp_path):
    run(tmp_path, Network(nn.Identity(), scale=0.0), ["ab"])
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert set(settings["method"]) == {
        "name", "network", "strength", "log_h", "scale", "window",
    }  # fmt: skip


def test_settings_may_be_at_the_ends_of_their_ranges():
    pictures = {"pictures": 1, "renew": 0}
    for method in (
        Importance(bank=2, kl=0.5, scale=-1, window=(0.0, 0.0)),
        Importance(bank=2, beta=0.5, window=(1.0, 1.0)),
        Resample(bank=2, kl=0.5, **pictures),
        Pool(bank=2, kl=0.5, **pictures),
        SMC(particles=2, beta=0.5, eta=1.0, threshold=0.0, **pictures),
        SMC(particles=2, bank=2, kl=0.5, eta=1e-9, threshold=1.0),
        BestOfN(2, kl=0.5, draws=2),
        Posterior(draws=2, inner_steps=2, beta=0.5),
        PlugInMean(0.5, prior_variance=1e-9),
        SecondOrder(0.5, iterations=1),
        NoiseGradient(0.5, moves=1, size=1e-9, pilots=1, through=1),
        NoiseChain(bank=2, kl=0.5, burn_in=2, moves=1, acceptance=1e-9),
    ):
        assert method.settings()


DIGITS = {
    "effective draws": 2, "effective candidates": 2, "effective particles": 2,
    "acceptance": 3, "rho": 3, "reach": 3, "misfit": 3,
}  # fmt: skip


def test_facts_have_two_digits_of_numbers_and_three_of_shares(tmp_path):
    methods = [
        Importance(bank=16, kl=0.5),
        Pool(bank=16, kl=0.5, pictures=4, renew=3, scale=0.4),
        SMC(particles=5, beta=5.0, pictures=4, threshold=0.0),
        NoiseChain(bank=8, kl=0.5, burn_in=2, moves=3),
    ]
    seen = {name: [] for name in DIGITS}
    for i, method in enumerate(methods):
        for row in run(tmp_path / str(i), method, ["ab"], images=4, steps=3).rows:
            for name in DIGITS.keys() & row.facts.keys():
                value = row.facts[name]
                seen[name] += value if isinstance(value, list) else [value]
    for name, values in seen.items():
        assert values == [round(value, DIGITS[name]) for value in values], name
        assert values != [round(value, DIGITS[name] - 1) for value in values], name


@pytest.mark.parametrize("beta", [None, 0.5])
def test_the_best_is_never_one_without_a_reward(beta):
    low = -math.inf
    base, bases = torch.tensor([[10.0], [20.0], [30.0]]), torch.tensor([low, 5.0, math.nan])
    others = [[low, low, -3.0], [low, low, low], [low, 7.0, low]]
    banks = lambda prompt, n, streams: [
        Bank(torch.arange(3.0)[:, None] + 10 * i, None, torch.tensor(others[i])) for _, i in streams
    ]
    run = types.SimpleNamespace(
        seed=0, banks=banks, reward=None, keep=lambda what, key, make: Tilt(Brightness(), beta)
    )
    found = BestOfN(4, beta=beta).align(run, "ab", [0, 1, 2], base, bases)
    assert found.x_0.flatten().tolist() == [2.0, 20.0, 21.0]
    assert list(found.each) == [{"chosen": 3}, {"chosen": 0}, {"chosen": 2}]
