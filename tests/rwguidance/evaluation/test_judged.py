"""Looks at draws are kept: each draw is decoded and judged once, and what failed again."""

import math
from unittest import mock

import pytest
import torch
from torch import nn

from evaluations import STEPS, Flat
from pixel_law import Brightness, Law
from rwguidance.evaluation.appearance import APPEARANCE
from rwguidance.evaluation.judged import judged_draws
from rwguidance.evaluation.judges import Judges, Looks, join
from rwguidance.generation import Store
from rwguidance.generation.run import Run


class Counted(Law):
    depends_on = ("schedule", "std")
    decoded = 0

    def decode(self, latents):
        self.decoded += len(latents)
        return super().decode(latents)


class Moody(nn.Module):
    """Fails on pictures that are brighter than a level, which is no option of it."""

    depends_on = ()

    def __init__(self, level=math.inf):
        super().__init__()
        self._level = level

    def forward(self, images, prompts):
        values = images.mean((1, 2, 3))
        return torch.where(values > self._level, math.nan, values)


def look(folder, n, level=math.inf, batch_size=3, reward=None, store=True):
    law = Counted()
    kept = Store(folder) if store else None
    run = Run(law, reward or Brightness(), law.times(STEPS), 0, batch_size, store=kept)
    judges = Judges(run, {"reward": run.reward, "moody": Moody(level)}, {"pixels": Flat()})
    with mock.patch("os.fsync"):
        return judged_draws(run, judges, "ab", n, "target"), law


def assert_equal(one, other):
    assert one.rewards.keys() == other.rewards.keys() == {"reward", "moody", *APPEARANCE}
    for kind in ("rewards", "embeddings"):
        for name, values in getattr(one, kind).items():
            assert torch.equal(values, getattr(other, kind)[name])


def test_every_draw_is_drawn_and_judged_once(tmp_path):
    first, law = look(tmp_path, 7)
    assert (law.decoded, law.calls) == (7, 3 * STEPS)
    again, law = look(tmp_path, 7)
    assert (law.decoded, law.calls) == (0, 0)
    assert_equal(first, again)
    assert_equal(first, look(tmp_path, 7, store=False)[0])
    assert first.rewards["reward"].shape == (7,)


def test_more_draws_begin_with_fewer(tmp_path):
    few, _ = look(tmp_path, 256, batch_size=64)
    more, law = look(tmp_path, 600, batch_size=64)
    assert torch.equal(more.rewards["reward"][:256], few.rewards["reward"])
    assert torch.equal(more.embeddings["pixels"][:256], few.embeddings["pixels"])
    assert law.decoded == 600 - 256
    assert len(set(more.rewards["reward"].tolist())) == 600
    mean = more.embeddings["pixels"].double().mean(1)
    torch.testing.assert_close(100 * mean, more.rewards["reward"], rtol=1e-5, atol=0)


def test_what_failed_is_tried_again(tmp_path):
    first, _ = look(tmp_path, 7, level=0.5)
    assert set(first.errors) == {"moody"}
    assert bool(first.rewards["moody"].isnan().any())
    again, law = look(tmp_path, 7)
    assert law.decoded == 7
    assert law.calls == 0
    assert again.errors == {}
    assert bool(again.rewards["moody"].isfinite().all())
    assert torch.equal(again.rewards["reward"], first.rewards["reward"])


def test_other_rewards_are_other_columns(tmp_path):
    first, _ = look(tmp_path, 5)
    twice, _ = look(tmp_path, 5, reward=Brightness(factor=200.0))
    torch.testing.assert_close(twice.rewards["reward"], 2 * first.rewards["reward"])
    assert_equal(look(tmp_path, 5)[0], first)


def test_a_function_as_a_reward_is_asked_every_time(tmp_path):
    bright = lambda images, prompts: images.mean((1, 2, 3))
    for factor in (1, 2):
        found, law = look(tmp_path, 5, reward=lambda x, p, f=factor: f * bright(x, p))
        assert law.decoded == 5
        torch.testing.assert_close(
            found.rewards["reward"], factor * found.rewards["moody"], check_dtype=False
        )


def test_damage_is_named_and_made_again(tmp_path):
    first, _ = look(tmp_path, 7)
    (path,) = tmp_path.glob("*/embeddings-pixels-*/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.warns(RuntimeWarning, match="is damaged .* made again"):
        again, law = look(tmp_path, 7)
    assert law.decoded == 7
    assert law.calls == 0
    assert_equal(first, again)


def test_embeddings_are_kept_in_float32():
    law = Counted()
    run = Run(law, Brightness(), law.times(STEPS), 0, 3)
    precise = lambda images: images.double().flatten(1) / 3
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = Judges(run, {"reward": run.reward}, {"precise": precise}).look(images, "ab")
    assert torch.equal(found.embeddings["precise"], precise(images).float())


def test_embeddings_are_asked_for_no_graph():
    law, seen = Counted(), []
    run = Run(law, Brightness(), law.times(STEPS), 0, 3)
    watched = lambda images: seen.append(torch.is_grad_enabled()) or images.flatten(1)
    with torch.enable_grad():
        Judges(run, {"reward": run.reward}, {"watched": watched}).look(
            torch.full((2, 3, 4, 4), 0.5), "ab"
        )
    assert seen == [False]


def test_batches_may_be_larger_than_what_is_kept_at_once(tmp_path):
    assert_equal(look(tmp_path, 4, batch_size=1000)[0], look(tmp_path, 4, store=False)[0])


def test_an_embedding_that_failed_in_one_batch_is_none():
    values = torch.arange(2.0, dtype=torch.float64)
    seen = {"pixels": torch.ones(2, 3)}
    whole = Looks({"reward": values}, seen)
    found = join([whole, Looks({"reward": values + 2}, {}, {"pixels": "it broke"}), whole])
    assert found.rewards["reward"].tolist() == [0, 1, 2, 3, 0, 1]
    assert found.embeddings == {}
    assert found.errors == {"pixels": "it broke"}
    assert join([whole, whole]).embeddings["pixels"].shape == (4, 3)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.tensor([[1.0, math.nan], [2.0, 3.0]]), "must be finite, got NaN or inf"),
        (torch.zeros(1, 3), r"shape (2, D), got (1, 3)"),
        (torch.zeros(2), r"shape (2, D), got (2,)"),
        ([1.0, 2.0], r"shape (2, D), got list"),
    ],
)
def test_what_is_no_embedding_is_left_out_and_named(found, message):
    run = Run(Law(), Brightness(), Law().times(STEPS), 0, 2)
    embeddings = {"wrong": lambda images: found, "pixels": Flat()}
    judges = Judges(run, {"reward": Brightness()}, embeddings)
    seen = judges.look(torch.rand(2, 3, 1, 1, generator=torch.Generator().manual_seed(0)), "ab")
    assert list(seen.embeddings) == ["pixels"]
    assert message in seen.errors["wrong"]
