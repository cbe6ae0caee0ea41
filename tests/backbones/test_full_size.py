"""The published architecture at full size: 986 million random weights in the published layout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_checkpoints as tiny

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys, time
import open_clip
from PIL import Image
import rewards

def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

open("/proc/self/clear_refs", "w").write("5")  # Linux forgets the peak so far
before = memory("VmRSS")
start = time.perf_counter()
reward = rewards.load("hpsv2", sys.argv[1], verify=False)
loaded = time.perf_counter()
images = [Image.open(path) for path in sys.argv[2:]]
scores = reward.score_matrix(images, ["a cat", "a dog on a mat"])
print(json.dumps({
    "seconds to load": loaded - start,
    "seconds to score": time.perf_counter() - loaded,
    "weights": sum(p.numel() * p.element_size() for p in reward.parameters()),
    "peak": memory("VmHWM") - before,
    "scores": scores.tolist(),
}))
"""


@pytest.mark.slow
def test_the_published_architecture_loads_and_scores(tmp_path, capsys):
    import open_clip

    file = tiny.write_hpsv2(tmp_path, config=open_clip.get_model_config("ViT-H-14"))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, size in zip(paths, ((640, 427), (300, 500)), strict=True):
        tiny.picture(*size).save(path)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, file, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    with capsys.disabled():
        print(f"\n{result}")
    scores = [score for row in result["scores"] for score in row]
    assert all(-1 <= score <= 1 for score in scores)
    assert len(set(scores)) == 4
    assert 3.9e9 < result["weights"] < 4.0e9
    assert result["peak"] < 1.25 * result["weights"]
