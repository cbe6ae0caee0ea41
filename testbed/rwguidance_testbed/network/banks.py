"""Prompts to learn from or to compare on, and their banks."""

from collections.abc import Sequence

import torch

from rwguidance.bank import Bank
from rwguidance.generation.run import Run
from rwguidance.support.randomness import generator_for

from ..scenes import COLORS, on_background

__all__ = ["draw_bank", "prompts_of"]


def prompts_of(names: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Returns prompts of all names in turn, in random order, every other with a random background.

    The first ones of a longer list are those of a shorter one.

    Arguments:
        names: Names, each of which has thirteen prompts: itself, and with twelve backgrounds.
        count: Number of prompts.
        seed: Seed of the order.

    Raises:
        ValueError: If there are not so many prompts.
    """

    most = len(names) * (1 + len(COLORS))
    if not 1 <= count <= most:
        raise ValueError(f"count must be at least 1 and at most {most} prompts, got {count}")
    generator = generator_for(seed, "prompts")
    order = torch.randperm(len(names), generator=generator).tolist()
    turns: list[list[str]] = []
    for i, name in enumerate(names[j] for j in order):
        colors = [
            list(COLORS)[j] for j in torch.randperm(len(COLORS), generator=generator).tolist()
        ]
        variants = [f"{name} {on_background(color)}" for color in colors]
        variants.insert(i % 2, name)
        turns.append(variants)
    return [text for turn in zip(*turns, strict=True) for text in turn][:count]


def draw_bank(run: Run, prompts: Sequence[str], draws: int, *stream: str) -> Bank:
    """Returns one bank of all prompts, scored, from the store of a run as far as it is there.

    Arguments:
        run: Run of the model and the reward.
        prompts: Distinct prompts.
        draws: Number of draws of each prompt.
        stream: Names of the stream of random numbers.
    """

    banks = []
    for i, prompt in enumerate(prompts):
        run.report("prompts", i, len(prompts))
        banks.append(run.bank(prompt, draws, *stream))
    run.report("prompts", len(prompts), len(prompts))
    rewards = torch.cat([bank.rewards for bank in banks if bank.rewards is not None])
    condition = [prompt for prompt in prompts for _ in range(draws)]
    return Bank(torch.cat([bank.x_0 for bank in banks]), condition, rewards)
