"""The loop: it minimizes an objective and resumes bit for bit."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..support import checks
from ..support.files import replacing
from ..support.tensors import read_pickle
from .origin import check_origin, origin_of

__all__ = ["train"]


def train(
    network: nn.Module,
    objective: Callable[[nn.Module, torch.Generator], dict[str, Tensor]],
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    max_norm: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 500,
    progress: bool = False,
) -> Tensor:
    r"""Minimizes an objective with Adam and a cosine decay of the learning rate.

    With a checkpoint, an interrupted run continues where it was last saved and ends bit for bit
    where the uninterrupted run would have. Files are written atomically. All randomness comes from
    `seed`; networks that draw from the global generator (dropout) are not covered by that.

    A checkpoint carries fingerprints of what decides the result, and belongs to nothing else: all
    arguments but `save_every` and `progress`, what the objective depends on (of the objectives
    here: model, bank, temperatures and log-weights, batch size, the rest of its arguments), and the
    network, its class, options and shapes. Initial weights do not count, and neither can the number
    of steps grow, as the learning rate follows it. What does not say what it depends on
    (:mod:`rwguidance.support.fingerprint`), such as a function, can be told apart from others only
    as the very object that it is: with such an objective, a checkpoint continues in the process
    that made it, with the same object, and with such a network, with one of the same class. To
    continue elsewhere, write `depends_on` in the class.

    Arguments:
        network: The network, which is trained in place.
        objective: A function from (network, generator) to the terms of the loss, by name.
        steps: Number of steps.
        learning_rate: Learning rate at the start; it decays to zero.
        seed: Seed of all random draws.
        max_norm: Bound on the norm of the gradient; None for no bound.
        checkpoint: File to continue from, if it exists, and to save to.
        save_every: Number of steps between saves.
        progress: Whether to show a progress bar.

    Returns:
        The loss of every step, float64, with shape (steps,).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the checkpoint was made with anything else, which is named, or a setting is
            out of range.
        FloatingPointError: If the loss is not finite; names the step and the terms.
    """

    checks.instance("network", network, nn.Module, "a torch.nn.Module")
    checks.function("objective", objective)
    steps = checks.integer("steps", steps, 1)
    learning_rate = checks.number("learning_rate", learning_rate, above=0)
    seed = checks.integer("seed", seed)
    checks.optional(checks.number, "max_norm", max_norm, above=0)
    checks.optional(checks.path, "checkpoint", checkpoint)
    save_every = checks.integer("save_every", save_every, 1)
    checks.flag("progress", progress)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.full((steps,), torch.nan, dtype=torch.float64)
    start = 0
    path = None if checkpoint is None else checks.path("checkpoint", checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"checkpoint must lie in an existing folder, got {path}")
    origin: dict[str, str] = {}
    if path is not None:
        settings = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
        origin = origin_of(network, objective, {**settings, "max_norm": max_norm})
    if path is not None and path.is_file():
        start, losses = _resume(path, origin, network, optimizer, generator)

    for step in _track(range(start, steps), progress, steps, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        terms = objective(network, generator)
        loss = torch.stack(list(terms.values())).sum()
        if not bool(loss.isfinite()):
            values = {name: float(value.detach()) for name, value in terms.items()}
            raise FloatingPointError(
                f"the loss is not finite at step {step}: {values}; use a larger beta, a smaller "
                "learning_rate, or a loss that does not exponentiate (itakura_saito)"
            )
        optimizer.zero_grad()
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        optimizer.step()
        losses[step] = float(loss.detach())
        if path is not None and ((step + 1) % save_every == 0 or step + 1 == steps):
            _save(path, origin, network, optimizer, generator, step + 1, losses)
    return losses


def _track(steps: range, progress: bool, total: int, completed: int) -> Any:
    if not progress:
        return steps
    from rich.progress import track

    return track(steps, description="training", total=total, completed=completed)


def _save(
    path: Path,
    origin: dict[str, str],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
    losses: Tensor,
) -> None:
    state = {
        "origin": origin,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "step": step,
        "losses": losses,
    }
    with replacing(path, durable=True) as partial:
        torch.save(state, partial)


def _resume(
    path: Path,
    origin: dict[str, str],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[int, Tensor]:
    state = read_pickle(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a checkpoint, got {type(state).__name__}")
    check_origin(path, state.get("origin"), origin)
    try:
        start, losses = int(state["step"]), state["losses"]
        if not 0 < start <= len(losses):
            raise ValueError(f"{start} steps of {len(losses)}")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a whole checkpoint: {error}") from None
    return start, losses.clone()
