"""Every method of the core on pictures: what it gains, what it costs, and how far it is from exact.

Run `python testbed/benchmarks/methods.py`. For every prompt the model draws a bank, which all
methods and strengths share, and every method starts from the noise of the same base picture. The
strength is the divergence of the target from the model, in nats, for each prompt by itself. The
target is known
from the bank: its mean reward is the self-normalized one. `share` is the part of the way there that
a method goes, on average over prompts; 1 is exact, more is overshoot.

Finished blocks of prompts are kept, and the same command goes on where it was stopped.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import argparse
import itertools
import json
import math
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import (
    SHEET_ROWS,
    SHOWN,
    Looks,
    Prompt,
    console,
    read,
    real_embeddings,
    report,
)
from rich.progress import Progress
from torch import Tensor, nn

import backbones
import rewards
import rwguidance as rw
from rwguidance.networks import LatentShift
from rwguidance.networks import load as load_network
from rwguidance.noise_space import best_of_n, soft_best_of_n
from rwguidance.samplers import UnreliableEstimate
from rwguidance.statistics import ratio_and_error
from rwguidance.support.conditions import take
from rwguidance.support.files import replacing
from rwguidance.support.fingerprint import fingerprint
from rwguidance.support.randomness import generator_for, seeded
from rwguidance.weights import ess, pareto_k
from rwguidance_testbed import encoders, flow, shipped, vae
from rwguidance_testbed.data import SIZE, Drawing, Drawings, load_names, sources
from rwguidance_testbed.encoders import Towers
from rwguidance_testbed.gold import Gold
from rwguidance_testbed.network import FILE as NETWORK_FILE
from rwguidance_testbed.scenes import COLORS, on_background
from rwguidance_testbed.tokenizer import train_tokenizer

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SOME = (0.5, 1.0, 2.0)
SHIPPED_NETWORKS = {"emoji-turbo": "emoji-turbo-guide"}


def prompts_of(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of all names in turn, in random order, with and without backgrounds and styles."""

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
        prompts.setdefault(text, Prompt(text, name, part, real))
    raise AssertionError


@dataclass(frozen=True)
class Material:
    """What an estimator is made of, for a block of prompts and one strength.

    Arguments:
        bank: Draws of all prompts, their rewards in nats.
        tilt: By the reward in nats, its beta that of each prompt.
        variance: Of the latents of a prompt, per dimension.
    """

    bank: rw.Bank
    tilt: rw.Tilt
    variance: float


Make = Callable[[Material], rw.ConditionalExpectation]


@dataclass(frozen=True)
class Guided:
    """A method that guides.

    Arguments:
        name: Its name.
        make: Makes the estimator.
        strengths: In nats; (None,) if it has one of its own.
        bank: Draws of each prompt that it uses.
        first: It guides the first so many steps; None is all.
        every: It runs on one block of prompts in so many.
    """

    name: str
    make: Make
    strengths: tuple[float | None, ...] = STRENGTHS
    bank: int = 64
    first: int | None = None
    every: int = 1

    def window(self, model: rw.Model, times: Tensor) -> tuple[float, float]:
        last = len(times) - 2 if self.first is None else self.first - 1
        start = 0
        if self.name.startswith("plug-in, Jacobian") and float(model.schedule.alpha(times[0])) == 0:
            start = 1  # where a state says nothing, its gradient does not determine the shift
        return float(times[last]), float(times[start])


@dataclass(frozen=True)
class Picked:
    """A method that chooses among `n` samples, the base sample the first of them."""

    name: str
    n: int
    soft: bool = False
    strengths: tuple[float | None, ...] = (None,)
    every: int = 1

    @property
    def bank(self) -> int:
        return 0


Method = Guided | Picked


