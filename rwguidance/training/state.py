"""The state of a training between two steps: weights, optimizer, random numbers, losses."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..support.processes import Processes
from ..support.randomness import generator_for
from ..support.tensors import read_pickle, write_pickle
from .origin import check_origin
from .recipe import InBfloat16, Recipe

__all__ = ["State"]


@dataclass(eq=False)
class State:
    """What a training has come to; it changes with every step.

    Arguments:
        network: The network, trained in place.
        recipe: How the loss is minimized.
        steps: Number of steps.
        learning_rate: Learning rate at the start.
        seed: Seed of all random draws.
        max_norm: Bound on the norm of the gradient; None for no bound.
        processes: The processes that share the parts of each batch.
    """

    network: nn.Module
    recipe: Recipe
    steps: int
    learning_rate: float
    seed: int
    max_norm: float | None
    processes: Processes
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        decay = self.recipe.weight_decay
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=decay
        )
        # The first part has the numbers of a training without parts.
        self.generators = [
            generator_for(self.seed, "part", part)
            if part
            else torch.Generator().manual_seed(self.seed)
            for part in range(self.recipe.parts)
        ]
        self.losses = torch.full((self.steps,), torch.nan, dtype=torch.float64)
        self.averages = [p.detach().clone() for p in self.parameters] if self._averages else []
        self.seen = InBfloat16(self.network) if self.recipe.bfloat16 else self.network

    @property
    def _averages(self) -> bool:
        return self.recipe.average > 0

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""

        warmed = min(1.0, (self.done + 1) / self.recipe.warm_up) if self.recipe.warm_up else 1.0
        cosine = 1 + math.cos(math.pi * self.done / self.steps)
        return self.learning_rate * 0.5 * cosine * warmed

    def step(
        self, objective: Callable[[nn.Module, torch.Generator], dict[str, Tensor]]
    ) -> dict[str, float]:
        """Takes a step, and returns its figures: loss, terms, norm of the gradient, rate.

        Raises:
            FloatingPointError: If the loss or its gradient is not finite; no step is taken then.
            ConnectionError: If another process has ended.
        """

        rate = self.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        figures = self._differentiated(objective)
        if not all(map(math.isfinite, figures.values())):
            self._refuse("loss", figures)
        # Without a bound it is the norm alone that is wanted.
        bound = math.inf if self.max_norm is None else self.max_norm
        norm = float(nn.utils.clip_grad_norm_(self.parameters, bound))
        if not math.isfinite(norm):
            self._refuse("gradient of the loss", figures)
        self.optimizer.step()
        self._average()
        self.losses[self.done] = figures["loss"]
        self.done += 1
        return {**figures, "gradient norm": norm, "learning rate": rate}

    def _differentiated(
        self, objective: Callable[[nn.Module, torch.Generator], dict[str, Tensor]]
    ) -> dict[str, float]:
        """Computes the gradient of the mean over all parts; returns means of loss and terms."""

        self.optimizer.zero_grad()
        parts, sums = self.recipe.parts, dict[str, float]()
        for part in self.processes.deal(parts):
            terms = objective(self.seen, self.generators[part])
            loss = torch.stack(list(terms.values())).sum()
            if loss.isfinite():  # a gradient of NaN says no more than NaN
                (loss / parts if parts > 1 else loss).backward()
            found = {"loss": loss.detach(), **{f"term {k}": v.detach() for k, v in terms.items()}}
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        values = torch.tensor(list(sums.values()), dtype=torch.float64)
        values = self.processes.sum(values) / parts
        if self.processes.size > 1:
            self._sum_gradients()
        return dict(zip(sums, values.tolist(), strict=True))

    def _sum_gradients(self) -> None:
        """Replaces gradients by their sums over processes."""

        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        own = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        whole = self.processes.sum(own).split([p.numel() for p in self.parameters])
        for p, gradient in zip(self.parameters, whole, strict=True):
            p.grad = gradient.reshape(p.shape)

    def _refuse(self, what: str, figures: dict[str, float]) -> None:
        values = {
            name.removeprefix("term "): value
            for name, value in figures.items()
            if name.startswith("term ")
        }
        raise FloatingPointError(
            f"the {what} is not finite at step {self.done}: {values}; use a larger beta, a smaller "
            "learning_rate, or a loss that does not exponentiate (itakura_saito)"
        )

    @torch.no_grad()
    def _average(self) -> None:
        share = 1 - min(self.recipe.average, (1 + self.done) / (10 + self.done))
        for mean, p in zip(self.averages, self.parameters, strict=bool(self.averages)):
            mean.lerp_(p, share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averages in the place of the weights for a while, if there are any."""

        own = [p.detach().clone() for p in self.parameters] if self.averages else []
        self.finish()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self.parameters, own, strict=bool(own)):
                    p.copy_(value)

    @torch.no_grad()
    def finish(self) -> None:
        """Puts the averages in the place of the weights, if there are any."""

        for mean, p in zip(self.averages, self.parameters, strict=bool(self.averages)):
            p.copy_(mean)

    def save(self, path: Path, origin: dict[str, str]) -> None:
        """Writes a checkpoint, atomically, by the first process.

        Arguments:
            path: The file.
            origin: What it belongs to, by name.

        Raises:
            OSError: If it cannot be written.
        """

        mine = self.processes.deal(self.recipe.parts)
        own = {part: self.generators[part].get_state().tolist() for part in mine}
        states = {int(k): v for part in self.processes.gather(own) for k, v in part.items()}
        if not self.processes.first:
            return
        numbers = [torch.tensor(states[part], dtype=torch.uint8) for part in range(len(states))]
        state = {
            "origin": origin,
            "network": self.network.state_dict(),
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "generators": numbers,
            "step": self.done,
            "losses": self.losses,
        }
        write_pickle(path, state)

    def resume(self, path: Path, origin: dict[str, str]) -> None:
        """Goes on from a checkpoint.

        Arguments:
            path: The file.
            origin: What it must belong to.

        Raises:
            ValueError: If it belongs to something else, or is damaged.
        """

        state = read_pickle(path)
        if not isinstance(state, dict):
            raise ValueError(f"{path} must hold a checkpoint, got {type(state).__name__}")
        check_origin(path, state.get("origin"), origin)
        try:
            done, losses = int(state["step"]), state["losses"]
            if not 0 < done <= len(losses):
                raise ValueError(f"{done} steps of {len(losses)}")
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            for generator, numbers in zip(self.generators, state["generators"], strict=True):
                generator.set_state(numbers)
            for mean, saved in zip(self.averages, state["averages"], strict=True):
                mean.copy_(saved)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a whole checkpoint: {error}") from None
        self.done, self.losses = done, losses.clone()
