"""Training runs that end by the clock, may be interrupted, and have several optimizers."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.files import replacing
from rwguidance.support.tensors import read_pickle

__all__ = ["TimedRun", "adam", "descend", "rate_after", "set_rate"]


class TimedRun:
    """A run of some minutes whose state is in one file: modules, optimizers, generator and time.

    Arguments:
        path: The file.
        modules: Modules by name, averages among them.
        optimizers: Optimizers by name, as :func:`adam` makes them.
        generator: Source of random numbers.
        interval: Seconds between two files.
    """

    def __init__(
        self,
        path: Path,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: Generator,
        interval: float = 120.0,
    ) -> None:
        self.path, self.modules, self.optimizers = path, dict(modules), dict(optimizers)
        self.generator, self.interval = generator, interval
        self.step = 0
        self.seconds = 0.0

    def restore(self) -> bool:
        """Goes on from the file if there is one; prints and returns whether there was."""

        if not self.path.exists():
            return False
        state = read_pickle(self.path, self.generator.device)
        for kind in ("modules", "optimizers"):
            for name, part in getattr(self, kind).items():
                part.load_state_dict(state[kind][name])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"going on at step {self.step}", flush=True)
        return True

    def save(self) -> None:
        """Writes the file."""

        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = {
            kind: {name: part.state_dict() for name, part in getattr(self, kind).items()}
            for kind in ("modules", "optimizers")
        }
        state = {**parts, "generator": self.generator.get_state()}
        with replacing(self.path) as path:
            torch.save({**state, "step": self.step, "seconds": self.seconds}, path)

    def steps(
        self, minutes: float, losses: Mapping[str, Tensor], printed: float = 10.0
    ) -> Iterator[float]:
        """Yields the share of the time that has passed until all has, at least once.

        Arguments:
            minutes: Time of the run, that before it was restored counted in.
            losses: Numbers to print, each of which the steps overwrite.
            printed: Seconds between two lines.
        """

        before, started = self.seconds, time.monotonic()
        saved = shown = started
        while True:
            yield min(1.0, self.seconds / (60 * minutes))
            if self.generator.device.type == "cuda":
                torch.cuda.synchronize()  # else the clock would run ahead of the kernels
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - started
            over = self.seconds >= 60 * minutes
            if now - shown > printed or over:
                row = {name: round(float(value), 4) for name, value in losses.items()}
                line = {"step": self.step, "seconds": round(self.seconds), **row}
                print(json.dumps(line), flush=True)
                shown = now
            if now - saved > self.interval or over:
                self.save()
                saved = now
            if over:
                return


def rate_after(share: float, peak: float, rise: float = 0.02, tail: float = 0.4) -> float:
    """Returns a rate that rises linearly, stays, and falls linearly to a hundredth.

    Arguments:
        share: Share of the run that has passed, from 0 to 1.
        peak: Rate on the plateau.
        rise: Share of the run in which it rises, from a hundredth.
        tail: Share of the run in which it falls.
    """

    return peak * min(1.0, 0.01 + share / rise, 0.01 + 0.99 * (1 - share) / tail)


def adam(
    parameters: Iterable[nn.Parameter], device: torch.device, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Returns AdamW whose rate is a tensor, so that it may be part of a graph of kernels.

    Arguments:
        parameters: Parameters, on that device.
        device: Device.
        betas: Decay rates of both moments.
    """

    return torch.optim.AdamW(
        list(parameters),
        lr=torch.tensor(0.0, device=device),
        betas=betas,
        weight_decay=0.0,
        fused=True,
        capturable=device.type == "cuda",
    )


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, largest: float = 1.0) -> None:
    """Takes a step of an optimizer down a loss, gradients of the parameters of others left alone.

    Arguments:
        optimizer: The optimizer.
        loss: Loss of any sign, a number.
        largest: Norm to which larger gradients are scaled down.
    """

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, largest)
    optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of an optimizer of :func:`adam`, where a graph of kernels reads it."""

    for group in optimizer.param_groups:
        group["lr"].fill_(rate)
