"""From prompts to pictures: exact laws, seeds, resumption, failures, and the command line."""

import csv
import itertools
import json
import math
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

import backbones
import rewards
from common import assert_within
from rwguidance import DDIM, RectifiedSchedule, toy
from rwguidance.app.cli import main
from rwguidance.bank import Bank
from rwguidance.generation import (
    BestOfN,
    Generated,
    Importance,
    Network,
    PlugInMean,
    Row,
    Store,
    generate,
)
from rwguidance.generation.console import print_generated
from rwguidance.generation.pictures import Cell, _fit, read_facts, save_sheet
from rwguidance.generation.store import Drawer
from rwguidance.networks import LatentShift
from rwguidance.support.files import replacing

pytestmark = pytest.mark.filterwarnings(
    "ignore::rwguidance.UnreliableEstimate", "ignore:__array__ implementation:DeprecationWarning"
)

SHAPE = (3, 1, 1)
GRAY = 0.5


class Law(backbones.Backbone):
    """Images with independent pixels from N(0.5 + c, 0.1^2), where c grows with the prompt."""

    incidental = ("calls", "breaks_at")

    def __init__(self, std=0.1):
        super().__init__(RectifiedSchedule())
        self.std = std
        self.calls = 0
        self.breaks_at = math.inf

    def condition(self, prompts):
        return list(prompts)

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        if self.calls >= self.breaks_at:
            raise KeyboardInterrupt
        size = math.prod(SHAPE)
        means = torch.tensor([mean_of(prompt) for prompt in condition], dtype=torch.float64)
        law = toy.Gaussian(torch.zeros(size), self.std**2 * torch.eye(size))
        scales = self.schedule.at(t, like=x_t)
        center = (scales.alpha * means.reshape(-1, 1, 1, 1)).expand_as(x_t)
        model = law.model(self.schedule)
        prediction = model((x_t - center).flatten(1), t)
        mean = prediction.mean.reshape(x_t.shape) + means.reshape(-1, 1, 1, 1)
        return type(prediction).from_mean(mean, x_t, scales)

    def draw_noise(self, n, generator=None):
        return torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)

    def decode(self, latents):
        return latents.clamp(0, 1)

    def times(self, steps=None):
        return torch.linspace(1, 0, (12 if steps is None else steps) + 1, dtype=torch.float64)


def mean_of(prompt):
    return GRAY + 0.01 * len(prompt)


class Brightness(nn.Module):
    """100 times the mean pixel; NaN, or worse, for pictures that it is told to dislike."""

    def __init__(self, bad=lambda images, prompts: None, factor=100.0):
        super().__init__()
        self.bad = bad
        self.factor = factor
        self._seen = 0  # private names do not enter fingerprints

    def forward(self, images, prompts):
        self._seen += len(images)
        values = self.factor * images.double().mean((1, 2, 3))
        value = self.bad(images, prompts)
        return values if value is None else torch.where(value, math.nan, values)


def spread(steps=12, std=0.1):
    """Standard deviation of a pixel after Euler steps, which is less than that of the law."""

    x, times = 1.0, [1 - i / steps for i in range(steps + 1)]
    for t, s in itertools.pairwise(times):
        mean = std**2 * (1 - t) / (std**2 * (1 - t) ** 2 + t**2) * x
        x = (1 - s) * mean + s * (x - (1 - t) * mean) / t
    return x


def run(out, method=None, prompts=("ab", "abcdef"), backbone=None, reward=None, **options):
    method = method or Importance(bank=32, beta=5.0)
    return generate(backbone or Law(), reward or Brightness(), prompts, out, method, **options)


def pixels(row):
    return [numpy.asarray(Image.open(path)).astype(int) for path in row.files]


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_pictures(one, other):
    for left, right in zip(pixels(one), pixels(other), strict=True):
        assert abs(left - right).max() <= 1  # what rounds to the next level in another batch
    assert one.rewards == pytest.approx(other.rewards, rel=1e-9)