class Pooled(rw.ConditionalExpectation):
    r"""Importance sampling with a kernel that looks at means over `size` x `size` positions only.

    The means, times the size, are :math:`\alpha_t` times those of the clean state plus noise of
    variance :math:`\sigma_t^2`, in `size`:sup:`2` times fewer dimensions. So this is the exact
    estimate given less than the state, and its effective draws last longer.

    Arguments:
        bank: As many draws of each condition.
        tilt: The tilt, applied to the bank's rewards.
        size: Of the squares over which means are taken.
    """

    def __init__(self, bank: rw.Bank, tilt: rw.Tilt, size: int) -> None:
        super().__init__()
        assert bank.rewards is not None
        self.bank, self.log_w, self.size = bank, tilt.weigh(bank.rewards), size
        self.small = self._pool(bank.x_0)

    def _pool(self, x: Tensor) -> Tensor:
        return self.size * nn.functional.avg_pool2d(x.float(), self.size).flatten(1)

    def forward(
        self, model: rw.Model, x_t: Tensor, t: float | Tensor, condition: Any = None
    ) -> rw.Estimate:
        scales = model.schedule.at(t, like=x_t)
        alpha, sigma = (value.flatten(1) for value in (scales.alpha, scales.sigma))
        rows = [self.bank.rows[key] for key in condition]
        draws, small, log_w = (
            torch.stack([values[part] for part in rows])
            for values in (self.bank.x_0.flatten(1), self.small, self.log_w)
        )
        distance = (self._pool(x_t)[:, None] - alpha[..., None] * small).square().sum(-1)
        log_kernel = -distance / (2 * sigma**2)
        log_w = log_w.to(log_kernel)
        weight, tilted = log_kernel.softmax(1), (log_kernel + log_w).softmax(1)
        shift = torch.einsum("bn,bnd->bd", tilted - weight, draws).reshape(x_t.shape)
        diagnostics = {
            "ess": ess(log_kernel),
            "ess_tilted": ess(log_kernel + log_w),
            "pareto_k": pareto_k(log_kernel + log_w),
        }
        log_h = (log_kernel + log_w).logsumexp(1) - log_kernel.logsumexp(1)
        return rw.Estimate(model(x_t, t, condition), log_h, shift, diagnostics)


def importance(kernel: Any = None) -> Make:
    return lambda material: rw.ImportanceSampling(material.bank, material.tilt, kernel)


def pooled(side: int) -> Make:
    return lambda material: Pooled(
        material.bank, material.tilt, material.bank.x_0.shape[-1] // side
    )


def plug_in(jacobian: bool) -> Make:
    return lambda material: rw.PlugIn(
        material.tilt, jacobian=jacobian, prior_variance=material.variance
    )


def methods_of(
    steps: int,
    small: int = 16,
    bank: int = 64,
    large: int = 256,
    every: int = 4,
    network: nn.Module | None = None,
) -> list[Method]:
    """The methods that differ on a model of so many steps; windows need more than one."""

    exact, flat = importance(), importance(rw.TargetESS(0.15))
    methods: list[Method] = [
        Guided("importance", exact, STRENGTHS, bank),
        Guided(f"importance, bank of {small}", exact, SOME, small),
        Guided(f"importance, bank of {large}", exact, SOME, large, every=every),
        Guided("importance, first step", exact, STRENGTHS, bank, 1),
        Guided("importance, first two steps", exact, STRENGTHS, bank, 2),
        Guided("15 % ESS", flat, STRENGTHS, bank),
        Guided("15 % ESS, first two steps", flat, SOME, bank, 2),
        Guided("5 % ESS", importance(rw.TargetESS(0.05)), SOME, bank),
        Guided("tempered by 0.25", importance(rw.Tempered(0.25)), SOME, bank),
        Guided("pooled to 2 x 2", pooled(2), SOME, bank),
        Guided("pooled to 1 x 1", pooled(1), STRENGTHS, bank),
        Guided("pooled to 1 x 1, first two steps", pooled(1), SOME, bank, 2),
        Guided("plug-in", plug_in(False), STRENGTHS, bank, every=every),
        Guided("plug-in, Jacobian", plug_in(True), STRENGTHS, bank, every=every),
    ]
    methods = [m for m in methods if not (isinstance(m, Guided) and m.first and m.first >= steps)]
    if network is not None:
        kind = rw.LearnedShift if isinstance(network, LatentShift) else rw.LearnedExpectation
        methods.append(Guided("network", lambda material: kind(network), (None,), 0))
    methods += [Picked(f"best of {n}", n) for n in (2, 4, 8, 16)]
    return methods + [Picked(f"soft best of {n}", n, True, STRENGTHS) for n in (4, 16, 64)]


