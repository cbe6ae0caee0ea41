"""What a training reads: banks of draws and of pairs, conditions, strengths and times."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from path_model import PathModel
from preference_files import CAPTIONS, Light, pick_a_pic
from rwguidance import Bank, Tilt, toy
from rwguidance.preparation import Preparation, prepare_draws, prepare_pairs
from rwguidance.trainer import PRESETS, Settings, Training, run
from rwguidance.trainer.held_out import HeldOut
from rwguidance.trainer.log import Log
from rwguidance.trainer.material import Encode, Encoded, read_bank, rewards_of, tilts_of
from rwguidance.trainer.problem import Times, make_objective, variance_of
from rwguidance.trainer.run import _TIMED, _hook, _validation
from rwguidance.trainer.work import Work

REWARD = toy.Linear([1.0])


def job(out, **options):
    rewards = {"light": Light()}
    return Preparation(
        backbone=PathModel(), out=out, rewards=rewards, batch_size=3, validation=0.5, **options
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    rows, _ = pick_a_pic(root / "a.parquet", n=12, dirty=False)
    return rows, prepare_pairs(job(root / "out"), [root / "a.parquet"], (16, 16))


def test_pictures_of_pairs_have_their_share_of_wins(pairs):
    rows, data = pairs
    bank = read_bank(data, "preference", list(CAPTIONS))
    assert len(bank) == 24
    assert bank.rewards.dtype == torch.float64  # a third of wins is not rounded
    levels = ((bank.x_0.mean((1, 2, 3)) / 10 + 0.5) * 255).round().tolist()
    wins = dict(zip(levels, bank.rewards.tolist(), strict=True))
    for i, row in enumerate(rows):
        assert wins[10 * i] == row["label_0"]
        assert wins[10 * i + 5] == row["label_1"]
    light = read_bank(data, "light", [CAPTIONS[1]])
    assert set(light.rows) == {CAPTIONS[1]}
    torch.testing.assert_close(light.rewards.float(), light.x_0.mean((1, 2, 3)) / 10 + 0.5)
    assert set(rewards_of(data)) == {"light", "preference"}


def test_draws_are_those_of_the_prompts(tmp_path):
    data = prepare_draws(job(tmp_path / "out"), ["a cat", "a dog", "an owl"], 4)
    bank = read_bank(data, "light", ["an owl", "a cat"])
    assert {key: rows.stop - rows.start for key, rows in bank.rows.items()} == {
        "an owl": 4,
        "a cat": 4,
    }
    torch.testing.assert_close(bank.x_0[bank.rows["a cat"]], data.bank("a cat").x_0)
    with pytest.raises(ValueError, match="those that were prepared, light, got 'preference'"):
        read_bank(data, "preference", ["a cat"])
    with pytest.raises(ValueError, match="prompts must be one at least"):
        read_bank(data, "light", [])


def test_conditions_are_made_of_what_was_prepared(tmp_path):
    prompts = ["a cat", "a dog", "an owl"]
    data = prepare_draws(job(tmp_path / "out"), prompts, 2)
    model = PathModel()
    encode = Encode(data, model, prompts)
    asked = len(model.encoded)
    found = encode(["an owl", "a cat", "an owl"])
    exact = PathModel().condition(["an owl", "a cat", "an owl"])
    assert list(found) == list(exact)
    for name, value in exact.embeddings.items():
        assert torch.equal(found.embeddings[name], value)
    assert len(model.encoded) == asked  # the text encoders were not asked again
    assert encode.sizes == {"text": 3, "tokens": 3}
    some = Encoded(prompts, encode)
    assert (len(some), list(some)) == (3, prompts)
    assert list(some[[2, 0]]) == ["an owl", "a cat"]


def bank_of(rewards, prompts):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return Bank(rewards[:, None], prompts, rewards)


def divergence(rewards, beta):
    p = (rewards / beta).softmax(0)
    return float((p * p.log()).sum()) + math.log(len(rewards))


def test_strengths_are_divergences():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    bank = bank_of(rewards.flatten().tolist(), ["a"] * 20 + ["b"] * 20)
    tilts = tilts_of(bank, REWARD, Settings(nats=(0.3, 1.0)))
    for nats, tilt in tilts.items():
        found = [divergence(values, tilt.betas[0]) for values in rewards]
        assert sum(found) / 2 == pytest.approx(nats)
    ((nats, tilt),) = tilts_of(bank, REWARD, Settings(beta=0.7)).items()
    assert tilt.betas == (0.7,)
    assert nats == pytest.approx(sum(divergence(v, 0.7) for v in rewards) / 2, abs=1e-3)
    assert nats == round(nats, 3)
    assert list(tilts_of(bank, REWARD, Settings(beta=1e6))) == [0.001]  # and not 0, which is none
    moved = bank_of((rewards.flatten() + 2.0**26).tolist(), ["a"] * 20 + ["b"] * 20)
    assert list(tilts_of(moved, REWARD, Settings(beta=0.7))) == [nats]  # a constant says nothing


def test_eight_draws_of_a_prompt_are_enough_for_its_own_divergence():
    rewards = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7], [0.0, 0, 0, 0, 0, 0, 0, 1]]).double()
    bank = bank_of(rewards.flatten().tolist(), ["a"] * 8 + ["b"] * 8)
    ((_, tilt),) = tilts_of(bank, REWARD, Settings(nats=(0.5,))).items()
    found = [divergence(values, tilt.betas[0]) for values in rewards]
    assert sum(found) / 2 == pytest.approx(0.5)


def test_prompts_with_so_many_draws_are_kept():
    bank = bank_of(range(7), ["a", "b", "b", "b", "c", "c", "d"])
    held_out = HeldOut(bank, {}, torch.zeros(2), list)
    assert held_out.with_draws(2) == ["b", "c"]
    some = held_out.of(["c", "b"]).bank
    assert some.condition == ("c", "c", "b", "b", "b")
    assert some.rewards.tolist() == some.x_0.flatten().tolist() == [4, 5, 1, 2, 3]


def test_of_few_draws_all_prompts_count_together_less_their_means():
    prompts = [f"{i}" for i in range(10) for _ in range(2)]
    rewards = [100.0 * (i // 2) + (0.1 * i if i % 2 else 0.0) for i in range(20)]
    ((_, tilt),) = tilts_of(bank_of(rewards, prompts), REWARD, Settings(nats=(0.5,))).items()
    values = torch.tensor(rewards, dtype=torch.float64).reshape(10, 2)
    residuals = (values - values.mean(1, keepdim=True)).flatten() * 2**0.5  # as wide as draws
    assert divergence(residuals, tilt.betas[0]) == pytest.approx(0.5)


def test_few_draws_are_as_wide_about_their_mean_as_about_that_of_the_law():
    rewards = [0.0, 3.0, 6.0, 1.0, 1.0, 2.0, 8.0, 5.0]  # of three prompts, the last of one draw
    bank = bank_of(rewards, ["a"] * 3 + ["b"] * 4 + ["c"])
    ((_, tilt),) = tilts_of(bank, REWARD, Settings(nats=(0.3,))).items()
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (rewards[:3], rewards[3:7]))
    parts = ((a - 3) * (3 / 2) ** 0.5, (b - 3) * (4 / 3) ** 0.5, torch.zeros(1).double())
    assert divergence(torch.cat(parts), tilt.betas[0]) == pytest.approx(0.3)


def test_times_are_those_of_few_steps_or_all():
    few = Times.of(torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    assert set(few(64, generator).tolist()) == {1.0, 0.6}
    assert Times.of(torch.linspace(1, 0, 9, dtype=torch.float64)).share == 1.0
    assert Times.of(torch.linspace(1, 0, 10, dtype=torch.float64)).share == 1 / 9
    many = Times.of(torch.linspace(1, 0, 21, dtype=torch.float64))
    drawn = many(4000, generator)
    share = float((drawn == 1).double().mean())
    assert abs(share - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 4000)
    rest = drawn[drawn < 1]
    assert abs(float(rest.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / len(rest))


def test_the_variance_of_draws_is_that_within_prompts():
    x_0 = torch.tensor([[0.0, 5.0], [2.0, 5.0], [100.0, 7.0], [1.0, 1.0], [4.0, 10.0]])
    found = variance_of(Bank(x_0, ["a", "a", "alone", "b", "b"]))
    assert found == pytest.approx(((2.0 + 0.0) / 2 + (4.5 + 40.5) / 2) / 2)
    assert math.isclose(variance_of(Bank(1e9 + x_0[:2].double())), 1.0)
    for same in (Bank(torch.ones(3, 2)), Bank(x_0[:2], ["a", "b"])):
        with pytest.raises(ValueError, match="variance must be given, since no prompt has draws"):
            variance_of(same)


@pytest.mark.parametrize(("objective", "longer"), [("output", 1.0), ("gradients", 5.0)])
def test_changes_have_the_variance_of_the_draws_unless_another_is_given(objective, longer):
    model = PathModel()
    reward = lambda x, condition: x.flatten(1).sum(1)
    bank = Bank(0.3 * model.draw_noise(8, torch.Generator().manual_seed(0)), ["a"] * 8)
    bank = bank.scored(Tilt(reward, beta=1.0))
    tilts = tilts_of(bank, reward, Settings(nats=(1.0,)))

    def variance(given):
        settings = Settings(objective=objective, nats=(1.0,), variance=given)
        return make_objective(
            settings, model, bank, tilts, model.condition, model.times(2), batch_size=4
        ).variance

    assert variance(0.7) == 0.7
    assert variance(None) == pytest.approx(longer * variance_of(bank))


def test_the_log_goes_on_where_a_training_does(tmp_path):
    path = tmp_path / "log.csv"
    first = Log(path)
    for step in range(4):
        first.add(step, {"loss": step / 2, "rate": 1.0})
    path.write_text(path.read_text() + "4,2")  # a row that was cut off
    again = Log(path)
    again.add(2, {"loss": 9.0, "rate": 0.5})
    again.add(3, {"loss": 8.0, "rate": 0.25})
    assert again.figures("rate") == {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.25}
    assert again.figures("cosine") == {}
    assert path.read_text().splitlines() == [
        "step,loss,rate",
        "0,0,1",
        "1,0.5,1",
        "2,9,0.5",
        "3,8,0.25",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": "noise"}, LookupError, "objective must be one of shift, log-h, output"),
        ({"nats": ()}, ValueError, "nats must hold one strength"),
        ({"nats": (1.0, 0.5)}, ValueError, "nats must be distinct and ascending"),
        ({"loss": "contrastive"}, LookupError, "loss must be one of"),
        ({"tilted": 2.0}, ValueError, "tilted must lie in"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"average": 1.0}, ValueError, "average must lie in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Settings(**options)


def test_the_time_that_is_left_is_that_of_steps_like_the_first_ones(tmp_path, monkeypatch):
    said, tracked, told, now = [], [], [], iter([7.0, 7.0 + 3 * _TIMED])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    job = Training(data="a", out=tmp_path, settings=Settings(steps=410))
    track = lambda step, figures: tracked.append(step)
    hook = _hook(job, said.append, lambda *progress: told.append(progress), track)
    for step in range(400, 400 + _TIMED + 1):  # it goes on where it stopped
        hook(step, {"loss": 1.0})
    left = 3.0 * (10 - _TIMED) / 60
    assert said == [f"about {left:.2g} minutes, by the first steps"]
    assert tracked == list(range(400, 401 + _TIMED))
    assert told[0] == ("training", 401, 410)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    last = _hook(job, said.append, lambda *progress: None, track)
    for step in range(410 - _TIMED, 410):  # none is left
        last(step, {"loss": 1.0})
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [
        ("eta", 0.0, -1e-9),
        ("penalty", 0.0, -1e-9),
        ("tilted", 0.0, -1e-9),
        ("tilted", 1.0, 1 + 1e-9),
        ("effective", 1.0, 1 - 1e-9),
        ("nats", (1e-9,), (0.0,)),
        ("beta", 1e-9, 0.0),
        ("variance", 1e-9, 0.0),
        ("learning_rate", 1e-9, 0.0),
        ("max_norm", 1e-9, 0.0),
        ("steps", 1, 0),
        ("batch_size", 1, 0),
        ("pictures", 1, 0),
        ("seed", 0, -1),
    ],
)
def test_settings_reach_their_bounds(name, least, below):
    assert getattr(Settings(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"^{name} must "):
        Settings(**{name: below})


@pytest.mark.parametrize(
    "name",
    [
        *("parts", "prompts", "sampler_steps", "decode_batch"),
        *("save_every", "held_out", "images", "picture_batch"),
    ],
)
def test_numbers_of_a_training_begin_with_one(name):
    make = lambda n: Training(data="a", out="b", settings=Settings(), **{name: n})
    assert getattr(make(1), name) == 1
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        make(0)


def test_parts_divide_a_batch():
    assert Settings(batch_size=6).recipe(3).parts == 3
    with pytest.raises(ValueError, match="parts must divide the batch of 6 states, got 4"):
        Settings(batch_size=6).recipe(4)


def test_presets_are_what_they_were():
    own = {"calibrate": False, "nats": (1.0,)}
    paper = {"objective": "log-h", "loss": "exp_mse", "eta": 1.0, "network": "paper"}
    gradient = {"objective": "gradients", "network": "tiny", "steps": 400, "warm_up": 20}
    assert {
        "recommended": Settings(),
        "paper": Settings(**own, **paper, learning_rate=1e-4),
        "gradient": Settings(**own, **gradient, learning_rate=1e-3, average=0.97),
    } == PRESETS


def test_times_of_prepared_draws_are_those_that_made_them():
    times = [1.0, 0.7, 0.1, 0.0]
    data = SimpleNamespace(about={"drawers": {"trajectories": {"times": times}}})
    work = Work(SimpleNamespace(sampler_steps=None), None, {}, data)
    assert work.times.tolist() == times


def test_prompts_are_picked_by_the_seed_in_the_order_of_the_data():
    data = {split: [f"{split} {i:03}" for i in range(90)] for split in ("train", "validation")}

    def picked(most, seed=0):
        job = SimpleNamespace(prompts=most, settings=Settings(seed=seed))
        work = Work(job, None, {}, SimpleNamespace(split=data.__getitem__))
        assert len(work.unseen_prompts) == 64
        for prompts, split in ((work.unseen_prompts, "validation"), (work.train_prompts, "train")):
            assert prompts == sorted(set(prompts))
            assert set(prompts) <= set(data[split])
        return work.train_prompts

    for most in (1, 8, 89):
        assert len(picked(most)) == most
        assert picked(most) == picked(most)
    assert picked(8) != picked(8, seed=1) != data["train"][:8]
    for most in (90, 91, None):
        assert picked(most) == data["train"]


def test_a_validation_looks_at_sixteen_prompts_and_the_strength_in_the_middle(monkeypatch):
    asked = []
    monkeypatch.setattr(run, "make_objective", lambda *given: asked.append(given))
    held_out = lambda tilts, prompts: SimpleNamespace(tilts=tilts, prompts=prompts, bank="bank")
    settings = Settings(batch_size=6, pictures=9)
    work = SimpleNamespace(
        job=SimpleNamespace(settings=settings, steps_between_validations=1, decode_batch=3),
        unseen_prompts=list(range(20)), held_out=held_out,
        backbone="model", encode="encode", times="times",
    )  # fmt: skip
    found = _validation(work, {0.25: "weak", 0.5: "middle", 1.0: "strong"})
    assert found.held_out.prompts == list(range(16))
    assert found.held_out.tilts == {0.5: "middle"}
    ((seen, *given),) = asked
    assert given == ["model", "bank", {0.5: "middle"}, "encode", "times", 6, 3]
    assert seen == replace(settings, pictures=6)
    assert _validation(work, {0.25: "weak", 1.0: "strong"}).held_out.tilts == {1.0: "strong"}
    few = replace(settings, pictures=5)
    work.job.settings, work.unseen_prompts = few, [0]
    assert _validation(work, {1.0: "strong"}).held_out.prompts == [0]
    assert asked[-1][0] == few
    work.job.steps_between_validations = 0
    assert _validation(work, {1.0: "strong"}) is None


@pytest.mark.parametrize("objective", ["shift", "log-h"])
def test_states_of_a_training_begin_where_runs_do(objective):
    model, reward = PathModel(), lambda x, condition: x.flatten(1).sum(1)
    bank = Bank(model.draw_noise(4, torch.Generator().manual_seed(0)), ["a"] * 4)
    bank = bank.scored(Tilt(reward, beta=1.0))
    settings = Settings(objective=objective, nats=(0.5,))
    times = torch.tensor([0.9, 0.4, 0.0], dtype=torch.float64)
    tilts = tilts_of(bank, reward, settings)
    found = make_objective(settings, model, bank, tilts, model.condition, times, batch_size=4)
    assert found.model.start == 0.9
    assert model.start is None