# What is made.


def test_pictures_table_and_sheet_agree(tmp_path):
    made = run(tmp_path, images=3, names={"backbone name": "law"})
    assert made.made == len(made.rows) == 6
    assert [(row.prompt, row.number) for row in made.rows] == [
        (prompt, i) for prompt in ("ab", "abcdef") for i in range(3)
    ]
    lines = table(made.table)
    for row, line in zip(made.rows, lines, strict=True):
        assert line["prompt"] == row.prompt
        assert float(line["gain"]) == pytest.approx(row.rewards[1] - row.rewards[0], rel=1e-5)
        for kind, path, reward in zip(("base", "aligned"), row.files, row.rewards, strict=True):
            assert line[kind] == path.relative_to(tmp_path).as_posix()
            facts = read_facts(path)
            assert (facts["prompt"], facts["number"], facts["kind"]) == (
                row.prompt,
                row.number,
                kind,
            )
            assert facts["reward"] == reward
            assert facts["settings"]["method"]["beta"] == 5.0
            assert facts["settings"]["backbone name"] == "law"
            # 8 bits against what the reward saw
            assert numpy.asarray(Image.open(path)).mean() / 2.55 == pytest.approx(reward, abs=0.2)
        assert len(line["effective draws"].split()) == 12
    with Image.open(made.sheets[0]) as sheet:
        assert sheet.width >= 6 * 128
    assert not list(tmp_path.rglob("*.partial"))


def test_sheets_are_those_of_the_last_run(tmp_path):
    many = [f"prompt {i}" for i in range(13)]
    options = {"method": BestOfN(2), "steps": 1}
    names = lambda: sorted(path.name for path in tmp_path.glob("*.png"))
    run(tmp_path, prompts=many, **options)
    assert names() == ["sheet-1.png", "sheet-2.png"]
    (tmp_path / "sheet-of-mine.png").touch()
    run(tmp_path, prompts=many[:2], **options)
    assert names() == ["sheet-of-mine.png", "sheet.png"]


@pytest.mark.parametrize("size", [(512, 256), (256, 512), (40, 640)])
def test_sheets_leave_no_empty_space_beside_or_below_pictures(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "one.png")
    groups = [[Cell(tmp_path / "one.png", "base 12.34")] * 2] * 2
    save_sheet([("a cat", groups)] * 3, tmp_path / "sheet.png", "title")
    sheet = Image.open(tmp_path / "sheet.png")
    width, height = (round(256 * length / max(size)) for length in size)
    assert sheet.width <= 4 * max(width, 112) + 64
    assert sheet.height <= 3 * height + 4 * 72
    red = (numpy.asarray(sheet) == (255, 0, 0)).all(-1).sum()
    assert red == 12 * width * height


def test_a_long_prompt_is_cut_in_a_sheet_without_measuring_it_whole():
    class Pen:
        measured = 0

        def textlength(self, text, font):
            self.measured += len(text)
            return 6 * len(text)

    pen = Pen()
    text = _fit(pen, "long prompt " * 2000, None, 300)
    assert text == ("long prompt " * 2000)[:47] + "..."
    assert pen.measured < 100_000
    assert _fit(pen, "a\n b", None, 300) == "a b"


def test_base_pictures_are_the_models_own(tmp_path):
    made = run(tmp_path, images=40, prompts=["abcd"], batch_size=16)
    base = torch.tensor([row.rewards[0] for row in made.rows], dtype=torch.float64) / 100
    assert_within(base.mean(), mean_of("abcd"), spread() / math.sqrt(3 * 40))
    assert_within(base.std(), spread() / math.sqrt(3), spread() / math.sqrt(3 * 2 * 39))


