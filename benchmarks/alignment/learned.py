"""Networks beside the frozen model, by the presets of `rwguidance train`, and the noise network."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import rwguidance as rw
from rwguidance.generation import ChangeNetwork, Network, NoiseNetwork, OutputNetwork
from rwguidance.networks import GuidanceNetwork
from rwguidance.noise_space import flow_map
from rwguidance.support.conditions import take
from rwguidance.support.randomness import generator_for
from rwguidance.trainer import PRESETS, Settings
from rwguidance.trainer.held_out import HeldOut
from rwguidance.trainer.lengths import Lengths, find_lengths
from rwguidance.trainer.material import Encoded, OfPrompts, tilts_of
from rwguidance.trainer.problem import LONGER, make_network, make_objective, variance_of
from rwguidance.trainer.settings import OF_GRADIENTS
from rwguidance.training import GradientObjective, NoiseObjective, OutputObjective, train

from .bed import Bed, Maker, common_bank
from .counting import Spent, spent

__all__ = ["maker_of", "trained"]

FEW, UNSEEN = 256, 128
"""Draws from which beta and variance follow where no more are learned from; draws of prompts that a
length is set on."""

OUTPUT = Settings(
    objective="output", nats=(1.0,), steps=1000, batch_size=16, learning_rate=1e-3, average=0.99
)
"""Settings of networks that score new pictures in every step: "output" and "noise"."""

Weights = dict[str, Tensor]


class Encode:
    """A function from prompts to their condition.

    Arguments:
        backbone: The model.
    """

    depends_on = ("backbone",)

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone

    def __call__(self, prompts: Sequence[Any]) -> Any:
        distinct = list(dict.fromkeys(prompts))
        rows = [distinct.index(prompt) for prompt in prompts]
        return take(self.backbone.condition(distinct), rows)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of pooled and token embeddings, as networks name them."""

        shown = self.backbone.condition(["a"]).embeddings
        return {"text": shown["pooled"].shape[-1], "tokens": shown["text"].shape[-1]}


