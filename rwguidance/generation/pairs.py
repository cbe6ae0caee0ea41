"""From prompts to aligned pictures, beside the pictures of the base model."""

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import rwguidance

from ..backbone import Backbone
from ..support.conditions import has_half_surrogate
from ..support.fingerprint import NotKept, Undescribed
from ..support.outside import require
from ..tilt import RewardFunction
from .base import Method
from .extensions import sampling_times
from .folder import Folder, Pictures
from .results import Generated, Row, write_sheets, write_table
from .run import Report, Run
from .store import Store

__all__ = ["generate"]


def generate(
    backbone: Backbone,
    reward: RewardFunction,
    prompts: Sequence[str],
    out: Path | str,
    method: Method,
    *,
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
    come from the store. What does not say what it depends on
    (:mod:`rwguidance.support.fingerprint`), such as a function as the reward, cannot be told apart
    from another: then pairs are made again, and a warning, :class:`NotKept`, says so.

    Arguments:
        backbone: The model.
        reward: Maps (images, prompts) to rewards, with shape (B,).
        prompts: Distinct prompts.
        out: A folder, made if needed: pictures in a folder for each prompt, ``results.csv``, and
            sheets.
        method: The method of alignment, with its settings.
        images: Pictures per prompt.
        seed: Seed of everything.
        steps: Steps of the sampler. None is what the model's authors recommend.
        batch_size: Samples that the network, the decoder and the reward see at once.
        negative_prompt: The text that classifier-free guidance leads away from. None is the
            backbone's own.
        store: Keeps draws of the model and their rewards. None keeps them in memory only.
        restart: Whether to replace pictures of other settings.
        names: Names of backbone and reward, for the metadata.
        report: Is told about progress: the stage, how much of it is done, and out of how much.

    Returns:
        Rewards before and after. A prompt that fails (a reward that is NaN on its bank, say) is
        reported there, and stops no other.

    Raises:
        TypeError: If `prompts` is not a list of strings, or the backbone takes no negative prompt.
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
    settings = _settings(run, method, names or {})
    if settings["undescribed"]:
        reasons = "; ".join(settings["undescribed"])
        warnings.warn(f"what it makes is not kept for another run: {reasons}", NotKept, 2)
    folder = Folder(Path(out), settings)
    folder.claim(restart)
    return _make(run, method, prompts, images, folder)


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


def _settings(run: Run, method: Method, names: Mapping[str, str]) -> dict[str, Any]:
    """Returns everything that decides the pictures besides prompt and number, as JSON has it."""

    undescribed = list(run.undescribed)
    details: dict[str, Any] = {}
    try:
        details = method.settings()
    except Undescribed as reason:
        undescribed.append(str(reason))
    settings = {
        "rwguidance": rwguidance.__version__,
        **names,
        "method": {"name": method.name, **details},
        "undescribed": undescribed,
        "reward key": run.reward_key,
        **run.origin,
    }
    return dict(json.loads(json.dumps(settings)))


def _make(
    run: Run, method: Method, prompts: Sequence[str], images: int, folder: Folder
) -> Generated:
    """Makes the pairs that are not there, prompt by prompt, then the table and the sheets."""

    table = folder.path / "results.csv"
    rows: list[Row] = []
    failed: dict[str, str] = {}
    made = 0
    for i, prompt in enumerate(prompts):
        run.report("prompts", i, len(prompts))
        some, missing = folder.finished(prompt, images)
        made -= len(some)
        try:
            for start in range(0, len(missing), run.batch_size):
                run.report("pairs", start, len(missing))
                numbers = missing[start : start + run.batch_size]
                some += _align(run, method, prompt, numbers, folder)
        except (ValueError, FloatingPointError) as error:
            failed[prompt] = str(error)
        made += len(some)
        rows += sorted(some, key=lambda row: row.number)
        if missing:
            write_table(table, rows, failed)
    run.report("prompts", len(prompts), len(prompts))
    write_table(table, rows, failed)
    title = f"{method.name}: base beside aligned, from the same noise"
    sheets = write_sheets(folder.path, rows, title)
    return Generated(tuple(rows), failed, table, sheets, made)


def _align(
    run: Run, method: Method, prompt: str, numbers: Sequence[int], folder: Folder
) -> list[Row]:
    """Makes and writes the pairs of one batch."""

    x_0 = run.sample(run.backbone, prompt, [("image", prompt, i) for i in numbers])
    images = run.decode(x_0)
    base = Pictures(images, run.score(images, prompt), [{} for _ in numbers])

    samples = method.align(run, prompt, numbers, x_0, base.scores.values)
    images = run.decode(samples.x_0)
    facts = [{**samples.facts, **each} for each in samples.each or [{} for _ in numbers]]
    aligned = Pictures(images, run.score(images, prompt), facts)
    return folder.save(prompt, numbers, base, aligned)