@pytest.mark.parametrize("name", ["importance", "plug-in", "network"])
def test_aligned_pictures_have_the_tilted_law(tmp_path, name):
    # r = 100 mean(x), pixels N(m, 0.01 I): the tilted mean is m + 0.01 * 100 / 3 / beta.
    beta = 10.0
    shift = 0.01 * 100 / 3 / beta

    class Exact(nn.Module):
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


# Seeds.


@pytest.mark.parametrize("method", [Importance(bank=8, beta=5.0), BestOfN(4)])
def test_a_picture_depends_on_seed_prompt_and_number_alone(tmp_path, method):
    one = run(tmp_path / "a", method, ["ab", "abcdef"], images=5, batch_size=1)
    other = run(tmp_path / "b", method, ["xyz", "abcdef"], images=5, batch_size=4)
    assert_same_pictures(one.rows[7], other.rows[7])
    fewer = run(tmp_path / "c", method, ["abcdef"], images=3, batch_size=2)
    assert_same_pictures(fewer.rows[2], one.rows[7])
    third = run(tmp_path / "d", method, ["abcdef"], images=3, seed=1)
    assert third.rows[2].rewards[0] != fewer.rows[2].rewards[0]
    assert len({row.rewards[0] for row in one.rows}) == 10


def test_stochastic_samplers_keep_to_it(tmp_path):
    class Ancestral(Law):
        @property
        def sampler(self):
            return DDIM(eta=1.0)

    one = run(tmp_path / "a", backbone=Ancestral(), images=4, batch_size=3)
    other = run(tmp_path / "b", backbone=Ancestral(), images=4, batch_size=1)
    for left, right in zip(one.rows, other.rows, strict=True):
        assert_same_pictures(left, right)
    plain = run(tmp_path / "c", images=4)
    assert plain.rows[0].rewards[0] != one.rows[0].rewards[0]


# Resumption and the store.


@pytest.mark.parametrize("method", [Importance(bank=12, beta=5.0), BestOfN(4)])
@pytest.mark.parametrize("part", [0.03, 0.35, 0.6, 0.95])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, method, part):
    whole = run(tmp_path / "whole", method, images=2, backbone=(law := Law()))
    total, breaks_at = law.calls, round(part * law.calls)
    store = Store(tmp_path / "store")
    broken = Law()
    broken.breaks_at = breaks_at
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", method, images=2, backbone=broken, store=store)
    broken.calls, broken.breaks_at = 0, math.inf
    again = run(tmp_path / "parts", method, images=2, backbone=broken, store=store)
    assert broken.calls < total if breaks_at > 12 else broken.calls <= total
    for left, right in zip(whole.rows, again.rows, strict=True):
        assert_same_pictures(left, right)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_run_makes_nothing_again(tmp_path):
    first = run(tmp_path, images=2)
    law, reward = Law(), Brightness()
    again = run(tmp_path, images=2, backbone=law, reward=reward)
    assert (again.made, law.calls, reward._seen) == (0, 0, 0)
    assert again.rows == first.rows
    more = run(tmp_path, images=3, prompts=["ab", "abcdef", "new"])
    assert more.made == 5
    assert more.rows[:2] == first.rows[:2]


def test_a_damaged_picture_is_made_again(tmp_path):
    first = run(tmp_path, images=2)
    path = first.rows[1].files[1]
    path.write_bytes(path.read_bytes()[:60])
    again = run(tmp_path, images=2)
    assert again.made == 1
    assert_same_pictures(again.rows[1], first.rows[1])


def test_pictures_in_the_wrong_place_are_made_again(tmp_path):
    first = run(tmp_path, images=2)
    base, aligned = first.rows[0].files
    kept = base.read_bytes(), aligned.read_bytes()
    base.write_bytes(kept[1])
    aligned.write_bytes(kept[0])
    one, other = first.rows[1].files[0], first.rows[3].files[0]  # of another prompt
    one.write_bytes(other.read_bytes())
    again = run(tmp_path, images=2)
    assert again.made == 2
    assert (base.read_bytes(), aligned.read_bytes()) == kept


