"""A block of prompts: their banks, and every method on them."""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from catalog import STRENGTHS, Guided, Material, Method, Picked
from results import SHEET_ROWS, SHOWN, Looks
from torch import Tensor, nn

import rwguidance as rw
from rwguidance.noise_space import best_of_n, soft_best_of_n
from rwguidance.samplers import UnreliableEstimate
from rwguidance.statistics import ratio_and_error
from rwguidance.support.conditions import take
from rwguidance.support.fingerprint import fingerprint
from rwguidance.support.randomness import generator_for
from rwguidance.weights import ess, pareto_k
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.gold import Gold
from rwguidance_testbed.prompt_sets import Prompt


@dataclass(frozen=True)
class Case:
    """A model, the proxy that it is aligned to, and the judge.

    Arguments:
        name: Name of the model.
        backbone: The model.
        reward: The proxy that it is aligned to.
        judge: The judge.
        methods: Methods that are compared.
        steps: Steps of the sampler.
        bank: Draws of each prompt.
        large: Draws of each prompt, in one block of prompts in `every`.
        every: Number of blocks of prompts on one of which the banks are large.
        seed: Seed of everything.
        strengths: Strengths of the targets, in nats; methods run at those of theirs among them.
    """

    name: str
    backbone: Any
    reward: Any
    judge: Towers
    methods: Sequence[Method]
    steps: int
    bank: int = 64
    large: int = 256
    every: int = 4
    seed: int = 0
    strengths: tuple[float, ...] = STRENGTHS

    @property
    def times(self) -> Tensor:
        """Times of the sampler."""

        return self.backbone.times(self.steps)

    def cells(self, block: int) -> list[tuple[Method, float | None]]:
        """Returns methods and strengths that run on a block of prompts."""

        return [
            (method, nats)
            for method in self.methods
            for nats in method.strengths
            if block % method.every == 0 and nats in (None, *self.strengths)
        ]

    def settings(self, prompts: Sequence[Prompt], block: int) -> dict[str, Any]:
        """Returns everything that decides the results, in values that JSON can hold."""

        key = lambda module: fingerprint(module, ("training", *self.backbone.incidental))
        return {
            "backbone": key(self.backbone),
            "reward": key(self.reward) if isinstance(self.reward, nn.Module) else "a function",
            "judge": key(self.judge),
            "methods": [[m.name, list(m.strengths), m.bank, m.every] for m in self.methods],
            "times": self.times.tolist(),
            "banks": [self.bank, self.large, self.every],
            "strengths": list(self.strengths),
            "seed": self.seed,
            "block": block,
            "prompts": [prompt.text for prompt in prompts],
        }


