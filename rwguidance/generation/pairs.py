"""From prompts to aligned pictures, beside the pictures of the base model."""

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rwguidance

from ..files import replacing
from ..outside import require
from ..tilt import RewardFunction
from .methods import Method
from .pictures import Cell, read_facts, save_picture, save_sheet
from .run import Report, Run, Scores, TextToImage
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
    backbone: TextToImage,
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
    come from the store.

    Arguments:
        backbone: The model, see :class:`backbones.Backbone`.
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
    for name, value in (("images", images), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    require("PIL.Image", "pictures need", "rewards")
    authors: Any = backbone
    times = authors.times() if steps is None else authors.times(steps)
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
        done, missing = _finished(out, prompt, images, settings)
        try:
            new = _align(run, method, prompt, missing, out, settings) if missing else []
        except (ValueError, FloatingPointError) as error:
            failed[prompt] = str(error)
            new = []
        made += len(new)
        rows += sorted((*done, *new), key=lambda row: row.number)
        table = _write_table(out, rows, failed)
    report("prompts", len(prompts), len(prompts))
    sheets = _write_sheets(out, rows, settings)
    return Generated(tuple(rows), failed, table, sheets, made)


def _distinct(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts must be a list of strings, got {prompts!r:.80}")
    if not prompts:
        raise ValueError("prompts must hold at least one prompt, got none")
    twice = [prompt for prompt in prompts if list(prompts).count(prompt) > 1]
    if twice:
        raise ValueError(
            f"prompts must be distinct, got {twice[0]!r} twice; ask for more images instead"
        )
    return list(prompts)


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
    if label.exists() and not restart:
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
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    folder = out / (f"{slug}-{digest}" if slug else digest)
    base, aligned = (folder / f"{number:04d}-{kind}.png" for kind in _KINDS)
    return base, aligned


def _finished(
    out: Path, prompt: str, images: int, settings: dict[str, Any]
) -> tuple[list[Row], list[int]]:
    """The pairs that are there with these settings, and the numbers of those that are not."""

    done, missing = [], []
    for number in range(images):
        files = _files(out, prompt, number)
        found = [read_facts(path) if path.exists() else None for path in files]
        if any(facts is None or facts.get("settings") != settings for facts in found):
            missing.append(number)
            continue
        base, aligned = (facts or {} for facts in found)
        rewards = (base.get("reward"), aligned.get("reward"))
        error = "; ".join(facts["error"] for facts in (base, aligned) if facts.get("error"))
        done.append(Row(prompt, number, files, rewards, aligned.get("facts", {}), error))
    return done, missing


def _align(
    run: Run,
    method: Method,
    prompt: str,
    numbers: list[int],
    out: Path,
    settings: dict[str, Any],
) -> list[Row]:
    """Makes and writes the pairs of one prompt."""

    model: Any = run.backbone
    condition = run.condition(prompt, min(run.batch_size, len(numbers)))
    parts = []
    for start in range(0, len(numbers), run.batch_size):
        run.report("base images", start, len(numbers))
        names = [("image", prompt, i) for i in numbers[start : start + run.batch_size]]
        parts.append(run.sample(model, run.rows(condition, len(names)), names))
    run.report("base images", len(numbers), len(numbers))
    base = torch.cat(parts)
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
        about = {"prompt": prompt, "number": number, "settings": settings}
        facts = {**aligned.facts, **each}
        rewards, errors = [], []
        for kind, picture, found, path in (
            ("base", images[i], scores, files[0]),
            ("aligned", aligned_images[i], aligned_scores, files[1]),
        ):
            reward, error = _reward(found, i)
            own = {"kind": kind, "reward": reward, "error": error}
            save_picture(
                picture, path, {**about, **own, "facts": facts if kind == "aligned" else {}}
            )
            rewards.append(reward)
            errors.append(error)
        error = "; ".join(filter(None, errors))
        rows.append(Row(prompt, number, files, (rewards[0], rewards[1]), facts, error))
    return rows


def _reward(scores: Scores, i: int) -> tuple[float | None, str]:
    value = float(scores.values[i])
    if math.isfinite(value):
        return value, ""
    return None, scores.errors.get(i, f"the reward is {value}")


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

    lines = []
    for prompt in dict.fromkeys(row.prompt for row in rows):
        some = [row for row in rows if row.prompt == prompt][:_PAIRS_PER_ROW]
        lines.append((prompt, [_cells(row) for row in some]))
    title = f"{settings['method']['name']}: base beside aligned, from the same noise"
    sheets = []
    for number, start in enumerate(range(0, len(lines), _ROWS_PER_SHEET), 1):
        sheets.append(
            out / ("sheet.png" if len(lines) <= _ROWS_PER_SHEET else f"sheet-{number}.png")
        )
        save_sheet(lines[start : start + _ROWS_PER_SHEET], sheets[-1], title)
    return tuple(sheets)


def _cells(row: Row) -> list[Cell]:
    shown = ["no reward" if reward is None else f"{reward:.4g}" for reward in row.rewards]
    return [
        Cell(path, f"{kind} {text}")
        for kind, path, text in zip(_KINDS, row.files, shown, strict=True)
    ]
