"""A training from end to end: the loop, the length of its output, the figures, the folder."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbone import TextToImage
from ..bank import Bank
from ..evaluation import Results
from ..evaluation.judges import Embedding
from ..generation.folder import claimed
from ..generation.run import Report
from ..networks.guidance import GuidanceNetwork
from ..networks.storage import CONFIG, WEIGHTS
from ..support import checks
from ..support.files import open_regular, read_regular, replacing
from ..support.fingerprint import fingerprint
from ..support.processes import ALONE, Processes
from ..tilt import RewardFunction, Tilt
from ..training import train
from .figures import agreements, make_pictures, weights_explained
from .lengths import find_lengths
from .log import Log
from .material import data_at
from .problem import make_network, make_objective
from .report import JSON, Findings, write_report
from .settings import Settings
from .validation import FIGURES, PROMPTS, Validation, said
from .work import Training, Work

__all__ = ["fit"]

_PLAN, _CHECKPOINT, _FINISHED = "plan.json", "checkpoint.pt", "finished.json"
_LOG = "log.csv"
_RESULTS = (WEIGHTS, CONFIG, JSON)
"""What a finished training has left, and knows by its digest."""

_TIMED = 3
"""Number of steps by which the time of all of them is told."""

Track = Callable[[int, Mapping[str, float]], None]


def fit(
    job: Training,
    backbone: TextToImage,
    rewards: Mapping[str, RewardFunction] | None = None,
    embeddings: Mapping[str, Embedding] | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
    report: Report = lambda stage, done, total: None,
    track: Track = lambda step, figures: None,
    processes: Processes = ALONE,
) -> Findings | None:
    """Trains a network on prepared data, and writes it with its card and its report.

    It goes on where it was interrupted. Without the reward of the training, the length of the
    network's output is not calibrated and no pictures are made, since they could not be scored.

    Arguments:
        job: The training as it is asked for.
        backbone: The model of which the data was prepared.
        rewards: Rewards by the names they have in the data, that of the training first; others are
            not seen by the training, and judge its pictures.
        embeddings: Embeddings in which laws of pictures are compared, by name.
        say: Is told sentences for the user.
        report: Is told about progress: the stage, how much of it is done, and out of how much.
        track: Is told the figures of every step, by the first process.
        processes: The processes that share the batches.

    Returns:
        What is known of the network, in the first process; None if it was finished before, and in
        the others.

    Raises:
        TypeError: If an argument is of the wrong kind, or the model does not say what it depends
            on.
        ValueError: If the data is of another model or reward, the folder holds a training of other
            settings, which are named, or a setting does not suit the data.
        FloatingPointError: If the loss is not finite; the last checkpoint is kept.
        OSError: If the disk fails.
    """

    checks.instance("job", job, Training, "a Training")
    checks.instance("backbone", backbone, TextToImage, "a Backbone or a Generator")
    work = Work(job, backbone, rewards or {}, data_at(job.data))
    work.check()
    parts = job.parts or processes.size
    recipe = job.settings.recipe(parts)
    plan, begun_by = job.folder / _PLAN, (_CHECKPOINT, JSON)
    holds = f"by {plan}, out holds a training of"
    with claimed(plan, _settings_of(work, parts), holds, processes, begun_by):
        if any(processes.gather(processes.first and _is_finished(job.folder))):
            return None
        bank = work.bank(work.train_prompts)
        tilts = work.tilts(bank)
        settings = job.settings
        network = make_network(settings, backbone, bank.x_0.shape[1], work.encode, len(tilts))
        network = network.to(work.device)
        objective = make_objective(
            settings,
            backbone,
            bank,
            tilts,
            work.encode,
            work.times,
            settings.batch_size // parts,
            job.decode_batch,
        )
        if processes.first:
            say(_forecast(settings, bank, network))
        losses = train(
            network,
            objective,
            settings.steps,
            settings.learning_rate,
            settings.seed,
            settings.max_norm,
            job.folder / _CHECKPOINT,
            job.save_every,
            recipe=recipe,
            processes=processes,
            report=_hook(job, say, report, track) if processes.first else None,
            validate=_validation(work, tilts) if processes.first else None,
            validate_every=job.steps_between_validations or settings.steps,
        )
        found = None
        if processes.first:
            found = _finished(work, network, tilts, losses, bank, embeddings, report)
        processes.wait()
        return found


def _settings_of(work: Work, parts: int) -> dict[str, Any]:
    """Everything that decides a training."""

    job = work.job
    return {
        **asdict(job.settings),
        "parts": parts,
        "reward": work.reward,
        "prompts to train on": job.prompts,
        "times": [float(t) for t in work.times],
        "model": work.data.about["model"],
        "data": fingerprint(json.dumps(work.data.about, sort_keys=True)),
    }


def _forecast(settings: Settings, bank: Bank, network: GuidanceNetwork) -> str:
    size = sum(p.numel() for p in network.parameters())
    return (
        f"to train a network of {size / 1e6:.3g} million parameters: {settings.steps:,} steps of "
        f"{settings.batch_size} states, on {len(bank):,} draws of {len(bank.rows):,} prompts"
    )


def _hook(job: Training, say: Callable[[str], None], report: Report, track: Track) -> Any:
    """Returns what is told every step: it logs, tracks, and says how long the rest takes."""

    log, steps = Log(job.folder / _LOG, FIGURES), job.settings.steps
    began, seen = time.perf_counter(), 0

    def hook(step: int, figures: Mapping[str, float]) -> None:
        nonlocal seen
        seen += 1
        log.add(step, figures)
        track(step, figures)
        report("training", step + 1, steps)
        if figures.keys() & FIGURES:
            say(said(step + 1, figures))
        if seen == _TIMED and step + 1 < steps:
            minutes = (time.perf_counter() - began) / seen * (steps - step - 1) / 60
            say(f"about {minutes:.2g} minutes, by the first steps")

    return hook


def _validation(work: Work, tilts: Mapping[float, Tilt]) -> Validation | None:
    """Returns what looks at unseen prompts during a training, at the strength in the middle."""

    if not work.job.steps_between_validations:
        return None
    nats = [*tilts][len(tilts) // 2]
    one = {nats: tilts[nats]}
    held_out, settings = work.held_out(one, work.unseen_prompts[:PROMPTS]), work.job.settings
    # One batch is looked at, so no more pictures are scored for it.
    settings = replace(settings, pictures=min(settings.pictures, settings.batch_size))
    objective = make_objective(
        settings,
        work.backbone,
        held_out.bank,
        one,
        work.encode,
        work.times,
        settings.batch_size,
        work.job.decode_batch,
    )
    return Validation(objective, held_out)


def _finished(
    work: Work,
    network: GuidanceNetwork,
    tilts: Mapping[float, Tilt],
    losses: Tensor,
    bank: Bank,
    embeddings: Mapping[str, Embedding] | None,
    report: Report,
) -> Findings:
    """Calibrates, validates and writes a trained network; returns what was found."""

    job, left_out = work.job, list[str]()
    network = network.eval().requires_grad_(False)
    unseen = work.held_out(tilts)
    few = [prompt for prompt in work.unseen_prompts if prompt in unseen.bank.rows][: job.held_out]
    lengths = None
    report("validation", 0, 3)
    if work.scores is None:
        left_out.append("calibration and pictures, as the reward was not given to score them")
    elif job.settings.calibrate:
        about = (unseen.of(few), job.images, job.picture_batch)
        lengths = find_lengths(network, work.backbone, *about)
        network = network.calibrated(lengths.scales)
    report("validation", 1, 3)
    levels = agreements(network, unseen)
    if not levels:
        left_out.append("agreement with unseen banks, as held-out prompts have too few draws")
    weights = weights_explained(network, unseen) if network.output == "log_h" else {}
    report("validation", 2, 3)
    folder = job.folder / "pictures"
    pictures = _pictures(work, network, tilts, few, folder, embeddings, report)
    facts = work.facts(tilts, bank)
    log = Log(job.folder / _LOG)
    curves = {name: log.figures(name) for name in FIGURES}
    found = Findings(facts, losses, levels, weights, lengths, pictures, left_out, curves)
    network.save_pretrained(job.folder, facts, _NOTES)
    write_report(found, job.folder, folder)
    with replacing(job.folder / _FINISHED, durable=True) as partial:
        partial.write_bytes(json.dumps(_digests(job.folder), indent=1).encode())
    report("validation", 3, 3)
    return found


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for name in _RESULTS:
        with open_regular(folder / name) as file:
            found[name] = hashlib.sha256(file.read()).hexdigest()
    return found


def _is_finished(folder: Path) -> bool:
    """Returns whether a training has left its results, and they are as it left them."""

    try:
        return bool(json.loads(read_regular(folder / _FINISHED)) == _digests(folder))
    except (OSError, ValueError, RecursionError):
        return False


def _pictures(
    work: Work,
    network: GuidanceNetwork,
    tilts: Mapping[float, Tilt],
    prompts: Sequence[str],
    folder: Path,
    embeddings: Mapping[str, Embedding] | None,
    report: Report,
) -> Results | None:
    if work.scores is None:
        return None
    return make_pictures(
        network,
        work.backbone,
        work.rewards,
        prompts,
        list(tilts),
        folder,
        len(work.times) - 1,
        work.job.images,
        embeddings=embeddings,
        batch_size=work.job.picture_batch,
        report=report,
    )


_NOTES = (
    "`report.html` holds the network against prompts that it has not seen, `plan.json` has all "
    "settings of its training, and `log.csv` every step."
)
