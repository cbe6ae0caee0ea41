r"""Training guidance networks on a bank: two objectives and one loop, resumable bit for bit.

An objective draws from the bank, noises the draws and returns a loss; the loop knows nothing else.
Log-weights are centered per condition by :math:`\log \hat Z(y) = \log \frac1N \sum_i w_i` of the
bank, so every prompt trains on weights of mean one; a network for :math:`\log h_t` hence learns
:math:`\log h_t - \log \hat Z(y)`. The shift does not depend on that constant.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .bank import Bank
from .estimators.base import gradient_to_shift
from .losses import centered_residual, itakura_saito, marginal_residual
from .models import Model
from .prediction import Prediction
from .regularizers import consistency, cycle, differentiable_gradient, gradient_penalty
from .support.files import replacing
from .tilt import Tilt
from .weights import log_mean_exp

__all__ = [
    "Encoder",
    "ExpectationObjective",
    "NoisedBatch",
    "Objective",
    "ShiftObjective",
    "TimeSampler",
    "train",
    "uniform_times",
]

TimeSampler = Callable[[int, torch.Generator], Tensor]
"""Draws n training times in [0, 1], float64, with shape (n,)."""

Encoder = Callable[[list[Any]], Any]
"""Makes what a model is conditioned on from items of a bank's condition, such as prompts."""