def test_pairs_are_written_batch_by_batch(tmp_path):
    class Watched(Law):
        incidental = (*Law.incidental, "encoded", "most")
        encoded, most = 0, 0

        def condition(self, prompts):
            self.encoded += 1
            return super().condition(prompts)

        def decode(self, latents):
            self.most = max(self.most, len(latents))
            return super().decode(latents)

    options = {"prompts": ["ab"], "images": 6, "batch_size": 2}
    method = Importance(bank=8, beta=5.0)
    run(tmp_path / "a", method, backbone=(law := Watched()), **options)
    # the bank is drawn once, without a store too
    assert (law.calls, law.most, law.encoded) == ((4 + 3 + 3) * 12, 2, 1)
    law = Watched()
    law.breaks_at = (4 + 3 + 1) * 12
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", method, backbone=law, **options)
    assert len(list(tmp_path.glob("b/*/*.png"))) == 4
    assert run(tmp_path / "b", method, backbone=Watched(), **options).made == 4


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as one:
        one.write_text("one")
        with replacing(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_banks_are_shared_between_runs_and_extended(tmp_path):
    store = Store(tmp_path / "store")
    options = {"store": store, "prompts": ["ab"], "batch_size": 8}
    run(tmp_path / "a", Importance(bank=16, beta=5.0), backbone=(law := Law()), **options)
    first = law.calls  # 2 batches of draws, 1 base, 1 aligned, 12 steps each
    assert first == 4 * 12
    reward = Brightness()
    law = Law()
    run(tmp_path / "b", Importance(bank=16, beta=2.0), backbone=law, reward=reward, **options)
    assert law.calls == 2 * 12
    assert reward._seen == 2
    law = Law()
    run(tmp_path / "c", Importance(bank=32, beta=5.0), backbone=law, **options)
    assert law.calls == 4 * 12
    # another reward scores the same draws; another law, seed or time grid draws its own
    law, reward = Law(), Brightness(factor=50.0)
    run(tmp_path / "d", Importance(bank=16, beta=5.0), backbone=law, reward=reward, **options)
    assert (law.calls, reward._seen) == (2 * 12, 16 + 2)
    for i, other in enumerate(({"backbone": Law(std=0.2)}, {"seed": 3}, {"steps": 6})):
        reward = Brightness()
        run(tmp_path / f"e{i}", Importance(bank=16, beta=5.0), reward=reward, **options, **other)
        assert reward._seen == 16 + 2


def test_the_draws_of_a_long_bank_begin_with_those_of_a_short_one(tmp_path):
    from rwguidance.generation.run import Run

    store = Store(tmp_path)
    make = lambda batch_size, store: Run(
        Law(), Brightness(), Law().times(4), 0, batch_size, None, store
    )
    short = make(3, store).bank("ab", 7, "bank")
    long = make(4, store).bank("ab", 20, "bank")
    fresh = make(20, None).bank("ab", 20, "bank")
    torch.testing.assert_close(long.x_0, fresh.x_0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(long.rewards, fresh.rewards, rtol=1e-9, atol=0)
    assert torch.equal(long.x_0[:7], short.x_0)
    assert len({float(x) for x in fresh.rewards}) == 20
    short.check_origin(prompt="ab", seed=0)
    with pytest.raises(ValueError, match="prompt is 'ab', expected 'cd'"):
        short.check_origin(prompt="cd")


def test_a_bank_keeps_its_origin_on_disk(tmp_path):
    bank = Bank(torch.ones(2, 1), ["a", "a"], torch.zeros(2), {"backbone": "x", "seed": 1})
    bank.save(tmp_path / "bank.safetensors")
    loaded = Bank.load(tmp_path / "bank.safetensors")
    loaded.check_origin(backbone="x", seed=1)
    for wrong in ({"backbone": "y"}, {"reward": "r"}):
        with pytest.raises(ValueError, match="this bank is of another origin"):
            loaded.check_origin(**wrong)
    with pytest.raises(ValueError, match="not stated"):
        Bank(torch.ones(2, 1)).check_origin(backbone="x")


def test_damaged_and_foreign_files_of_the_store_are_refused(tmp_path):
    store = Store(tmp_path)
    drawer = store.of({"prompt": "a"})
    drawer.append("draws", 0, torch.ones(2, 3))
    drawer.append("draws", 2, torch.zeros(1, 3))
    drawer.append("draws", 4, torch.zeros(1, 3))  # after a gap
    assert [len(part) for part in drawer.read("draws")] == [2, 1]
    assert drawer.read("other") == []
    path = drawer.folder / "draws-000002.safetensors"
    path.write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"000002.safetensors is damaged .*: delete it"):
        drawer.read("draws")
    (drawer.folder / "origin.json").write_text("{}")
    with pytest.raises(ValueError, match="holds draws of another origin: delete it"):
        store.of({"prompt": "a"})
    assert store.of({"prompt": "b"}).folder != drawer.folder
    assert isinstance(store.of({"prompt": "b"}), Drawer)


# What fails.


def test_a_reward_that_fails_on_one_picture_leaves_the_others(tmp_path):
    # It fails on pictures that are darker than usual, of one prompt only.
    bad = lambda images, prompts: images.mean((1, 2, 3)) < 0.5 if prompts[0] == "ab" else None
    method = Network(torch.nn.Identity(), scale=0.0)
    made = run(tmp_path, method, images=12, reward=Brightness(bad))
    lost = [row for row in made.rows if row.rewards[0] is None]
    assert 0 < len(lost) < 12
    for row in lost:
        assert row.prompt == "ab"
        assert "must not be NaN" in row.error
        assert row.gain is None
        assert all(path.exists() for path in row.files)
    again = run(tmp_path, method, images=12, reward=Brightness(bad))
    assert again.made == 0
    assert again.rows == made.rows


def test_a_prompt_that_fails_stops_no_other(tmp_path):
    bad = lambda images, prompts: images.mean((1, 2, 3)) > 0 if prompts[0] == "ab" else None
    made = run(tmp_path, reward=Brightness(bad), prompts=["ab", "abcdef"])
    assert [row.prompt for row in made.rows] == ["abcdef"]
    assert list(made.failed) == ["ab"]
    assert "condition 'ab'" in made.failed["ab"]
    lines = table(made.table)
    assert [line["prompt"] for line in lines] == ["abcdef", "ab"]
    assert "must not be NaN" in lines[1]["error"]


def test_draws_that_are_not_finite_are_reported(tmp_path):
    class Broken(Law):
        def forward(self, x_t, t, condition=None):
            prediction = super().forward(x_t, t, condition)
            return type(prediction)(prediction.mean * math.nan, prediction.noise, prediction.scales)

    made = run(tmp_path, prompts=["ab"], backbone=Broken())
    assert "NaN or inf" in made.failed["ab"]


def test_pictures_of_other_settings_are_not_mixed(tmp_path):
    first = run(tmp_path)
    with pytest.raises(ValueError, match="other settings: method differ; write elsewhere"):
        run(tmp_path, Importance(bank=32, beta=4.0))
    with pytest.raises(ValueError, match="other settings: reward key differ"):
        run(tmp_path, reward=Brightness(factor=2.0))
    with pytest.raises(ValueError, match="seed"):
        run(tmp_path, seed=4)
    again = run(tmp_path, Importance(bank=32, beta=4.0), restart=True)
    assert again.made == 2
    assert again.rows[0].rewards[1] != first.rows[0].rewards[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": ["a", "b", "a"]}, ValueError, "distinct, got 'a' twice"),
        ({"prompts": []}, ValueError, "at least one prompt"),
        ({"prompts": "a cat"}, TypeError, "a list of strings"),
        ({"images": 0}, ValueError, "images must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"prompts": ["a\ud800"]}, ValueError, r"half of a surrogate pair in 'a\\ud800'"),
        ({"negative_prompt": "\udcff"}, ValueError, "half of a surrogate pair"),
        ({"method": PlugInMean(1.0, window=(0.95, 0.99))}, ValueError, "window must hold the time"),
        ({"method": PlugInMean(1.0, window=(0.0, 0.05))}, ValueError, "window must hold the time"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tmp_path, change, error, message):
    law = Law()
    with pytest.raises(error, match=message):
        run(tmp_path, backbone=law, **change)
    assert law.calls == 0
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_recommends_no_steps_must_be_told(tmp_path):
    class Undecided(Law):
        def times(self, steps):
            return super().times(steps)

    with pytest.raises(ValueError, match="steps must be given, as Undecided recommends"):
        run(tmp_path, backbone=Undecided())
    assert run(tmp_path, backbone=Undecided(), steps=3).made == 2


def test_settings_that_made_no_picture_do_not_bind_the_folder(tmp_path):
    bad = lambda images, prompts: images.mean((1, 2, 3)) > 0
    assert run(tmp_path, reward=Brightness(bad, factor=2.0)).failed
    assert run(tmp_path).made == 2


def test_a_picture_outside_its_range_fails_instead_of_wrapping_around(tmp_path):
    class Bright(Law):
        def decode(self, latents):
            return latents + 1

    made = run(tmp_path, prompts=["ab"], backbone=Bright())
    assert "pictures must lie in [0, 1], got values from 1." in made.failed["ab"]


def test_a_reward_on_another_device_is_refused(tmp_path):
    reward = Brightness()
    reward.weight = nn.Parameter(torch.empty(1, device="meta"))
    with pytest.raises(ValueError, match="one device, got meta and cpu"):
        run(tmp_path, reward=reward)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Importance(), "give beta or kl, one of them, got None and None"),
        (lambda: Importance(beta=1.0, kl=1.0), "one of them"),
        (lambda: Importance(beta=-1.0), "beta must be positive"),
        (lambda: Importance(bank=1, beta=1.0), "bank must be at least 2"),
        (lambda: Importance(bank=8, kl=3.0), r"less than log\(bank\) = 2.08"),
        (lambda: Importance(beta=1.0, ess=1.5), "fraction must lie in"),
        (lambda: PlugInMean(0.0), "beta must be positive"),
        (lambda: PlugInMean(1.0, prior_variance=math.nan), "prior_variance must be positive"),
        (lambda: Importance(beta=1.0, window=(0.9, 0.1)), "window must be times"),
        (lambda: PlugInMean(1.0, scale=math.inf), "scale must be finite"),
        (lambda: Network(nn.Identity(), window=(0.0, 1.1)), "window must be times"),
        (lambda: BestOfN(1), "n must be at least 2"),
        (lambda: BestOfN(4, beta=0.0), "beta must be positive"),
    ],
)
def test_methods_check_their_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_plain_functions_are_rewards_but_their_values_are_not_stored(tmp_path):
    reward = lambda images, prompts: images.mean((1, 2, 3))
    store = Store(tmp_path / "store")
    run(tmp_path / "a", Importance(bank=8, kl=0.5), reward=reward, store=store)
    stored = [path.name for path in (tmp_path / "store").rglob("*.safetensors")]
    assert stored
    assert all(name.startswith("draws") for name in stored)


