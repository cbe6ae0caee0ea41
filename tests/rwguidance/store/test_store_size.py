"""Size: stores are larger than memory, and only what is asked for is read.

A million latents of SDXL in half precision are 131 GB. Memory holds a batch, a shard or two, and a
line of the manifest for each shard, however many there are: the first is bounded on fewer draws in
smaller shards, the second counted for a million in shards of the usual size.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

from rwguidance.store import Store
from rwguidance.store.shards import Shard

LATENT = 2 * 4 * 128 * 128
"""Bytes of a latent of SDXL in half precision."""

N = 1024

BOUNDED = """
import os, resource, sys
import torch
from rwguidance.store import Store

os.fsync = lambda descriptor: None
EVENT, BATCH = (4, 128, 128), 8                   # of SDXL: 128 KiB each, in half precision
N = int(sys.argv[2])
column = Store(sys.argv[1], shard_bytes=2**20).of({"seed": 0}).column("x_0")
state = torch.randn(BATCH, *EVENT, generator=torch.Generator().manual_seed(0)).half()
make = lambda rows: state[: len(rows)] + rows.start
column.append(0, make(range(BATCH)))              # loads what is needed to write
column.read(range(2))

def data():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmData"))

bound = data() + 3 * 2**24                        # bytes, 3/8 of the draws
resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
column.fill(N, make, BATCH)
total = 0
rewards = Store(sys.argv[1], shard_bytes=2**20).of({"seed": 0}).column("rewards/first")
rewards.fill(N, lambda rows: column.read(rows)[:, 0, 0, 0].float(), 16)
for rows, states in column.batches(16):
    total += states.nbytes
assert total == N * 2 * 4 * 128 * 128
bank = Store(sys.argv[1]).of({"seed": 0}).bank(50, rewards)
assert bank.rewards[5 * BATCH] == state[0, 0, 0, 0] + 5 * BATCH
try:
    column.read()
except RuntimeError:
    print("all at once do not fit")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_more_than_fits_in_memory_is_written_scored_and_read(tmp_path):
    command = [sys.executable, "-c", BOUNDED, str(tmp_path), str(N)]  # 128 MiB of draws
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "all at once do not fit\n"
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert max(sizes) <= 2**20 + 300
    assert sum(sizes) < 1.02 * N * LATENT
    assert len(sizes) < 2.1 * N * LATENT / 2**20


def test_the_manifest_of_a_million_latents_is_small_and_read_at_once(tmp_path):
    """It is written anew for every batch, so that its size is what a million draws cost each."""

    column = Store(tmp_path).of({"seed": 0}).column("x_0")
    million, rows = 10**6, column.shard_bytes // LATENT - 1  # the header takes less than a row
    starts = range(0, million, rows)
    shards = [
        Shard(start, min(start + rows, million), f"{start:064x}", rows * LATENT + 200)
        for start in starts
    ]
    column.folder.mkdir(parents=True)
    column._manifest.write(shards)
    assert len(shards) == math.ceil(million / 511) == 1957
    assert (column.folder / "manifest.json").stat().st_size < 2**19
    assert len(column) == million
    assert column.missing(range(million + 5)) == [range(million, million + 5)]
    column.append(million, torch.zeros(2, 4, 128, 128, dtype=torch.float16))
    assert len(column) == million + 2
    assert column.read(range(million, million + 2)).shape == (2, 4, 128, 128)


def test_a_million_draws_are_found_without_reading_the_others(tmp_path, monkeypatch):
    column = Store(tmp_path, shard_bytes=2**19).of({}).column("x_0")
    n = 10**6
    column.fill(n, lambda rows: torch.arange(rows.start, rows.stop, dtype=torch.float32), 50_000)
    assert len(column) == n
    read = Shard.read
    seen = []
    monkeypatch.setattr(
        Shard, "read", lambda *arguments: seen.append(arguments) or read(*arguments)
    )
    for start in (0, 131_070, n - 5):
        seen.clear()
        values = column.read(range(start, start + 5))
        assert values.tolist() == [*range(start, start + 5)]
        assert len(seen) <= 2
        assert sum(len(rows) for *_, rows in seen) == 5
    seen.clear()
    bank = Store(tmp_path).of({}).bank
    with pytest.raises(ValueError, match="x_0 must be a floating-point tensor of shape"):
        bank(3)  # numbers are no states
    assert sum(len(rows) for *_, rows in seen) == 3
    assert sum(len(values) for _, values in column.batches(30_001)) == n