@dataclass(frozen=True)
class Case:
    """A model and what judges it.

    Arguments:
        name: Its name.
        backbone: The model.
        reward: The proxy that it is aligned to.
        judge: The judge.
        methods: What is compared.
        steps: Of the sampler.
        bank: Draws of each prompt.
        large: Draws of each prompt, in one block of prompts in `every`.
        every: See `large`.
        seed: Of everything.
        strengths: Of the targets, in nats; methods run at those of theirs that are among them.
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
        return self.backbone.times(self.steps)

    def cells(self, block: int) -> list[tuple[Method, float | None]]:
        """Methods and strengths that run on a block of prompts."""

        return [
            (method, nats)
            for method in self.methods
            for nats in method.strengths
            if block % method.every == 0 and nats in (None, *self.strengths)
        ]

    def settings(self, prompts: Sequence[Prompt], block: int) -> dict[str, Any]:
        """Everything that decides the results, in values that JSON can hold."""

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
        prompts: Its prompts.
        number: Of the block.
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
        """Clean states from the noise of these names, (purpose, prompt, ...), and network calls."""

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
        """Decodes clean states and says what is known of the pictures; `keep` stores them."""

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
        """Under which name to keep the pictures of a cell, if they are shown."""

        shown = self.number * len(self.texts) < SHEET_ROWS and nats in (None, SHOWN)
        return f"pictures/{name}" if shown else None

    def _draw(self) -> None:
        """Draws the banks and looks at all of their pictures."""

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
        """Beta of each prompt; keeps what is known of its exactly tilted law."""

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
        """The first `n` draws of each prompt, and a tilt of this strength."""

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
        """Best of n, with candidates that are there already: the base picture and the bank's."""

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
    """The self-normalized mean and its standard error."""

    weight = log_w.softmax(0)
    return ratio_and_error(weight * values, weight)


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """A list to which every call of a model adds the number of its states."""

    calls: list[int] = []
    hook = model.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    try:
        yield calls
    finally:
        hook.remove()


def run_case(
    case: Case, prompts: Sequence[Prompt], out: Path, block: int, restart: bool, progress: Progress
) -> list[Path]:
    """Runs all blocks of a case that are not there yet, and returns the files of all.

    Raises:
        ValueError: If the folder holds blocks of other settings.
    """

    from safetensors.torch import save_file

    folder = out / "blocks" / case.name
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(case.settings(prompts, block)))
    label = folder / "settings.json"
    if label.exists() and not restart:
        found = json.loads(label.read_text(encoding="utf-8"))
        differ = [key for key in settings if found.get(key) != settings[key]]
        if differ:
            raise ValueError(
                f"{folder} holds results of other settings: {', '.join(differ)} differ; write "
                "elsewhere with --out, or replace them with --restart"
            )
    elif restart:
        for path in folder.glob("*.safetensors"):
            path.unlink()
    with replacing(label) as partial:
        partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")

    parts = [prompts[start : start + block] for start in range(0, len(prompts), block)]
    files = [folder / f"{number:04d}.safetensors" for number in range(len(parts))]
    cells = lambda number: (
        2 + sum(len(method.strengths) for method in case.methods if not number % method.every)
    )
    work = [cells(number) * len(part) for number, part in enumerate(parts)]
    task = progress.add_task(case.name, total=sum(work))
    for number, (part, path) in enumerate(zip(parts, files, strict=True)):
        if path.exists():
            progress.advance(task, work[number])
            continue
        one = Block(case, part, number)
        n = len(part)
        one.run(lambda n=n: progress.advance(task, n))
        tensors = {key: value.contiguous() for key, value in one.tensors.items()}
        with replacing(path) as partial:
            save_file(tensors, partial, {"facts": json.dumps(one.facts)})
    return files


def split_name(text: str) -> tuple[str, str | None]:
    """Name and path of ``NAME[=PATH]``."""

    name, _, path = text.partition("=")
    return name, path or None


