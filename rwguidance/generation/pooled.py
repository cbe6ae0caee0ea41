"""Methods that make some pictures of a prompt together: from one bank, or from one pool."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pooling import Pooled, pool
from ..renewal import Renewed, renew, renoising
from ..support import checks
from ..support.randomness import generator_for
from ..tilt import Tilt
from .base import Aligned, Method, set_checked
from .importance import Importance
from .run import Run
from .strength import OfStrength, check_one, checked_strength, tilt_of
from .work import Streams, Work

__all__ = ["Group", "Pool", "Resample", "Together"]


@dataclass(frozen=True)
class Group:
    r"""Pictures that were made together.

    Arguments:
        x_0: Clean states, one per number, with shape (B, \*event).
        facts: Facts about all of them, in values that JSON can hold.
        each: Facts about each of them, B in number.
    """

    x_0: Tensor
    facts: dict[str, Any]
    each: Sequence[dict[str, Any]]


def _resampled(
    pooled: Pooled, candidates: Tensor, guided: int, n: int, name: Sequence[str | int], seed: int
) -> Group:
    """Returns `n` of the candidates, the last `guided` of which are guided."""

    picks = pooled.draw(n, generator_for(seed, *name)).tolist()
    facts = {
        "effective candidates": round(pooled.effective, 2),
        "distinct": len(set(picks)),
        "log z": pooled.log_z,
    }
    first = len(candidates) - guided
    each = [{"chosen": pick, "guided": pick >= first} for pick in picks]
    return Group(candidates[picks], facts, each if guided else [{"chosen": p} for p in picks])


@dataclass(frozen=True, kw_only=True)
class Together(Method):
    """A method that resamples some pictures of a prompt together.

    Arguments:
        pictures: Number of pictures of a prompt that are made together; which numbers they have,
            and nothing else of the run, decides what a picture is.
        renew: Number of moves that make copies new: each noises every picture to the time of half
            the steps, denoises it, and keeps that by a Metropolis test. Exact for DDIM(eta=1) with
            many steps, and nearly so for samplers without randomness.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If it is out of its range.
    """

    pictures: int = 16
    renew: int = 0

    def __post_init__(self) -> None:
        set_checked(
            self,
            pictures=checks.integer("pictures", self.pictures, 1),
            renew=checks.integer("renew", self.renew, 0),
        )

    def check(self, times: Tensor) -> None:
        super().check(times)
        if self.renew and len(times) < 3:
            raise ValueError(
                "renew needs two steps at least, since it noises pictures to the time of one "
                f"within the run, got {len(times) - 1}; pcn moves the noise of a single step"
            )

    def _groups(self, images: int) -> int:
        """Returns the number of groups that hold so many pictures."""

        return math.ceil(images / self.pictures)

    def _moves(self, images: int, steps: int, batch_size: int) -> Work:
        """Returns the work on `renew` moves of the groups that hold so many pictures."""

        if not self.renew:
            return Work()
        move = Work.of_samples(self.pictures, steps - steps // 2, batch_size)
        start = Work(decoded=self.pictures, scored=self.pictures)
        return (move * self.renew + start) * self._groups(images)

    def _renewed(self, group: Group, run: Run, prompt: str, number: int, beta: float) -> Group:
        """Returns the pictures of a group, of a number, after their moves."""

        if not self.renew:
            return group
        names = [("renew", self.name, prompt, number, i) for i in range(self.pictures)]
        times = run.times[(len(run.times) - 1) // 2 :]
        moves = renoising(run.model, run.model.sampler, times)
        # A picture that cannot be scored is none to move to.
        score = lambda images, _: run.score(images, prompt).values.nan_to_num(
            nan=-torch.inf, neginf=-torch.inf
        )
        made = renew(
            group.x_0,
            Tilt(score, beta, run.backbone.decode),
            lambda x_0, _, sources: moves(x_0, run.condition(prompt, len(x_0)), sources),
            self.renew,
            generator=[generator_for(run.seed, *name) for name in names],
            batch_size=run.batch_size,
        )
        return _moved(group, made)

    @abstractmethod
    def group(self, run: Run, prompt: str, number: int) -> Group:
        """Makes the pictures of a group, which have the numbers from `number` times `pictures` on.

        Arguments:
            run: The run.
            prompt: The prompt.
            number: Number of the group.
        """

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        states, each = [], []
        for number in numbers:
            place, group = number % self.pictures, number // self.pictures
            make = lambda group=group: self.group(run, prompt, group)
            made: Group = run.keep("group", (self, prompt, group), make)
            states.append(made.x_0[place])
            each.append({**made.facts, **made.each[place]})
        return Aligned(torch.stack(states), {}, each)


def _moved(group: Group, made: Renewed) -> Group:
    """A group whose pictures are those that moves have made of it."""

    shares = made.acceptance.tolist()
    still = {one["chosen"] for one, share in zip(group.each, shares, strict=True) if not share}
    distinct = {
        "distinct": len(still) + sum(share > 0 for share in shares),
        "distinct before moves": group.facts["distinct"],
    }
    each = [
        {**one, "acceptance": round(share, 3)}
        for one, share in zip(group.each, shares, strict=True)
    ]
    return Group(made.x_0, {**group.facts, **distinct}, each)


@dataclass(frozen=True)
class Resample(Together, OfStrength):
    r"""Pictures drawn from one bank by their weights, so that pictures of a prompt share its cost.

    Systematic resampling: a draw comes as often as its weight says, rounded. Where few draws have
    all the weight, pictures come several times.

    Arguments:
        bank: Number of draws per prompt.
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "resample"

    bank: int = 64
    beta: float | None = None
    kl: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(
            self,
            bank=checks.integer("bank", self.bank, 2),
            **checked_strength(self.beta, self.kl, "bank", self.bank),
        )
        check_one(self.beta, self.kl)

    def streams(self, images: int) -> list[Streams]:
        return [Streams("bank", 1, self.bank)]

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        return super().work(images, steps, batch_size) + self._moves(images, steps, batch_size)

    def group(self, run: Run, prompt: str, number: int) -> Group:
        bank = run.bank(prompt, self.bank, "bank")
        assert bank.rewards is not None
        beta = tilt_of(run, prompt, self.beta, self.kl, self.bank).betas[0]
        name = ("resample", prompt, number)
        made = _resampled(
            pool(bank.rewards, None, beta), bank.x_0, 0, self.pictures, name, run.seed
        )
        made = replace(made, facts={"beta": beta, **made.facts})
        return self._renewed(made, run, prompt, number, beta)