def test_pictures_of_another_plain_function_are_made_again(tmp_path):
    options = {"prompts": ["ab"], "method": BestOfN(2)}
    run(tmp_path, reward=lambda images, prompts: images.mean((1, 2, 3)), **options)
    again = run(tmp_path, reward=lambda images, prompts: 1 - images.mean((1, 2, 3)), **options)
    assert again.made == 1
    assert again.rows[0].rewards[0] == pytest.approx(
        1 - pixels(again.rows[0])[0].mean() / 255, abs=0.01
    )


def test_unwritable_prompts_and_long_ones_have_folders(tmp_path):
    prompts = ["../../etc", "日本語", "a" * 300, "A cat!", "a cat", "x/y\\z:?"]
    made = run(tmp_path, prompts=prompts)
    folders = {row.files[0].parent for row in made.rows}
    assert len(folders) == 6
    assert all(folder.parent == tmp_path for folder in folders)


def test_numbers_are_whole_on_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    files, facts = (tmp_path, tmp_path), {"tilted mean": 56.789}
    prompts = ["a red panda reading a newspaper in a very narrow\nterminal", "ab"]
    rows = tuple(Row(p, i, files, (12.34, 34.5678), facts) for p in prompts for i in range(2))
    print_generated(Generated(rows, {}, tmp_path, tuple(map(Path, "abc")), 4))
    out = capsys.readouterr().out
    for number in ("12.34", "34.57", "56.79", "22.23"):
        assert out.count(number) == 3
    assert "in a very narrow" not in " ".join(out.split())
    assert out.endswith("look at a to c\n")


