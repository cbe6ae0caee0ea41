"""Objectives: losses of a guidance network on noised draws of a bank."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..bank import Bank
from ..estimators.base import gradient_to_shift
from ..losses import centered_residual, itakura_saito, marginal_residual
from ..models import Model, check_is_model
from ..prediction import Prediction
from ..regularizers import consistency, cycle, differentiable_gradient, gradient_penalty
from ..support import checks
from ..tilt import Tilt
from ..weights import log_mean_exp

__all__ = [
    "Encoder",
    "ExpectationObjective",
    "NoisedBatch",
    "Objective",
    "ShiftObjective",
    "TimeSampler",
    "uniform_times",
]

TimeSampler = Callable[[int, torch.Generator], Tensor]
"""A function of (n, generator) that draws n training times in [0, 1], float64, shape (n,)."""

Encoder = Callable[[list[Any]], Any]
"""A function from items of a bank's condition, such as prompts, to what a model takes."""


OBJECTIVE = ("model", "bank", "betas", "log_w", "batch_size", "times", "encode")
"""Attributes that decide every objective; of the tilt, its log-weights of the bank are all."""


def uniform_times(n: int, generator: torch.Generator) -> Tensor:
    """Draws times uniform on [0.001, 1]: below, a state tells its clean draw and h is known.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `n` is less than 1.
    """

    checks.integer("n", n, 1)
    checks.instance("generator", generator, torch.Generator, "a torch.Generator")
    return 0.001 + 0.999 * torch.rand(n, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class NoisedBatch:
    r"""Noised draws of a bank.

    Arguments:
        x_0: Clean draws, with shape (B, \*event).
        noise: The noise that was added, with shape (B, \*event).
        x_t: Noised draws, with shape (B, \*event).
        t: Times of the noised draws, float64, with shape (B,).
        condition: Conditions of the draws, as the model takes them.
        log_w: Centered log-weights of the clean draws, in nats, with shape (B,).
        log_importance: Centered log-importances of the clean draws, in nats, with shape (B,); None
            if they are draws of the law that the loss averages over.
    """

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    condition: Any
    log_w: Tensor
    log_importance: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Returns the average of values, one per draw, over the law that the draws stand for.

        Arguments:
            values: The values, with shape (B,); of another shape only where the draws are of the
                law itself.

        Raises:
            ValueError: If draws with log-importances have no value each.
        """

        if self.log_importance is None:
            return values.mean()
        if values.shape != self.log_importance.shape:
            raise ValueError(
                f"a loss must return one value per draw, {tuple(self.log_importance.shape)}, for "
                f"draws with log-importances, got {tuple(values.shape)}"
            )
        return (self.log_importance.exp().to(values) * values).mean()


@dataclass(eq=False, repr=False)
class Objective(ABC):
    """A loss to minimize over a network, drawn at random.

    A bank with log-importances, such as an annealed one, trains on the law of the model as well:
    its draws come as often as they are there, and :meth:`NoisedBatch.mean` weighs what the loss
    makes of them. So draws that a strong tilt favors are seen often, with a small importance.

    Arguments:
        model: The base model, frozen.
        bank: Draws of the law of `model`, or of another one, with log-importances.
        tilt: The tilt, applied to the bank's rewards (scored here if they are missing).
        batch_size: Number of draws per step.
        times: A function that draws the training times.
        encode: A function from items of the bank's condition, one per draw, to what the model and
            the networks are conditioned on; None if they take the items as they are.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `batch_size` is less than 1, or every draw of a condition has zero weight.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    model: Model
    bank: Bank
    tilt: Tilt
    _: KW_ONLY
    batch_size: int = 256
    times: TimeSampler = uniform_times
    encode: Encoder | None = None

    def __post_init__(self) -> None:
        check_is_model("model", self.model)
        checks.instance("bank", self.bank, Bank, "a Bank")
        checks.instance("tilt", self.tilt, Tilt, "a Tilt")
        checks.integer("batch_size", self.batch_size, 1)
        checks.function("times", self.times)
        checks.optional(checks.function, "encode", self.encode)
        if self.bank.rewards is None:
            self.bank = self.bank.scored(self.tilt)
        assert self.bank.rewards is not None
        self.log_importance = _centered_importance(self.bank)
        log_w = self.tilt.weigh(self.bank.rewards)
        self.log_w = _centered(log_w, self.bank, self.log_importance)

    @property
    def betas(self) -> tuple[float, ...]:
        """The temperatures of the tilt, in reward units."""

        return self.tilt.betas

    @abstractmethod
    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws a batch and returns the terms of the loss, scalars by name; their sum is it."""

    def noised(self, generator: torch.Generator) -> NoisedBatch:
        """Draws a batch: draws of the bank with replacement, times, noise."""

        index = torch.randint(len(self.bank), (self.batch_size,), generator=generator)
        t = self.times(self.batch_size, generator)
        batch = self._noise(self.bank, self.log_w, index, t, generator)
        return _with_importance(batch, self.log_importance, index)

    def base(self, batch: NoisedBatch) -> Prediction:
        """Returns the base model's prediction of a batch, without gradients."""

        with torch.no_grad():
            return self.model(batch.x_t, batch.t, batch.condition)

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


@dataclass(eq=False, repr=False)
class ExpectationObjective(Objective):
    r"""Trains a network for :math:`\log h_t`.

    It takes the arguments of :class:`Objective`, and those of the loss.

    Arguments:
        loss: A function from (log_h, log_w) to one value per sample, see :mod:`rwguidance.losses`.
            The contrastive loss wants groups: give `group_size`.
        eta: Weight of the consistency term; 0 leaves it out entirely.
        preferred: Samples for the consistency term, taken as they are (the "preferred only"
            variant: biased towards their law). None for the bank, weighted, which is unbiased.
        penalty: Weight of the gradient penalty; 0 leaves it out entirely.
        cycle_weight: Weight of the cycle term; 0 leaves it out entirely.
        classifier: A network from (x_t, t, condition) to the logits of the cycle term.
        group_size: Number of draws that share a time and a condition, given to the loss with shape
            (batch_size / group_size, group_size); 1 for none. Groups of a bank with log-importances
            are drawn by them, since a group has no importance but the product of all of its.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a weight is negative or not finite, `cycle_weight` and `classifier` are not
            given together, or `group_size` does not divide `batch_size`.

    References:
        | Reward-weighted guidance, arXiv:2602.00413
    """

    depends_on = (
        *OBJECTIVE,
        "loss",
        "eta",
        "preferred",
        "penalty",
        "cycle_weight",
        "classifier",
        "group_size",
    )

    loss: Callable[[Tensor, Tensor], Tensor] = itakura_saito
    eta: float = 0.0
    preferred: Bank | None = None
    penalty: float = 0.0
    cycle_weight: float = 0.0
    classifier: nn.Module | None = None
    group_size: int = 1

    def __post_init__(self) -> None:
        for name in ("eta", "penalty", "cycle_weight"):
            setattr(self, name, checks.number(name, getattr(self, name), 0))
        checks.function("loss", self.loss)
        checks.instance("preferred", self.preferred, (Bank, type(None)), "a Bank or None")
        checks.integer("group_size", self.group_size, 1)
        checks.integer("batch_size", self.batch_size, 1)
        if (self.cycle_weight > 0) != (self.classifier is not None):
            raise ValueError("cycle_weight and classifier must be given together")
        if self.batch_size % self.group_size:
            raise ValueError(
                f"group_size must divide batch_size={self.batch_size}, "
                f"got group_size={self.group_size}"
            )
        super().__post_init__()

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self._grouped(generator) if self.group_size > 1 else self.noised(generator)
        needs_gradient = self.penalty > 0 or (self.eta > 0 and self.preferred is None)
        x_t = batch.x_t.requires_grad_() if needs_gradient else batch.x_t
        log_h = network(x_t, batch.t, batch.condition)

        shape = (-1, self.group_size) if self.group_size > 1 else (-1,)
        terms = {"loss": batch.mean(self.loss(log_h.reshape(shape), batch.log_w.reshape(shape)))}
        if needs_gradient:
            gradient = differentiable_gradient(log_h, x_t)
        if self.penalty > 0:
            sigma = self.model.schedule.at(batch.t, like=x_t).sigma
            terms["penalty"] = self.penalty * batch.mean(gradient_penalty(gradient, sigma))
        if self.eta > 0 and self.preferred is None:
            guided = self._guided(batch, gradient)
            error = consistency(guided, batch.noise, batch.log_w)
            terms["consistency"] = self.eta * batch.mean(error)
        if self.eta > 0 and self.preferred is not None:
            terms["consistency"] = self.eta * self._preferred(network, generator)
        if self.classifier is not None:
            with torch.no_grad():
                logits = self.classifier(batch.x_t, batch.t, batch.condition)
            error = cycle(log_h, logits, batch.log_w)
            terms["cycle"] = self.cycle_weight * batch.mean(error)
        return terms

    def _grouped(self, generator: torch.Generator) -> NoisedBatch:
        groups = self.batch_size // self.group_size
        anchors = torch.randint(len(self.bank), (groups,), generator=generator).tolist()
        rows = [next(r for r in self.bank.rows.values() if i < r.stop) for i in anchors]
        index = torch.cat([self._members(r, generator) for r in rows])
        t = self.times(groups, generator).repeat_interleave(self.group_size)
        return self._noise(self.bank, self.log_w, index, t, generator)

    def _members(self, rows: slice, generator: torch.Generator) -> Tensor:
        """A group of draws of the law of the model, of those of one condition."""

        if self.log_importance is None:
            return torch.randint(rows.start, rows.stop, (self.group_size,), generator=generator)
        shares = self.log_importance[rows].double().softmax(0).cpu()
        return rows.start + shares.multinomial(self.group_size, True, generator=generator)

    def _preferred(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """The consistency term on preferred samples, unweighted."""

        assert self.preferred is not None
        bank, n = self.preferred, self.batch_size
        index = torch.randint(len(bank), (n,), generator=generator)
        no_weights = torch.zeros(len(bank))
        batch = self._noise(bank, no_weights, index, self.times(n, generator), generator)
        batch = _with_importance(batch, _centered_importance(bank), index)
        x_t = batch.x_t.requires_grad_()
        gradient = differentiable_gradient(network(x_t, batch.t, batch.condition), x_t)
        return batch.mean(consistency(self._guided(batch, gradient), batch.noise))

    def _guided(self, batch: NoisedBatch, gradient: Tensor) -> Prediction:
        """The base prediction shifted by the network, with gradients to its parameters."""

        prediction = self.base(batch)
        return prediction.shifted(
            gradient_to_shift(gradient, prediction, "draw training times below 1")
        )


@dataclass(eq=False, repr=False)
class ShiftObjective(Objective):
    r"""Trains a network for the shift itself.

    It takes the arguments of :class:`Objective`, and one more.

    Arguments:
        expectation: A network for :math:`\log h_t`, trained on the same bank, which turns the
            weighted regression (MRGM) into that of the centered residual, with far less noise.
    """

    depends_on = (*OBJECTIVE, "expectation")

    expectation: nn.Module | None = None

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
        return {"loss": batch.mean(loss)}


def _with_importance(
    batch: NoisedBatch, log_importance: Tensor | None, index: Tensor
) -> NoisedBatch:
    return batch if log_importance is None else replace(batch, log_importance=log_importance[index])


def _centered_importance(bank: Bank) -> Tensor | None:
    """Log-importances whose exponentials have mean one under every condition."""

    log_b = bank.log_importance
    if log_b is None:
        return None
    return torch.cat([log_b[rows] - log_mean_exp(log_b[rows]) for rows in bank.rows.values()])


def _centered(log_w: Tensor, bank: Bank, log_importance: Tensor | None) -> Tensor:
    """Log-weights whose exponentials have mean one over the law of every condition."""

    log_all = log_w if log_importance is None else log_w + log_importance.to(log_w)
    parts = []
    for key, rows in bank.rows.items():
        log_z = log_mean_exp(log_all[rows])
        if log_z == -math.inf:
            name = "" if key is None else f" of condition {key!r}"
            raise ValueError(
                f"training needs a draw of positive weight, but every reward{name} is -inf"
            )
        parts.append(log_w[rows] - log_z)
    return torch.cat(parts)
