"""From prompts to aligned pictures, beside the pictures of the base model."""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..backbone import TextToImage
from ..store import Store
from ..support.checks import function, instance
from ..support.fingerprint import NotKept
from ..support.processes import ALONE, Processes
from ..tilt import RewardFunction
from .base import Method
from .extensions import check_negative_prompt, sampling_times
from .failures import reason, summarize
from .folder import Folder, Pictures
from .job import Job
from .results import Generated, Row, write_sheets, write_table
from .run import Report, Run
from .work import Forecast, Work, work_on_draws

__all__ = ["Say", "generate", "make"]

Say = Callable[[str], None]
"""Type of a function that is told sentences for the user."""


def generate(
    backbone: TextToImage,
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
    say: Say = lambda text: None,
    processes: Processes = ALONE,
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
        say: Is told in sentences how much work there is, and how long it takes.
        processes: The processes that share the prompts; all of them make this call, and get the
            same pairs. The first one writes the table and the sheets.

    Returns:
        Rewards before and after. What fails (a reward on the bank of a prompt, a model on a prompt,
        a disk that is full) is reported there, and stops nothing else; the same call makes it
        again.

    Raises:
        TypeError: If an argument is of the wrong kind, or the backbone takes no negative prompt.
        ValueError: If an argument makes no sense, `out` holds pictures of other settings or is in
            use by another process, or reward and backbone are on different devices.
        OSError: If `out` cannot be written to.

    Warns:
        NotKept: If backbone, sampler, reward or method do not say what they depend on; once.
        OldStore: If the store holds draws of an older version, which are made anew; once.
        RuntimeWarning: If the store cannot be written to, or the file system of `out` has no locks.
    """

    instance("backbone", backbone, TextToImage, "a Backbone, such as backbones.load(name)")
    function("reward", reward)
    job = Job(
        prompts=prompts,
        out=out,
        method=method,
        images=images,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
        restart=restart,
        names=names or {},
    )
    instance("store", store, (Store, type(None)), "a Store or None")
    with job.claimed(processes):
        return make(job, backbone, reward, store, report, say, processes)


def make(
    job: Job,
    backbone: TextToImage,
    reward: RewardFunction,
    store: Store | None,
    report: Report,
    say: Say,
    processes: Processes = ALONE,
) -> Generated:
    """Makes the pairs of a job that is claimed, prompt by prompt, then the table and the sheets.

    Arguments and result are those of :func:`generate`, as is what it raises.
    """

    times = sampling_times(backbone, job.steps)
    job.method.check(times)
    check_negative_prompt(backbone, job.negative_prompt)
    run = Run(backbone, reward, times, job.seed, job.batch_size, job.negative_prompt, store, report)
    check_device(run)
    job.method.check_run(run, job.prompts[0])
    settings = _settings(job, run)
    if settings["undescribed"]:
        reasons = "; ".join(settings["undescribed"])
        warnings.warn(f"what it makes is not kept for another run: {reasons}", NotKept, 3)
    folder = Folder(job.folder, settings)
    folder.claim(job.restart)
    own = [job.prompts[i] for i in processes.deal(len(job.prompts))]
    forecast = _forecast(job, own, run, folder, say)

    table = folder.path / "results.csv"
    rows: list[Row] = []
    failed: dict[str, str] = {}
    unwritten: dict[Path, str] = {}
    made = 0
    for i, prompt in enumerate(own):
        report("prompts", i, len(own))
        done, missing = folder.finished(prompt, job.images)
        new, failures = _pairs(job, run, prompt, missing, folder, forecast)
        rows += sorted((*done, *new), key=lambda row: row.number)
        made += len(new)
        if failures:
            failed[prompt] = summarize(failures, len(missing))
        if missing and processes.first:
            _attempt(unwritten, table, write_table, table, rows, failed)
    report("prompts", len(own), len(own))

    rows, failed, made = _gathered(job, folder, processes, rows, failed, made)
    unwritten.clear()
    sheets = None
    if processes.first:
        _attempt(unwritten, table, write_table, table, rows, failed)
        title = f"{job.method.name}: base beside aligned"
        first = folder.path / "sheet.png"
        sheets = _attempt(unwritten, first, write_sheets, folder.path, rows, title)
    return Generated(tuple(rows), failed, table, sheets or (), made, unwritten)


def _gathered(
    job: Job,
    folder: Folder,
    processes: Processes,
    rows: Sequence[Row],
    failed: Mapping[str, str],
    made: int,
) -> tuple[list[Row], dict[str, str], int]:
    """Returns what all processes have found, in the order of the prompts."""

    facts = [(row.prompt, row.number, row.rewards, row.facts, row.error) for row in rows]
    parts = processes.gather((facts, failed, made))
    found: dict[str, list[Row]] = {}
    for prompt, number, rewards, about, error in (fact for part in parts for fact in part[0]):
        row = Row(prompt, number, folder.files(prompt, number), tuple(rewards), about, error)
        found.setdefault(prompt, []).append(row)
    reasons = {prompt: why for part in parts for prompt, why in part[1].items()}
    return (
        [row for prompt in job.prompts for row in found.get(prompt, ())],
        {prompt: reasons[prompt] for prompt in job.prompts if prompt in reasons},
        sum(part[2] for part in parts),
    )


def check_device(run: Run) -> None:
    if not isinstance(run.reward, nn.Module):
        return
    devices = {tensor.device for tensor in (*run.reward.parameters(), *run.reward.buffers())}
    if devices and run.device not in devices:
        raise ValueError(
            f"reward and backbone must be on one device, got {devices.pop()} and {run.device}"
        )


def _settings(job: Job, run: Run) -> dict[str, Any]:
    """Returns everything that decides the pictures besides prompt and number, as JSON has it."""

    undescribed = [*run.undescribed, *job.undescribed]
    keys = {"undescribed": undescribed, "reward key": run.reward_key}
    settings = {**job.settings, **keys, **run.origin}
    return dict(json.loads(json.dumps(settings)))


def _forecast(job: Job, prompts: Sequence[str], run: Run, folder: Folder, say: Say) -> Forecast:
    """Returns the forecast of the pairs of prompts whose files are not there."""

    steps, pairs, work = len(run.times) - 1, 0, Work()
    for prompt in prompts:
        absent = [batch for batch in job.batches() if folder.absent(prompt, batch)]
        images = sum(map(len, absent))
        if images:
            pairs += images
            work += Work.of_samples(images, steps, run.batch_size)
            work += job.method.work(images, steps, run.batch_size)
            work += work_on_draws(job.method.streams(images), steps, run.batch_size)
    return Forecast(f"{pairs:,} pairs" if pairs else "", work, steps, say)


def _attempt(
    unwritten: dict[Path, str], path: Path, write: Callable[..., Any], *arguments: Any
) -> Any:
    """Returns what a function returns that writes a file; notes the reason where it fails."""

    try:
        return write(*arguments)
    except OSError as error:
        unwritten[path] = reason(error)
        return None


def _pairs(
    job: Job, run: Run, prompt: str, missing: Sequence[int], folder: Folder, forecast: Forecast
) -> tuple[list[Row], dict[int, str]]:
    """Makes the missing pairs of a prompt in the batches of the job.

    Returns:
        Pairs, and reasons of failures by number.
    """

    rows: list[Row] = []
    failures: dict[int, str] = {}
    for numbers in job.batches():
        wanted = [number for number in numbers if number in missing]
        if not wanted:
            continue
        run.report("pairs", len(rows) + len(failures), len(missing))
        try:
            base, aligned = _align(run, job.method, prompt, numbers, forecast)
        except Exception as error:  # whatever fails, other batches and prompts go on
            failures.update(dict.fromkeys(wanted, reason(error)))
            continue
        for number in wanted:
            try:
                rows.append(folder.save(prompt, numbers, number - numbers.start, base, aligned))
            except (OSError, ValueError) as error:
                failures[number] = reason(error)
    return rows, failures


def _align(
    run: Run, method: Method, prompt: str, numbers: Sequence[int], forecast: Forecast
) -> tuple[Pictures, Pictures]:
    """Makes the pictures of one batch, by the model alone and aligned."""

    run.condition(prompt, len(numbers))  # once for all batches, and so not timed with them
    start = time.perf_counter()
    x_0 = run.sample(run.backbone, prompt, [("image", prompt, i) for i in numbers])
    x_0.flatten()[:1].cpu()  # a device may return before it has finished
    drawn = time.perf_counter()
    images = run.decode(x_0)
    base = Pictures(images, run.score(images, prompt), [{} for _ in numbers])
    forecast.timed(len(numbers), drawn - start, time.perf_counter() - drawn)

    samples = method.align(run, prompt, numbers, x_0, base.scores.values)
    images = run.decode(samples.x_0)
    facts = [{**samples.facts, **each} for each in samples.each or [{} for _ in numbers]]
    return base, Pictures(images, run.score(images, prompt), facts)
