"""Everything from prompts to a trained network and its figures."""

from dataclasses import dataclass
from typing import Any

from rwguidance.generation.run import Report, Run
from rwguidance.generation.store import Store
from rwguidance.networks import LatentShift
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
