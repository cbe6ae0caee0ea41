r"""The guidance network of the test bed's model of one step.

.. code-block:: text

    python -m rwguidance_testbed.network --backbone NAME --reward NAME --out FOLDER

draws a bank of every prompt, scores it, and trains a network for the shift at the largest noise,

.. math:: \Delta(x_t, y) = \tilde E[x_0 | x_t, y] - E[x_0 | x_t, y],

where :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, the clean state is a draw of the model and the
noise is independent of it. For an SDXL schedule :math:`\alpha_1` is 0.068. The state says little
about the clean one, and the shift is little more than the difference of two means of the prompt's
bank. The network gives it for prompts that have no bank.

It is not the shift of the coupling :math:`x_0 = G(x_t)` of the generator with its own noise. Under
that one the state determines the clean one, and the shift is zero: what tilts it is a choice of
the noise (:mod:`rwguidance.noise_space`). So a guided single step displaces every output of a
prompt by nearly the same vector. If the reward is linear where outputs lie, its mean is nearly that
of the tilted law; their spread is always that of the model, no mode gains weight, and of a picture
only that gets better which the average of better pictures shows.

And the noise that the model starts from has no clean state in it: what a state noised from a tilted
clean one would carry is not there. In a direction of variance :math:`\lambda` the share
:math:`\alpha_t^2 \lambda / (\sigma_t^2 + \alpha_t^2 \lambda)` of the way to the tilted mean is
missing: much for a background, whose :math:`\lambda` may be 100, and little for anything else.

The network regresses the shift that importance sampling on the bank of the prompt gives at noised
draws of this bank. That is the minimizer of the losses of :mod:`rwguidance.training` on this bank,
without the noise of their targets. Nor does it need the model's prediction of
:math:`E[x_0 | x_t]`, which a distilled model does not have: it predicts a sample.

One beta serves all prompts, such that the divergence is as many nats as asked for on average. Then
it is one law that the network learns, also where no bank could say what beta to take.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rwguidance.bank import Bank
from rwguidance.estimators import ImportanceSampling, LearnedShift
from rwguidance.generation.run import Report, Run
from rwguidance.generation.store import Store
from rwguidance.guidance import GuidedModel
from rwguidance.models import DenoiserModel
from rwguidance.networks import LatentShift, load
from rwguidance.samplers import sample
from rwguidance.schedules import Schedule
from rwguidance.support.conditions import condition_keys, lookup, take
from rwguidance.support.outside import require
from rwguidance.support.randomness import generator_for
from rwguidance.tilt import RewardFunction, Tilt
from rwguidance.training import Encoder, Objective
from rwguidance.training import train as fit

from .data import load_names
from .scenes import COLORS, on_background
from .training.cards import write_card

__all__ = [
    "FILE",
    "BankMean",
    "BankShift",
    "Settings",
    "agreement",
    "draw_bank",
    "gain",
    "make",
    "prompts_of",
    "read",
    "train",
]

FILE = "network.safetensors"
"""Of the network, in its folder."""

_GROUP = 8


class BankMean(DenoiserModel):
    r"""What the mean of the clean state is where a state says nothing: that of the bank.

    Arguments:
        schedule: The path.
        bank: Draws of every prompt.
    """

    depends_on = ("schedule", "means")

    def __init__(self, schedule: Schedule, bank: Bank) -> None:
        super().__init__(schedule)
        self.means = {key: bank.x_0[rows].mean(0) for key, rows in bank.rows.items()}

    def denoise(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        keys = condition_keys(condition, len(x_t)) or [None] * len(x_t)
        return torch.stack([self.means[key] for key in keys])


class BankShift(Objective):
    r"""Squared distance to the shift that the bank gives at noised draws of its own.

    The shift of :class:`~rwguidance.ImportanceSampling` on the bank is the exact one of the law
    that has just these draws. So the minimizer is that of
    :class:`~rwguidance.training.ShiftObjective` with the exact :math:`\log h_t` on this bank, and
    what the loss of the latter adds, the variance of the clean state given the noisy one, is gone.

    Arguments:
        bank: Draws of every prompt, scored.
        tilt: The tilt.
        schedule: The path.
        t: The time at which the network will be used.
        batch_size: Draws of a step, a multiple of 8: so many at a time share a prompt.
        encode: Makes what the network is conditioned on from prompts.
    """

    depends_on = ("model", "bank", "betas", "log_w", "batch_size", "t", "encode")

    def __init__(
        self,
        bank: Bank,
        tilt: Tilt,
        schedule: Schedule,
        t: float = 1.0,
        batch_size: int = 64,
        encode: Encoder | None = None,
    ) -> None:
        if batch_size % _GROUP:
            raise ValueError(f"batch_size must be a multiple of {_GROUP}, got {batch_size}")
        times = lambda n, generator: torch.full((n,), t, dtype=torch.float64)
        super().__init__(
            BankMean(schedule, bank),
            bank,
            tilt,
            batch_size=batch_size,
            times=times,
            encode=encode,
        )
        self.importance = ImportanceSampling(self.bank, tilt)
        self.t = t

    def __call__(self, network: nn.Module, generator: Generator) -> dict[str, Tensor]:
        rows = list(self.bank.rows.values())
        picks = torch.randint(len(rows), (self.batch_size // _GROUP,), generator=generator)
        index = torch.cat(
            [
                torch.randint(rows[i].start, rows[i].stop, (_GROUP,), generator=generator)
                for i in picks.tolist()
            ]
        )
        t = self.times(self.batch_size, generator)
        batch = self._noise(self.bank, self.log_w, index, t, generator)
        with torch.no_grad():
            exact = self.importance(self.model, batch.x_t, batch.t, batch.condition).shift
        shift = network(batch.x_t, batch.t, batch.condition)
        return {"loss": (shift - exact).square().mean()}


def prompts_of(names: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Prompts of all names in turn, in random order, every other with a random background.

    The first ones of a longer list are those of a shorter one.

    Raises:
        ValueError: If there are not so many: each name has itself and twelve backgrounds.
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
    """One bank of all prompts, scored, from the store of a run as far as it is there.

    Arguments:
        run: Of the model and the reward.
        prompts: Distinct ones.
        draws: Of each.
        stream: Names the random numbers.
    """

    banks = []
    for i, prompt in enumerate(prompts):
        run.report("prompts", i, len(prompts))
        banks.append(run.bank(prompt, draws, *stream))
    run.report("prompts", len(prompts), len(prompts))
    rewards = torch.cat([bank.rewards for bank in banks if bank.rewards is not None])
    condition = [prompt for prompt in prompts for _ in range(draws)]
    return Bank(torch.cat([bank.x_0 for bank in banks]), condition, rewards)


@torch.no_grad()
def agreement(
    network: nn.Module, bank: Bank, tilt: Tilt, backbone: Any, states: int = 8, seed: int = 0
) -> dict[str, float]:
    r"""How close a network is to importance sampling on a bank that it has not seen.

    Half of the bank estimates the shift s, and so does the other half, with errors that are
    independent of the network's and of each other. So :math:`\langle s_1, s_2 \rangle` estimates
    the square of the length of the exact shift, free of the noise of the bank, and
    :math:`\langle g, (s_1 + s_2) / 2 \rangle` its product with the network's g. States are the
    noise that the model starts from. Products are summed over states and prompts.

    Arguments:
        network: For the shift.
        bank: Draws of the prompts to compare on, scored.
        tilt: The tilt.
        backbone: The model, at whose first time they are compared.
        states: Of each prompt.
        seed: Of the states.

    Returns:
        The cosine between the network's shift and the exact one, its relative error and the ratio
        of their lengths; the cosine of the two halves of the bank with each other; the share of
        the network's squared length that does not depend on the state. NaN where noise hides the
        length of the exact shift.
    """

    prompts = [key for key in bank.rows for _ in range(states)]
    condition = backbone.condition(prompts)
    x_t = backbone.draw_noise(len(prompts), generator_for(seed, "states"))
    t = backbone.times(1)[0].expand(len(prompts)).clone()
    model = BankMean(backbone.schedule, bank)
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
    """What guidance by the network in one step gains, and what the tilted law would.

    Arguments:
        network: For the shift.
        bank: Draws of the prompts to compare on, scored.
        tilt: The tilt.
        backbone: The model.
        samples: Of each prompt, with and without guidance from the same noise.
        seed: Of the noise.

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
    change = torch.stack(gains)
    return {
        "gain": float(change.mean()),
        "gain_standard_error": float(change.std() / len(change) ** 0.5),
        "gain_of_the_tilted_law": float(torch.stack(targets).mean()),
    }


