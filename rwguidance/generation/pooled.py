"""Methods that make some pictures of a prompt together: from one bank, or from one pool."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pooling import Pooled, pool
from ..support import checks
from ..support.randomness import generator_for
from .base import Aligned, set_checked
from .importance import Importance
from .run import Run
from .strength import OfStrength, check_one, checked_strength, tilt_of
from .work import Streams, Work

__all__ = ["Pool", "Resample"]


@dataclass(frozen=True)
class _Group:
    """Pictures that were made together: their states, one per number, and what is said of them."""

    x_0: Tensor
    facts: dict[str, Any]
    each: Sequence[dict[str, Any]]


def _resampled(
    pooled: Pooled, candidates: Tensor, guided: int, n: int, name: Sequence[str | int], seed: int
) -> _Group:
    """Returns `n` of the candidates, the last `guided` of which are guided."""

    picks = pooled.draw(n, generator_for(seed, *name)).tolist()
    facts = {
        "effective candidates": round(pooled.effective, 2),
        "distinct": len(set(picks)),
        "log z": pooled.log_z,
    }
    first = len(candidates) - guided
    each = [{"chosen": pick, "guided": pick >= first} for pick in picks]
    return _Group(candidates[picks], facts, each if guided else [{"chosen": p} for p in picks])


def _aligned(method: "Resample | Pool", run: Run, prompt: str, numbers: Sequence[int]) -> Aligned:
    """Collects pictures of some numbers from the groups that they belong to."""

    states, each = [], []
    for number in numbers:
        place, group = number % method.pictures, number // method.pictures
        make = lambda group=group: method.group(run, prompt, group)
        made: _Group = run.keep("group", (method, prompt, group), make)
        states.append(made.x_0[place])
        each.append({**made.facts, **made.each[place]})
    return Aligned(torch.stack(states), {}, each)


@dataclass(frozen=True)
class Resample(OfStrength):
    r"""Pictures drawn from one bank by their weights, so that pictures of a prompt share its cost.

    Systematic resampling: a draw comes as often as its weight says, rounded. Where few draws have
    all the weight, pictures come several times.

    Arguments:
        bank: Number of draws per prompt.
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        pictures: Number of pictures of a prompt that are made together; which numbers they have,
            and nothing else of the run, decides what a picture is.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "resample"

    bank: int = 64
    beta: float | None = None
    kl: float | None = None
    pictures: int = 16

    def __post_init__(self) -> None:
        set_checked(
            self,
            bank=checks.integer("bank", self.bank, 2),
            pictures=checks.integer("pictures", self.pictures, 1),
            **checked_strength(self.beta, self.kl, "bank", self.bank),
        )
        check_one(self.beta, self.kl)

    def streams(self, images: int) -> list[Streams]:
        return [Streams("bank", 1, self.bank)]

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        return _aligned(self, run, prompt, numbers)

    def group(self, run: Run, prompt: str, number: int) -> _Group:
        """Makes the pictures of the group of a number."""

        bank = run.bank(prompt, self.bank, "bank")
        assert bank.rewards is not None
        beta = tilt_of(run, prompt, self.beta, self.kl, self.bank).betas[0]
        name = ("resample", prompt, number)
        made = _resampled(
            pool(bank.rewards, None, beta), bank.x_0, 0, self.pictures, name, run.seed
        )
        return replace(made, facts={"beta": beta, **made.facts})


@dataclass(frozen=True)
class Pool(Importance):
    r"""Guided pictures and a bank in one pool, from which pictures are drawn by their weights.

    Guidance stops short of the tilted law, and a bank has few draws that count; together they make
    the law at a fraction of the calls of best-of-n. See :mod:`rwguidance.pooling`.

    Arguments:
        bank: Number of draws per prompt, of which the guidance is made as well.
        pictures: Number of pictures of a prompt that are made together; which numbers they have,
            and nothing else of the run, decides what a picture is.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "pool"

    bank: int = 32
    pictures: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(self, pictures=checks.integer("pictures", self.pictures, 1))

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        groups = -(-images // self.pictures)
        guided = Work.of_samples(self.pictures, steps, batch_size) * groups
        return guided + Work(decoded=images, scored=images)

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        return _aligned(self, run, prompt, numbers)

    def group(self, run: Run, prompt: str, number: int) -> _Group:
        """Makes the pictures of the group of a number."""

        first = number * self.pictures
        guided, rewards, facts = [], [], {}
        for start in range(first, first + self.pictures, run.batch_size):
            numbers = range(start, min(start + run.batch_size, first + self.pictures))
            made = super().align(run, prompt, numbers, torch.empty(0), torch.empty(0))
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
        return replace(group, facts={**facts, **about, **group.facts})
