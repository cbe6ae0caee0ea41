"""Tensors on disk: shared between runs, extended, and refused where they are damaged."""

import pytest
import torch

from pixel_law import QUIET, Brightness, Law, run
from rwguidance.generation import Importance, Store
from rwguidance.generation.store import Drawer, OldStore
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


def test_plain_functions_are_rewards_but_their_values_are_not_stored(tmp_path):
    reward = lambda images, prompts: images.mean((1, 2, 3))
    store = Store(tmp_path / "store")
    with pytest.warns(NotKept, match="is not kept for another run: the function .*depends_on"):
        run(tmp_path / "a", Importance(bank=8, kl=0.5), reward=reward, store=store)
    stored = [path.name for path in (tmp_path / "store").rglob("*.safetensors")]
    assert stored
    assert all(name.startswith("draws") for name in stored)


def test_a_store_of_an_older_version_is_made_anew_and_says_so_once(tmp_path):
    old = tmp_path / "abc"
    old.mkdir()
    (old / "origin.json").write_text('{"format": 1}')
    with pytest.warns(OldStore, match="made anew") as found:
        Store(tmp_path).of({"prompt": "a"})
    assert len(found) == 1
    Store(tmp_path).of({"prompt": "b"})
    assert (old / "origin.json").exists()