# The command line.


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for name in ("sdxl-turbo", "sd3.5-turbo"):
        backbones.tiny(name).save_pretrained(root / name)
    return {
        "sdxl-turbo": f"sdxl-turbo={root / 'sdxl-turbo'}",
        "sd3.5-large-turbo": f"sd3.5-large-turbo={root / 'sd3.5-turbo'}",
    }


@pytest.fixture
def command(monkeypatch, capsys, folders, tmp_path):
    def command(*arguments, backbone="sd3.5-large-turbo", reward="shade", out="out"):
        monkeypatch.setattr(sys, "argv", [
            "rwguidance", "generate", "--backbone", backbone, "--reward", reward,
            *(("--path", folders[backbone]) if backbone in folders else ()),
            "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / out), *arguments,
        ])  # fmt: skip
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return command


class Shade(rewards.Reward):
    """The mean of the red channel."""

    spec = rewards.RewardSpec(
        name="shade", title="Shade", differentiable=True, needs_prompt=True, code_license="MIT",
        weights_license="none", formula="mean red", typical_range=(0.0, 1.0), citation="none",
    )  # fmt: skip

    def forward(self, images, prompts):
        if "nan" in prompts:
            return images.mean((1, 2, 3)) * math.nan
        return images[:, 0].mean((1, 2))