def uniform_times(n: int, generator: torch.Generator) -> Tensor:
    """Times uniform on [0.001, 1]: below, a state tells its clean draw and h is known."""

    return 0.001 + 0.999 * torch.rand(n, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class NoisedBatch:
    r"""Noised draws of a bank.

    Arguments:
        x_0: Clean draws, with shape (B, \*event).
        noise: The noise that was added, with shape (B, \*event).
        x_t: Noised draws, with shape (B, \*event).
        t: Their times, float64, with shape (B,).
        condition: Their conditions.
        log_w: Centered log-weights, in nats, with shape (B,).
    """

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    condition: Any
    log_w: Tensor


class Objective(ABC):
    """A loss to minimize over a network, drawn at random.

    Arguments:
        model: The base model, frozen.
        bank: Draws of its law.
        tilt: The tilt, applied to the bank's rewards (scored here if they are missing).
        batch_size: Draws per step.
        times: Draws the training times.
        encode: Makes what the model and the networks are conditioned on from items of the bank's
            condition, one per draw; None if they take these as they are.
    """

    def __init__(
        self,
        model: Model,
        bank: Bank,
        tilt: Tilt,
        batch_size: int = 256,
        times: TimeSampler = uniform_times,
        encode: Encoder | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.bank = bank if bank.rewards is not None else bank.scored(tilt)
        assert self.bank.rewards is not None
        self.log_w = _centered(tilt.weigh(self.bank.rewards), self.bank)
        self.batch_size = batch_size
        self.times = times
        self.encode = encode

    @abstractmethod
    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws a batch and returns the terms of the loss, scalars by name; their sum is it."""

    def noised(self, generator: torch.Generator) -> NoisedBatch:
        """Draws a batch: draws of the bank with replacement, times, noise."""

        index = torch.randint(len(self.bank), (self.batch_size,), generator=generator)
        t = self.times(self.batch_size, generator)
        return self._noise(self.bank, self.log_w, index, t, generator)

    def base(self, batch: NoisedBatch) -> Prediction:
        """The base model's prediction of a batch, without gradients."""

        with torch.no_grad():
            prediction: Prediction = self.model(batch.x_t, batch.t, batch.condition)
        return prediction

    def _noise(
        self, bank: Bank, log_w: Tensor, index: Tensor, t: Tensor, generator: torch.Generator
    ) -> NoisedBatch:
        """The draws `index` of a bank, noised to times `t`."""

        x_0 = bank.x_0[index]
        t = t.to(x_0.device)
        noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype).to(x_0.device)
        condition: Any = None
        if bank.condition is not None:
            condition = [bank.condition[i] for i in index.tolist()]
            condition = condition if self.encode is None else self.encode(condition)
        x_t = self.model.schedule.perturb(x_0, t, noise)
        return NoisedBatch(x_0, noise, x_t, t, condition, log_w[index])


class ExpectationObjective(Objective):
    r"""Trains a network for :math:`\log h_t`.

    Arguments:
        model: The base model, frozen.
        bank: Draws of its law.
        tilt: The tilt.
        loss: (log_h, log_w) to one value per sample, see :mod:`rwguidance.losses`. The contrastive
            loss wants groups: give `group_size`.
        eta: Weight of the consistency term; 0 leaves it out entirely.
        preferred: Samples for the consistency term, taken as they are (the "preferred only"
            variant: biased towards their law). None for the bank, weighted, which is unbiased.
        penalty: Weight of the gradient penalty; 0 leaves it out entirely.
        cycle_weight: Weight of the cycle term; 0 leaves it out entirely.
        classifier: Gives the logits (x_t, t, condition) for the cycle term.
        group_size: Draws that share a time and a condition, given to the loss with shape
            (batch_size / group_size, group_size); 1 for none.
        batch_size: Draws per step.
        times: Draws the training times.
        encode: Makes what the model and the networks are conditioned on from items of the bank's
            condition, one per draw; None if they take these as they are.

    References:
        | Reward-weighted guidance, arXiv:2602.00413
    """

    def __init__(
        self,
        model: Model,
        bank: Bank,
        tilt: Tilt,
        loss: Callable[[Tensor, Tensor], Tensor] = itakura_saito,
        eta: float = 0.0,
        preferred: Bank | None = None,
        penalty: float = 0.0,
        cycle_weight: float = 0.0,
        classifier: nn.Module | None = None,
        group_size: int = 1,
        batch_size: int = 256,
        times: TimeSampler = uniform_times,
        encode: Encoder | None = None,
    ) -> None:
        super().__init__(model, bank, tilt, batch_size, times, encode)
        for name, value in (("eta", eta), ("penalty", penalty), ("cycle_weight", cycle_weight)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if (cycle_weight > 0) != (classifier is not None):
            raise ValueError("cycle_weight and classifier must be given together")
        if group_size < 1 or batch_size % group_size:
            raise ValueError(
                f"group_size must divide batch_size={batch_size}, got group_size={group_size}"
            )
        self.loss = loss
        self.eta = eta
        self.penalty = penalty
        self.cycle_weight = cycle_weight
        self.classifier = classifier
        self.group_size = group_size
        self.preferred = preferred

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self._grouped(generator) if self.group_size > 1 else self.noised(generator)
        needs_gradient = self.penalty > 0 or (self.eta > 0 and self.preferred is None)
        x_t = batch.x_t.requires_grad_() if needs_gradient else batch.x_t
        log_h = network(x_t, batch.t, batch.condition)

        shape = (-1, self.group_size) if self.group_size > 1 else (-1,)
        terms = {"loss": self.loss(log_h.reshape(shape), batch.log_w.reshape(shape)).mean()}
        if needs_gradient:
            gradient = differentiable_gradient(log_h, x_t)
        if self.penalty > 0:
            sigma = self.model.schedule.at(batch.t, like=x_t).sigma
            terms["penalty"] = self.penalty * gradient_penalty(gradient, sigma).mean()
        if self.eta > 0 and self.preferred is None:
            guided = self._guided(batch, gradient)
            terms["consistency"] = self.eta * consistency(guided, batch.noise, batch.log_w).mean()
        if self.eta > 0 and self.preferred is not None:
            terms["consistency"] = self.eta * self._preferred(network, generator)
        if self.classifier is not None:
            with torch.no_grad():
                logits = self.classifier(batch.x_t, batch.t, batch.condition)
            terms["cycle"] = self.cycle_weight * cycle(log_h, logits, batch.log_w).mean()
        return terms

    def _grouped(self, generator: torch.Generator) -> NoisedBatch:
        groups = self.batch_size // self.group_size
        anchors = torch.randint(len(self.bank), (groups,), generator=generator).tolist()
        rows = [next(r for r in self.bank.rows.values() if i < r.stop) for i in anchors]
        index = torch.cat(
            [torch.randint(r.start, r.stop, (self.group_size,), generator=generator) for r in rows]
        )
        t = self.times(groups, generator).repeat_interleave(self.group_size)
        return self._noise(self.bank, self.log_w, index, t, generator)

    def _preferred(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """The consistency term on preferred samples, unweighted."""

        assert self.preferred is not None
        bank, n = self.preferred, self.batch_size
        index = torch.randint(len(bank), (n,), generator=generator)
        no_weights = torch.zeros(len(bank))
        batch = self._noise(bank, no_weights, index, self.times(n, generator), generator)
        x_t = batch.x_t.requires_grad_()
        gradient = differentiable_gradient(network(x_t, batch.t, batch.condition), x_t)
        return consistency(self._guided(batch, gradient), batch.noise).mean()

    def _guided(self, batch: NoisedBatch, gradient: Tensor) -> Prediction:
        """The base prediction shifted by the network, with gradients to its parameters."""

        prediction = self.base(batch)
        return prediction.shifted(
            gradient_to_shift(gradient, prediction, "draw training times below 1")
        )


class ShiftObjective(Objective):
    r"""Trains a network for the shift itself.

    Arguments:
        model: The base model, frozen.
        bank: Draws of its law.
        tilt: The tilt.
        expectation: A network for :math:`\log h_t`, trained on the same bank, which turns the
            weighted regression (MRGM) into that of the centered residual, with far less noise.
        batch_size: Draws per step.
        times: Draws the training times.
        encode: Makes what the model and the networks are conditioned on from items of the bank's
            condition, one per draw; None if they take these as they are.
    """

    def __init__(
        self,
        model: Model,
        bank: Bank,
        tilt: Tilt,
        expectation: nn.Module | None = None,
        batch_size: int = 256,
        times: TimeSampler = uniform_times,
        encode: Encoder | None = None,
    ) -> None:
        super().__init__(model, bank, tilt, batch_size, times, encode)
        self.expectation = expectation

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self.noised(generator)
        mean = self.base(batch).mean
        shift = network(batch.x_t, batch.t, batch.condition)
        if self.expectation is None:
            loss = marginal_residual(shift, mean, batch.x_0, batch.log_w)
        else:
            with torch.no_grad():
                log_h = self.expectation(batch.x_t, batch.t, batch.condition)
            loss = centered_residual(shift, mean, batch.x_0, batch.log_w, log_h)
        return {"loss": loss.mean()}


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

    Arguments:
        network: Trained in place.
        objective: (network, generator) to the terms of the loss.
        steps: Number of steps.
        learning_rate: At the start; decays to zero.
        seed: Of the draws.
        max_norm: Bound on the norm of the gradient; None for none.
        checkpoint: File to continue from, if it exists, and to save to.
        save_every: Steps between saves.
        progress: Whether to show a progress bar.

    Returns:
        The loss of every step, float64, with shape (steps,).

    Raises:
        ValueError: If the checkpoint was made with other settings, or a setting is out of range.
        FloatingPointError: If the loss is not finite; names the step and the terms.
    """

    if steps < 1 or save_every < 1:
        raise ValueError(f"steps and save_every must be at least 1, got {steps} and {save_every}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    settings = {"steps": steps, "learning_rate": learning_rate, "seed": seed, "max_norm": max_norm}
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.full((steps,), torch.nan, dtype=torch.float64)
    start = 0
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"checkpoint must lie in an existing folder, got {path}")
    if path is not None and path.is_file():
        start, losses = _resume(path, settings, network, optimizer, generator)

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
            _save(path, settings, network, optimizer, generator, step + 1, losses)
    return losses


def _track(steps: range, progress: bool, total: int, completed: int) -> Any:
    if not progress:
        return steps
    from rich.progress import track

    return track(steps, description="training", total=total, completed=completed)


def _save(
    path: Path,
    settings: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
    losses: Tensor,
) -> None:
    state = {
        "settings": settings,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "step": step,
        "losses": losses,
    }
    with replacing(path) as partial:
        torch.save(state, partial)


def _resume(
    path: Path,
    settings: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[int, Tensor]:
    state = torch.load(path, weights_only=True)
    if state["settings"] != settings:
        raise ValueError(
            f"checkpoint {path} was made with {state['settings']}, but this run asks for "
            f"{settings}; use the same settings, or another file"
        )
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return state["step"], state["losses"]


def _centered(log_w: Tensor, bank: Bank) -> Tensor:
    parts = []
    for key, rows in bank.rows.items():
        log_z = log_mean_exp(log_w[rows])
        if log_z == -math.inf:
            name = "" if key is None else f" of condition {key!r}"
            raise ValueError(
                f"training needs a draw of positive weight, but every reward{name} is -inf"
            )
        parts.append(log_w[rows] - log_z)
    return torch.cat(parts)