def settings_of(kind: str, trial: Mapping[str, Any], budget: int, seed: int) -> Settings:
    """Returns the settings of a preset for a budget: pictures that are made, or draws of a bank.

    A preset's own steps are for budgets a hundred times as large. A picture that a step makes costs
    most of the step, so the budget says their number; a draw of a bank is seen eight times.
    """

    preset = PRESETS.get(kind, OUTPUT)
    shown = {key: value for key, value in trial.items() if key in Settings.__dataclass_fields__}
    if preset.objective == "gradients":  # steps make no pictures
        return replace(preset, pictures=budget, seed=seed, **shown)
    made = preset.objective == "output"
    steps = budget // preset.batch_size if made else budget * 8 // preset.batch_size
    return replace(preset, steps=steps, warm_up=max(1, steps // 10), seed=seed, **shown)


def trained(
    bed: Bed, kind: str, trial: Mapping[str, Any], budgets: Sequence[int], seed: int
) -> Iterator[tuple[int, Weights, Spent]]:
    """Trains a network anew for each budget, since its rate decays to zero.

    Arguments:
        bed: The test bed.
        kind: Name of a preset, "output" or "noise".
        trial: Settings of the trial.
        budgets: Numbers of pictures, or of draws.
        seed: Seed of weights, prompts and noise.

    Returns:
        For each budget its number, the weights with factors of the output, and what was spent.
    """

    for budget in budgets:
        yield budget, *_trained(bed, kind, trial, budget, seed)


def _trained(
    bed: Bed, kind: str, trial: Mapping[str, Any], budget: int, seed: int
) -> tuple[Weights, Spent]:
    settings = settings_of(kind, trial, budget, seed)
    draws = FEW if settings.objective in OF_GRADIENTS else budget
    each = trial.get("each", 16)  # draws of a prompt
    bank, encode = common_bank(bed, draws, seed, each), Encode(bed.backbone)
    tilts = tilts_of(bank, OfPrompts(bed.aligned), settings, bed.backbone.decode)
    network = make_network(settings, bed.backbone, bank.x_0.shape[1], encode, len(tilts))
    objective = _objective(bed, kind, trial, settings, bank, tilts, encode)
    scored = spent(lambda: objective.sides) if settings.objective == "gradients" else Spent()
    one = spent(lambda: _step(network, objective))
    network.zero_grad()
    began = time.process_time()
    train(
        network,
        objective,
        settings.steps,
        settings.learning_rate,
        seed,
        settings.max_norm,
        recipe=settings.recipe(1),
    )
    seconds = time.process_time() - began
    cost = bed.draw * draws + scored + replace(one * settings.steps, seconds=seconds)
    weights = {name: p.detach().clone() for name, p in network.state_dict().items()}
    if settings.calibrate and kind != "noise":
        network.eval().requires_grad_(False)
        unseen = HeldOut(_unseen(bed, draws, seed), tilts, bed.times, encode, seed)
        found: list[Lengths] = []
        work = lambda: found.append(find_lengths(network, bed.backbone, unseen))
        cost = cost + spent(work) + bed.draw * UNSEEN
        for nats, factor in (found[-1].scales or {}).items():
            weights[f"scale {nats}"] = torch.tensor(factor, dtype=torch.float64)
    return weights, cost


def _step(network: Any, objective: Any) -> None:
    network.zero_grad()
    sum(objective(network, torch.Generator().manual_seed(0)).values()).backward()


def _unseen(bed: Bed, draws: int, seed: int) -> rw.Bank:
    """Returns draws of the first prompts that a bank does not have."""

    more = common_bank(bed, draws + UNSEEN, seed)
    assert more.rewards is not None
    return rw.Bank(more.x_0[draws:], more.condition[draws:], more.rewards[draws:])


def _objective(
    bed: Bed,
    kind: str,
    trial: Mapping[str, Any],
    settings: Settings,
    bank: rw.Bank,
    tilts: Mapping[float, rw.Tilt],
    encode: Encode,
) -> Any:
    """Returns the objective; one that makes pictures itself makes them of all training prompts."""

    if settings.objective not in OF_GRADIENTS:
        arguments = (bed.backbone, bank, tilts, encode, bed.times, settings.batch_size)
        return make_objective(settings, *arguments)
    (tilt,) = tilts.values()
    gradient = kind != "output"
    generate = flow_map(bed.backbone, bed.backbone.sampler, bed.times, gradient)
    condition = Encoded(bed.training_prompts, encode)
    shared = (bed.backbone.draw_noise, condition)
    if kind == "noise":
        strong = rw.Tilt(
            OfPrompts(bed.aligned), tilt.betas[0] / trial["strength"], bed.backbone.decode
        )
        return NoiseObjective(generate, strong, *shared, batch_size=settings.batch_size)
    if kind == "gradient":
        own: dict[str, Any] = {"pictures": settings.pictures, "seed": settings.seed}
        own["variance"] = settings.variance or LONGER * variance_of(bank)
        return GradientObjective(generate, tilt, *shared, batch_size=settings.batch_size, **own)
    variance = settings.variance or trial["loose"] * variance_of(bank)
    return OutputObjective(
        generate, tilt, *shared, batch_size=settings.batch_size, variance=variance
    )


def maker_of(bed: Bed, kind: str, trial: Mapping[str, Any], weights: Weights) -> Maker:
    """Returns how a trained network makes pictures; its output is scaled by what was found."""

    settings, encode = settings_of(kind, trial, 640, 0), Encode(bed.backbone)
    channels = bed.backbone.draw_noise(1, generator_for(0, "shape")).shape[1]
    network = make_network(settings, bed.backbone, channels, encode, len(settings.nats))
    scales = {float(k[6:]): float(v) for k, v in weights.items() if k.startswith("scale ")}
    network.load_state_dict({k: v for k, v in weights.items() if not k.startswith("scale ")})
    network.eval().requires_grad_(False)
    made: GuidanceNetwork = network.calibrated(scales or None)
    if kind in ("noise", "gradient"):
        return Maker((NoiseNetwork if kind == "noise" else ChangeNetwork)(made))
    strength = 1.0 if made.strength else None
    if settings.objective == "output":
        return Maker(OutputNetwork(made, strength=strength))
    return Maker(Network(made, strength=strength))
