"""Fine-tuners: low-rank changes of the denoiser's weights, by four losses and one loop."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import rwguidance as rw
from rwguidance.noise_space import flow_map
from rwguidance.support.randomness import generator_for, seeded

from .bed import NATS, Bed, Maker, common_bank
from .counting import Spent, spent

__all__ = ["LOSSES", "adapted", "fine_tuned", "maker_of"]

BATCH, RANK, MAX_NORM = 16, 8, 1.0
"""Pictures of a step, rank of the changes, and bound on the norm of a gradient."""

DRAWS = 256
"""Draws on which the temperature of weights is found."""

REPEATS = 4
"""Steps on each batch of pictures that are drawn once, labelled, and learned from."""

Weights = dict[str, Tensor]


def adapted(backbone: Any, seed: int) -> Any:
    """Returns a copy of a model whose denoiser has low-rank changes, zero at first, in all layers.

    Arguments:
        backbone: The model, frozen.
        seed: Seed of the one half of the factors that is not zero.
    """

    from peft import LoraConfig

    model = copy.deepcopy(backbone).requires_grad_(False)
    unet = model.pipe.unet
    layers = (nn.Linear, nn.Conv2d)
    names = [name for name, module in unet.named_modules() if isinstance(module, layers)]
    with seeded(seed):
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    return model


def trainable(model: nn.Module) -> Weights:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@dataclass
class Loss(ABC):
    """A loss of a fine-tuned model on a batch of pictures.

    Arguments:
        bed: The test bed.
        model: The model that is fine-tuned.
        settings: Settings of the trial.
        seed: Seed of the training, for what is chosen on draws.
    """

    repeats: ClassVar[int] = 1
    """Steps on a batch."""

    bed: Bed
    model: Any
    settings: Mapping[str, Any]
    seed: int

    def prompts(self, each: int, generator: torch.Generator) -> list[str]:
        """Returns the prompts of a batch, `each` times each, at random."""

        known = self.bed.training_prompts
        rows = torch.randint(len(known), (BATCH // each,), generator=generator).tolist()
        return [known[i] for i in rows for _ in range(each)]

    def base(self, noise: Tensor, condition: Any) -> Tensor:
        """Returns what the base model makes of noise."""

        backbone = self.bed.backbone
        return flow_map(backbone, backbone.sampler, self.bed.times)(noise, condition)

    @abstractmethod
    def drawn(self, generator: torch.Generator) -> Any:
        """Returns a batch: what all steps on it have in common."""

    @abstractmethod
    def __call__(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Returns the loss on a batch, a scalar."""


class Draft(Loss):
    r"""The reward of a picture, with gradients through decoder and denoiser, and a proximal term.

    .. math:: E\big[ -r(x, y) + \lambda \|x - x_{\mathrm{base}}\|^2 / 2 \big]

    References:
        | Directly Fine-Tuning Diffusion Models on Differentiable Rewards (Clark et al., 2023),
          arXiv:2309.17400
    """

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        prompts = self.prompts(1, generator)
        return self.bed.backbone.draw_noise(BATCH, generator), prompts

    def __call__(self, batch: tuple[Tensor, list[str]], generator: torch.Generator) -> Tensor:
        noise, prompts = batch
        condition = self.bed.backbone.condition(prompts)
        generate = flow_map(self.model, self.model.sampler, self.bed.times, gradient=True)
        x = generate(noise, condition)
        loss = -self.bed.aligned(self.model.decode(x), prompts).mean()
        near = self.settings.get("near", 0.0)
        if not near:
            return loss
        away = (x - self.base(noise, condition)).square().flatten(1).sum(1)
        return loss + near * away.mean() / 2


