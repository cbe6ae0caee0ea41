"""Long training runs that may be interrupted: what they save, and how a rate of learning falls."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.files import replacing
from rwguidance.support.fingerprint import fingerprint
from rwguidance.training.origin import check_origin

__all__ = ["Run", "learning_rate", "move_averages"]


class Run:
    """The state of a run, in one file: modules, optimizer, generator and the step reached.

    Arguments:
        path: The file.
        modules: By name; their weights are saved and restored.
        optimizer: Likewise.
        generator: Likewise: a run that was interrupted continues as if it had not been.
        every: Seconds between two files.
        made_with: What decides the result besides the number of steps, which may grow: data,
            models and options by name. A file of anything else is refused.
    """

    def __init__(
        self,
        path: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        generator: Generator,
        every: float = 120.0,
        made_with: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.modules, self.optimizer = path, dict(modules), optimizer
        self.generator, self.every = generator, every
        self.origin = {name: fingerprint(value) for name, value in (made_with or {}).items()}
        self.origin["optimizer"] = type(optimizer).__name__
        self.step = self.seen = 0
        self.seconds = 0.0

    def restore(self) -> bool:
        """Continues from the file, if there is one; says whether there was.

        Raises:
            ValueError: If the file was made with anything else; names what differs.
        """

        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        check_origin(self.path, state.get("origin"), self.origin)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        return True

    def save(self) -> None:
        """Writes the file."""

        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "origin": self.origin,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
        }
        with replacing(self.path) as path:
            torch.save(state, path)

    def train(
        self,
        steps: int,
        batch: int,
        rate: Callable[[int], float],
        loss: Callable[[], Tensor],
        after: Callable[[int], None] = lambda step: None,
        printed: int = 100,
    ) -> None:
        """Takes steps until `steps` were taken in all, and prints the mean of the losses.

        Arguments:
            steps: Their number, those before the run was restored counted in.
            batch: Pictures of a step.
            rate: The learning rate at a step.
            loss: Draws a batch and returns its loss.
            after: Called after every step with the number of steps.
            printed: Steps between two lines.
        """

        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        saved = started = time.monotonic()
        before = self.seconds
        recent: list[float] = []
        while self.step < steps:
            for group in self.optimizer.param_groups:
                group["lr"] = rate(self.step)
            value = loss()
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            self.seen += batch
            self.seconds = before + time.monotonic() - started
            recent.append(float(value.detach()))
            if self.step % printed == 0 or self.step == steps:
                mean = round(sum(recent) / len(recent), 4)
                line = {"step": self.step, "loss": mean, "seen": self.seen}
                print(json.dumps({**line, "minutes": round(self.seconds / 60, 1)}), flush=True)
                recent.clear()
            after(self.step)
            if time.monotonic() - saved > self.every or self.step == steps:
                self.save()
                saved = time.monotonic()


def move_averages(
    averages: Sequence[Tensor], weights: Sequence[Tensor], step: int, decay: float = 0.999
) -> None:
    """Moves averages of weights towards these, in place.

    Arguments:
        averages: At the start equal to the weights.
        weights: After a step.
        step: Number of steps; in the first ones averages reach less far back.
        decay: What remains of an average after one step.
    """

    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averages), [w.detach() for w in weights], share)


def learning_rate(
    step: int, steps: int, peak: float, warmup: int = 200, tail: float = 0.3
) -> float:
    """Linear rise, plateau, linear fall to a hundredth: a run can go on from the plateau.

    Arguments:
        step: Where the run is.
        steps: Where it ends.
        peak: The rate on the plateau.
        warmup: Length of the rise, in steps.
        tail: Length of the fall, as a fraction of `steps`.
    """

    rise = (step + 1) / warmup
    fall = 0.01 + 0.99 * (steps - step) / max(1.0, tail * steps)
    return peak * min(1.0, rise, fall)
