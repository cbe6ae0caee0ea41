"""Pairs of pictures: their law, their seeds, and what stops a run or a prompt."""

import math

import pytest
import torch
from torch import nn

from common import assert_within
from pixel_law import QUIET, Brightness, Law, assert_same_pictures, mean_of, run, spread, table
from rwguidance import DDIM
from rwguidance.generation import BestOfN, Importance, PlugInMean, Store, generate

pytestmark = QUIET


def test_base_pictures_are_the_models_own(tmp_path):
    made = run(tmp_path, images=40, prompts=["abcd"], batch_size=16)
    base = torch.tensor([row.rewards[0] for row in made.rows], dtype=torch.float64) / 100
    assert_within(base.mean(), mean_of("abcd"), spread() / math.sqrt(3 * 40))
    assert_within(base.std(), spread() / math.sqrt(3), spread() / math.sqrt(3 * 2 * 39))


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
        depends_on = Law.depends_on

        @property
        def sampler(self):
            return DDIM(eta=1.0)

    one = run(tmp_path / "a", backbone=Ancestral(), images=4, batch_size=3)
    other = run(tmp_path / "b", backbone=Ancestral(), images=4, batch_size=1)
    for left, right in zip(one.rows, other.rows, strict=True):
        assert_same_pictures(left, right)
    plain = run(tmp_path / "c", images=4)
    assert plain.rows[0].rewards[0] != one.rows[0].rewards[0]


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


def test_pairs_are_written_batch_by_batch(tmp_path):
    class Watched(Law):
        depends_on = Law.depends_on

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
        depends_on = Law.depends_on

        def forward(self, x_t, t, condition=None):
            prediction = super().forward(x_t, t, condition)
            return type(prediction)(prediction.mean * math.nan, prediction.noise, prediction.scales)

    made = run(tmp_path, prompts=["ab"], backbone=Broken())
    assert "NaN or inf" in made.failed["ab"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": ["a", "b", "a"]}, ValueError, "distinct, got 'a' twice"),
        ({"prompts": []}, ValueError, "at least one prompt"),
        ({"prompts": "a cat"}, TypeError, "a list of strings"),
        ({"prompts": {"a cat", "a dog"}}, TypeError, "a list of strings, got set"),
        ({"prompts": ["a cat", None]}, TypeError, "a list of strings, got None in it"),
        ({"images": "2"}, TypeError, "images must be an integer, got str '2'"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got str 'x'"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got float 2.5"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"method": "importance"}, TypeError, "method must be a Method such as .*'importance'"),
        ({"method": Importance}, TypeError, "method must be a Method .*the class Importance"),
        ({"negative_prompt": 3}, TypeError, "negative_prompt must be a string or None, got int 3"),
        ({"restart": "no"}, TypeError, "restart must be True or False"),
        ({"names": "sdxl"}, TypeError, "names must be a mapping"),
        ({"store": "cache"}, TypeError, "store must be a Store or None, got str 'cache'"),
        ({"reward": "jpeg"}, TypeError, "reward must be callable, got str 'jpeg'"),
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


@pytest.mark.parametrize("name", ["backbone", "method", "out"])
@pytest.mark.parametrize("value", [None, "emoji-flow", 3])
def test_what_is_no_backbone_no_method_or_no_path_is_refused_by_name(tmp_path, name, value):
    arguments = {
        "backbone": Law(), "reward": Brightness(), "prompts": ["a"], "out": tmp_path,
        "method": BestOfN(2), name: value,
    }  # fmt: skip
    if (name, value) == ("out", "emoji-flow"):
        return  # a path like another
    with pytest.raises(TypeError, match=f"^{name} must be a"):
        generate(**arguments)


def test_a_reward_on_another_device_is_refused(tmp_path):
    reward = Brightness()
    reward.weight = nn.Parameter(torch.empty(1, device="meta"))
    with pytest.raises(ValueError, match="one device, got meta and cpu"):
        run(tmp_path, reward=reward)
