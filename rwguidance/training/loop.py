"""The loop: it minimizes an objective and resumes bit for bit."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..support import checks
from ..support.files import remove_abandoned
from ..support.processes import ALONE, Processes
from .origin import origin_of
from .recipe import PLAIN, Recipe
from .state import State

__all__ = ["train"]

Report = Callable[[int, Mapping[str, float]], None]
"""A function that is told the number of a step, and its figures by name."""

Validate = Callable[[Any], Mapping[str, float]]
"""A function from a network to figures by name, which draws no numbers of the training's."""


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
    *,
    recipe: Recipe = PLAIN,
    processes: Processes = ALONE,
    report: Report | None = None,
    validate: Validate | None = None,
    validate_every: int = 500,
) -> Tensor:
    r"""Minimizes an objective with Adam and a cosine decay of the learning rate.

    With a checkpoint, an interrupted run continues where it was last saved and ends bit for bit
    where the uninterrupted run would have. Files are written atomically. All randomness comes from
    `seed`; networks that draw from the global generator (dropout) are not covered by that.

    Several processes share the parts of a batch (:attr:`Recipe.parts`), whose random numbers belong
    to the part and not to the process: they take the steps of a single process up to the rounding
    of sums, and one run may go on with another number of processes.

    A checkpoint carries fingerprints of what decides the result, and belongs to nothing else: all
    arguments but `save_every`, `progress`, `processes`, `report` and those of validation, what the
    objective depends on (of the objectives here: model, bank, temperatures and log-weights, batch
    size, the rest of its arguments), and the network, its class, options and shapes. Initial
    weights do not count, and neither can the number of steps grow, as the learning rate follows it.
    What does not say what it depends on (:mod:`rwguidance.support.fingerprint`), such as a
    function, can be told apart from others only as the very object that it is: with such an
    objective, a checkpoint continues in the process that made it, with the same object, and with
    such a network, with one of the same class. To continue elsewhere, write `depends_on` in the
    class.

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
        recipe: More of how the loss is minimized: parts of a batch, weight decay, average, ...
        processes: The processes that share the parts of each batch, and see the checkpoint; the
            first one writes it. All call this with networks of the same weights.
        report: Is told every step with its ``loss``, the terms of it, ``gradient norm`` and
            ``learning rate``, and with what `validate` found.
        validate: Is given the network as it would be if the training ended here, with the average
            of the weights if one is kept. It may draw from generators of its own alone; then the
            training is the same with it and without.
        validate_every: Number of steps between validations; there is one after the last step, too.

    Returns:
        The loss of every step, float64, with shape (steps,).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the checkpoint was made with anything else, which is named, or a setting is
            out of range.
        FloatingPointError: If the loss or its gradient is not finite; names the step and the terms.
        ConnectionError: If another process has ended.
    """

    checks.instance("network", network, nn.Module, "a torch.nn.Module")
    checks.function("objective", objective)
    steps = checks.integer("steps", steps, 1)
    learning_rate = checks.number("learning_rate", learning_rate, above=0)
    seed = checks.integer("seed", seed)
    checks.optional(checks.number, "max_norm", max_norm, above=0)
    save_every = checks.integer("save_every", save_every, 1)
    checks.flag("progress", progress)
    checks.instance("recipe", recipe, Recipe, "a Recipe")
    checks.instance("processes", processes, Processes, "Processes")
    checks.optional(checks.function, "report", report)
    checks.optional(checks.function, "validate", validate)
    validate_every = checks.integer("validate_every", validate_every, 1)
    recipe.check_shared(processes.size)
    path = None if checkpoint is None else checks.path("checkpoint", checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"checkpoint must lie in an existing folder, got {path}")

    state = State(network, recipe, steps, learning_rate, seed, max_norm, processes)
    origin: dict[str, str] = {}
    if path is not None:
        settings: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
        settings |= {"max_norm": max_norm, **recipe.settings}
        origin = origin_of(network, objective, settings)
    if path is not None and path.is_file():
        remove_abandoned(path.parent)  # of who was killed after the last step, and writes no more
        state.resume(path, origin)
    for step in _track(range(state.done, steps), progress, steps, state.done):
        figures = state.step(objective)
        if validate is not None and _is_due(step, validate_every, steps):
            with state.averaged():
                figures |= validate(network)
        if report is not None:  # before the checkpoint, so that no step of it is without
            report(step, figures)
        if path is not None and _is_due(step, save_every, steps):
            state.save(path, origin)
    state.finish()
    return state.losses


def _is_due(step: int, every: int, steps: int) -> bool:
    """Whether a step is one of every so many, or the last."""

    return (step + 1) % every == 0 or step + 1 == steps


def _track(steps: range, progress: bool, total: int, completed: int) -> Any:
    if not progress:
        return steps
    from rich.progress import track

    return track(steps, description="training", total=total, completed=completed)