def load_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases that were asked for, with trained models."""

    import diffusers

    diffusers.logging.set_verbosity_error()
    if arguments.judge is None:
        judge = shipped.judge()
    else:
        judge = encoders.read("judge", Path(arguments.judge)).eval().requires_grad_(False)
    reward_name, path = split_name(arguments.reward)
    reward = rewards.load(reward_name, path)
    networks = dict(map(split_name, arguments.network))
    for name, guide in SHIPPED_NETWORKS.items():
        if reward_name == "emoji-pick" and guide in shipped.names():
            networks.setdefault(name, str(shipped.folder(guide) / NETWORK_FILE))
    cases = []
    for text in arguments.backbone or ["emoji-flow", "emoji-turbo"]:
        name, path = split_name(text)
        backbone = backbones.load(name, path)
        dtype = getattr(torch, arguments.decoder)
        backbone.pipe.vae.to(dtype=dtype, memory_format=torch.channels_last)
        steps = arguments.steps or len(backbone.times()) - 1
        network = networks.get(name)
        methods = methods_of(
            steps, network=None if network is None else load_network(network).float()
        )
        cases.append(Case(name, backbone, reward, judge, methods, steps, seed=arguments.seed))
    return cases


def smoke_cases(folder: Path) -> tuple[list[Case], Drawings]:
    """Tiny models with random weights, and drawings of colored squares."""

    every = [name for part in load_names().values() for name in part]
    pixels = torch.zeros(len(every), 4, SIZE, SIZE, dtype=torch.uint8)
    for i in range(len(every)):
        pixels[i, 3, 20:60, 20:60] = 255
        pixels[i, :3, 20:60, 20:60] = torch.tensor([i, 255 - i, 37 * i % 256]).byte()[:, None, None]
    drawings = Drawings([Drawing(n, "noto", "x", "y", (), "judge") for n in every], pixels)
    tokenizer = train_tokenizer(every, folder, 700)
    judge, proxy = (encoders.new(kind, folder, smoke=True) for kind in ("judge", "pick"))
    proxy.write(folder / "pick")
    reward = rewards.load("pickscore", folder / "pick")
    pipe = flow.new(vae.new(smoke=True), tokenizer, smoke=True)
    shifted = pipe.scheduler.from_config(pipe.scheduler.config, shift=3.0)
    pipe.register_modules(scheduler=shifted)
    turbo = backbones.tiny("sdxl-turbo")
    options = {
        "flow": (backbones.from_pipeline(pipe, height=64, width=64, max_sequence_length=1), 4),
        "turbo": (backbones.from_pipeline(turbo, height=32, width=32), 1),
    }
    cases = []
    for name, (backbone, steps) in options.items():
        with seeded(0):
            network = LatentShift(backbone.channels, backbone.schedule, None, [32])
        methods = methods_of(steps, 4, 8, 12, 2, network if steps == 1 else None)
        methods = [method for method in methods if not isinstance(method, Picked) or method.n <= 8]
        backbone.requires_grad_(False)
        cases.append(Case(name, backbone, reward, judge, methods, steps, 8, 12, 2, 0, (SHOWN,)))
    return cases, drawings


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--backbone", action="append", metavar="NAME[=FOLDER]", help="emoji-flow, emoji-turbo")
    add("--reward", default="emoji-pick", metavar="NAME[=PATH]", help="what is aligned to")
    add("--judge", default=None, metavar="FOLDER", help="the judge; default: the shipped one")
    add(
        "--network",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="default: the shipped one",
    )
    add("--steps", type=int, default=None, help="of the sampler; default: each backbone's own")
    add("--prompts", type=int, default=200)
    add("--block", type=int, default=8, help="prompts that are sampled at once")
    add("--seed", type=int, default=0)
    add("--data", type=Path, default=Path("out/testbed"), help="folder of the drawings")
    add("--out", type=Path, default=Path("out/testbed-results"))
    add("--decoder", choices=("bfloat16", "float32"), default="bfloat16", help="its precision")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--restart", action="store_true", help="replace results of other settings")
    add("--smoke", action="store_true", help="tiny models, in seconds")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    drawings = None
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            cases, drawings = smoke_cases(Path(folder))
    else:
        cases = load_cases(arguments)
    prompts = prompts_of(arguments.prompts, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with Progress(console=console) as progress:
        files = {
            case.name: run_case(
                case, prompts, arguments.out, arguments.block, arguments.restart, progress
            )
            for case in cases
        }
    found = {name: read(paths, prompts) for name, paths in files.items()}
    real = real_embeddings(cases[0].judge, arguments.data, prompts, drawings)
    about = (
        f"{len(prompts)} prompts, seed {arguments.seed}, decoder in {arguments.decoder}; "
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}."
    )
    table = report(found, real, arguments.out, about)
    console.print(f"{time.perf_counter() - start:.0f} seconds")
    return table


if __name__ == "__main__":
    main()
