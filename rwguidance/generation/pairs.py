"""From prompts to aligned pictures, beside the pictures of the base model."""

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

import rwguidance

from ..backbone import Backbone
from ..support.conditions import has_half_surrogate
from ..support.files import replacing
from ..support.outside import require
from ..tilt import RewardFunction
from .extensions import sampling_times
from .methods import Method
from .pictures import Cell, read_facts, save_picture, save_sheet
from .run import Report, Run, Scores
from .store import Store

__all__ = ["Generated", "Row", "generate"]

_KINDS = ("base", "aligned")
_ROWS_PER_SHEET = 12
_PAIRS_PER_ROW = 4


@dataclass(frozen=True)
class Row:
    """A pair of pictures.

    Arguments:
        prompt: The prompt.
        number: The number of the image, from 0.
        files: The base picture and the aligned one.
        rewards: Those of the two, in reward units; None where the reward failed.
        facts: What the method says about the pair.
        error: Why a reward is missing, or empty.
    """

    prompt: str
    number: int
    files: tuple[Path, Path]
    rewards: tuple[float | None, float | None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def gain(self) -> float | None:
        """By how much the aligned picture is better, in reward units."""

        base, aligned = self.rewards
        return None if base is None or aligned is None else aligned - base


@dataclass(frozen=True)
class Generated:
    """What a run made.

    Arguments:
        rows: In the order of the prompts and numbers.
        failed: Prompts that were not finished, with the reason.
        table: The CSV file.
        sheets: Pictures of base and aligned beside each other.
        made: Number of pairs that this run made; the others were there.
    """

    rows: tuple[Row, ...]
    failed: dict[str, str]
    table: Path
    sheets: tuple[Path, ...]
    made: int


def generate(
    backbone: Backbone,
    reward: RewardFunction,
    prompts: Sequence[str],
    out: Path | str,
    method: Method,
    images: int = 1,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int = 4,
    negative_prompt: str | None = None,
    store: Store | None = None,
    restart: bool = False,
    names: Mapping[str, str] | None = None,
    report: Report = lambda stage, done, total: None,
) -> Generated:
    """Makes pictures of every prompt twice from the same noise, unguided and aligned.

    A picture depends on the seed, its prompt and its number; neither on the other prompts nor on
    the batch size (up to rounding). An interrupted run goes on where it stopped when it is called
    again: finished pairs are recognized by the settings in their metadata, and draws of the model
    come from the store. With a plain function as the reward, which cannot be told apart from
    another, pairs are made again.

    Arguments:
        backbone: The model.
        reward: (images, prompts) to rewards, with shape (B,).
        prompts: Distinct prompts.
        out: A folder, made if needed: pictures in a folder for each prompt, ``results.csv``, and
            sheets.
        method: How to align.
        images: Pictures per prompt.
        seed: Of everything.
        steps: Of the sampler. None is what the model's authors recommend.
        batch_size: Samples that the network, the decoder and the reward see at once.
        negative_prompt: What classifier-free guidance leads away from.
        store: Where draws of the model and their rewards are kept. None keeps them in memory only.
        restart: Whether to replace pictures of other settings.
        names: Names of backbone and reward, for the metadata.
        report: Is told about progress: the stage, how much of it is done, and out of how much.

    Returns:
        Rewards before and after. A prompt that fails (a reward that is NaN on its bank, say) is
        reported there, and stops no other.

    Raises:
        ValueError: If an argument makes no sense, `out` holds pictures of other settings, or reward
            and backbone are on different devices.
    """

    prompts = _distinct(prompts)
    _check_text(*prompts, negative_prompt or "")
    for name, value in (("images", images), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    require("PIL.Image", "pictures need", "rewards")
    times = sampling_times(backbone, steps)
    method.check(times)
    run = Run(backbone, reward, times, seed, batch_size, negative_prompt, store, report)
    _check_device(run)
    settings = {
        "rwguidance": rwguidance.__version__,
        **(names or {}),
        "method": {"name": method.name, **method.settings()},
        "reward key": run.reward_key,
        **run.origin,
    }
    settings = json.loads(json.dumps(settings))
    out = Path(out)
    _claim(out, settings, restart)

    rows: list[Row] = []
    failed: dict[str, str] = {}
    made = 0
    for i, prompt in enumerate(prompts):
        report("prompts", i, len(prompts))
        some, missing = _finished(out, prompt, images, settings)
        made -= len(some)
        try:
            for start in range(0, len(missing), batch_size):
                report("pairs", start, len(missing))
                numbers = missing[start : start + batch_size]
                some += _align(run, method, prompt, numbers, out, settings)
        except (ValueError, FloatingPointError) as error:
            failed[prompt] = str(error)
        made += len(some)
        rows += sorted(some, key=lambda row: row.number)
        if missing:
            _write_table(out, rows, failed)
    report("prompts", len(prompts), len(prompts))
    table = _write_table(out, rows, failed)
    sheets = _write_sheets(out, rows, settings)
    return Generated(tuple(rows), failed, table, sheets, made)


def _distinct(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts must be a list of strings, got {prompts!r:.80}")
    if not prompts:
        raise ValueError("prompts must hold at least one prompt, got none")
    twice = [prompt for prompt, count in Counter(prompts).items() if count > 1]
    if twice:
        raise ValueError(
            f"prompts must be distinct, got {twice[0]!r} twice; ask for more images instead"
        )
    return list(prompts)


def _check_text(*texts: str) -> None:
    for text in texts:
        if has_half_surrogate(text):
            raise ValueError(f"prompts must be text, got half of a surrogate pair in {text!a}")


def _check_device(run: Run) -> None:
    if not isinstance(run.reward, nn.Module):
        return
    devices = {tensor.device for tensor in (*run.reward.parameters(), *run.reward.buffers())}
    if devices and run.device not in devices:
        raise ValueError(
            f"reward and backbone must be on one device, got {devices.pop()} and {run.device}"
        )


def _claim(out: Path, settings: dict[str, Any], restart: bool) -> None:
    """Writes the settings of a run to its folder, or raises if they are not those of an old one."""

    out.mkdir(parents=True, exist_ok=True)
    label = out / "settings.json"
    if label.exists() and not restart and any(out.glob("*/*.png")):
        try:
            found = dict(json.loads(label.read_text(encoding="utf-8")))
        except ValueError:
            found = {}
        differ = [key for key in {**settings, **found} if found.get(key) != settings.get(key)]
        if differ:
            raise ValueError(
                f"{out} holds pictures of other settings: {', '.join(differ)} differ; write "
                "elsewhere, or replace them with restart=True (on the command line, --restart)"
            )
    with replacing(label) as partial:
        partial.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")


def _files(out: Path, prompt: str, number: int) -> tuple[Path, Path]:
    """Where a pair of pictures goes, whatever else is asked for."""

    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    folder = out / (f"{slug}-{digest}" if slug else digest)
    base, aligned = (folder / f"{number:04d}-{kind}.png" for kind in _KINDS)
    return base, aligned


def _finished(
    out: Path, prompt: str, images: int, settings: dict[str, Any]
) -> tuple[list[Row], list[int]]:
    """The pairs that are there with these settings, and the numbers of those that are not."""

    if settings["reward key"] is None:  # it cannot be known which reward it was
        return [], list(range(images))
    done, missing = [], []
    for number in range(images):
        facts = [read_facts(path) or {} for path in _files(out, prompt, number)]
        expected = zip(_about(prompt, number, settings), facts, strict=True)
        if all(known == {key: fact.get(key) for key in known} for known, fact in expected):
            done.append(_row(out, facts))
        else:
            missing.append(number)
    return done, missing


def _about(prompt: str, number: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What identifies the pictures of a pair."""

    return [
        {"prompt": prompt, "number": number, "kind": kind, "settings": settings} for kind in _KINDS
    ]


def _row(out: Path, facts: Sequence[Mapping[str, Any]]) -> Row:
    """A pair from the facts in its pictures."""

    base, aligned = facts
    prompt, number = base["prompt"], base["number"]
    rewards = (base["reward"], aligned["reward"])
    error = "; ".join(filter(None, (base["error"], aligned["error"])))
    return Row(prompt, number, _files(out, prompt, number), rewards, aligned["facts"], error)


def _align(
    run: Run,
    method: Method,
    prompt: str,
    numbers: list[int],
    out: Path,
    settings: dict[str, Any],
) -> list[Row]:
    """Makes and writes the pairs of one batch."""

    base = run.sample(run.backbone, prompt, [("image", prompt, i) for i in numbers])
    images = run.decode(base)
    scores = run.score(images, prompt)
    aligned = method.align(run, prompt, numbers, base, scores.values)
    aligned_images = run.decode(aligned.x_0)
    aligned_scores = run.score(aligned_images, prompt)

    rows = []
    for i, number in enumerate(numbers):
        files = _files(out, prompt, number)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        each = aligned.each[i] if aligned.each else {}
        facts = _about(prompt, number, settings)
        facts[0].update(**_reward(scores, i), facts={})
        facts[1].update(**_reward(aligned_scores, i), facts={**aligned.facts, **each})
        save_picture(images[i], files[0], facts[0])
        save_picture(aligned_images[i], files[1], facts[1])
        rows.append(_row(out, facts))
    return rows


def _reward(scores: Scores, i: int) -> dict[str, Any]:
    value = float(scores.values[i])
    if math.isfinite(value):
        return {"reward": value, "error": ""}
    return {"reward": None, "error": scores.errors.get(i, f"the reward is {value}")}


def _write_table(out: Path, rows: Sequence[Row], failed: Mapping[str, str]) -> Path:
    path = out / "results.csv"
    columns = ["prompt", "number", *_KINDS, "base reward", "aligned reward", "gain"]
    facts = list(dict.fromkeys(key for row in rows for key in row.facts))
    text = lambda value: "" if value is None else f"{value:.7g}"
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *facts, "error"])
        for row in rows:
            files = [path.relative_to(out).as_posix() for path in row.files]
            values = [text(value) for value in (*row.rewards, row.gain)]
            about = [_flat(row.facts.get(key)) for key in facts]
            writer.writerow([row.prompt, row.number, *files, *values, *about, row.error])
        for prompt, reason in failed.items():
            writer.writerow([prompt, *[""] * (len(columns) - 1 + len(facts)), reason])
    return path


def _flat(value: Any) -> Any:
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _write_sheets(out: Path, rows: Sequence[Row], settings: dict[str, Any]) -> tuple[Path, ...]:
    """Sheets of the first pairs of every prompt."""

    pairs: dict[str, list[list[Cell]]] = {}
    for row in rows:
        some = pairs.setdefault(row.prompt, [])
        if len(some) < _PAIRS_PER_ROW:
            some.append(_cells(row))
    lines = list(pairs.items())
    title = f"{settings['method']['name']}: base beside aligned, from the same noise"
    sheets = []
    for number, start in enumerate(range(0, len(lines), _ROWS_PER_SHEET), 1):
        sheets.append(
            out / ("sheet.png" if len(lines) <= _ROWS_PER_SHEET else f"sheet-{number}.png")
        )
        save_sheet(lines[start : start + _ROWS_PER_SHEET], sheets[-1], title)
    for path in out.glob("sheet*.png"):  # of a run with more prompts, or fewer
        if re.fullmatch(r"sheet(-\d+)?\.png", path.name) and path not in sheets:
            path.unlink()
    return tuple(sheets)


def _cells(row: Row) -> list[Cell]:
    shown = ["no reward" if reward is None else f"{reward:.4g}" for reward in row.rewards]
    return [
        Cell(path, f"{kind} {text}")
        for kind, path, text in zip(_KINDS, row.files, shown, strict=True)
    ]
