"""Damage: noticed where it is read, named, set aside, and made again; never another draw."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from children import in_child
from rwguidance.store import Damaged, Store
from rwguidance.support.randomness import generator_for, normal

ROWS = 24


def draw(rows):
    return normal((len(rows), 3), [generator_for(0, "draw", i) for i in rows])


def store(root):
    return Store(root, shard_bytes=4096)


def column(root):
    return store(root).of({"prompt": "a"}).column("x_0")


def shards(root):
    return sorted(column(root).folder.glob("*.safetensors"))


@pytest.fixture
def filled(tmp_path):
    for start in range(0, ROWS, 8):  # three shards, as nothing merges them
        column(tmp_path).append(start, draw(range(start, start + 8)))
    assert len(shards(tmp_path)) == 3
    return tmp_path


def flip(place):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << 6
        path.write_bytes(data)

    return damage


def rewrite(change):
    def damage(path):
        save_file({"values": change(load_file(path)["values"])}, path)

    return damage


def lie(path):
    data = path.read_bytes()
    path.write_bytes((2**40).to_bytes(8, "little") + data[8:])


def swap(path):
    """Another shard of the column, whole, under this name."""

    other = next(p for p in sorted(path.parent.glob("*.safetensors")) if p != path)
    shutil.copy(other, path)


DAMAGES = {
    "a bit of the values": flip(-1),
    "a bit of the length of the header": flip(0),
    "a bit of the header": flip(40),
    "half a file": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "an empty file": lambda path: path.write_bytes(b""),
    "no safetensors": lambda path: path.write_bytes(b"12345678" * 40),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "lying": lie,
    "another dtype": rewrite(lambda values: values.double()),
    "another rank": rewrite(lambda values: values.flatten()),
    "fewer rows": rewrite(lambda values: values[:-1].clone()),
    "the same values, as another writes them": rewrite(lambda values: values),
    "another shard": swap,
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_shard_is_refused_then_set_aside_named_and_made_again(filled, damage, place):
    path = shards(filled)[place]
    if damage == "a pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes")
    DAMAGES[damage](path)
    rows = range(8 * place, 8 * place + 8)
    with pytest.raises(Damaged, match=path.name):
        column(filled).read(range(rows.start + 2, rows.start + 3))
    others = [i for i in range(ROWS) if i not in rows]
    for i in others:
        assert torch.equal(column(filled).read(range(i, i + 1)), draw(range(i, i + 1)))

    made = []
    make = lambda some: made.append(some) or draw(some)
    with pytest.warns(RuntimeWarning) as caught:
        column(filled).fill(ROWS, make, 4)
    (text,) = {str(warning.message) for warning in caught}
    assert path.name in text
    assert "made again" in text
    assert made == [range(rows.start, rows.start + 4), range(rows.start + 4, rows.stop)]
    assert torch.equal(column(filled).read(), draw(range(ROWS)))
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.exists() == (damage != "missing")
    assert (aside.name in text) == (damage != "missing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        column(filled).fill(ROWS, lambda some: pytest.fail("made twice"), 4)


def test_damage_after_a_look_is_noticed(filled):
    one = column(filled)
    assert torch.equal(one.read(), draw(range(ROWS)))
    flip(-1)(shards(filled)[2])
    assert torch.equal(one.read(range(16)), draw(range(16)))
    with pytest.raises(Damaged):
        one.read()


def test_adding_goes_on_beside_a_damaged_shard(filled):
    flip(-1)(shards(filled)[0])
    column(filled).append(ROWS, draw(range(ROWS, ROWS + 4)))
    column(filled).settle()
    rows = range(8, ROWS + 4)
    assert torch.equal(column(filled).read(rows), draw(rows))
    with pytest.raises(Damaged):
        column(filled).read()


def test_a_shard_of_another_column_is_not_taken_for_one_of_this(filled):
    other = store(filled).of({"prompt": "b"}).column("x_0")
    other.append(ROWS, torch.zeros(8, 3))
    (foreign,) = other.folder.glob("*.safetensors")
    shutil.copy(foreign, column(filled).folder)
    assert len(column(filled)) == ROWS
    shutil.copytree(other.folder, column(filled).folder, dirs_exist_ok=True)  # and its manifest
    assert torch.equal(column(filled).read(), draw(range(ROWS)))
    with pytest.warns(RuntimeWarning) as caught:
        column(filled).fill(ROWS + 8, draw, 8)
    texts = "\n".join(str(warning.message) for warning in caught)
    assert "manifest.json is damaged: it is made anew" in texts
    assert f"{foreign.name} is damaged (it is of another column)" in texts
    assert torch.equal(column(filled).read(), draw(range(ROWS + 8)))


def forged(path, change):
    """A manifest whose digest is right, as of somebody who wrote it by hand."""

    from rwguidance.store.manifest import _digest

    content = json.loads(path.read_text())
    content.pop("sha256")
    change(content)
    path.write_text(json.dumps({**content, "sha256": _digest(content)}))


MANIFESTS = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "a bit": flip(-150),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\xfd"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("3"),
    "another folder": lambda path: path.write_text(
        path.read_text().replace('"start": 0', '"start": "../x"')
    ),
    "forged, without shards": lambda path: forged(path, lambda c: c.pop("shards")),
    "forged, of strings": lambda path: forged(path, lambda c: c.update(shards=["../x"])),
    "forged, above its folder": lambda path: forged(
        path, lambda c: c["shards"][0].update(sha256="../../../../x", start="../x")
    ),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest_is_made_anew_from_the_shards(filled, damage):
    path = column(filled).folder / "manifest.json"
    whole = path.read_text()
    MANIFESTS[damage](path)
    assert torch.equal(column(filled).read(), draw(range(ROWS))), "nobody has to wait for it"
    with pytest.warns(RuntimeWarning) as caught:
        column(filled).fill(ROWS, lambda some: pytest.fail("made again"), 4)
    texts = {str(warning.message) for warning in caught}
    assert texts == {f"{path} is damaged: it is made anew from the shards beside it"}
    assert json.loads(path.read_text())["origin"] == json.loads(whole)["origin"] == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        column(filled).fill(ROWS, lambda some: pytest.fail("made again"), 4)


def test_a_lost_manifest_is_no_loss_and_damaged_shards_stay_so(filled):
    flip(-1)(shards(filled)[1])
    (column(filled).folder / "manifest.json").unlink()
    assert len(column(filled)) == 8
    with pytest.warns(RuntimeWarning, match="damaged .its SHA-256") as caught:
        column(filled).fill(ROWS, draw, 8)
    assert len(caught) == 1
    assert torch.equal(column(filled).read(), draw(range(ROWS)))


def test_the_order_of_entries_of_a_manifest_means_nothing(filled):
    path = column(filled).folder / "manifest.json"
    content = json.loads(path.read_text())
    digest = content.pop("sha256")
    text = json.dumps(content, sort_keys=True)  # as any program can find it again
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    turned = dict(reversed([*content.items(), ("sha256", digest)]))
    turned["shards"] = [dict(reversed(shard.items())) for shard in turned["shards"]]
    path.write_text(json.dumps(turned))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(column(filled).read(), draw(range(ROWS)))
        assert not column(filled)._manifest.damaged


def test_without_a_manifest_a_merged_shard_counts_and_its_parts_do_not(tmp_path):
    parts = Store(tmp_path / "parts", 1).of({}).column("x_0")  # which are never merged
    whole = Store(tmp_path / "whole").of({}).column("x_0")
    parts.append(0, draw(range(2)))
    whole.append(0, draw(range(5)))
    for path in parts.folder.glob("*.safetensors"):
        shutil.copy(path, whole.folder)
    (whole.folder / "manifest.json").unlink()
    (shard,) = whole._shards()
    assert (shard.start, shard.stop) == (0, 5)
    assert torch.equal(whole.read(), draw(range(5)))


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_label_never_blocks_its_drawer(filled, damage):
    label = column(filled).folder.parent / "origin.json"
    whole = label.read_bytes()
    label.write_bytes(damage)
    assert list(store(filled).drawers()) == []
    with pytest.warns(RuntimeWarning, match=r"origin.json is damaged: it is written anew"):
        drawer = store(filled).of({"prompt": "a"})
    assert torch.equal(drawer.read("x_0"), draw(range(ROWS)))
    assert label.read_bytes() == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(store(filled).drawers())) == 1
        store(filled).of({"prompt": "a"})


def test_a_label_that_is_a_pipe_is_written_anew(filled):
    label = column(filled).folder.parent / "origin.json"
    whole = label.read_bytes()
    label.unlink()
    os.mkfifo(label)
    with pytest.warns(RuntimeWarning, match=r"origin.json is damaged: it is written anew"):
        store(filled).of({"prompt": "a"})
    assert label.read_bytes() == whole


def test_the_note_of_a_format_is_not_written_through_a_link(filled, tmp_path):
    other = tmp_path / "mine.txt"
    other.write_text("mine")
    (filled / "format").unlink()
    (filled / "format").symlink_to(other)
    with pytest.raises(OSError, match="format"):
        Store(filled, required=True).of({"prompt": "a"})
    assert len(column(filled)) == ROWS
    assert other.read_text() == "mine"


def killed(root, owner, name, k):
    """Fills a column, and dies at the k-th call of a function, before or after it."""

    function, seen = getattr(owner, name), []

    def count(*arguments, **keywords):
        seen.append(arguments)
        if len(seen) == (k + 1) // 2 and k % 2:
            os._exit(9)
        result = function(*arguments, **keywords)
        if len(seen) == k // 2 and not k % 2:
            os._exit(9)
        return result

    setattr(owner, name, count)
    filling(root, [])


def filling(root, made):
    small = Store(root, shard_bytes=600).of({"prompt": "a"}).column("x_0")
    small.fill(12, lambda rows: made.append(rows) or draw(rows), 4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize(("owner", "name"), [(os, "replace"), (Path, "unlink")])
def test_whoever_is_killed_loses_one_batch_at_most(tmp_path, owner, name):
    k, code = 0, 9
    while code == 9:
        k += 1
        root = tmp_path / str(k)
        code = in_child(lambda root=root, k=k: killed(root, owner, name, k))
        there = Store(root, shard_bytes=600).of({"prompt": "a"}).column("x_0")
        left = [rows for rows in batches() if there.missing(rows)]
        made = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            filling(root, made)
        assert made == left
        assert torch.equal(there.read(), draw(range(12)))
        assert not [path for path in root.rglob("*") if "partial" in path.name]
        named = [shard.name for shard in there._shards()]
        assert sorted(named) == sorted(path.name for path in there.folder.glob("*.safetensors"))
    assert code == 0
    assert k > 6


def batches():
    return [range(start, start + 4) for start in range(0, 12, 4)]
