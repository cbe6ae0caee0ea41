"""Long training runs that may be interrupted: the loop, what it saves, and the learning rate."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.files import replacing
from rwguidance.support.fingerprint import fingerprint
from rwguidance.support.tensors import read_pickle
from rwguidance.training.origin import check_origin

from .ema import ExponentialMovingAverage

__all__ = ["Run", "learning_rate"]


class Run:
    """A training run whose state is in one file: modules, optimizer, generator and step.

    Arguments:
        path: The file.
        modules: Modules by name, averages among them; their weights are saved and restored.
        optimizer: Optimizer of the weights, saved and restored.
        generator: Source of random numbers, saved and restored: a run that was interrupted goes on
            as if it had not been.
        made_with: Data, models and options that decide the result, by name, but for the number of
            steps, which may grow. A file of anything else is refused.
        average: Averages of the weights, which follow every step.
        interval: Seconds between two files.
    """

    def __init__(
        self,
        path: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        generator: Generator,
        made_with: Mapping[str, Any],
        average: ExponentialMovingAverage | None = None,
        interval: float = 120.0,
    ) -> None:
        self.path, self.modules, self.optimizer = path, dict(modules), optimizer
        self.generator, self.average, self.interval = generator, average, interval
        self.origin = {name: fingerprint(value) for name, value in made_with.items()}
        self.origin["optimizer"] = type(optimizer).__name__
        self.step = self.seen = 0
        self.seconds = 0.0

    def restore(self) -> bool:
        """Goes on from the file if there is one; prints and returns whether there was.

        Raises:
            ValueError: If the file was made with anything else; names what differs.
        """

        if not self.path.exists():
            return False
        state = read_pickle(self.path)
        check_origin(self.path, state.get("origin"), self.origin)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        print(f"going on at step {self.step}")
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
        write: Callable[[], None] = lambda: None,
        every: int | None = None,
        printed: int = 100,
    ) -> None:
        """Takes steps until `steps` were taken in all, and prints means of the recent losses.

        Arguments:
            steps: Number of steps, those before the run was restored counted in.
            batch: Pictures of a step.
            rate: Function that gives the learning rate at a step.
            loss: Function that draws a batch and returns its loss.
            write: Function that writes what is learned; called at the end, too.
            every: Steps between two calls of `write`; None calls it at the end alone.
            printed: Steps between two lines.
        """

        started, before = time.monotonic(), self.seconds
        saved = started
        recent: list[float] = []
        while self.step < steps:
            recent.append(self._step(rate(self.step), loss))
            self.seen += batch
            self.seconds = before + time.monotonic() - started
            if self.step % printed == 0 or self.step == steps:
                self._print(sum(recent) / len(recent))
                recent.clear()
            if every is not None and self.step % every == 0 and self.step < steps:
                write()
            if time.monotonic() - saved > self.interval or self.step == steps:
                self.save()
                saved = time.monotonic()
        write()

    def figures(self) -> dict[str, float]:
        """Returns the steps taken, the pictures seen and the minutes spent."""

        minutes = round(self.seconds / 60, 1)
        return {"steps": self.step, "pictures_seen": self.seen, "minutes": minutes}

    def _step(self, rate: float, loss: Callable[[], Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value = loss()
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return float(value.detach())

    def _print(self, loss: float) -> None:
        line = {"step": self.step, "loss": round(loss, 4), "seen": self.seen}
        print(json.dumps({**line, "minutes": round(self.seconds / 60, 1)}), flush=True)


def learning_rate(
    step: int, steps: int, peak: float, warmup: int = 200, tail: float = 0.3
) -> float:
    """Returns a rate that rises linearly, stays, and falls linearly to a hundredth.

    A run can go on from the plateau.

    Arguments:
        step: Number of steps taken.
        steps: Number of steps in all.
        peak: Rate on the plateau.
        warmup: Length of the rise, in steps.
        tail: Length of the fall, as a fraction of `steps`.
    """

    rise = (step + 1) / warmup
    fall = 0.01 + 0.99 * (steps - step) / max(1.0, tail * steps)
    return peak * min(1.0, rise, fall)