class Block:
    """A few prompts: their base pictures and banks, then one method after the other.

    Arguments:
        case: The case.
        prompts: Prompts of the block.
        number: Number of the block.
    """

    def __init__(self, case: Case, prompts: Sequence[Prompt], number: int) -> None:
        self.case, self.number = case, number
        self.texts = [prompt.text for prompt in prompts]
        self.n = case.large if number % case.every == 0 else case.bank
        self.gold = Gold(case.judge)
        with torch.no_grad():
            self.condition = case.backbone.condition(self.texts)
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"texts": self.texts, "cells": {}}

    def run(self, report: Callable[[], None] = lambda: None) -> None:
        """Fills `tensors` and `facts`."""

        start = time.process_time()
        x_0, _ = self.sample(self.case.backbone, [("image", text) for text in self.texts])
        self.base = self.look(x_0, self.texts, self.pictures("base", None))
        base_seconds = (time.process_time() - start) / len(self.texts)
        self._note("base", None, self.base, base_seconds, self.case.steps)
        report()
        start = time.process_time()
        self._draw()
        draws = self.n * len(self.texts)
        self.draw_seconds = (time.process_time() - start) / draws
        self.facts["draw_seconds"] = self.draw_seconds
        report()
        self.betas = {nats: self._target(nats) for nats in self.case.strengths}
        for method, nats in self.case.cells(self.number):
            if isinstance(method, Picked):
                self._pick(method, nats)
            else:
                self._guide(method, nats)
            report()

    def sample(
        self, model: rw.Model, names: Sequence[tuple[str | int, ...]], trace: Any = None
    ) -> tuple[Tensor, int]:
        """Returns clean states from the noise of names, (purpose, prompt, ...), and the calls."""

        backbone = self.case.backbone
        generators = [generator_for(self.case.seed, *name) for name in names]
        x_1 = torch.cat([backbone.draw_noise(1, generator) for generator in generators])
        condition = take(self.condition, [self.texts.index(str(name[1])) for name in names])
        with torch.no_grad(), warnings.catch_warnings(), counted(backbone) as calls:
            warnings.simplefilter("ignore", UnreliableEstimate)  # the tables say where
            times, sampler = self.case.times, backbone.sampler
            x_0 = rw.sample(model, sampler, x_1, times, condition, generators, trace=trace)
        return x_0, sum(calls)

    @torch.no_grad()
    def look(self, x_0: Tensor, texts: Sequence[str], keep: str | None = None) -> Looks:
        """Returns the looks of the pictures of clean states; `keep` names what stores them."""

        parts = []
        for start in range(0, len(x_0), 16):
            images = self.case.backbone.decode(x_0[start : start + 16])
            some = list(texts[start : start + 16])
            parts.append(
                (
                    self.case.reward(images, some).double(),
                    self.gold(images, some).double(),
                    self.case.judge.embed_pictures(images),
                )
            )
            if keep is not None:
                self.tensors[f"{keep}/{start}"] = (255 * images).round().byte()
        return Looks(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def pictures(self, name: str, nats: float | None) -> str | None:
        """Returns the name under which to keep the pictures of a cell, None if none are shown."""

        shown = self.number * len(self.texts) < SHEET_ROWS and nats in (None, SHOWN)
        return f"pictures/{name}" if shown else None

    def _draw(self) -> None:
        """Draws the banks, decodes and scores them."""

        names = [("bank", text, i) for text in self.texts for i in range(self.n)]
        texts = [text for text in self.texts for _ in range(self.n)]
        states, looks = [], []
        for start in range(0, len(names), 64):
            part = slice(start, start + 64)
            states.append(self.sample(self.case.backbone, names[part])[0])
            looks.append(self.look(states[-1], texts[part]))
        self.x_0 = torch.cat(states).unflatten(0, (len(self.texts), self.n))
        columns = [[getattr(look, key) for look in looks] for key in ("proxy", "gold", "embedding")]
        self.bank = Looks(
            *(torch.cat(column).unflatten(0, (len(self.texts), self.n)) for column in columns)
        )
        self.variance = float(self.x_0.var(1).mean())

    def _target(self, nats: float) -> dict[str, float]:
        """Returns beta of each prompt, and keeps the figures of its exactly tilted law."""

        betas, rows = {}, []
        for i, text in enumerate(self.texts):
            bank = rw.Bank(self.x_0[i], rewards=self.bank.proxy[i])
            betas[text] = rw.Tilt.for_kl(self.case.reward, bank, nats).betas[0]
            log_w = self.bank.proxy[i] / betas[text]
            proxy = tilted_mean(log_w, self.bank.proxy[i])
            gold = tilted_mean(log_w, self.bank.gold[i])
            rows.append((betas[text], *proxy, *gold, float(ess(log_w)), float(pareto_k(log_w))))
        names = ("beta", "proxy", "proxy_error", "gold", "gold_error", "ess", "pareto_k")
        columns = torch.tensor(rows, dtype=torch.float64).T
        for name, column in zip(names, columns, strict=True):
            self.tensors[f"target/{nats}/{name}"] = column.clone()
        self.tensors["target/0/proxy"] = self.bank.proxy.mean(1)
        self.tensors["target/0/gold"] = self.bank.gold.mean(1)
        return betas

    def material(self, nats: float | None, n: int) -> Material:
        """Returns the first `n` draws of each prompt, and a tilt of this strength."""

        betas = self.betas[self.case.strengths[0] if nats is None else nats]
        n = max(n, 1)
        scale = torch.tensor([betas[text] for text in self.texts], dtype=torch.float64)
        in_nats = self.bank.proxy[:, :n] / scale[:, None]
        keys = [text for text in self.texts for _ in range(n)]
        bank = rw.Bank(self.x_0[:, :n].flatten(0, 1), keys, in_nats.flatten())
        tilt = rw.Tilt(InNats(self.case.reward, betas), 1.0, self.case.backbone.decode)
        return Material(bank, tilt, self.variance)

    def _guide(self, method: Guided, nats: float | None) -> None:
        backbone, times = self.case.backbone, self.case.times
        window = method.window(backbone, times)
        if window[0] > window[1]:
            return
        start = time.process_time()
        estimator = method.make(self.material(nats, method.bank))
        guided = rw.GuidedModel(backbone, estimator, window=window)
        steps: list[Mapping[str, Tensor]] = []
        trace = lambda t, prediction: steps.append(prediction.diagnostics or {})
        names = [("image", text) for text in self.texts]
        x_0, calls = self.sample(guided, names, trace)
        looks = self.look(x_0, self.texts, self.pictures(method.name, nats))
        seconds = (time.process_time() - start) / len(names)
        self._note(method.name, nats, looks, seconds, calls / len(names), method.bank)
        nothing = torch.full((len(names),), math.nan)
        for key in ("ess", "ess_tilted", "pareto_k"):
            column = torch.stack([step.get(key, nothing).float() for step in steps], dim=1)
            self.tensors[f"{method.name}/{nats}/{key}"] = column

    def _pick(self, method: Picked, nats: float | None) -> None:
        """Runs best of n on candidates that are there already: the base picture and the bank's."""

        looks = []
        for i, text in enumerate(self.texts):
            join = lambda one, many, i=i: torch.cat((one[i : i + 1], many[i]))[: method.n]
            pool = Looks(
                join(self.base.proxy, self.bank.proxy),
                join(self.base.gold, self.bank.gold),
                join(self.base.embedding, self.bank.embedding),
            )
            beta = 1.0 if nats is None else self.betas[nats][text]
            tilt = rw.Tilt(lambda x, _, pool=pool: pool.proxy[x[:, 0].long()], beta)
            numbers = itertools.count()
            deal = lambda n, _, numbers=numbers: torch.tensor(
                [[float(next(numbers))] for _ in range(n)]
            )
            choose = soft_best_of_n if method.soft else best_of_n
            generator = generator_for(self.case.seed, method.name, text, str(nats))
            same = lambda noise, condition: noise
            chosen = choose(same, tilt, deal, 1, method.n, generator=generator, batch_size=method.n)
            looks.append(pool[int(chosen.x_0)])
        found = Looks(
            *(torch.stack([getattr(look, k) for look in looks]) for k in ("proxy", "gold")),
            torch.stack([look.embedding for look in looks]),
        )
        seconds, calls = method.n * self.draw_seconds, method.n * self.case.steps
        self._note(method.name, nats, found, seconds, calls)

    def _note(
        self,
        name: str,
        nats: float | None,
        looks: Looks,
        seconds: float,
        calls: float,
        bank: int = 0,
    ) -> None:
        key = f"{name}/{nats}"
        self.facts["cells"][key] = {
            "method": name,
            "nats": nats,
            "seconds": seconds,
            "calls": calls,
            "bank": bank,
        }
        for part in ("proxy", "gold", "embedding"):
            self.tensors[f"{key}/{part}"] = getattr(looks, part)


class InNats(nn.Module):
    """A reward divided by the temperature of each prompt: one tilt for prompts of several betas."""

    def __init__(self, reward: Any, betas: Mapping[str, float]) -> None:
        super().__init__()
        self.reward, self.betas = reward, dict(betas)

    def forward(self, images: Tensor, prompts: Any) -> Tensor:
        values = self.reward(images, list(prompts))
        return values / values.new_tensor([self.betas[prompt] for prompt in prompts])


def tilted_mean(log_w: Tensor, values: Tensor) -> tuple[float, float]:
    """Returns the self-normalized mean and its standard error."""

    weight = log_w.softmax(0)
    return ratio_and_error(weight * values, weight)


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Yields a list to which every call of a model adds the number of its states."""

    calls: list[int] = []
    hook = model.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    try:
        yield calls
    finally:
        hook.remove()
