"""The suite of faults, part by part: its table shows no failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
]


@pytest.mark.parametrize("part", ["ends", "systems", "boundaries", "damage", "fuzz"])
def test_the_table_shows_no_failure(part):
    # In a process of its own, whose children are forked before torch has threads.
    paths = [str(ROOT / "tests"), str(ROOT), *filter(None, sys.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run(
        [sys.executable, "-m", "faults", part],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
