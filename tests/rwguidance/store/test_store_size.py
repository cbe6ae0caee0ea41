"""Size: stores are larger than memory, and only what is asked for is read."""

import os
import subprocess
import sys

import pytest
import torch

from rwguidance.store import Store
from rwguidance.store.shards import Shard

BOUNDED = """
import os, resource, sys
import torch
from rwguidance.store import Store

os.fsync = lambda descriptor: None
EVENT, BATCH = (4, 64, 64), 32                    # 32 KiB each, in half precision
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
rewards.fill(N, lambda rows: column.read(rows)[:, 0, 0, 0].float(), 64)
for rows, states in column.batches(64):
    total += states.nbytes
assert total == N * 2 * 4 * 64 * 64
bank = Store(sys.argv[1]).of({"seed": 0}).bank(200, rewards)
assert bank.rewards[5 * BATCH] == state[0, 0, 0, 0] + 5 * BATCH
try:
    column.read()
except RuntimeError:
    print("all at once do not fit")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_more_than_fits_in_memory_is_written_scored_and_read(tmp_path):
    command = [sys.executable, "-c", BOUNDED, str(tmp_path), str(4096)]  # 128 MiB of draws
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "all at once do not fit\n"
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert max(sizes) <= 2**20 + 300
    assert sum(sizes) < 1.02 * 4096 * 2**15
    assert len(sizes) < 2.1 * 4096 * 2**15 / 2**20


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
