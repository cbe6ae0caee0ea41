"""Sets of prompts: subsets and splits by a seed, and what two sets have in common.

Prompts that are equal up to case, punctuation and white space are the same prompt to whoever
chooses settings on one and reports another. So a split keeps them on one side, and :func:`common`
finds them. Which prompts a seed picks depends on their words alone: neither on their order, nor on
what else is in the set, nor on the version of any library.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..support.checks import integer
from ..support.randomness import generator_for

__all__ = ["PromptSet", "common"]

_APOSTROPHES = dict.fromkeys(map(ord, "'\u2018\u2019`\u00b4"))


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptSet:
    """A set of prompts.

    Arguments:
        name: The name under which it is registered, and how it was picked from that, if it was.
        title: The name it goes by in the literature.
        license: SPDX identifier of its license, or "unknown".
        source: Where it is published.
        prompts: The prompts, distinct and in order.
        groups: The group of each prompt, such as its category, in the same order; empty if there
            are no groups.
        notes: Sentences that the user should read, such as that prompts were dropped.

    Raises:
        ValueError: If there are no prompts, a prompt comes twice, or there are groups, but not one
            for each prompt.
    """

    name: str
    title: str
    license: str
    source: str
    prompts: Sequence[str]
    groups: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(
                f"prompts must be distinct and at least one, got {len(self.prompts)} with "
                f"{len(set(self.prompts))} distinct ones"
            )
        if self.groups and len(self.groups) != len(self.prompts):
            raise ValueError(
                f"groups must be one for each of the {len(self.prompts)} prompts, "
                f"got {len(self.groups)}"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"<PromptSet {self.name}: {len(self)} prompts, {self.license}>"

    @property
    def number(self) -> int:
        """Number of prompts."""

        return len(self.prompts)

    def subset(self, n: int, seed: int = 0) -> "PromptSet":
        """Returns `n` prompts that a seed picks, in the order of the set.

        A larger subset of the same seed holds a smaller one. The name says how it was picked.

        Arguments:
            n: Number of prompts.
            seed: Seed of the choice.

        Raises:
            ValueError: If there are not so many prompts.
        """

        self._check_size("n", n, len(self))
        return self._picked(self._shuffled("subset", seed)[:n], f"{n} of {len(self)}, seed {seed}")

    def split(self, seed: int = 0, *, development: int) -> tuple["PromptSet", "PromptSet"]:
        """Returns prompts to choose settings on, and the others, to report: none is in both.

        Arguments:
            seed: Seed of the choice.
            development: Number of prompts to choose settings on. It may be exceeded by prompts that
                equal the last one up to case, punctuation and white space.

        Raises:
            ValueError: If so many prompts leave none to report.
        """

        self._check_size("development", development, len(self) - 1)
        order = self._shuffled("split", seed)
        end = development
        while end < len(order) and self._wording(order[end]) == self._wording(order[end - 1]):
            end += 1
        if end == len(order):
            raise ValueError(
                f"development must leave a prompt to report, got {development} of {len(self)}, of "
                "which the others are the same up to case, punctuation and white space"
            )
        how = f"split of {development}, seed {seed}"
        return (
            self._picked(order[:end], f"development {how}"),
            self._picked(order[end:], f"report {how}"),
        )

    def _check_size(self, name: str, n: int, most: int) -> None:
        if integer(name, n, 1) > most:
            raise ValueError(f"{name} must be at most {most} of {len(self)} prompts, got {n}")

    def _wording(self, i: int) -> str:
        return wording(self.prompts[i])

    def _shuffled(self, purpose: str, seed: int) -> list[int]:
        """Places of the prompts in an order that seed and wording decide."""

        # The seeds that digests give, not numbers drawn from them, which versions may change.
        rank = lambda i: generator_for(seed, purpose, self._wording(i)).initial_seed()
        return sorted(range(len(self)), key=rank)

    def _picked(self, places: Sequence[int], how: str) -> "PromptSet":
        places = sorted(places)
        pick = lambda values: tuple(values[i] for i in places) if values else ()
        prompts, groups = pick(self.prompts), pick(self.groups)
        return replace(self, name=f"{self.name} ({how})", prompts=prompts, groups=groups)


def common(developed: Iterable[str], reported: Iterable[str]) -> list[str]:
    """Returns the reported prompts on which settings were chosen, in order.

    Arguments:
        developed: Prompts on which settings were chosen.
        reported: Prompts that are reported. One is in common if it equals one of the others up to
            case, punctuation and white space.
    """

    known = set(map(wording, developed))
    return [prompt for prompt in reported if wording(prompt) in known]


def wording(prompt: str) -> str:
    """The words of a prompt, in lower case and a single space apart; apostrophes do not part words.

    A prompt of punctuation alone is its own wording.
    """

    text = unicodedata.normalize("NFKC", prompt).casefold().translate(_APOSTROPHES)
    letters = (" " if unicodedata.category(c).startswith(("P", "Z", "C")) else c for c in text)
    return " ".join("".join(letters).split()) or prompt.strip()
