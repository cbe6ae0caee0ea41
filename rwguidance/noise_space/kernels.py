"""Metropolis steps of noise that keep the tilted law: one proposal, one acceptance."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..weights import log_uniform
from .slopes import inner, slope
from .tasks import Task, where


@dataclass(frozen=True)
class State:
    """Chains at one time.

    Arguments:
        z: Noise, float32 or wider, with shape (B, *).
        x_0: Clean states.
        log_w: Log-weights of the clean states, in nats, with shape (B,).
        gradient: Gradients of the log-weights in the noise; empty, with shape (B, 0), where the
            kernel needs none.
    """

    z: Tensor
    x_0: Tensor
    log_w: Tensor
    gradient: Tensor

    def replaced(self, mask: Tensor, new: "State") -> "State":
        """Chains that are `new` where the mask, with shape (B,), is true."""

        return State(
            where(mask, new.z, self.z),
            where(mask, new.x_0, self.x_0),
            where(mask, new.log_w, self.log_w),
            where(mask, new.gradient, self.gradient),
        )


class CrankNicolson:
    """Proposals that keep the law of the noise; no gradient."""

    def at(self, task: Task, z: Tensor, rows: list[int], dtype: torch.dtype) -> State:
        """Chains at the noise z, which the generator sees in `dtype`."""

        x_0, log_w = task.evaluate(z.to(dtype), rows)
        return State(z, x_0, log_w, z.new_zeros(len(rows), 0))

    def drift(self, state: State, keep: Tensor) -> Tensor:
        """Mean of the proposals minus `keep` times the state."""

        return torch.zeros_like(state.z)

    def log_ratio(self, old: State, new: State, keep: Tensor) -> Tensor:
        """Logarithm of the ratio that the Metropolis test compares with a uniform number."""

        return new.log_w - old.log_w


class Langevin(CrankNicolson):
    """Proposals that follow the gradient as well, see :func:`rwguidance.noise_space.pcnl`."""

    def __init__(self, std: float) -> None:
        self.std = std

    def at(self, task: Task, z: Tensor, rows: list[int], dtype: torch.dtype) -> State:
        return State(z, *slope(task, task.generate, z, rows, dtype))

    def drift(self, state: State, keep: Tensor) -> Tensor:
        return _rows(1 - keep, state.z) * self.std**2 * state.gradient

    def log_ratio(self, old: State, new: State, keep: Tensor) -> Tensor:
        there, back = self._log_density(old, new, keep), self._log_density(new, old, keep)
        return new.log_w - old.log_w + (back - there).to(new.log_w)

    def _log_density(self, here: State, there: State, keep: Tensor) -> Tensor:
        """Log-density of the proposal `there` from `here`, in that of :class:`CrankNicolson`."""

        along = inner(here.gradient, there.z - _rows(keep, here.z) * here.z)
        squared = self.std**2 * inner(here.gradient, here.gradient)
        keep = keep.to(along)
        return (along - (1 - keep) / 2 * squared) / (1 + keep)


def step(
    kernel: CrankNicolson,
    task: Task,
    rows: list[int],
    state: State,
    rho: Tensor,
    dtype: torch.dtype,
) -> tuple[State, Tensor, Tensor]:
    """Chains after one step of sizes rho, float64, (B,): who moved, and log-acceptances, (B,)."""

    keep = (1 - rho**2).sqrt()
    proposal = _rows(keep, state.z) * state.z + kernel.drift(state, keep)
    proposal = proposal + _rows(rho, state.z) * task.noise(rows).to(state.z)
    new = kernel.at(task, proposal, rows, dtype)
    log_u = log_uniform((len(rows),), task.generators(rows)).to(state.log_w)
    log_ratio = kernel.log_ratio(state, new, keep)
    # a state of zero weight has no gradient that could be right
    log_ratio = torch.where(new.log_w == -math.inf, -math.inf, log_ratio)
    accept = log_u < log_ratio
    return state.replaced(accept, new), accept, log_ratio.clamp(max=0)


def _rows(values: Tensor, z: Tensor) -> Tensor:
    """Values of the rows of z, (B,), with its dtype, device and number of axes."""

    return values.to(z).reshape(-1, *[1] * (z.ndim - 1))