@pytest.fixture(autouse=True)
def shade(monkeypatch):
    values = rewards.registry._registry._values
    monkeypatch.setattr(rewards.registry._registry, "_values", {**values, "shade": Shade})


@pytest.mark.parametrize("backbone", ["sdxl-turbo", "sd3.5-large-turbo"])
def test_a_backbone_is_swapped_by_one_string(command, tmp_path, backbone):
    code, out, err = command(
        "--prompt", "a cat", "--prompt", "a dog", "--bank", "8", "--images", "2",
        "--window", "0.9", "1", backbone=backbone,
    )  # fmt: skip
    assert code == 0, err
    assert "target" in out
    assert "all 2 prompts" in out
    assert "4 pairs, 0 of them from before" in out
    assert (tmp_path / "out" / "sheet.png").exists()
    facts = read_facts(next((tmp_path / "out").rglob("0001-aligned.png")))
    assert facts["settings"]["backbone name"] == backbone
    assert facts["settings"]["reward name"] == "shade"
    code, out, _ = command(
        "--prompt", "a cat", "--prompt", "a dog", "--bank", "8", "--images", "2",
        "--window", "0.9", "1", backbone=backbone,
    )  # fmt: skip
    assert code == 0
    assert "4 pairs, 4 of them from before" in out


