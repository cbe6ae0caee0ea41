"""Methods of the test bed's own that `rwguidance evaluate` reads from this file."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import rwguidance as rw
from rwguidance.generation import Importance, PlugInMean
from rwguidance.generation.run import Run
from rwguidance.generation.strength import tilt_of
from rwguidance.weights import ess, pareto_k


class PooledKernel(rw.ConditionalExpectation):
    r"""Importance sampling with a kernel that looks at means over `size` x `size` positions only.

    The means, times the size, are :math:`\alpha_t` times those of the clean state plus noise of
    variance :math:`\sigma_t^2`, in `size`:sup:`2` times fewer dimensions. So this is the exact
    estimate given less than the state, and its effective draws last longer.

    Arguments:
        bank: Bank with as many draws of each condition.
        tilt: Tilt of the bank's rewards.
        size: Side of the squares over which means are taken.
    """

    def __init__(self, bank: rw.Bank, tilt: rw.Tilt, size: int) -> None:
        super().__init__()
        assert bank.rewards is not None
        self.bank, self.log_w, self.size = bank, tilt.weigh(bank.rewards), size
        self.small = self._pool(bank.x_0)

    def _pool(self, x: Tensor) -> Tensor:
        return self.size * nn.functional.avg_pool2d(x.float(), self.size).flatten(1)

    def forward(
        self, model: rw.Model, x_t: Tensor, t: float | Tensor, condition: Any = None
    ) -> rw.Estimate:
        scales = model.schedule.at(t, like=x_t)
        alpha, sigma = (value.flatten(1) for value in (scales.alpha, scales.sigma))
        rows = [self.bank.rows[key] for key in condition]
        draws, small, log_w = (
            torch.stack([values[part] for part in rows])
            for values in (self.bank.x_0.flatten(1), self.small, self.log_w)
        )
        distance = (self._pool(x_t)[:, None] - alpha[..., None] * small).square().sum(-1)
        log_kernel = -distance / (2 * sigma**2)
        log_w = log_w.to(log_kernel)
        weight, tilted = log_kernel.softmax(1), (log_kernel + log_w).softmax(1)
        shift = torch.einsum("bn,bnd->bd", tilted - weight, draws).reshape(x_t.shape)
        diagnostics = {
            "ess": ess(log_kernel),
            "ess_tilted": ess(log_kernel + log_w),
            "pareto_k": pareto_k(log_kernel + log_w),
        }
        log_h = (log_kernel + log_w).logsumexp(1) - log_kernel.logsumexp(1)
        return rw.Estimate(model(x_t, t, condition), log_h, shift, diagnostics)


@dataclass(frozen=True)
class Pooled(Importance):
    """Importance guidance by :class:`PooledKernel`.

    Arguments:
        side: Number of means a side.
    """

    name: ClassVar[str] = "pooled"

    side: int = 1

    def estimator(self, run: Run, prompt: str) -> tuple[rw.ConditionalExpectation, dict[str, Any]]:
        bank = run.bank(prompt, self.bank, "bank")
        tilt = tilt_of(run, prompt, self.beta, self.kl, self.bank)
        kernel = PooledKernel(bank, tilt, bank.x_0.shape[-1] // self.side)
        return kernel, {"beta": tilt.betas[0]}


@dataclass(frozen=True)
class Jacobian(PlugInMean):
    """The plug-in estimator with the Jacobian of the model, whose memory it takes."""

    name: ClassVar[str] = "plug-in, Jacobian"

    def estimator(self, run: Run, prompt: str) -> tuple[rw.ConditionalExpectation, dict[str, Any]]:
        tilt = tilt_of(run, prompt, self.beta, self.kl, self.bank)
        return rw.PlugIn(tilt), {"beta": tilt.betas[0]}
