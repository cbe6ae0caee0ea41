"""Generated prompts of the test bed: those that its figures report, and others to choose on.

Both sets ask for all names that generators learn, and for those held out, so their things are the
same; but what one of them says of a thing, the other does not, with any style.

    python -m rwguidance_testbed.prompt_sets 160 > prompts.txt

writes prompts to train on: of the names that generators learn, and as neither set words them.
"""

import itertools
import sys
from collections.abc import Collection
from dataclasses import dataclass

import torch

from rwguidance.evaluation import PromptSet
from rwguidance.support.randomness import generator_for

from .data import load_names, sources
from .scenes import COLORS, on_background

__all__ = ["DEVELOPMENT", "REPORT", "Prompt", "prompts_of", "training_prompts"]


@dataclass(frozen=True)
class Prompt:
    """A prompt, with what is known of it.

    Arguments:
        text: The prompt.
        name: Name of the thing in it.
        part: Part of the names that this one belongs to, "learned" or "held out".
        real: Caption of real pictures of it: without the style, in which the thing may never have
            been drawn.
    """

    text: str
    name: str
    part: str
    real: str


def prompts_of(count: int, seed: int = 0, without: Collection[str] = ()) -> list[Prompt]:
    """Returns prompts of all names in turn, in random order, some with background or style.

    Arguments:
        count: Number of prompts.
        seed: Seed of the order, the backgrounds and the styles.
        without: Captions of real pictures that no prompt may have.
    """

    parts = {"learned": load_names()["train"], "held out": load_names()["held_out"]}
    names = [(name, part) for part, members in parts.items() for name in members]
    styles = [row["words"] for row in sources()["styles"]]
    generator = generator_for(seed, "prompts")
    pick = lambda n: int(torch.randint(n, (), generator=generator))
    order = torch.randperm(len(names), generator=generator).tolist()
    prompts: dict[str, Prompt] = {}
    for i in itertools.count():
        if len(prompts) == count:
            return list(prompts.values())
        name, part = names[order[i % len(order)]]
        color, style = list(COLORS)[pick(len(COLORS))], styles[pick(len(styles))]
        real = f"{name} {on_background(color)}" if i % 2 else name
        text = f"{real}, {style} style" if i // 2 % 2 else real
        if real not in without:
            prompts.setdefault(text, Prompt(text, name, part, real))
    raise AssertionError


def _set_of(name: str, title: str, prompts: list[Prompt]) -> PromptSet:
    return PromptSet(
        name=name,
        title=title,
        license="MIT",
        source="rwguidance_testbed",
        prompts=tuple(prompt.text for prompt in prompts),
        groups=tuple(prompt.part for prompt in prompts),
    )


_REPORTED = prompts_of(200)

REPORT = _set_of("emoji-report", "Prompts that the test bed's figures report", _REPORTED)
"""The 200 prompts of seed 0, in the groups "learned" and "held out"."""

DEVELOPMENT = _set_of(
    "emoji-development",
    "Prompts of the test bed to choose settings on",
    prompts_of(200, 1, {prompt.real for prompt in _REPORTED}),
)
"""200 prompts of seed 1 that say nothing that a reported one says, in the same groups."""


def training_prompts(count: int) -> list[str]:
    """Returns prompts to train networks on, those of seed 2.

    They are of the names that generators learn, and worded as no prompt of the two sets is.

    Arguments:
        count: Number of prompts.
    """

    known = {*REPORT.prompts, *DEVELOPMENT.prompts}
    found = prompts_of(2 * count, 2)
    return [one.text for one in found if one.part == "learned" and one.text not in known][:count]


if __name__ == "__main__":
    print("\n".join(training_prompts(int(sys.argv[1]))))
