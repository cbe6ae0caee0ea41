"""A training from end to end: the loop, the length of its output, the figures, the folder."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rwguidance

from ..backbone import TextToImage
from ..bank import Bank
from ..evaluation.judges import Embedding
from ..generation.extensions import sampling_times
from ..generation.folder import differences
from ..generation.run import Report
from ..networks.guidance import GuidanceNetwork
from ..networks.storage import CARD
from ..preparation import Prepared
from ..support import checks
from ..support.files import expanded, read_regular, replacing
from ..support.fingerprint import fingerprint
from ..support.locks import locked
from ..support.processes import ALONE, Processes
from ..support.randomness import generator_for
from ..tilt import RewardFunction, Tilt
from ..training import train
from .figures import agreements, make_pictures, weights_explained
from .lengths import find_lengths
from .log import Log
from .material import Encode, OfPrompts, Stored, data_at, read_bank, rewards_of, tilts_of
from .problem import make_network, make_objective
from .report import JSON, PAGE, Findings, write_report
from .settings import Settings

__all__ = ["Training", "fit"]

_PLAN, _CHECKPOINT = "plan.json", "checkpoint.pt"
_UNSEEN = 64
"""Number of held-out prompts, at most, whose banks the network is compared with."""

_TIMED = 3
"""Number of steps by which the time of all of them is told."""

Track = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training as it is asked for; the model and the rewards come later.

    Arguments:
        data: Folder that :mod:`rwguidance.preparation` wrote.
        out: Folder of the network, made if needed.
        settings: The settings.
        reward: Name of the reward among those of the data; None for the first one.
        parts: Number of parts of a batch, see :class:`rwguidance.training.Recipe`; None for one for
            each process.
        prompts: Number of prompts to train on, at most, picked by the seed; None for all.
        sampler_steps: Number of steps of runs; None is that of prepared draws or, for pairs, what
            the model's authors recommend.
        save_every: Number of steps between checkpoints.
        held_out: Number of held-out prompts of which pictures are made.
        images: Number of pictures of each of them.
        picture_batch: Number of pictures that are made at once.
        names: Names of the model and of other things, for the card.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of range.
    """

    data: Path | str
    out: Path | str
    settings: Settings
    reward: str | None = None
    parts: int | None = None
    prompts: int | None = None
    sampler_steps: int | None = None
    save_every: int = 200
    held_out: int = 8
    images: int = 4
    picture_batch: int = 8
    names: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            checks.instance(name, getattr(self, name), (str, Path), "a path")
        checks.instance("settings", self.settings, Settings, "Settings, such as a preset")
        for name in ("parts", "prompts", "sampler_steps"):
            checks.optional(checks.integer, name, getattr(self, name), 1)
        for name in ("save_every", "held_out", "images", "picture_batch"):
            checks.integer(name, getattr(self, name), 1)

    @property
    def folder(self) -> Path:
        """The folder of the network."""

        return expanded(self.out)


