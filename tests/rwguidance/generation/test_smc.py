"""Pictures made by particles: their law, and what each depends on."""

import itertools
import math

import pytest
import torch

from common import assert_within
from pixel_law import QUIET, Brightness, mean_of, run
from rwguidance import DDIM, Prediction, RectifiedSchedule, TwistedSMC
from rwguidance.generation import SMC

pytestmark = QUIET


def spread_of_noisy_steps(eta, steps=12, std=0.1):
    """Standard deviation of a pixel after the steps, in which variances add up."""

    schedule, variance = RectifiedSchedule(), 1.0
    unit = torch.ones(1, 1, dtype=torch.float64)
    for t, s in itertools.pairwise([1 - i / steps for i in range(steps + 1)]):
        now = schedule.at(t, unit)
        gain = std**2 * now.alpha / (std**2 * now.alpha**2 + now.sigma**2)
        law = DDIM(eta).transition(
            Prediction.from_mean(gain * unit, unit, now), schedule.at(s, unit)
        )
        variance = float(law.mean) ** 2 * variance + float(law.std) ** 2
    return math.sqrt(variance)


@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_pictures_have_the_tilted_law_of_the_steps(tmp_path, eta):
    std = 100 * spread_of_noisy_steps(eta) / math.sqrt(3)
    method = SMC(particles=2000, beta=std, eta=eta, threshold=0.9, pictures=200)
    made = run(tmp_path, method, ["abcd"], images=200, batch_size=500)
    rewards = torch.tensor([row.rewards[1] for row in made.rows], dtype=torch.float64)
    assert_within(rewards.mean(), 100 * mean_of("abcd") + std, std / math.sqrt(200))
    assert_within(rewards.std(), std, std / math.sqrt(2 * 199))
    facts = made.rows[0].facts
    expected = 100 * mean_of("abcd") / std + 0.5
    assert facts["log z"] == pytest.approx(expected, abs=5 * math.sqrt((math.e - 1) / 2000))
    assert 200 < facts["ancestors"] < 2000
    assert facts["distinct"] > 100


def test_effective_particles_are_those_of_the_pictures(tmp_path):
    # Without resampling, weights are those of the rewards: N / e where these spread by one beta.
    beta = 100 * spread_of_noisy_steps(1.0, steps=3) / math.sqrt(3)
    method = SMC(particles=400, beta=beta, threshold=0.0, pictures=1)
    made = run(tmp_path, method, ["abcd"], images=1, batch_size=400, steps=3)
    assert made.rows[0].facts["effective particles"] == pytest.approx(400 / math.e, rel=0.25)


def test_a_picture_depends_on_seed_prompt_number_and_those_made_with_it(tmp_path):
    method, options = SMC(8, kl=1.0, pictures=4), {"images": 7, "batch_size": 3}
    whole = run(tmp_path / "a", method, ["ab", "cd"], **options)
    part = run(tmp_path / "b", method, ["cd"], images=2, batch_size=2)
    first = [row for row in whole.rows if row.prompt == "cd" and row.number < 2]
    for one, other in zip(part.rows, first, strict=True):
        assert one.facts["chosen"] == other.facts["chosen"]
        assert one.rewards == pytest.approx(other.rewards, rel=1e-9)
    again = run(tmp_path / "c", method, ["ab", "cd"], seed=1, **options)
    assert [row.facts["chosen"] for row in again.rows] != [r.facts["chosen"] for r in whole.rows]


def test_steps_have_the_noise_that_is_asked_for(tmp_path):
    # Where steps draw no noise to speak of, a picture is where its first state sends it: pairs of
    # particles from one first state, which resampling made, stay together.
    close = []
    for eta in (0.01, 1.0):
        method = SMC(particles=16, beta=0.5, eta=eta, threshold=1.0, pictures=16)
        made = run(tmp_path / str(eta), method, ["ab"], images=16)
        rewards = torch.tensor([row.rewards[1] for row in made.rows], dtype=torch.float64)
        assert made.rows[0].facts["ancestors"] < 12
        close.append(float(rewards.std()))
    assert close[0] < 0.6 * close[1]


def test_particles_begin_from_noise_at_the_first_time_of_the_run(tmp_path, monkeypatch):
    seen, sample = [], TwistedSMC.sample

    def spy(self, model, *given, **options):
        seen.append((model.start, given[0], given[2].tolist(), options, self.window))
        return sample(self, model, *given, **options)

    monkeypatch.setattr(TwistedSMC, "sample", spy)
    method = SMC(6, beta=1.0, eta=0.5, threshold=0.5, pictures=2, window=(0.4, 0.9))
    run(tmp_path, method, ["ab"], images=1, batch_size=4, steps=4)
    ((start, sampler, times, options, window),) = seen
    assert (start, sampler.eta, options, window) == (1.0, 0.5, {"batch_size": 4}, (0.4, 0.9))
    assert times == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_prompt_without_a_finite_reward_is_said_to_have_none(tmp_path):
    class Hard(Brightness):
        depends_on = Brightness.depends_on

        def forward(self, images, prompts):
            return super().forward(images, prompts) - math.inf

    made = run(tmp_path, SMC(4, beta=1.0), ["ab"], reward=Hard(), images=1)
    assert "no particle of 'ab' has a finite reward" in made.failed["ab"]


def test_wrong_settings_are_named():
    assert SMC.from_options() == SMC(kl=1.0)
    assert SMC(9, beta=5.0, eta=0.5, pictures=3).at(2.0) == SMC(9, None, 2.0, eta=0.5, pictures=3)
    for wrong, message in (
        ({}, "give beta or kl"),
        ({"kl": 9.0}, r"kl must be less than log\(bank\)"),
        ({"kl": 1.0, "eta": 0.0}, r"eta must lie in \(0, 1\]"),
        ({"kl": 1.0, "particles": 1}, "particles must be at least 2"),
        ({"kl": 1.0, "window": (0.5, 0.2)}, "window must be times"),
    ):
        with pytest.raises(ValueError, match=message):
            SMC(**wrong)
    times = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    SMC(kl=1.0).check(times)
    long = torch.tensor([0.9, 0.81234, 0.5, 0.0], dtype=torch.float64)
    for method, grid, looks in (
        (SMC(kl=1.0, window=(0.0, 0.6)), times, r"1; got \(0.0, 0.6\)"),
        (SMC(kl=1.0, window=(0.0, 0.6)), long, r"0.9, 0.812; got \(0.0, 0.6\)"),
        (SMC(kl=1.0), times[::2], r"none: smc needs two steps at least; got \("),
    ):
        message = f"^window must hold the time of a step before the last, {looks}"
        with pytest.raises(ValueError, match=message):
            method.check(grid)
