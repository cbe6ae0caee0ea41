"""Runs that are killed anywhere: the same command ends with the same folder, byte for byte."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from children import in_child
from pixel_law import QUIET, Law, run
from rwguidance.generation import BestOfN, Importance, Store
from rwguidance.prediction import Prediction

pytestmark = QUIET

METHODS = {"importance": Importance(bank=5, kl=0.5), "best-of-n": BestOfN(4)}
KILLS = 6


class Rounding(Law):
    """A law that depends on the batch, as the rounding of a device does, but visibly."""

    depends_on = Law.depends_on

    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t, condition)
        mean = prediction.mean + 0.02 * len(x_t)
        return Prediction.from_mean(mean, x_t, self.schedule.at(t, like=x_t))


def work(root, method):
    store = Store(root / "store")
    run(root / "out", METHODS[method], images=5, batch_size=2, steps=3, backbone=Rounding(),
        store=store)  # fmt: skip


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    return {str(path.relative_to(folder)): digest(path) for path in files}


def killed(root, method, k):
    """Works until the k-th file would be put in its place, or has been."""

    replace, seen = os.replace, []

    def count(*paths):
        seen.append(paths)
        if len(seen) == k:
            if k % 2:
                replace(*paths)
            os._exit(9)
        replace(*paths)

    os.replace = count
    work(root, method)


def try_all(root, method):
    """Kills at places that are spread over a run, and once more each, and compares."""

    import warnings
    from pathlib import Path

    warnings.simplefilter("ignore")
    os.fsync = lambda descriptor: None  # the disk loses no power here
    root = Path(root)
    assert in_child(lambda: work(root / "whole", method)) == 0
    expected = content(root / "whole" / "out")
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(1, 40, (KILLS, 2), generator=generator).tolist()
    codes = []
    for i, (first, second) in enumerate(places):
        here = root / str(i)
        codes += [in_child(lambda here=here, k=k: killed(here, method, k)) for k in (first, second)]
        assert in_child(lambda here=here: work(here, method)) == 0
        assert content(here / "out") == expected, f"kills at {first} and {second}"
    assert codes.count(9) > KILLS, codes
    print("same", len(expected))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize(
    "method", [pytest.param("importance", marks=pytest.mark.slow), "best-of-n"]
)
def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path, method):
    # In a process of its own, whose children are forked before torch has threads.
    command = [sys.executable, __file__, str(tmp_path), method]
    paths = [os.path.dirname(sys.modules["pixel_law"].__file__), *filter(None, sys.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    # 5 pairs of 2 prompts, the settings, the table and a sheet
    assert ran.stdout == "same 23\n"


def test_the_law_that_rounds_depends_on_its_batch(tmp_path):
    options = {"prompts": ["ab"], "method": BestOfN(2), "backbone": Rounding()}
    one = run(tmp_path / "a", images=2, batch_size=2, **options)
    other = run(tmp_path / "b", images=2, batch_size=1, **options)
    assert one.rows[0].rewards[0] - other.rows[0].rewards[0] > 0.1


def test_a_batch_that_lost_a_picture_is_made_whole(tmp_path):
    options = {"method": METHODS["importance"], "backbone": Rounding(), "batch_size": 2}
    run(tmp_path, prompts=["ab"], images=4, **options)
    expected = content(tmp_path)
    lost = sorted(path for path in tmp_path.rglob("*.png") if path.name.startswith("0001"))
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    run(tmp_path, prompts=["ab"], images=4, **options)
    assert content(tmp_path) == expected


if __name__ == "__main__":
    try_all(*sys.argv[1:])