@dataclass(frozen=True)
class _Work:
    """A training whose model is loaded."""

    job: Training
    backbone: TextToImage
    rewards: Mapping[str, RewardFunction]
    data: Prepared

    @cached_property
    def reward(self) -> str:
        return self.job.reward or next(iter(self.rewards or rewards_of(self.data)))

    @cached_property
    def scores(self) -> RewardFunction | None:
        """The reward of the training; None if it is known of prepared pictures alone."""

        return self.rewards.get(self.reward)

    @cached_property
    def device(self) -> torch.device:
        return self.backbone.draw_noise(1, torch.Generator()).device

    @cached_property
    def times(self) -> Tensor:
        drawers = self.data.about.get("drawers", {})
        if self.job.sampler_steps is None and drawers:
            return torch.tensor(next(iter(drawers.values()))["times"], dtype=torch.float64)
        return sampling_times(self.backbone, self.job.sampler_steps)

    @cached_property
    def train_prompts(self) -> list[str]:
        return self._picked("train", self.job.prompts)

    @cached_property
    def unseen_prompts(self) -> list[str]:
        return self._picked("validation", _UNSEEN)

    def _picked(self, split: str, most: int | None) -> list[str]:
        """Returns prompts of a split, picked by the seed, in the order of the data."""

        prompts = self.data.split(split)
        if most is None or most >= len(prompts):
            return prompts
        generator = generator_for(self.job.settings.seed, "prompts", split)
        order = torch.randperm(len(prompts), generator=generator)[:most].tolist()
        return [prompts[i] for i in sorted(order)]

    def bank(self, prompts: Sequence[str]) -> Bank:
        return read_bank(self.data, self.reward, prompts).to(self.device)

    @cached_property
    def encode(self) -> Encode:
        return Encode(self.data, self.backbone, [*self.train_prompts, *self.unseen_prompts])

    def tilts(self, bank: Bank) -> dict[float, Tilt]:
        """Returns the tilts by strength, of which those of a loaded reward look at pictures."""

        settings = self.job.settings
        if self.scores is None:
            key = rewards_of(self.data)[self.reward]
            return tilts_of(bank, Stored(self.reward, key), settings)
        return tilts_of(bank, OfPrompts(self.scores), settings, self.backbone.decode)


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
    work = _Work(job, backbone, rewards or {}, data_at(job.data))
    _check(work)
    parts = job.parts or processes.size
    recipe = job.settings.recipe(parts)
    with _claimed(work, parts, processes):
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
        )
        found = None
        if processes.first:
            found = _finished(work, network, tilts, losses, bank, embeddings, report)
        processes.wait()
        return found


def _check(work: _Work) -> None:
    """Checks that data, model and rewards belong together.

    Raises:
        ValueError: If they do not; says what differs.
    """

    about = work.data.about
    if fingerprint(work.backbone, work.backbone.incidental) != about["model"]:
        raise ValueError(
            f"data in {work.data.folder} was prepared with another model, or other options of it: "
            "use the same --backbone, --path and --option"
        )
    known = rewards_of(work.data)
    if work.reward not in known:
        names = ", ".join(known) or "none"
        raise ValueError(
            f"reward must be one of those that were prepared, {names}, got {work.reward!r}"
        )
    if work.scores is not None and fingerprint(work.scores) != known[work.reward]:
        raise ValueError(
            f"reward {work.reward} is another one than that which the data was scored by: use the "
            "same weights and options, or prepare the data again"
        )
    if work.job.settings.objective == "output" and work.scores is None:
        raise ValueError("reward must be given to follow its gradient, with objective output")


@contextmanager
def _claimed(work: _Work, parts: int, processes: Processes) -> Iterator[None]:
    """Holds the folder against other trainings, once it is known that it is of these settings."""

    job = work.job
    own = {
        **asdict(job.settings),
        "parts": parts,
        "reward": work.reward,
        "prompts to train on": job.prompts,
        "times": [float(t) for t in work.times],
        "model": work.data.about["model"],
        "data": fingerprint(json.dumps(work.data.about, sort_keys=True)),
    }
    with locked(job.folder) if processes.first else nullcontext():
        if processes.first:
            plan = job.folder / _PLAN
            own = json.loads(json.dumps(own))
            differ = differences(plan, own) if plan.exists() else []
            if differ:
                raise ValueError(
                    f"by {plan}, out holds a training of another {', '.join(differ)}: use another "
                    "folder, or the same settings"
                )
            with replacing(plan) as partial:
                partial.write_text(json.dumps(own, indent=1), encoding="utf-8")
        processes.wait()
        yield


def _is_finished(folder: Path) -> bool:
    """Whether a network and all that is said of it are there, and whole."""

    try:
        GuidanceNetwork.from_pretrained(folder)
        json.loads(read_regular(folder / JSON))
    except (OSError, ValueError, RecursionError):
        return False
    return all((folder / name).is_file() for name in (PAGE, CARD))