def test_every_method_runs(command, tmp_path):
    network = LatentShift(16, RectifiedSchedule(), widths=(8, 8))
    network.save(tmp_path / "network.safetensors")
    for name, options in {
        "best-of-n": ("--bank", "3"),
        "plug-in": ("--beta", "0.1"),
        "network": ("--network", str(tmp_path / "network.safetensors")),
        "importance": ("--beta", "0.1", "--bank", "4", "--ess", "0.6"),
    }.items():
        code, out, err = command("--prompt", "a cat", "--method", name, *options, out=name)
        assert code == 0, err
        assert "1 pairs" in out
        (row,) = table(tmp_path / name / "results.csv")
        gain = float(row["gain"])
        assert gain == 0 if name == "network" else gain > 0 or name == "best-of-n"


def test_prompts_come_from_a_file_once_each(command, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\na cat\n", encoding="utf-8")
    code, out, _ = command(
        "--prompts", str(tmp_path / "prompts.txt"), "--method", "best-of-n", "--bank", "2"
    )
    assert code == 0
    assert "2 pairs" in out


def test_failures_are_reported_and_end_with_2(command):
    code, out, err = command("--prompt", "nan", "--prompt", "a cat", "--bank", "4")
    assert code == 2
    assert "failed: nan: a reward must not be NaN" in err
    assert "1 pairs" in out


def test_an_interruption_says_how_to_go_on(command, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Shade, "forward", interrupt)
    code, _, err = command("--prompt", "a cat", "--bank", "4")
    assert code == 130
    assert "the same command goes on where this one stopped" in err


def test_unreliable_steps_are_noted_once(command):
    code, _, err = command(
        "--prompt", "a cat", "--prompt", "a dog", "--bank", "4", "--beta", "0.001"
    )
    assert code == 0
    assert err.count("meaningless at") == 1
    assert "for 2 of the runs" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --prompt or --prompts, one of them"),
        (("--prompt", "a", "--prompts", "b.txt"), "one of them"),
        (("--prompt", "a", "--method", "plug-in"), "--method plug-in needs --beta"),
        (("--prompt", "a", "--method", "network"), "--method network needs --network"),
        (("--prompt", "a", "--method", "best-of-n", "--ess", "1"), "--ess is not for --method"),
        (("--prompt", "a", "--method", "plug-in", "--kl", "1"), "--kl is not for --method plug-in"),
        (("--prompt", "a", "--kl", "9"), "kl must be less than log"),
        (("--prompt", "a", "--path", "pickscore=x"), "path names 'pickscore', which is neither"),
        (("--prompt", "a", "--option", "shade:x"), "option must be NAME:KEY=VALUE"),
        (("--prompt", "a", "--prompt", "a"), "distinct, got 'a' twice"),
        (("--prompt", "a", "--device", "gpu"), "device 'gpu' cannot be used"),
        (("--prompt", "a", "--window", "1", "0.5"), "window must be times (low, high)"),
        (("--prompt", "a", "--window", "0.1", "0.11"), "window must hold the time of a step, 1"),
        (("--prompt", "a", "--scale", "nan"), "scale must be finite, got nan"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_1(command, arguments, message):
    code, out, err = command(*arguments)
    assert code == 1
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert not out


@pytest.mark.parametrize("names", [{"backbone": "sdx"}, {"reward": "shad"}])
def test_unknown_names_are_one_line(command, names):
    code, _, err = command("--prompt", "a", **names)
    assert code == 1
    assert "Traceback" not in err
    assert "there is no" in err


def test_the_backbones_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rwguidance", "backbones"])
    with pytest.raises(SystemExit):
        main()
    assert "sd3.5-large-turbo" in capsys.readouterr().out.split()


def test_settings_are_json(tmp_path):
    run(tmp_path, Network(nn.Identity(), scale=0.0), ["ab"])
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert set(settings["method"]) == {"name", "network", "log_h", "scale", "window"}
