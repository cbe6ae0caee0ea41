"""The test bed: its model, its rewards, the exactly tilted law, and what is seen of pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rwguidance as rw
from rwguidance import backbones, metrics, rewards
from rwguidance.backbone import TextToImage
from rwguidance.evaluation import embeddings, prompts
from rwguidance.evaluation.appearance import APPEARANCE
from rwguidance.evaluation.judged import judged_draws
from rwguidance.evaluation.judges import Judges
from rwguidance.evaluation.targets import Draws, tilted
from rwguidance.generation import BestOfN
from rwguidance.generation.base import Method
from rwguidance.generation.run import Run
from rwguidance.metrics.kernels import Reference, negative_distance
from rwguidance.store import Store
from rwguidance.support.randomness import generator_for

from .counting import Spent, spent

__all__ = ["GOLD", "JUDGE", "PROXY", "Bed", "Maker", "Target", "common_bank"]

PROXY, GOLD, JUDGE = "emoji-pick", "emoji-gold", "emoji-judge"
HELD_OUT = ("emoji-hps", GOLD, "emoji-match")
NATS, TOGETHER, GROUP = 1.0, 64, 16
"""Strength of the target; pictures that a network sees at once; pictures that are made together."""


@dataclass(frozen=True)
class Maker:
    """How pictures are made: by a model, and a method beside it.

    Arguments:
        method: The method; None for what the model makes.
        backbone: The model in the place of the base model, such as a fine-tuned one.
    """

    method: Method | None = None
    backbone: TextToImage | None = None

    def states(self, run: Run, prompt: str, n: int) -> Tensor:
        """Returns the clean states of the first pictures of a prompt."""

        names = [("image", prompt, i) for i in range(n)]
        method = self.method
        if method is None:
            return run.sample(run.backbone, prompt, names)
        rewards = torch.full((n,), torch.nan, dtype=torch.float64)
        if not method.chooses:  # it has no use for the base samples
            return method.align(run, prompt, range(n), run.noise(names), rewards).x_0
        base = run.sample(run.backbone, prompt, names)
        if isinstance(method, BestOfN):
            rewards = run.score(run.decode(base), prompt).values
        return method.align(run, prompt, range(n), base, rewards).x_0


@dataclass(frozen=True)
class Target:
    """The exactly tilted law of prompts, and the base model's, from draws that no method sees.

    Arguments:
        means: Mean rewards of the tilted law by name, one for each prompt.
        base: Mean rewards of the base model by name, one for each prompt.
        reference: Weighted embeddings, against which distances are taken.
    """

    means: Mapping[str, list[float]]
    base: Mapping[str, list[float]]
    reference: Reference


@dataclass(frozen=True)
class Bed:
    """The test bed, loaded.

    Arguments:
        folder: Folder in which draws are kept.
        other: Reward that is aligned to in the place of the proxy; None for the proxy itself.
    """

    folder: Path
    other: Callable[..., Tensor] | None = None

    @cached_property
    def backbone(self) -> Any:
        return backbones.load("emoji-turbo").requires_grad_(False)

    @cached_property
    def rewards(self) -> dict[str, Any]:
        return {name: rewards.load(name).requires_grad_(False) for name in (PROXY, *HELD_OUT)}

    @cached_property
    def judge(self) -> Any:
        return embeddings.load(JUDGE)

    @property
    def aligned(self) -> Any:
        """The reward that is aligned to."""

        return self.other or self.rewards[PROXY]

    @property
    def times(self) -> Tensor:
        return self.backbone.times(1)

    def prompts(self, split: str, n: int) -> list[str]:
        """Returns prompts to choose on, "development", or to report, "report"."""

        return list(prompts.load(f"emoji-{split}").subset(n).prompts)

    @cached_property
    def training_prompts(self) -> list[str]:
        """Prompts to train on: of learned names, and in neither of the other sets."""

        from rwguidance_testbed.prompt_sets import DEVELOPMENT, REPORT, prompts_of

        others = {*DEVELOPMENT.prompts, *REPORT.prompts}
        return [p.text for p in prompts_of(600, 2, others) if p.part == "learned"]

    def run(self, seed: int, backbone: TextToImage | None = None, kept: bool = True) -> Run:
        store = Store(self.folder) if kept and backbone is None else None
        model = backbone or self.backbone
        return Run(model, self.aligned, self.times, seed, TOGETHER, store=store)

    def look(self, images: Tensor, prompt: str) -> tuple[dict[str, Tensor], Tensor]:
        """Returns rewards by name, each (B,), and the judge's embeddings, (B, D), of pictures."""

        with torch.no_grad():
            rows = [prompt] * len(images)
            seen = {name: r(images, rows).double() for name, r in self.rewards.items()}
            seen |= {name: number(images).double() for name, number in APPEARANCE.items()}
            return seen, self.judge(images).float()

    def target(self, split: str, n: int, draws: int, nats: float = NATS) -> Target:
        """Returns the law tilted by the proxy, for each of the first prompts.

        Its draws are judged by gold and its term of the prompt alone, of the held-out rewards.
        """

        key = (split, n, draws, nats)
        if key not in self._targets:
            self._targets[key] = self._target(*key)
        return self._targets[key]

    @cached_property
    def _targets(self) -> dict[tuple[str, int, int, float], Target]:
        return {}

    def _target(self, split: str, n: int, draws: int, nats: float) -> Target:
        store = Store(self.folder)
        run = Run(self.backbone, self.rewards[PROXY], self.times, 0, TOGETHER, store=store)
        some = {name: self.rewards[name] for name in (PROXY, GOLD, "emoji-match")}
        judges, chosen, found = Judges(run, some, {JUDGE: self.judge}), self.prompts(split, n), []
        for prompt in chosen:
            seen = judged_draws(run, judges, prompt, draws, "target")
            found.append(Draws(seen.rewards, seen.embeddings, [nats]))
        law = tilted(found, PROXY, nats)
        base = {name: [float(one.rewards[name].mean()) for one in found] for name in some}
        log_w = [one for one in law.log_weights if one is not None]
        if len(log_w) < n:
            raise ValueError(f"draws must reach {nats:g} nats for every prompt, got {draws}")
        groups = [prompt for prompt in chosen for _ in range(draws)]
        features = torch.cat([one.embeddings[JUDGE] for one in found])
        sample = metrics.Sample(features, torch.cat(log_w), groups)
        means = {name: law.means[name].tolist() for name in some}
        return Target(means, base, Reference(sample, negative_distance))

    def measured(
        self, maker: Maker, target: Target, chosen: Sequence[str], images: int, seed: int
    ) -> dict[str, Any]:
        """Returns rewards and distances of a method's pictures, by prompt where they are.

        Arguments:
            maker: How pictures are made.
            target: The tilted law of the prompts.
            chosen: The prompts.
            images: Number of pictures of each.
            seed: Seed of the noise, and of the method.
        """

        run, parts, values = self.run(seed, maker.backbone), [], []
        for prompt in chosen:
            seen, embedded = self.look(run.decode(maker.states(run, prompt, images)), prompt)
            values.append({name: float(value.mean()) for name, value in seen.items()})
            parts.append(embedded)
        groups = [prompt for prompt in chosen for _ in range(images)]
        sample = metrics.Sample(torch.cat(parts), None, groups)
        distance, spread = target.reference.distance(sample), metrics.pairwise_distance(sample)
        near = target.reference.y.resampled(images, generator_for(seed, "resampled"))
        shares = metrics.precision_recall(sample, near)
        row: dict[str, Any] = {name: [one[name] for one in values] for name in values[0]}
        row["energy"] = [distance.by_group[prompt] for prompt in chosen]
        row["diversity"] = [spread.by_group[prompt] for prompt in chosen]
        row["precision"], row["recall"] = shares.precision.value, shares.recall.value
        return row

    def picture(self, maker: Maker) -> Spent:
        """Returns what a picture takes, of a group of a prompt, with all draws that it needs."""

        prompt = self.training_prompts[0]

        def work() -> None:
            run = self.run(0, maker.backbone, kept=False)
            run.decode(maker.states(run, prompt, GROUP))

        return spent(work) * (1 / GROUP)

    @cached_property
    def draw(self) -> Spent:
        """What a draw of the base model takes, with its picture and its reward."""

        prompt = self.training_prompts[0]

        def work() -> None:
            run = self.run(0, kept=False)
            run.bank(prompt, GROUP, "cost")

        return spent(work) * (1 / GROUP)


def common_bank(bed: Bed, draws: int, seed: int, each: int = 16) -> rw.Bank:
    """Returns draws of training prompts with rewards, `each` of a prompt; the seed picks prompts.

    Arguments:
        bed: The test bed.
        draws: Number of draws, a multiple of `each`.
        seed: Seed of the choice and of the draws.
        each: Number of draws of a prompt.
    """

    run, known = bed.run(seed), bed.training_prompts
    order = torch.randperm(len(known), generator=generator_for(seed, "training prompts")).tolist()
    banks = [run.bank(known[i], each, "training") for i in order[: draws // each]]
    rows = [prompt for bank in banks for prompt in bank.condition]
    x_0, values = (torch.cat([getattr(b, k) for b in banks]) for k in ("x_0", "rewards"))
    return rw.Bank(x_0, rows, values)
