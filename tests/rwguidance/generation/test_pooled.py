"""Pictures that are made together: their law, and what each depends on."""

import math

import pytest
import torch

from common import assert_within
from pixel_law import QUIET, Brightness, mean_of, run, spread
from rwguidance.generation import Pool, Resample

pytestmark = QUIET

STD = 100 * spread() / math.sqrt(3)  # of the reward, whose law is normal


def rewards_of(made, prompt):
    values = [row.rewards[1] for row in made.rows if row.prompt == prompt]
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("method", [Pool, Resample])
def test_aligned_pictures_have_the_tilted_law(tmp_path, method):
    # a strength of one over the standard deviation moves the mean by one of them, at 1/2 nat
    made = run(
        tmp_path, method(bank=2000, beta=STD, pictures=200), ["abcd"], images=200, batch_size=500
    )
    rewards = rewards_of(made, "abcd")
    assert_within(rewards.mean(), 100 * mean_of("abcd") + STD, STD / math.sqrt(200))
    assert_within(rewards.std(), STD, STD / math.sqrt(2 * 199))


def test_a_pool_has_new_pictures_where_a_bank_has_copies(tmp_path):
    distinct = {}
    for method in (Pool, Resample):
        made = run(tmp_path / method.name, method(bank=24, kl=2.0, pictures=16), images=16)
        distinct[method] = [row.facts["distinct"] for row in made.rows]
        for row in made.rows:
            assert 0 <= row.facts["chosen"] < 24 + 16 * (method is Pool)
            assert row.facts["effective candidates"] <= 24 + 16 * (method is Pool)
    assert all(p > r for p, r in zip(distinct[Pool], distinct[Resample], strict=True))


@pytest.mark.parametrize("method", [Pool, Resample])
def test_moves_keep_the_tilted_law(tmp_path, method):
    # noise and flow are a Gaussian pair, and so reversible, up to the error of 6 of 12 steps
    method = method(bank=2000, beta=STD, pictures=200, renew=3)
    made = run(tmp_path, method, ["abcd"], images=200, batch_size=500)
    rewards = rewards_of(made, "abcd")
    assert_within(rewards.mean(), 100 * mean_of("abcd") + STD, STD / math.sqrt(200))
    assert_within(rewards.std(), STD, STD / math.sqrt(2 * 199))


@pytest.mark.parametrize("method", [Pool, Resample])
def test_moves_make_copies_new_and_mend_the_reward(tmp_path, method):
    rewards, distinct = {}, {}
    prompts = [f"prompt {i}" for i in range(6)]
    for moves in (0, 6):
        made = run(
            tmp_path / str(moves),
            method(bank=16, kl=2.0, pictures=16, renew=moves),
            prompts,
            images=16,
            batch_size=16,
        )
        rewards[moves] = [row.rewards[1] for row in made.rows]
        distinct[moves] = [row.facts["distinct"] for row in made.rows]
        for prompt in prompts:
            own = [row.rewards[1] for row in made.rows if row.prompt == prompt]
            (stated,) = {row.facts["distinct"] for row in made.rows if row.prompt == prompt}
            assert len(set(own)) == stated
    assert [row.facts["distinct before moves"] for row in made.rows] == distinct[0]
    assert all(0 <= row.facts["acceptance"] <= 1 for row in made.rows)
    assert all(after >= before for before, after in zip(*distinct.values(), strict=True))
    assert sum(distinct[6]) > sum(distinct[0])
    assert sum(rewards[6]) > sum(rewards[0])  # a bank of 16 stops short of 2 nats


def test_moves_need_a_time_within_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"renew needs two steps at least.*got 1; pcn"):
        run(tmp_path, Resample(bank=4, kl=0.5, renew=1), ["ab"], steps=1)


def test_a_move_that_cannot_be_scored_is_not_made(tmp_path):
    class Fails(Brightness):
        """Has no value for pictures that are brighter than those of the model and the bank."""

        depends_on = Brightness.depends_on

        def forward(self, images, prompts):
            values = super().forward(images, prompts)
            if self._seen <= 12:
                self.top = max(getattr(self, "top", 0.0), float(values.max()))
            self.failed = getattr(self, "failed", 0) + int((values > self.top).sum())
            return torch.where(values > self.top, math.nan, values)

    method, reward = Resample(bank=8, kl=0.5, pictures=4, renew=20), Fails()
    made = run(tmp_path, method, ["ab"], images=4, batch_size=4, reward=reward)
    assert reward.failed > 0
    assert [row.rewards[1] <= reward.top for row in made.rows] == 4 * [True]


@pytest.mark.parametrize("method", [Pool, Resample])
def test_a_picture_depends_on_seed_prompt_number_and_those_made_with_it(tmp_path, method):
    method = method(bank=12, kl=1.0, pictures=4)
    options = {"images": 7, "batch_size": 3}
    whole = run(tmp_path / "a", method, ["ab", "cd"], **options)
    part = run(tmp_path / "b", method, ["cd"], images=2, batch_size=2)
    first = [row for row in whole.rows if row.prompt == "cd" and row.number < 2]
    assert [row.facts["chosen"] for row in part.rows] == [row.facts["chosen"] for row in first]
    for one, other in zip(part.rows, first, strict=True):
        assert one.rewards == pytest.approx(other.rewards, rel=1e-12)
    again = run(tmp_path / "c", method, ["ab", "cd"], seed=1, **options)
    assert [row.facts["chosen"] for row in again.rows] != [r.facts["chosen"] for r in whole.rows]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_guided_picture_that_cannot_be_scored_is_not_chosen(tmp_path, value):
    options = {"prompts": ["ab"], "images": 4, "batch_size": 4}
    method = Pool(bank=8, kl=0.5, pictures=4)
    last = 8 if math.isnan(value) else 4  # one by one is asked for what has no number
    made = run(tmp_path / "a", method, **options)
    assert any(row.facts["guided"] for row in made.rows)

    class Fails(Brightness):
        depends_on = Brightness.depends_on

        def forward(self, images, prompts):
            values = super().forward(images, prompts)
            self.calls = getattr(self, "calls", 0) + 1
            # First those of the model are scored, then twice four of the bank, then the guided
            # ones, and what fails one by one.
            return torch.full_like(values, value) if 4 <= self.calls <= last else values

    made = run(tmp_path / "b", method, reward=Fails(), **options)
    assert not any(row.facts["guided"] for row in made.rows)


def test_methods_at_a_strength_keep_their_other_settings():
    assert Pool(bank=9, beta=5.0, ess=0.1, pictures=3).at(2.0) == Pool(
        9, None, 2.0, 0.1, pictures=3
    )
    assert Resample(9, 5.0, pictures=3).at(2.0) == Resample(9, None, 2.0, pictures=3)
    for method in (Pool, Resample):
        assert method.from_options() == method(kl=1.0)
        for wrong in ({}, {"beta": 1.0, "kl": 1.0}):
            with pytest.raises(ValueError, match="give beta or kl, one of them"):
                method(**wrong)
        with pytest.raises(ValueError, match="pictures must be at least 1"):
            method(kl=1.0, pictures=0)
