"""Draws on disk: shared between runs, extended, and made again where they are damaged."""

import warnings

import pytest

from pixel_law import QUIET, Brightness, Law, run
from rwguidance.generation import Importance
from rwguidance.store import OldStore, Store
from rwguidance.support.fingerprint import NotKept

pytestmark = QUIET


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


@pytest.mark.parametrize("column", ["x_0", "rewards"])
def test_a_flipped_bit_never_becomes_another_picture(tmp_path, column):
    store, method = Store(tmp_path / "store"), Importance(bank=16, beta=5.0)
    options = {"method": method, "prompts": ["ab"], "batch_size": 4, "store": store}
    whole = run(tmp_path / "whole", **options)
    (folder,) = (tmp_path / "store").glob(f"*/{column}-*")
    (shard,) = folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-2] ^= 1 << 5
    shard.write_bytes(data)
    (folder.parent / "origin.json").write_text("")
    with pytest.warns(RuntimeWarning) as caught:
        again = run(tmp_path / "again", **options)
    texts = sorted({str(w.message) for w in caught if w.category is RuntimeWarning})
    assert len(texts) == 2
    assert texts[1].startswith(f"{shard} is damaged (its SHA-256 is not that of what was written)")
    assert texts[0].endswith("origin.json is damaged: it is written anew")
    assert [row.rewards for row in again.rows] == [row.rewards for row in whole.rows]
    assert shard.with_name(f"{shard.name}.damaged").read_bytes() == data
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(tmp_path / "third", **options)


def test_plain_functions_are_rewards_but_their_values_are_not_stored(tmp_path):
    reward = lambda images, prompts: images.mean((1, 2, 3))
    store = Store(tmp_path / "store")
    with pytest.warns(NotKept, match="is not kept for another run: the function .*depends_on"):
        run(tmp_path / "a", Importance(bank=8, kl=0.5), reward=reward, store=store)
    stored = [path.parent.name for path in (tmp_path / "store").rglob("*.safetensors")]
    assert stored
    assert all(name.startswith("x_0") for name in stored)


def test_a_store_of_an_older_version_is_made_anew_and_says_so_once(tmp_path):
    old = tmp_path / "abc"
    old.mkdir()
    (old / "origin.json").write_text('{"format": 1}')
    with pytest.warns(OldStore, match="made anew") as found:
        Store(tmp_path).of({"prompt": "a"})
    assert len(found) == 1
    Store(tmp_path).of({"prompt": "b"})
    assert (old / "origin.json").exists()
    (tmp_path / "format").write_text("2\n")
    with pytest.warns(OldStore, match="made anew"):
        Store(tmp_path).of({"prompt": "a"})
