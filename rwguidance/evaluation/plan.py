"""A plan: what an evaluation is asked for, checked before anything expensive is loaded or made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import rwguidance

from ..generation.base import Method, set_checked
from ..generation.job import check_prompts, check_text
from ..support import checks
from ..support.fingerprint import Undescribed
from ..support.outside import require
from .appearance import APPEARANCE
from .prompt_sets import common
from .results import BASE, Cell

__all__ = ["Plan", "TargetSize"]


@dataclass(frozen=True)
class TargetSize:
    """How many draws stand for the tilted law at a strength, and for which prompts.

    Arguments:
        draws: Number of draws of each prompt, at least 2.
        prompts: Number of first prompts that have them; None is all.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of its range.
    """

    draws: int
    prompts: int | None = None

    def __post_init__(self) -> None:
        prompts = checks.optional(checks.integer, "prompts", self.prompts, 1)
        set_checked(self, draws=checks.integer("draws", self.draws, 2), prompts=prompts)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An evaluation as it is asked for; the model, rewards and embeddings come later.

    Arguments:
        prompts: Distinct prompts.
        out: A folder, made if needed.
        methods: Methods by label.
        aligned: Name of the reward that is aligned to.
        held_out: Names of rewards that no method sees.
        embeddings: Names of the embeddings in which laws are compared.
        strengths: Strengths, in nats, at which methods that have one run.
        images: Pictures per prompt and seed.
        seeds: Seeds; each has its own noise and its own banks.
        steps: Steps of the sampler. None is what the model's authors recommend.
        batch_size: Samples that the network, the decoder and the rewards see at once.
        negative_prompt: The text that classifier-free guidance leads away from. None is the
            backbone's own.
        target_draws: Number of draws that stand for the tilted law of each prompt; 0 is no target.
        targets: Sizes of the targets at strengths where they are other ones.
        shown: Number of first prompts of which a picture of each cell is kept.
        developed_on: Prompts on which settings of the methods were chosen.
        restart: Whether to replace results of another plan.
        names: Names of the backbone and of other things, for the records.

    Raises:
        ImportError: If Pillow is missing.
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument makes no sense, or no method can go as far as any strength.
    """

    prompts: Sequence[str]
    out: Path | str
    methods: Mapping[str, Method]
    aligned: str = "reward"
    held_out: Sequence[str] = ()
    embeddings: Sequence[str] = ()
    strengths: Sequence[float] = (0.25, 0.5, 1.0, 2.0)
    images: int = 1
    seeds: Sequence[int] = (0,)
    steps: int | None = None
    batch_size: int = 8
    negative_prompt: str | None = None
    target_draws: int = 256
    targets: Mapping[float, TargetSize] = field(default_factory=dict)
    shown: int = 12
    developed_on: Sequence[str] = ()
    restart: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_prompts(self.prompts)
        checks.instance("out", self.out, (Path, str), "a path")
        _check_methods(self.methods)
        _check_names([self.aligned, *self.held_out, *APPEARANCE], self.embeddings)
        numbers = {
            "images": checks.integer("images", self.images, 1),
            "steps": checks.optional(checks.integer, "steps", self.steps, 1),
            "batch_size": checks.integer("batch_size", self.batch_size, 1),
            "target_draws": checks.integer("target_draws", self.target_draws, 0),
            "shown": checks.integer("shown", self.shown, 0),
        }
        strengths = sorted(checks.number("strengths", one, above=0) for one in self.strengths)
        seeds = [checks.integer("seeds", one) for one in self.seeds]
        for name, values in (("strengths", strengths), ("seeds", seeds)):
            if len(set(values)) < len(values) or not (values or name == "strengths"):
                raise ValueError(f"{name} must be distinct, and one at least, got {values}")
        set_checked(self, strengths=tuple(strengths), seeds=tuple(seeds), **numbers)
        _check_targets(self.targets, self.strengths)
        if self.negative_prompt is not None:
            checks.instance("negative_prompt", self.negative_prompt, str, "a string or None")
            check_text(self.negative_prompt)
        checks.flag("restart", self.restart)
        checks.instance("names", self.names, Mapping, "a mapping from names to names")
        require("PIL.Image", "pictures need", "rewards")
        if not self.cells:
            reasons = "; ".join(f"{cell}: {why}" for cell, why in self.omitted.items())
            raise ValueError(f"methods must be able to run at one strength at least, {reasons}")

    @property
    def folder(self) -> Path:
        """The folder of the results."""

        return checks.path("out", self.out)

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of all rewards, the one that is aligned to first."""

        return (self.aligned, *self.held_out)

    @property
    def pictures(self) -> int:
        """Number of pictures of each prompt and cell."""

        return self.images * len(self.seeds)

    @property
    def batches(self) -> list[range]:
        """Numbers of a prompt's pictures of one seed, in batches."""

        starts = range(0, self.images, self.batch_size)
        return [range(i, min(i + self.batch_size, self.images)) for i in starts]

    @property
    def cells(self) -> Mapping[Cell, Method]:
        """Methods at strengths, in the order of the methods."""

        return self._sweep[0]

    @property
    def omitted(self) -> Mapping[Cell, str]:
        """Reasons for which methods do not run at strengths that they cannot reach."""

        return self._sweep[1]

    @cached_property
    def _sweep(self) -> tuple[dict[Cell, Method], dict[Cell, str]]:
        cells: dict[Cell, Method] = {}
        omitted: dict[Cell, str] = {}
        for label, method in self.methods.items():
            for nats in self.strengths:
                try:
                    moved = method.at(nats)
                except ValueError as error:
                    omitted[Cell(label, nats)] = str(error)
                    continue
                if moved is None:
                    cells[Cell(label)] = method
                    break
                cells[Cell(label, nats)] = moved
            if not self.strengths:
                cells[Cell(label)] = method
        return cells, omitted

    @property
    def reused(self) -> list[str]:
        """The prompts that are reported although settings were chosen on them."""

        return common(self.developed_on, self.prompts)

    def target(self, number: int) -> tuple[int, list[float]]:
        """Returns how many draws stand for the tilted law of a prompt, and at which strengths.

        Arguments:
            number: Number of the prompt.
        """

        meant = {}
        for nats in self.strengths:
            size = self.targets.get(nats)
            if size is None and self.target_draws:
                size = TargetSize(self.target_draws)
            if size is not None and (size.prompts is None or number < size.prompts):
                meant[nats] = size.draws
        return max(meant.values(), default=0), list(meant)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the results and is known without the model, as JSON has it."""

        settings = {
            "rwguidance": rwguidance.__version__,
            **self.names,
            "methods": self._described[0],
            "cells": [[cell.method, cell.nats] for cell in self.cells],
            "omitted": [[cell.method, cell.nats, why] for cell, why in self.omitted.items()],
            "strengths": self.strengths,
            "rewards": self.rewards,
            "embeddings": list(self.embeddings),
            "images": self.images,
            "seeds": self.seeds,
            "negative prompt": self.negative_prompt,
            "targets": [self.target(number) for number in range(len(self.prompts))],
            "shown": self.shown,
            "prompts": list(self.prompts),
            "developed on": list(self.developed_on),
        }
        return dict(json.loads(json.dumps(settings)))

    @property
    def undescribed(self) -> list[str]:
        """Reasons for which results of the methods cannot be told apart, one line each."""

        return self._described[1]

    @cached_property
    def _described(self) -> tuple[dict[str, Any], list[str]]:
        """The settings of the methods by label, and reasons where there are none."""

        settings: dict[str, Any] = {}
        reasons = []
        for label, method in self.methods.items():
            settings[label] = {"name": method.name}
            try:
                settings[label] |= method.settings()
            except Undescribed as reason:
                reasons.append(str(reason))
        return settings, reasons


def _check_methods(methods: Mapping[str, Method]) -> None:
    checks.instance("methods", methods, Mapping, "a mapping from labels to methods")
    if not methods:
        raise ValueError("methods must hold one method at least, got none")
    for label, method in methods.items():
        checks.instance("methods", method, Method, "methods such as Importance(kl=1.0)")
        if not isinstance(label, str) or not label or label == BASE.method:
            raise ValueError(
                f"methods must have labels other than {BASE.method!r}, which is the model alone, "
                f"got {label!r}"
            )


def _check_names(rewards: Sequence[str], embeddings: Sequence[str]) -> None:
    for what, names in (("rewards", rewards), ("embeddings", embeddings)):
        for name in names:
            checks.instance(what, name, str, "names")
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise ValueError(f"{what} must have distinct names, got {twice[0]!r} twice")


def _check_targets(targets: Mapping[float, TargetSize], strengths: Sequence[float]) -> None:
    checks.instance("targets", targets, Mapping, "a mapping from strengths to sizes")
    for nats, size in targets.items():
        checks.instance("targets", size, TargetSize, "sizes such as TargetSize(draws=1600)")
        if nats not in strengths:
            known = ", ".join(f"{one:g}" for one in strengths)
            raise ValueError(f"targets must be at strengths of the plan, {known}, got {nats:g}")