def _forecast(settings: Settings, bank: Bank, network: GuidanceNetwork) -> str:
    size = sum(p.numel() for p in network.parameters())
    return (
        f"to train a network of {size / 1e6:.3g} million parameters: {settings.steps:,} steps of "
        f"{settings.batch_size} states, on {len(bank):,} draws of {len(bank.rows):,} prompts"
    )


def _hook(job: Training, say: Callable[[str], None], report: Report, track: Track) -> Any:
    """Returns what is told every step: it logs, tracks, and says how long the rest takes."""

    log, steps = Log(job.folder / "log.csv"), job.settings.steps
    began, seen = time.perf_counter(), 0

    def hook(step: int, figures: Mapping[str, float]) -> None:
        nonlocal seen
        seen += 1
        log.add(step, figures)
        track(step, figures)
        report("training", step + 1, steps)
        if seen == _TIMED and step + 1 < steps:
            minutes = (time.perf_counter() - began) / seen * (steps - step - 1) / 60
            say(f"about {minutes:.2g} minutes, by the first steps")

    return hook


def _finished(
    work: _Work,
    network: GuidanceNetwork,
    tilts: Mapping[float, Tilt],
    losses: Tensor,
    bank: Bank,
    embeddings: Mapping[str, Embedding] | None,
    report: Report,
) -> Findings:
    """Calibrates, validates and writes a trained network; returns what was found."""

    job, settings, backbone = work.job, work.job.settings, work.backbone
    network = network.eval().requires_grad_(False)
    unseen = work.bank(work.unseen_prompts)
    few = [prompt for prompt in work.unseen_prompts if prompt in unseen.rows][: job.held_out]
    left_out = []
    lengths = None
    report("validation", 0, 3)
    if work.scores is None:
        left_out.append("calibration and pictures, as the reward was not given to score them")
    elif settings.calibrate:
        some = read_bank(work.data, work.reward, few).to(work.device)
        lengths = find_lengths(
            network,
            backbone,
            some,
            tilts,
            work.times,
            work.encode,
            job.images,
            job.picture_batch,
            settings.seed,
        )
        network = network.calibrated(lengths.scales)
    report("validation", 1, 3)
    arguments: Any = (network.schedule, unseen, tilts, work.times, work.encode, settings.seed)
    levels = agreements(network, *arguments)
    if not levels:
        left_out.append("agreement with unseen banks, as held-out prompts have too few draws")
    weights = weights_explained(network, *arguments) if network.output == "log_h" else {}
    facts = _facts(work, tilts, bank, losses)
    pictures, folder = None, job.folder / "pictures"
    if work.scores is not None:
        report("validation", 2, 3)
        pictures = make_pictures(
            network,
            backbone,
            work.rewards,
            few,
            list(tilts),
            folder,
            len(work.times) - 1,
            job.images,
            embeddings=embeddings,
            batch_size=job.picture_batch,
            report=report,
        )
    found = Findings(facts, losses, levels, weights, lengths, pictures, left_out)
    network.save_pretrained(job.folder, facts, _NOTES)
    write_report(found, job.folder, folder)
    report("validation", 3, 3)
    return found


_NOTES = (
    "`report.html` holds the network against prompts that it has not seen, `plan.json` has all "
    "settings of its training, and `log.csv` every step."
)


def _facts(work: _Work, tilts: Mapping[float, Tilt], bank: Bank, losses: Tensor) -> dict[str, Any]:
    settings, data = work.job.settings, work.data
    return {
        **(work.job.names or {}),
        "reward": work.reward,
        "objective": settings.objective,
        "strengths": "; ".join(
            f"{nats:g} nats (beta {tilt.betas[0]:.4g})" for nats, tilt in tilts.items()
        ),
        "times of runs": ", ".join(f"{float(t):.3g}" for t in work.times),
        "data": f"{data.about['kind']}: {len(bank):,} draws of {len(bank.rows):,} prompts",
        "held-out prompts": len(data.split("validation")),
        "steps": f"{settings.steps:,} of {settings.batch_size} states",
        "learning rate": settings.learning_rate,
        "rwguidance": rwguidance.__version__,
    }