class OfDraws(Loss):
    """A loss on draws of the base model with their rewards, which are made once."""

    repeats = REPEATS
    each: ClassVar[int]

    @torch.no_grad()
    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
        prompts = self.prompts(self.each, generator)
        noise = self.bed.backbone.draw_noise(BATCH, generator)
        x_0 = self.base(noise, self.bed.backbone.condition(prompts))
        return x_0, self.bed.aligned(self.bed.backbone.decode(x_0), prompts).double(), prompts

    def noised(self, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns draws noised to times of the run, or to uniform ones, and these."""

        t = self.bed.times[:1].expand(len(x_0))
        if self.settings["times"] == "uniform":
            t = torch.rand(len(x_0), generator=generator, dtype=torch.float64)
        noise = torch.randn(x_0.shape, generator=generator)
        return self.bed.backbone.schedule.perturb(x_0, t, noise), t


def errors(model: Any, x_t: Tensor, t: Tensor, condition: Any, x_0: Tensor) -> Tensor:
    """Returns squared errors of the clean samples that a model predicts, with shape (B,)."""

    return (model(x_t, t, condition).mean - x_0).square().flatten(1).sum(1)


class DPO(OfDraws):
    r"""Diffusion-DPO on pairs of base draws, of which the reward says which one is better.

    .. math:: -\log \sigma\big( \tfrac{\beta}{2} [ (e_l - e_l^{\mathrm{base}})
        - (e_w - e_w^{\mathrm{base}}) ] \big)

    with squared errors e of the clean sample, both draws noised by the same noise.

    References:
        | Diffusion Model Alignment Using Direct Preference Optimization (Wallace et al., 2023),
          arXiv:2311.12908
    """

    each = 2

    def __call__(self, batch: Any, generator: torch.Generator) -> Tensor:
        x_0, values, prompts = batch
        first = torch.arange(0, BATCH, 2)
        wins = first + values.reshape(-1, 2).argmax(1)
        rows = torch.cat((wins, 2 * first + 1 - wins))  # the other of a pair
        x_0, condition = x_0[rows], self.bed.backbone.condition([prompts[i] for i in rows.tolist()])
        x_t, t = self.noised(x_0[: BATCH // 2], generator)
        scales = self.bed.backbone.schedule.at(t, like=x_t)
        noise = (x_t - scales.alpha * x_0[: BATCH // 2]) / scales.sigma
        pairs = torch.cat((x_t, scales.alpha * x_0[BATCH // 2 :] + scales.sigma * noise))
        both = torch.cat((t, t))
        with torch.no_grad():
            before = errors(self.bed.backbone, pairs, both, condition, x_0)
        change = errors(self.model, pairs, both, condition, x_0) - before
        better, worse = change.chunk(2)
        return -nn.functional.logsigmoid(self.settings["beta"] / 2 * (worse - better)).mean()


class Weighted(OfDraws):
    """Reward-weighted regression: denoising of draws that count by their weight at one nat.

    Weights are normalized over the draws of a prompt, of which a batch has eight.

    References:
        | Aligning Text-to-Image Models using Human Feedback (Lee et al., 2023), arXiv:2302.12192
    """

    each = 8

    @cached_property
    def beta(self) -> float:
        """The temperature of the weights."""

        bank = common_bank(self.bed, DRAWS, self.seed)
        return rw.Tilt.for_kl(self.bed.aligned, bank, NATS).betas[0]

    def __call__(self, batch: Any, generator: torch.Generator) -> Tensor:
        x_0, values, prompts = batch
        weights = (values / self.beta).reshape(-1, self.each).softmax(1).flatten() * self.each
        x_t, t = self.noised(x_0, generator)
        found = errors(self.model, x_t, t, self.bed.backbone.condition(prompts), x_0)
        return (weights * found).mean()


LOSSES: dict[str, type[Loss]] = {"draft": Draft, "dpo": DPO, "weighted": Weighted}


def fine_tuned(
    bed: Bed, kind: str, settings: Mapping[str, Any], budgets: Sequence[int], seed: int
) -> Iterator[tuple[int, Weights, Spent]]:
    """Fine-tunes at a constant rate, and gives the weights at every budget of pictures.

    Arguments:
        bed: The test bed.
        kind: Name of the loss.
        settings: Settings of the trial, with the rate.
        budgets: Numbers of pictures, ascending, multiples of the batch.
        seed: Seed of weights, prompts and noise.

    Returns:
        For each budget its number, the weights, and what was spent from the start.
    """

    model = adapted(bed.backbone, seed)
    weights = trainable(model)
    loss = LOSSES[kind](bed, model, settings, seed)
    optimizer = torch.optim.AdamW(weights.values(), settings["rate"], weight_decay=0.0)
    generator = generator_for(seed, "fine-tuning")

    def batch_of_steps(source: torch.Generator, moving: bool = True) -> None:
        batch = loss.drawn(source)
        for _ in range(loss.repeats):
            optimizer.zero_grad()
            loss(batch, source).backward()
            nn.utils.clip_grad_norm_(weights.values(), MAX_NORM)
            if moving:
                optimizer.step()

    one = spent(lambda: batch_of_steps(generator_for(seed, "cost"), moving=False))
    whole = bed.draw * DRAWS if kind == "weighted" else Spent()
    wanted, began = set(budgets), time.process_time()
    for pictures in range(BATCH, max(budgets) + 1, BATCH):
        batch_of_steps(generator)
        if pictures in wanted:
            copied = {name: p.detach().clone() for name, p in weights.items()}
            cost = replace(one * (pictures // BATCH), seconds=time.process_time() - began)
            yield pictures, copied, whole + cost


def maker_of(bed: Bed, weights: Weights) -> Maker:
    """Returns how a fine-tuned model makes pictures."""

    model = adapted(bed.backbone, 0)
    own = trainable(model)
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
    return Maker(backbone=model.requires_grad_(False))