@dataclass(frozen=True)
class Pool(Together, Importance):
    r"""Guided pictures and a bank in one pool, from which pictures are drawn by their weights.

    Guidance stops short of the tilted law, and a bank has few draws that count; together they make
    the law at a fraction of the calls of best-of-n. See :mod:`rwguidance.pooling`.

    Arguments:
        bank: Number of draws per prompt, of which the guidance is made as well.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "pool"

    bank: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        Importance.__post_init__(self)

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        guided = Work.of_samples(self.pictures, steps, batch_size) * self._groups(images)
        moves = self._moves(images, steps, batch_size)
        return guided + moves + Work(decoded=images, scored=images)

    def group(self, run: Run, prompt: str, number: int) -> Group:
        first = number * self.pictures
        guided, rewards, facts = [], [], {}
        for start in range(first, first + self.pictures, run.batch_size):
            numbers = range(start, min(start + run.batch_size, first + self.pictures))
            made = Importance.align(self, run, prompt, numbers, torch.empty(0), torch.empty(0))
            guided.append(made.x_0)
            values = run.score(run.decode(made.x_0), prompt).values
            rewards.append(values.nan_to_num(nan=-torch.inf, neginf=-torch.inf))
            facts = made.facts
        bank = run.bank(prompt, self.bank, "bank")
        assert bank.rewards is not None
        pooled = pool(bank.rewards, torch.cat(rewards), facts["beta"])
        candidates = torch.cat((bank.x_0, *guided))
        name = ("pool", prompt, number)
        group = _resampled(pooled, candidates, self.pictures, self.pictures, name, run.seed)
        about = {"reach": round(pooled.reach, 3), "misfit": round(pooled.misfit, 3)}
        group = replace(group, facts={**facts, **about, **group.facts})
        return self._renewed(group, run, prompt, number, facts["beta"])
