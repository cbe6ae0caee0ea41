"""A training before and after its model is loaded: what is asked for, and what it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rwguidance

from ..backbone import TextToImage
from ..bank import Bank
from ..generation.extensions import sampling_times
from ..preparation import Prepared
from ..support import checks
from ..support.files import expanded
from ..support.fingerprint import fingerprint
from ..support.randomness import generator_for
from ..tilt import RewardFunction, Tilt
from .held_out import HeldOut
from .material import Encode, OfPrompts, Stored, read_bank, rewards_of, tilts_of
from .settings import OF_GRADIENTS, Settings

__all__ = ["Training", "Work"]

_VALIDATIONS, _SHORT = 20, 200
"""Number of validations of a training, and number of steps below which there are none."""

_UNSEEN = 64
"""Number of held-out prompts, at most, whose banks the network is compared with."""


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
        validate_every: Number of steps between validations on held-out prompts, 0 for none. None is
            a twentieth of the steps, and none in trainings of less than 200.
        decode_batch: Number of states that are decoded and scored at once for the gradient of a
            reward; None is all of a part of a batch.
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
    validate_every: int | None = None
    decode_batch: int | None = None
    held_out: int = 8
    images: int = 4
    picture_batch: int = 8
    names: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            checks.instance(name, getattr(self, name), (str, Path), "a path")
        checks.instance("settings", self.settings, Settings, "Settings, such as a preset")
        for name in ("parts", "prompts", "sampler_steps", "decode_batch"):
            checks.optional(checks.integer, name, getattr(self, name), 1)
        checks.optional(checks.integer, "validate_every", self.validate_every, 0)
        for name in ("save_every", "held_out", "images", "picture_batch"):
            checks.integer(name, getattr(self, name), 1)

    @property
    def steps_between_validations(self) -> int:
        """Number of steps between validations, 0 for none."""

        if self.validate_every is not None:
            return self.validate_every
        steps = self.settings.steps
        return steps // _VALIDATIONS if steps >= _SHORT else 0

    @property
    def folder(self) -> Path:
        """The folder of the network."""

        return expanded(self.out)


@dataclass(frozen=True)
class Work:
    """A training whose model is loaded, and what it reads.

    Arguments:
        job: The training as it is asked for.
        backbone: The model.
        rewards: Rewards by name, that of the training first; may be none.
        data: The prepared data.
    """

    job: Training
    backbone: TextToImage
    rewards: Mapping[str, RewardFunction]
    data: Prepared

    @cached_property
    def reward(self) -> str:
        """Name of the reward of the training."""

        return self.job.reward or next(iter(self.rewards or rewards_of(self.data)))

    @cached_property
    def scores(self) -> RewardFunction | None:
        """The reward of the training; None if it is known of prepared pictures alone."""

        return self.rewards.get(self.reward)

    @cached_property
    def device(self) -> torch.device:
        """The device of the states."""

        return self.backbone.draw_noise(1, torch.Generator()).device

    @cached_property
    def times(self) -> Tensor:
        """Times of a run, decreasing, with shape (steps + 1,)."""

        drawers = self.data.about.get("drawers", {})
        if self.job.sampler_steps is None and drawers:
            return torch.tensor(next(iter(drawers.values()))["times"], dtype=torch.float64)
        return sampling_times(self.backbone, self.job.sampler_steps)

    @cached_property
    def train_prompts(self) -> list[str]:
        """Prompts to train on."""

        return self._picked("train", self.job.prompts)

    @cached_property
    def unseen_prompts(self) -> list[str]:
        """Held-out prompts whose banks the network is compared with."""

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
        """Returns the draws of prompts, on the device of the model.

        Arguments:
            prompts: The prompts.

        Raises:
            Damaged: If a file of the data is damaged; names it.
        """

        return read_bank(self.data, self.reward, prompts).to(self.device)

    def held_out(
        self, tilts: Mapping[float, Tilt], prompts: Sequence[str] | None = None
    ) -> HeldOut:
        """Returns what a network is held against.

        Arguments:
            tilts: Tilts by strength.
            prompts: Some of the held-out prompts; None for all.
        """

        bank = self.bank(self.unseen_prompts if prompts is None else prompts)
        return HeldOut(bank, tilts, self.times, self.encode, self.job.settings.seed)

    @cached_property
    def encode(self) -> Encode:
        """A function from prompts to what model and network are conditioned on."""

        return Encode(self.data, self.backbone, [*self.train_prompts, *self.unseen_prompts])

    def tilts(self, bank: Bank) -> dict[float, Tilt]:
        """Returns the tilts by strength, of which those of a loaded reward look at pictures.

        Arguments:
            bank: The draws that temperatures are chosen by.

        Raises:
            ValueError: If the draws cannot reach a strength; states the range that they can.
        """

        settings = self.job.settings
        if self.scores is None:
            key = rewards_of(self.data)[self.reward]
            return tilts_of(bank, Stored(self.reward, key), settings)
        return tilts_of(bank, OfPrompts(self.scores), settings, self.backbone.decode)

    def check(self) -> None:
        """Checks that data, model and rewards belong together.

        Raises:
            ValueError: If they do not; says what differs.
        """

        about = self.data.about
        if fingerprint(self.backbone, self.backbone.incidental) != about["model"]:
            raise ValueError(
                f"data in {self.data.folder} was prepared with another model, or other options of "
                "it: use the same --backbone, --path and --option"
            )
        known = rewards_of(self.data)
        if self.reward not in known:
            names = ", ".join(known) or "none"
            raise ValueError(
                f"reward must be one of those that were prepared, {names}, got {self.reward!r}"
            )
        if self.scores is not None and fingerprint(self.scores) != known[self.reward]:
            raise ValueError(
                f"reward {self.reward} is another one than that which the data was scored by: use "
                "the same weights and options, or prepare the data again"
            )
        if self.job.settings.objective in OF_GRADIENTS and self.scores is None:
            raise ValueError(
                "reward must be given to follow its gradient, with objective "
                f"{self.job.settings.objective}"
            )

    def facts(self, tilts: Mapping[float, Tilt], bank: Bank) -> dict[str, Any]:
        """Returns what was trained, and with what, by name.

        Arguments:
            tilts: Tilts by strength.
            bank: The draws of the training.
        """

        settings, data = self.job.settings, self.data
        return {
            **(self.job.names or {}),
            "reward": self.reward,
            "objective": settings.objective,
            "strengths": "; ".join(
                f"{nats:g} nats (beta {tilt.betas[0]:.4g})" for nats, tilt in tilts.items()
            ),
            "times of runs": ", ".join(f"{float(t):.3g}" for t in self.times),
            "data": f"{data.about['kind']}: {len(bank):,} draws of {len(bank.rows):,} prompts",
            "held-out prompts": len(data.split("validation")),
            "steps": f"{settings.steps:,} of {settings.batch_size} states",
            "learning rate": settings.learning_rate,
            "rwguidance": rwguidance.__version__,
        }
