"""Columns and drawers: what was added is read back, piece by piece, however it was added."""

import json
import re
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwguidance import Bank
from rwguidance.store import Column, Store
from rwguidance.store.manifest import missing

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8,
          torch.bool]  # fmt: skip


def entries(rows, *event):
    """An entry for each number, whose values say which one it is."""

    values = torch.arange(rows.start, rows.stop, dtype=torch.float32)
    return values.reshape(-1, *(1 for _ in event)) + torch.arange(
        torch.Size(event).numel(), dtype=torch.float32
    ).reshape(event).mul(1e-3)


def files(column):
    return sorted(path.name for path in column.folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("event", [(), (3,), (2, 1, 3)], ids=str)
def test_entries_of_any_dtype_and_shape_come_back_bit_for_bit(tmp_path, dtype, event):
    values = entries(range(5), *event).to(dtype)
    Store(tmp_path).of({"seed": 0}).append("x_0", 0, values)
    column = Store(tmp_path).of({"seed": 0}).column("x_0")
    assert len(column) == 5
    for rows, expected in ((None, values), (range(5), values), (range(2, 4), values[2:4])):
        read = column.read(rows)
        assert read.dtype == dtype
        assert torch.equal(read, expected)


@settings(max_examples=15)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=8),
    shard_bytes=st.sampled_from([1, 64, 700, 2**20]),
    merge=st.booleans(),
)
def test_pieces_in_any_order_with_gaps_and_overlaps_are_one_column(
    tmp_path_factory, pieces, shard_bytes, merge
):
    store = Store(tmp_path_factory.mktemp("store"), shard_bytes)
    column = store.of({}).column("x_0")
    there = set()
    for start, n in pieces:
        column.append(start, entries(range(start, start + n), 2))
        there |= {*range(start, start + n)}
    if merge:
        column.settle()
    gaps = [i for gap in column.missing(range(60)) for i in gap]
    assert gaps == [i for i in range(60) if i not in there]
    assert len(column) == min({*range(60)} - there)
    for start, n in pieces:
        rows = range(start, start + n)
        assert torch.equal(column.read(rows), entries(rows, 2))
    with pytest.raises(ValueError, match=rf"rows {len(column)} to .* are not there"):
        column.read(range(len(column) + 1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pieces_that_the_disk_does_not_take_are_one_column_in_memory(tmp_path, monkeypatch):
    def full(*given):
        raise OSError("no space left")

    column = Store(tmp_path).of({}).column("x_0")
    column.append(20, entries(range(20, 22), 2))
    monkeypatch.setattr(Column, "_write", full)
    for start, n in ((4, 3), (0, 2), (1, 8), (12, 2), (3, 8), (18, 5)):
        values = entries(range(start, start + n), 2)
        column.append(start, values)
        assert torch.equal(column.read(range(start, start + n)), values)
        values.zero_()  # what is kept is a copy
        column.read(range(start, start + n)).zero_()
    there = [0, 2, 4, 7, 9, 11], [12, 14], [18, 20, 22, 23]  # where pieces begin and end
    assert column._parts() == [range(*ends) for some in there for ends in pairwise(some)]
    assert torch.equal(column.read(range(11)), entries(range(11), 2))
    assert torch.equal(column.read(range(18, 23)), entries(range(18, 23), 2))
    assert column.missing(range(25)) == [range(11, 12), range(14, 18), range(23, 25)]


def test_gaps_lie_between_parts():
    parts = [range(2, 4), range(4, 5), range(7, 9)]
    assert missing(range(10), parts) == [range(2), range(5, 7), range(9, 10)]
    assert missing(range(3, 8), parts) == [range(5, 7)]
    assert missing(range(2, 5), parts) == missing(range(0), parts) == []
    assert missing(range(5, 6), parts) == [range(5, 6)]
    assert missing(range(3), []) == [range(3)]


def test_shards_are_small_and_few(tmp_path):
    # 16 bytes an entry; a file has some 200 bytes more
    column = Store(tmp_path, 1600).of({}).column("x_0")
    column.append(0, entries(range(250), 4))
    assert [name[:19] for name in files(column)] == [
        "000000000-000000100", "000000100-000000200", "000000200-000000250",
    ]  # fmt: skip
    large = Store(tmp_path, 8).of({}).column("large")
    large.append(0, entries(range(2), 4))
    assert len(files(large)) == 2, "a single entry may be larger than a shard"


def test_small_shards_are_merged_without_writing_everything_over_and_over(tmp_path, monkeypatch):
    column = Store(tmp_path, 2**12).of({}).column("x_0")
    written = []
    write = column._manifest.path.__class__.write_bytes

    def counted(path, data):
        if not data.startswith(b"{"):  # the manifest, which is written with every shard
            written.append(len(data))
        return write(path, data)

    monkeypatch.setattr("pathlib.Path.write_bytes", counted)
    column.fill(200, lambda rows: entries(rows, 64), 4)
    sizes = [path.stat().st_size for path in column.folder.glob("*.safetensors")]
    assert len(sizes) < 2 * 200 * 256 / 2**12 + 1
    assert max(sizes) <= 2**12
    # in batches, and once more in shards; batches have long headers here
    assert sum(written) < 3 * 200 * 256
    assert torch.equal(column.read(), entries(range(200), 64))
    before = files(column)
    column.fill(200, lambda rows: pytest.fail("nothing is missing"), 4)
    assert files(column) == before


def test_many_small_shards_are_merged_before_they_make_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr("rwguidance.store.columns._MOST_SMALL", 4)
    column = Store(tmp_path, 2**20).of({}).column("x_0")
    counts = []
    for i in range(7):
        column.append(i, entries(range(i, i + 1), 2))
        counts.append(len(files(column)))
    assert counts == [1, 2, 3, 1, 2, 3, 1]


def test_columns_are_added_to_draws_without_touching_them(tmp_path):
    drawer = Store(tmp_path).of({"prompt": "a"})
    drawer.append("x_0", 0, entries(range(6), 3))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    old = drawer.column("rewards/pick", {"reward": "old weights"})
    new = drawer.column("rewards/pick", {"reward": "new weights"})
    old.append(0, torch.zeros(6))
    assert len(new) == 0, "rewards of other weights are others"
    new.append(0, torch.ones(4))
    drawer.append("embeddings/clip", 0, torch.zeros(6, 8))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert [(column.name, dict(column.origin), len(column)) for column in drawer.columns()] == [
        ("embeddings/clip", {}, 6),
        *sorted(
            [("rewards/pick", old.origin, 6), ("rewards/pick", new.origin, 4)],
            key=lambda one: (old if one[2] == 6 else new).key,
        ),
        ("x_0", {}, 6),
    ]


def test_names_stay_within_their_folder(tmp_path):
    drawer = Store(tmp_path / "store").of({})
    names = ["../../x", "..", ".", "a/b", "a-b", "/etc", "ä" * 300, "a\0b", "con"]
    for i, name in enumerate(names):
        drawer.append(name, 0, torch.full((1,), i))
    assert [int(drawer.read(name)) for name in names] == [*range(len(names))]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert all(column.folder.parent == drawer.folder for column in drawer.columns())
    assert len(drawer.columns()) == len(names)


def test_entries_of_another_kind_are_refused(tmp_path):
    column = Store(tmp_path).of({}).column("x_0")
    column.append(0, torch.zeros(2, 3))
    half = torch.zeros(2, 3, dtype=torch.float16)
    for values, error, message in [
        (half, TypeError, r"the column, torch.float32, got torch\.float16"),
        (torch.zeros(2, 4), ValueError, r"entries of shape \(3,\), .* got \(4,\)"),
        (torch.zeros(2), ValueError, r"got \(\)"),
        (torch.zeros(0, 3), ValueError, "must hold N >= 1 entries"),
        (torch.zeros(()), ValueError, "must hold N >= 1 entries"),
        ([0.0], TypeError, "values must be a tensor, got list"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            column.append(2, values)
    with pytest.raises(ValueError, match="start must be at least 0"):
        column.append(-1, torch.zeros(1, 3))
    assert len(column) == 2


def test_rows_are_a_range_of_what_is_there(tmp_path):
    column = Store(tmp_path).of({}).column("x_0")
    with pytest.raises(ValueError, match=r"column x_0 in .* must hold rows, got range"):
        column.read()
    column.append(0, torch.zeros(4))
    for rows in (range(3, 1), range(0, 4, 2), range(-1, 2)):
        with pytest.raises(ValueError, match="rows"):
            column.read(rows)
    with pytest.raises(TypeError, match="rows must be a range of numbers of draws"):
        column.read(2)
    with pytest.raises(ValueError, match="size must be at least 1"):
        next(column.batches(0))


def test_batches_are_read_one_at_a_time(tmp_path):
    column = Store(tmp_path, 100).of({}).column("x_0")
    column.append(0, entries(range(50), 3))
    batches = list(column.batches(8, range(3, 30)))
    assert [rows for rows, _ in batches] == [range(3, 11), range(11, 19), range(19, 27),
                                             range(27, 30)]  # fmt: skip
    for rows, values in batches:
        assert torch.equal(values, entries(rows, 3))
        assert values.untyped_storage().nbytes() == values.nbytes, "nothing else is kept"
    assert sum(len(rows) for rows, _ in column.batches(8)) == 50


def test_a_bank_is_the_first_draws_with_their_rewards_and_origin(tmp_path):
    origin = {"prompt": "a cat", "backbone": "b", "seed": 3}
    drawer = Store(tmp_path).of(origin)
    drawer.append("x_0", 0, entries(range(6), 2))
    pick = drawer.column("rewards/pick", {"reward": "p"})
    pick.append(0, torch.arange(6.0))
    jpeg = drawer.column("rewards/jpeg", {"size": 9})
    jpeg.append(0, -torch.arange(4.0))
    bank = drawer.bank(4, pick, jpeg)
    assert isinstance(bank, Bank)
    assert torch.equal(bank.x_0, entries(range(4), 2))
    assert torch.equal(bank.rewards, torch.stack((torch.arange(4.0), -torch.arange(4.0)), 1))
    assert bank.condition == ("a cat",) * 4
    assert bank.log_importance is None
    bank.check_origin(**origin, reward="p", size=9)
    assert torch.equal(drawer.bank(None, pick).rewards, torch.arange(6.0))
    assert drawer.bank().rewards is None
    with pytest.raises(ValueError, match=r"rewards/jpeg .* rows 4 to 4 are not there"):
        drawer.bank(5, jpeg)
    with pytest.raises(ValueError, match=r"x_0 .* rows 6 to 6 are not there"):
        drawer.bank(7)
    drawer.append("log_importance", 0, torch.tensor([0.0, -1, 2, 0, 0, 1]))
    assert drawer.bank(3).log_importance.tolist() == [0.0, -1, 2]
    assert Store(tmp_path).of({}).column("x_0").append(0, torch.ones(1, 1)) is None
    assert Store(tmp_path).of({}).bank().condition is None


def test_drawers_are_found_by_their_origins(tmp_path):
    store = Store(tmp_path)
    for prompt in ("a", "ü"):
        for seed in (0, 1):
            store.of({"prompt": prompt, "seed": seed}).append("x_0", 0, torch.ones(seed + 1))
    found = list(Store(tmp_path).drawers(seed=1))
    assert {drawer.origin["prompt"] for drawer in found} == {"a", "ü"}
    assert all(len(drawer.column("x_0")) == 2 for drawer in found)
    assert len(list(store.drawers())) == 4
    assert list(store.drawers(seed=2)) == list(Store(tmp_path / "none").drawers()) == []
    one, other = store.of({"a": 1, "b": 2}), store.of({"b": 2, "a": 1})
    assert one.folder == other.folder, "the order of an origin does not count"


def test_the_label_and_the_manifest_can_be_read_by_others(tmp_path):
    drawer = Store(tmp_path).of({"prompt": "a", "times": [1.0, 0.5]})
    drawer.column("rewards/pick", {"reward": "p"}).append(0, torch.ones(3))
    label = json.loads((drawer.folder / "origin.json").read_text())
    assert label.items() >= {"prompt": "a", "times": [1.0, 0.5]}.items()
    (path,) = drawer.folder.glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert (manifest["column"], manifest["origin"]) == ("rewards/pick", {"reward": "p"})
    (shard,) = manifest["shards"]
    turned = dict(reversed(manifest.items()))  # as others may write it
    path.write_text(json.dumps({**turned, "shards": [dict(reversed(shard.items()))]}))
    found = Store(tmp_path).of(drawer.origin).column("rewards/pick", {"reward": "p"})._manifest
    assert found.complete
    assert not found.damaged
    assert (shard["start"], shard["stop"]) == (0, 3)
    assert re.fullmatch("[0-9a-f]{64}", shard["sha256"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: Store(1), TypeError, "root must be a path, got int 1"),
        (lambda s: Store("a", 0), ValueError, "shard_bytes must be at least 1"),
        (lambda s: Store("a", required=1), TypeError, "required"),
        (lambda s: s.of("origin"), TypeError, "origin must be a mapping, got str"),
        (lambda s: s.of({"a": torch.ones(1)}), TypeError, "origin must hold what JSON can"),
        (lambda s: s.of({}).column(""), ValueError, "name must not be empty"),
        (lambda s: s.of({}).column(None), TypeError, "name must be a name such as x_0, got None"),
        (lambda s: s.of({}).column("a", {"b": {1}}), TypeError, "origin must hold what JSON can"),
        (lambda s: s.of({}).bank(0), ValueError, "n must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(Store(tmp_path))


def test_what_is_whole_is_read_from_a_disk_that_takes_nothing(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Read-only file system")

    store = Store(tmp_path, required=True)
    store.of({}).column("x_0").fill(10, lambda rows: entries(rows, 2), 4)
    for name in ("mkdir", "replace", "unlink", "rename"):
        monkeypatch.setattr("os." + name, refuse)
    monkeypatch.setattr("rwguidance.store.columns.locked", refuse)
    column = store.of({}).column("x_0")
    column.fill(10, lambda rows: pytest.fail("nothing is missing"), 4)
    assert torch.equal(column.read(), entries(range(10), 2))
    with pytest.raises(PermissionError):
        column.fill(11, lambda rows: entries(rows, 2), 4)


def test_a_disk_that_fails_is_spared_or_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Store(tmp_path / "file" / "store", required=True).of({})
    column = Store(tmp_path / "file" / "store").of({}).column("x_0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        column.append(0, torch.arange(3.0))
        assert column.read(range(1, 3)).tolist() == [1, 2]
        assert column.read(range(2)).tolist() == [0, 1]
        column.append(3, torch.full((1,), 3.0, requires_grad=True))
        assert not column.read(range(3, 4)).requires_grad  # a graph would stay in memory, too
        column.fill(5, lambda rows: entries(rows), 2)
        assert column.read().tolist() == [0, 1, 2, 3, 4]
    (text,) = {str(warning.message) for warning in caught}
    assert re.search(r"store cannot keep draws \(.*\): they stay in memory, and a later run", text)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    column = Store(tmp_path / "store").of({}).column("x_0")
    column.append(0, torch.arange(2.0))
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.warns(RuntimeWarning, match="No space left"):
            column.append(1, torch.arange(1.0, 4.0))
        with pytest.raises(OSError, match="No space left"):
            Store(tmp_path / "store", required=True).of({}).append("x_0", 2, torch.ones(1))
    assert column.read().tolist() == [0, 1, 2, 3]
    assert isinstance(column, Column)
    assert Store(tmp_path / "store").of({}).read("x_0").tolist() == [0, 1]


def test_files_have_the_names_that_they_always_had(tmp_path):
    drawer = Store(tmp_path).of({"seed": 0, "prompt": "ä"})
    column = drawer.column("rewards/" + 60 * "é1", {"reward": "red", "kind": "b"})
    assert drawer.folder.name == "0bc435d5b736afa1a54ee35d"
    assert column.key == "b22b4bc146b1f2fccbf4c0e755137165"
    assert column.folder.name == f"rewards{26 * '-1'}--{column.key[:8]}"
