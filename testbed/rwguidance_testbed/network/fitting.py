"""Everything from prompts to a trained network and its figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rwguidance.bank import Bank
from rwguidance.generation.run import Report, Run
from rwguidance.networks import LatentShift
from rwguidance.store import Store
from rwguidance.support.conditions import lookup
from rwguidance.tilt import RewardFunction, Tilt
from rwguidance.training import train as fit

from ..data import load_names
from .banks import draw_bank, prompts_of
from .evaluation import agreement, gain
from .objective import BankShift

__all__ = ["Settings", "make"]


@dataclass(frozen=True)
class Settings:
    """Settings of the draws and of the training.

    Arguments:
        prompts: Number of prompts to learn from.
        draws: Number of draws of each prompt.
        nats: Divergence of the target from the model, mean over prompts; decides beta.
        steps: Steps of training.
        batch: Draws of a step, a multiple of 8.
        peak: Learning rate at the start.
        widths: Channels of the network at each resolution.
        checked: Number of prompts of learned names, and of names held out, to compare on; as many
            draws as are learned from go into each half of their banks.
        seed: Seed of everything.
    """

    prompts: int = 200
    draws: int = 48
    nats: float = 1.0
    steps: int = 1000
    batch: int = 64
    peak: float = 2e-3
    widths: tuple[int, ...] = field(default=(32, 64), metadata={"option": False})
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
        backbone: Model of one step, frozen.
        reward: Function of (images, prompts) that gives rewards, with shape (B,).
        settings: Settings of the draws and of the training.
        store: Store of draws, rewards and the state of the training; None keeps nothing.
        report: Function that is told about progress of drawing.
        progress: Whether to show a progress bar of training.

    Returns:
        The network, in single precision, and its figures.
    """

    seed, names = settings.seed, load_names()
    run = Run(backbone, reward, backbone.times(1), seed, settings.draws, store=store, report=report)
    prompts = prompts_of(names["train"], settings.prompts, seed)
    bank = draw_bank(run, prompts, settings.draws, "bank")
    tilt = Tilt.for_kl(reward, bank, settings.nats, backbone.decode)
    network, losses = _fit(run, prompts, bank, tilt, settings, store, progress)
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


def _fit(
    run: Run,
    prompts: Sequence[str],
    bank: Bank,
    tilt: Tilt,
    settings: Settings,
    store: Store | None,
    progress: bool,
) -> tuple[LatentShift, Tensor]:
    """Returns a network that learned the shift of a bank, frozen, and the loss of every step."""

    backbone: Any = run.backbone
    condition = backbone.condition(prompts)
    pooled = condition.embeddings["pooled"].shape[1]
    channels, schedule = bank.x_0.shape[1], backbone.schedule
    network = LatentShift(channels, schedule, pooled, settings.widths, depth=1, seed=settings.seed)
    start = float(backbone.times(1)[0])
    objective = BankShift(bank, tilt, schedule, start, settings.batch, encode=lookup(condition))
    checkpoint = None
    if store is not None and run.reward_key is not None:
        key = {**run.origin, "reward": run.reward_key, "settings": repr(settings)}
        checkpoint = store.of(key).folder / "training.pt"
    steps, peak, seed = settings.steps, settings.peak, settings.seed
    losses = fit(network, objective, steps, peak, seed, 1.0, checkpoint, 50, progress)
    return network.requires_grad_(False).eval(), losses
