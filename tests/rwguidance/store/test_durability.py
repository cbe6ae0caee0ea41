"""What a loss of power can take: batches of a call that has not finished, and nothing else."""

import os
import warnings

import pytest
import torch

from rwguidance.store import Store
from rwguidance.support.randomness import generator_for, normal


def draw(rows):
    return normal((len(rows), 3), [generator_for(0, "draw", i) for i in rows])


@pytest.fixture
def waited(monkeypatch):
    """Numbers of the files that were waited for, in order."""

    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(os.fstat(file).st_ino))
    return seen


def lose_power(root, waited):
    """Empties every file that nobody has waited for, as some file systems do."""

    for path in root.rglob("*"):
        if path.is_file() and path.stat().st_ino not in waited:
            path.write_bytes(b"")


@pytest.mark.parametrize("n", [4, 30])
@pytest.mark.parametrize("shard_bytes", [200, 300, 600, 4096, 2**26])
def test_what_is_finished_was_waited_for_before_the_manifest_said_so(
    tmp_path, waited, shard_bytes, n
):
    column = Store(tmp_path, shard_bytes).of({}).column("x_0")
    column.fill(n, draw, 4)
    place = lambda path: len(waited) - waited[::-1].index(path.stat().st_ino)
    shards = [place(column.folder / shard.name) for shard in column._shards()]
    manifest = place(column.folder / "manifest.json")
    assert max(shards) < manifest < place(column.folder)
    waited.clear()
    column.append(n, draw(range(n, n + 1)))
    newest = max(column._shards())
    assert (column.folder / newest.name).stat().st_ino in waited


def test_the_disk_is_waited_for_once_however_many_batches_there_are(tmp_path, waited):
    counts = []
    for n in (40, 120):
        waited.clear()
        Store(tmp_path).of({"n": n}).column("x_0").fill(n, draw, 4)
        counts.append(len(waited))
    assert counts[0] == counts[1] <= 6


def test_a_large_shard_is_waited_for_and_a_small_one_is_not_whatever_was_there_first(
    tmp_path, waited
):
    for name, rows in (("small", range(9)), ("large", range(80))):
        column = Store(tmp_path, 1200).of({}).column(name)  # some 100 bytes, and 12 for each row
        column.append(0, draw(rows), durable=False)
        (first,) = column._shards()
        for new, large in ((range(100, 104), False), (range(200, 280), True)):
            waited.clear()
            column.append(new.start, draw(new), durable=False)
            (shard,) = {*column._shards()} - {first}
            assert (2 * shard.bytes > 1200) == large
            assert ((column.folder / shard.name).stat().st_ino in waited) == large
            (column.folder / shard.name).unlink()
            column._manifest.write([first])


@pytest.mark.parametrize("shard_bytes", [200, 600, 2**26])
@pytest.mark.parametrize("batches", [1, 3])
def test_a_loss_of_power_costs_the_batches_of_a_call_that_had_not_finished(
    tmp_path, waited, shard_bytes, batches
):
    column = Store(tmp_path, shard_bytes).of({}).column("x_0")
    column.fill(12, draw, 4)
    made = []

    def interrupted(rows):
        if len(made) == batches:
            raise KeyboardInterrupt
        made.append(rows)
        return draw(rows)

    with pytest.raises(KeyboardInterrupt):
        column.fill(40, interrupted, 4)
    lose_power(tmp_path, waited)
    made.clear()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        again = Store(tmp_path, shard_bytes).of({}).column("x_0")
        again.fill(40, lambda rows: made.append(rows) or draw(rows), 4)
    assert min(rows.start for rows in made) >= 12
    assert torch.equal(again.read(), draw(range(40)))
