"""The evaluation of a network against importance sampling on banks that it has not seen."""

import math
from typing import Any

import torch
from torch import nn

from rwguidance.bank import Bank
from rwguidance.estimators import ImportanceSampling, LearnedShift
from rwguidance.guidance import GuidedModel
from rwguidance.samplers import sample
from rwguidance.statistics import mean_and_error
from rwguidance.support.conditions import take
from rwguidance.support.randomness import generator_for
from rwguidance.tilt import Tilt

from .objective import BankMean

__all__ = ["agreement", "gain"]


@torch.no_grad()
def agreement(
    network: nn.Module, bank: Bank, tilt: Tilt, backbone: Any, states: int = 8, seed: int = 0
) -> dict[str, float]:
    r"""Compares a network with importance sampling on a bank that it has not seen.

    Half of the bank estimates the shift s, and so does the other half, with errors that are
    independent of the network's and of each other. So :math:`\langle s_1, s_2 \rangle` estimates
    the square of the length of the exact shift, free of the noise of the bank, and
    :math:`\langle g, (s_1 + s_2) / 2 \rangle` its product with the network's g. States are the
    noise that the model starts from. Products are summed over states and prompts.

    Arguments:
        network: Network for the shift.
        bank: Draws of the prompts to compare on, scored.
        tilt: The tilt.
        backbone: The model, at whose first time they are compared.
        states: Number of states of each prompt.
        seed: Seed of the states.

    Returns:
        The cosine between the network's shift and the exact one, its relative error and the ratio
        of their lengths; the cosine of the two halves of the bank with each other; the share of
        the network's squared length that does not depend on the state. NaN where noise hides the
        length of the exact shift.
    """

    prompts = [key for key in bank.rows for _ in range(states)]
    condition = backbone.condition(prompts)
    x_t = backbone.draw_noise(len(prompts), generator_for(seed, "states"))
    start = backbone.times(1)[0]
    t = start.expand(len(prompts)).clone()
    model = BankMean(backbone.schedule, bank).starting(float(start))
    first, second = (
        ImportanceSampling(half, tilt)(model, x_t, t, condition).shift.double().flatten(1)
        for half in _halves(bank)
    )
    own = network(x_t, t, condition).double().flatten(1)
    square = float((first * second).sum())
    length = float(own.square().sum())
    product = float((own * (first + second) / 2).sum())
    constant = own.reshape(len(bank.rows), states, -1).mean(1).square().sum() * states
    positive = square > 0 and length > 0
    error = length - 2 * product + square
    return {
        "cosine": product / math.sqrt(length * square) if positive else math.nan,
        "relative_error": math.sqrt(max(error, 0.0) / square) if square > 0 else math.nan,
        "length_ratio": math.sqrt(length / square) if square > 0 else math.nan,
        "cosine_of_halves": square / float(first.norm() * second.norm()),
        "share_that_is_constant": float(constant) / length if length > 0 else math.nan,
    }


@torch.no_grad()
def gain(
    network: nn.Module,
    bank: Bank,
    tilt: Tilt,
    backbone: Any,
    samples: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Measures the gain of guidance by the network in one step, and that of the tilted law.

    Arguments:
        network: Network for the shift.
        bank: Draws of the prompts to compare on, scored.
        tilt: The tilt.
        backbone: The model.
        samples: Number of samples of each prompt, with and without guidance from the same noise.
        seed: Seed of the noise.

    Returns:
        Means over prompts of the gain, its standard error over prompts, and the gain of the tilted
        bank, all in reward units.
    """

    assert bank.rewards is not None
    gains, targets = [], []
    guided = GuidedModel(backbone, LearnedShift(network))
    for prompt, rows in bank.rows.items():
        prompts = [prompt] * samples
        condition = backbone.condition(prompts)
        noise = backbone.draw_noise(samples, generator_for(seed, "gain", str(prompt)))
        scores = [
            tilt.score(sample(m, backbone.sampler, noise, backbone.times(1), condition), prompts)
            for m in (backbone, guided)
        ]
        gains.append((scores[1] - scores[0]).double().mean())
        rewards = bank.rewards[rows].double()
        targets.append((tilt.weigh(rewards).softmax(0) * rewards).sum() - rewards.mean())
    gain, error = mean_and_error(torch.stack(gains))
    return {
        "gain": gain,
        "gain_standard_error": error,
        "gain_of_the_tilted_law": float(torch.stack(targets).mean()),
    }


def _halves(bank: Bank) -> tuple[Bank, Bank]:
    """Returns two banks, each with every other draw of every prompt."""

    def half(k: int) -> Bank:
        assert bank.rewards is not None
        rows = [i for r in bank.rows.values() for i in range(r.start, r.stop)[k::2]]
        return Bank(bank.x_0[rows], take(bank.condition, rows), bank.rewards[rows])

    return half(0), half(1)