@dataclass(frozen=True)
class Settings:
    """What is drawn and learned.

    Arguments:
        prompts: To learn from.
        draws: Of each.
        nats: The divergence from the model, mean over prompts; decides beta.
        steps: Of training.
        batch: Draws of a step, a multiple of 8.
        peak: The learning rate at the start.
        widths: Of the network.
        checked: Prompts of learned names, and of names held out, to compare on; as many draws as
            are learned from go into each half of their banks.
        seed: Of everything.
    """

    prompts: int = 200
    draws: int = 48
    nats: float = 1.0
    steps: int = 1000
    batch: int = 64
    peak: float = 2e-3
    widths: tuple[int, ...] = (32, 64)
    checked: int = 8
    seed: int = 0


def make(
    backbone: Any,
    reward: RewardFunction,
    settings: Settings,
    store: Store | None = None,
    report: Report = lambda stage, done, total: None,
    progress: bool = False,
) -> tuple[LatentShift, dict[str, float]]:
    """Draws the banks, trains a network, and holds it against banks that it has not seen.

    With a store it goes on where it was interrupted, and ends where it would have ended.

    Arguments:
        backbone: The model of one step, frozen.
        reward: (images, prompts) to rewards, with shape (B,).
        settings: What is drawn and learned.
        store: Where draws, rewards and the state of the training are kept; None for nowhere.
        report: Is told about progress of drawing.
        progress: Whether to show a progress bar of training.

    Returns:
        The network, in single precision, and its figures.
    """

    names = load_names()
    seed = settings.seed
    texts = prompts_of(names["train"], settings.prompts, seed)
    run = Run(backbone, reward, backbone.times(1), seed, settings.draws, store=store, report=report)
    bank = draw_bank(run, texts, settings.draws, "bank")
    tilt = Tilt.for_kl(reward, bank, settings.nats, backbone.decode)
    condition = backbone.condition(texts)
    pooled = condition.embeddings["pooled"].shape[1]
    network = LatentShift(
        bank.x_0.shape[1], backbone.schedule, pooled, settings.widths, depth=1, seed=seed
    )
    start = float(backbone.times(1)[0])
    objective = BankShift(
        bank, tilt, backbone.schedule, start, settings.batch, encode=lookup(condition)
    )
    checkpoint = None
    if store is not None and run.reward_key is not None:
        key = {**run.origin, "reward": run.reward_key, "settings": repr(settings)}
        checkpoint = store.of(key).folder / "training.pt"
    losses = fit(
        network, objective, settings.steps, settings.peak, seed, 1.0, checkpoint, 50, progress
    )
    network.requires_grad_(False).eval()
    figures = {
        "parameters": float(sum(p.numel() for p in network.parameters())),
        "nats": settings.nats,
        "beta": tilt.betas[0],
        "loss": float(losses[-len(losses) // 5 :].mean()),
    }
    parts = {"of_learned_names": names["train"], "of_names_held_out": names["held_out"]}
    for label, part in parts.items():
        # Another order than the one that is learned from, and other draws.
        chosen = prompts_of(part, settings.checked, seed + 1)
        check = draw_bank(run, chosen, 2 * settings.draws, "check")
        found = agreement(network, check, tilt, backbone, seed=seed)
        found |= gain(network, check, tilt, backbone, seed=seed)
        figures |= {f"{name}_{label}": value for name, value in found.items()}
    return network, figures


def read(folder: Path) -> tuple[LatentShift, dict[str, float]]:
    """The network in a folder, in single precision, and its figures, beta among them.

    Raises:
        FileNotFoundError: If there is none.
    """

    network: Any = load(folder / FILE)
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return network.float().requires_grad_(False).eval(), figures


def train(
    backbone: str = "emoji-turbo",
    reward: str = "emoji-pick",
    out: Path = Path("out/testbed/emoji-turbo-guide"),
    prompts: int = 200,
    draws: int = 48,
    nats: float = 1.0,
    steps: int = 1000,
    batch: int = 64,
    peak: float = 2e-3,
    checked: int = 8,
    decoder: str = "float32",
    seed: int = 0,
    threads: int = 1,
    smoke: bool = False,
) -> None:
    """Trains the guidance network and writes it to `out`, with figures and a card.

    Draws, rewards and the state of the training are kept beside `out`: the same command goes on
    where it was, and with fewer or more prompts it takes the draws that are there.

    Arguments:
        backbone: A model by name, or a folder with one of the class of emoji-turbo.
        reward: A reward by name, or a folder with one of the format of emoji-pick.
        out: Folder to write to.
        prompts: To learn from.
        draws: Of each.
        nats: The divergence from the model, mean over prompts; decides beta.
        steps: Of training.
        batch: Draws of a step, a multiple of 8.
        peak: The learning rate at the start.
        checked: Prompts of learned names, and of names held out, to measure with.
        decoder: Precision in which draws are decoded; bfloat16 is faster where the CPU has it.
        seed: Of everything.
        threads: Of PyTorch.
        smoke: A tiny network, few prompts, draws and steps, for tests.
    """

    import backbones
    import rewards

    torch.set_num_threads(threads)
    settings = Settings(prompts, draws, nats, steps, batch, peak, checked=checked, seed=seed)
    if smoke:
        settings = Settings(4, 4, 0.3, 3, 16, widths=(8,), checked=2, seed=seed)
    model: Any = _load(backbones.load, backbone, "emoji-turbo").requires_grad_(False).eval()
    model.pipe.vae.to(dtype=getattr(torch, decoder))
    model.to(memory_format=torch.channels_last)
    judge = _load(rewards.load, reward, "emoji-pick").requires_grad_(False).eval()
    started = time.monotonic()
    store = Store(out.with_name(f"{out.name}.state"))
    network, figures = make(model, judge, settings, store, _say, progress=True)
    figures["minutes"] = round((time.monotonic() - started) / 60, 1)
    figures = {k: round(value, 5) for k, value in figures.items() if not math.isnan(value)}
    out.mkdir(parents=True, exist_ok=True)
    network.half().save(out / FILE)
    command = f"--backbone {Path(backbone).name} --reward {Path(reward).name} --decoder {decoder}"
    _write_card(out, settings, figures, command)
    print(json.dumps(figures, indent=2))


def _load(load: Callable[..., Any], name: str, kind: str) -> Any:
    return load(kind, name) if Path(name).is_dir() else load(name)


def _halves(bank: Bank) -> tuple[Bank, Bank]:
    """Two banks, each with every other draw of every prompt."""

    def half(k: int) -> Bank:
        assert bank.rewards is not None
        rows = [i for r in bank.rows.values() for i in range(r.start, r.stop)[k::2]]
        return Bank(bank.x_0[rows], take(bank.condition, rows), bank.rewards[rows])

    return half(0), half(1)


def _say(stage: str, done: int, total: int) -> None:
    if stage == "prompts" and done % 10 == 0:
        print(json.dumps({"prompts": done, "of": total}), flush=True)


def _write_card(
    folder: Path, settings: Settings, figures: Mapping[str, float], command: str
) -> None:
    write_card(
        folder,
        f"The guidance network of `emoji-turbo` for one step, towards `emoji-pick` by "
        f"{settings.nats:g} nats: a `LatentShift` of {figures['parameters'] / 1e6:.2f} million "
        "parameters, stored in half precision. It sees the noise and the pooled embedding of the "
        "prompt, and gives what to add to the predicted latents. See `rwguidance_testbed.network` "
        "for what that is, and what it is not.\n\n"
        "    network, figures = rwguidance_testbed.network.read(folder)\n"
        '    guided = GuidedModel(backbones.load("emoji-turbo"), LearnedShift(network))',
        f"{settings.draws} draws of `emoji-turbo` for each of {settings.prompts} prompts of the "
        "names that it learned, with and without backgrounds, and what `emoji-pick` says of them.",
        "Regression of the shift that these draws give.",
        f"network {command} --prompts {settings.prompts} --draws {settings.draws} "
        f"--nats {settings.nats:g} --steps {settings.steps} --batch {settings.batch} "
        f"--peak {settings.peak:g} --seed {settings.seed}",
        f"Over {settings.checked} prompts of learned names and {settings.checked} of names held "
        f"out, against {2 * settings.draws} new draws of each: see `agreement` and `gain` of "
        "`rwguidance_testbed.network`.",
        figures,
    )


if __name__ == "__main__":
    require("typer", "the command needs", "testbed").run(train)
