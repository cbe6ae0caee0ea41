"""The test bed: trials on development prompts, then the best of each on those that are reported."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from rwguidance.support.files import replacing

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = Path(__file__).with_name("pictures.py")

Trials = tuple[str, str, str]


def _three(method: str, *settings: str) -> Trials:
    one, two, three = (f"{method}{setting}" for setting in settings)
    return one, two, three


TRIALS: dict[str, Trials] = {
    "best of n": _three("best-of-n:", "n=2", "n=3", "n=4"),
    "soft best of n": _three("best-of-n:kl=1,draws=32,", "n=2", "n=4", "n=8"),
    "plug-in": _three("plug-in:bank=32,", "scale=1", "scale=2", "scale=4"),
    "DPS": _three(f"{FILE}:DPS:", "rate=0.03", "rate=0.1", "rate=0.3"),
    "universal guidance": _three(f"{FILE}:Universal:", "weight=0.1", "weight=0.3", "weight=1"),
    "damped plug-in": _three(f"{FILE}:Damped:bank=32,", "damping=0.1", "damping=1", "damping=10"),
    "FMPS": _three("fmps:bank=32,", "scale=0.003", "scale=0.03", "scale=0.1"),
    "LiDAR": _three(
        f"{FILE}:LiDAR:bank=32,", "scale=1", "strength=3,scale=1", "strength=3,scale=2"
    ),
    "FK steering": _three(
        f"{FILE}:FK:", "every=1", 'potential="max",every=1', 'potential="max",every=2'
    ),
    "SVDD": _three(f"{FILE}:SVDD:", "sharpness=1", "n=2", "n=3"),
    "ReNO": _three(f"{FILE}:ReNO:", "rate=1", "rate=5", "rate=20"),
    "MAP ascent": _three(f"{FILE}:Ascent:", "rate=0.5", "rate=1.5", "rate=4"),
    "resample": _three("resample:", "bank=32", "bank=48", "bank=64"),
    "importance": _three("importance:bank=", "32", "48", "32,leave_one_out=true"),
    "pool": _three("pool:bank=", "16", "32", "32,leave_one_out=true"),
    "SMC": _three("smc:particles=32,bank=32,", "threshold=0.5", "threshold=0.9", "eta=0.5"),
    "posterior": _three("posterior:bank=32,", "draws=2", "draws=4", "draws=2,inner_steps=3"),
    "noise gradient": _three("noise-gradient:bank=32,through=3,", "size=0.7", "size=1", "size=1.3"),
}
"""Trials of each method, three for each, as `rwguidance evaluate` reads them."""


def evaluated(
    methods: list[str], prompts: str, subset: int, images: int, targets: int, out: Path, cache: Path
) -> list[dict[str, Any]]:
    """The rows of `rwguidance evaluate` on emoji-flow at 1 nat, which goes on where it stopped."""

    line = [
        *("evaluate", "--backbone", "emoji-flow", "--reward", "emoji-pick"),
        *("--held-out", "emoji-gold,emoji-match", "--embedding", "emoji-judge"),
        *("--prompts", prompts, "--subset", str(subset), "--images", str(images)),
        *("--batch-size", str(images), "--strengths", "1", "--target-draws", str(targets)),
        *(part for method in methods for part in ("--method", method)),
        *("--shown", "1", "--cache", str(cache), "--out", str(out)),
    ]
    run = subprocess.run([sys.executable, "-m", "rwguidance", *line], check=False, cwd=ROOT)
    if run.returncode not in (0, 2):  # 2 says that a picture failed, which its row says as well
        raise SystemExit(run.returncode)
    rows: list[dict[str, Any]] = json.loads((out / "table.json").read_text("utf-8"))["rows"]
    return rows


def tuned(out: Path, cache: Path, subset: int, images: int) -> dict[str, str]:
    """The trial of each method that is nearest to the tilted law on development prompts."""

    every = [trial for trials in TRIALS.values() for trial in trials]
    folder = out / "development"
    rows = evaluated(every, "emoji-development", subset, images, 256, folder, cache)
    found = {row["method"]: row.get("emoji-judge energy") for row in rows}
    distance = lambda trial: _of(found, trial)
    chosen = {name: min(trials, key=distance) for name, trials in TRIALS.items()}
    log = {name: {_label(t): distance(t) for t in trials} for name, trials in TRIALS.items()}
    with replacing(out / "picture_trials.json") as partial:
        partial.write_text(json.dumps(log, indent=1), encoding="utf-8")
    return chosen


def _of(found: dict[str, float | None], trial: str) -> float:
    """The distance of a trial; infinite where there is none."""

    value = found.get(_label(trial))
    return math.inf if value is None or math.isnan(value) else value


def _label(trial: str) -> str:
    """What an evaluation calls a method, which has the name of a file without its folder."""

    return trial.replace(f"{FILE.parent}/", "")


def confirmed(
    out: Path, cache: Path, chosen: dict[str, str], subset: int, images: int
) -> list[dict[str, Any]]:
    """The rows of the chosen settings on prompts that are reported, with names of methods."""

    folder = out / "report"
    rows = evaluated([*chosen.values()], "emoji-report", subset, images, 256, folder, cache)
    names = {_label(spec): name for name, spec in chosen.items()}
    rows = [
        {**row, "settings": row["method"], "method": names.get(row["method"], row["method"])}
        for row in rows
    ]
    with replacing(out / "testbed.json") as partial:
        partial.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows
